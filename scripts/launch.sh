# shellcheck shell=bash
# Sourced by the train_*, test_* and distill_* launchers: launch train|test|distill DATASET MODEL [arguments for the script]
#
#   SIZE=paper|fast|mini|latent   train: which configs/DATASET_MODEL_SIZE.yaml (default paper); if there is none,
#                          configs/DATASET_causaldae_SIZE.yaml with configs/baselines/MODEL.yaml over it.
#                          test, distill: which run (default the only one there is); if there is none, the weights in
#                          weights/
#                          latent: larger images, in the latent space of the autoencoder --vae_path, or of a small one
#                          that is trained first, into RUN_DIR/autoencoder (folder and circuit; not causalvae)
#   DATA_DIR=DIR           the data set (default data/DATASET in the clone; made there if it is missing)
#   MODEL=causaldae        for train.sh and counterfactual.sh: or diffscm, conditional, diffae, causalvae
#   MNIST=DIR              IDX files from which MNIST and MorphoMNIST are made (default: downloaded)
#   RUN_DIR=DIR            checkpoints and logs (default runs/DATASET_MODEL_SIZE in the clone; of a distilled model,
#                          runs/DATASET_MODEL_SIZE_4step for --few_steps 4)
#   OUT_DIR=DIR            output of a test (default RUN_DIR/test)
#   NPROC=5                train under mpiexec with that many processes (default 1, without MPI)
#   RESTARTS=3             after a crash, resume from the newest checkpoint at most so often; not if no checkpoint was
#                          written since the last start, not after an error in the input (exit code 2), and not after
#                          a signal
#   MPIEXEC="srun --mpi=pmix"   the command to use instead of mpiexec
#   DRY_RUN=1              print the commands without running them; --dry_run True prints the resolved configuration of
#                          a training run. Neither makes a data set.
#
# SIGTERM, SIGUSR1 and Ctrl-C end training after the current step, with a checkpoint and exit code 0. The same command
# resumes it.

REPO_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

launch_say() { echo "$*" >&2; }
launch_die() { launch_say "$*" && exit 2; }

launch_run() { # launch_run [exec] COMMAND...: with exec, signals reach the command itself
    if [ -z "${DRY_RUN:-}" ]; then
        "$@"
    else
        [ "$1" != exec ] || shift
        printf '%q ' "$@"
        echo
    fi
}

launch_has_files() { # launch_has_files DIR
    [ -d "$1" ] && [ -n "$(ls -A -- "$1")" ]
}

launch_make_data() { # launch_make_data DATASET DIR: makes the data set if DIR is missing or empty
    ! launch_has_files "$2" || return 0
    local -a options=()
    case $1 in
    mnist | morphomnist) if [ -n "${MNIST:-}" ]; then options=(--mnist "$MNIST"); else options=(--download); fi ;;
    fashion_mnist) [ -d /usr/share/datasets/fashion-mnist ] || options=(--download) ;;
    circuit) options=(--image_size 128) ;; # the size of the models; published are 512 pixels
    esac
    launch_run "$PYTHON" "$REPO_DIR/scripts/make_dataset.py" "$1" ${options[@]+"${options[@]}"} --out "$2"
}

launch_newest() { # launch_newest RUN_DIR: prints the newest step folder
    local path newest=
    for path in "$1"/step_*; do newest=$path; done
    printf '%s\n' "$newest"
}

launch_pass() { # launch_pass SIGNAL: passes the signal on to the child, now or once it has been started
    stopped=1
    if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null || true; else pending=$1; fi
}

launch_training() { # launch_training RUN_DIR COMMAND...: passes signals on, and restarts the command after a crash
    local run_dir=$1 restarts=${RESTARTS:-3} before child='' pending='' stopped='' again status=0
    shift
    trap 'again=1; launch_pass TERM' TERM INT
    trap 'again=1; launch_pass USR1' USR1
    while [ -z "$stopped" ]; do
        before=$(launch_newest "$run_dir")
        "$@" &
        child=$! again=1
        [ -z "$pending" ] || kill -s "$pending" "$child" 2>/dev/null || true
        while [ -n "$again" ]; do # a signal ends `wait`, not the child
            again='' status=0
            wait "$child" || status=$?
        done
        child=''
        [ "$status" -ge 0 ] || status=1 # bash 5.2 loses the code of a child that ends just when a signal arrives
        case $status in 0 | 2) exit "$status" ;; esac
        if [ -n "$stopped" ] || [ "$restarts" -le 0 ] ||
            [[ $run_dir != *://* && $(launch_newest "$run_dir") = "$before" ]]; then
            exit "$status"
        fi
        restarts=$((restarts - 1))
        echo "training ended with exit code $status; resuming from its newest checkpoint ($restarts restarts left)" >&2
    done
    exit "$status"
}

launch_flag() { # launch_flag NAME ARGUMENTS...: prints the last value of --NAME
    local name=--$1 found=
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$name="*) found=${1#*=} ;;
        "$name") found=${2:-} ;;
        esac
        shift
    done
    printf '%s\n' "$found"
}

launch_select() { # launch_select "NAME NAME..." ARGUMENTS...: prints the flags of these names, one word per line
    local names=" $1 " name
    shift
    while [ $# -gt 0 ]; do
        name=${1%%=*}
        if [[ $name = --* && $names = *" ${name#--} "* ]]; then
            printf '%s\n' "$1"
            [[ $1 = *=* ]] || printf '%s\n' "${2:-}"
        fi
        shift
    done
}

launch_config_flags() { # launch_config_flags FILE "NAME NAME...": prints the flags of these keys, one word per line
    local key value
    [ -f "$1" ] || return 0
    while read -r key value _; do
        [[ $key = *: && " $2 " = *" ${key%:} "* ]] || continue
        value=${value#[\"\']}
        printf '%s\n' "--${key%:}" "${value%[\"\']}"
    done <"$1"
}

launch_is_model() { # launch_is_model DIR: whether it is a model folder, or a run with a checkpoint
    [ -f "$1/model.safetensors" ] || compgen -G "$1/step_*/" >/dev/null
}

launch_find_model() { # launch_find_model NAME [SIZE]: sets model_dir to the run to test, or to shipped weights
    local name=$1 each
    local -a runs=() shipped=() others=()
    for each in ${2:-paper fast mini latent}; do
        ! launch_is_model "$REPO_DIR/runs/${name}_$each" || runs+=("$REPO_DIR/runs/${name}_$each")
        ! launch_is_model "$REPO_DIR/weights/${name}_$each" || shipped+=("$REPO_DIR/weights/${name}_$each")
    done
    if [ ${#runs[@]} -gt 1 ]; then
        launch_die "SIZE: expected one of the runs ${runs[*]#"$REPO_DIR/"}, got none; set SIZE=${runs[0]##*_} or RUN_DIR"
    fi
    model_dir=${runs[0]:-${shipped[0]:-}}
    if [ ${#runs[@]} -eq 1 ]; then
        [ -n "${2:-}" ] || launch_say "using ${model_dir#"$REPO_DIR/"}, the only run of this model"
    elif [ -n "$model_dir" ]; then
        launch_say "found no run; using the shipped weights ${model_dir#"$REPO_DIR/"}"
    else
        for each in "$REPO_DIR/runs/${name%_*}"_*; do
            ! launch_is_model "$each" || others+=("${each#"$REPO_DIR/"}")
        done
        each=train_$name.sh
        [ -f "$REPO_DIR/scripts/$each" ] || each=train.sh
        launch_say "RUN_DIR: expected a run, found no runs/${name}_${2:-SIZE}${others[*]:+, but ${others[*]}};" \
            "train one with scripts/$each, or set SIZE or RUN_DIR"
        [ -n "${DRY_RUN:-}" ] || exit 2
        model_dir=$REPO_DIR/runs/${name}_${2:-paper}
    fi
}

launch_subset() { # launch_subset DATASET: sets data_dir to the clone's subset of the data set, if there is one, and made
    case $1 in
    mnist | circuit) data_dir=$REPO_DIR/assets/${1}_share ;;
    morphomnist)
        data_dir=$REPO_DIR/data/morphomnist_share
        [ -d "$data_dir" ] || launch_run "$PYTHON" "$REPO_DIR/scripts/make_dataset.py" morphomnist \
            --mnist "$REPO_DIR/assets/mnist_share" --num_train 0 --out "$data_dir"
        ;;
    *) return ;;
    esac
    made=1
    launch_say "$1 is not in data/; using the subset of it in ${data_dir#"$REPO_DIR/"}, set DATA_DIR for all images"
}

launch_check() { # launch_check ARGUMENTS...: ends if training refuses its options, before data or a predictor are made
    [ -n "${DRY_RUN:-}" ] || "$PYTHON" "$REPO_DIR/scripts/image_train.py" "$@" --dry_run True >/dev/null || exit $?
}

launch_predictor() { # launch_predictor DIR SIZE DATA_DIR ARGUMENTS...: trains the noised predictor of a Diff-SCM
    local folder=$1 size=$2 data_dir=$3 word value iterations=0 steps
    local -a flags=() overrides=() # the predictor sees the labels that the run sees
    shift 3
    while read -r word value _; do [ "$word" != iterations: ] || iterations=$value; done <"$REPO_DIR/configs/noised_$size.yaml"
    steps=$(launch_flag total_steps "$@")
    case $steps in '' | *[!0-9]*) ;; *) [ "$steps" -ge "$iterations" ] || { iterations=$steps && flags=(--iterations "$steps"); } ;; esac
    if [ -f "$folder/config.json" ]; then
        if [[ $(<"$folder/config.json") =~ \"iterations\":\ *([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -lt "$iterations" ]; then
            launch_say "$folder: trained for ${BASH_REMATCH[1]} steps, now $iterations are requested; delete it to train it again"
        fi
        return
    fi
    word="masking mask_by label_fraction label_seed num_images image_size channels graph device follow_links"
    word+=" noise_schedule diffusion_steps rescale_timesteps zero_terminal_snr"
    while IFS= read -r word; do flags+=("$word"); done < <(launch_select "$word" "$@")
    while IFS= read -r word; do overrides+=("${word/#--config/--score_config}"); done < <(launch_select config "$@")
    launch_run "$PYTHON" "$REPO_DIR/classifiers/noised_classifier.py" --config "$REPO_DIR/configs/noised_$size.yaml" \
        "${configs[@]/#--config/--score_config}" ${overrides[@]+"${overrides[@]}"} ${flags[@]+"${flags[@]}"} --data_dir "$data_dir" --out "$folder"
}

launch_autoencoder() { # launch_autoencoder FOLDER CONFIG DATASET DATA_DIR ARGUMENTS...: trains a small autoencoder
    local folder=$1 config=$2 dataset=$3 data_dir=$4 word names='image_size channels graph num_images device follow_links'
    local -a flags=()
    shift 4
    [[ $folder != *://* ]] || launch_die "RUN_DIR: expected a local folder for the autoencoder of SIZE=latent, or --vae_path"
    [ ! -f "$folder/config.json" ] || return 0
    while IFS= read -r word; do flags+=("$word"); done < <(
        launch_config_flags "$config" image_size
        launch_select config "$@" | while IFS= read -r word; do launch_config_flags "${word#--config=}" "$names"; done
        launch_select "$names" "$@"
    )
    launch_run "$PYTHON" "$REPO_DIR/scripts/train_autoencoder.py" --dataset "$dataset" --data_dir "$data_dir" \
        ${flags[@]+"${flags[@]}"} --out "$folder"
}

launch_find_mpiexec() { # sets `starter` to the command that starts the processes
    if [ -n "${MPIEXEC:-}" ]; then
        read -r -a starter <<<"$MPIEXEC"
    elif [ -x "$ENV_DIR/bin/mpiexec" ]; then
        starter=("$ENV_DIR/bin/mpiexec")
    elif command -v mpiexec >/dev/null; then
        starter=("$(command -v mpiexec)")
    else
        setup_die "NPROC=$1: expected mpiexec, found none; set MPIEXEC"
    fi
    starter+=(-n "$1")
}

launch_test() { # launch_test DATASET MODEL DATA_DIR NAME ARGUMENTS...
    local dataset=$1 model=$2 data_dir=$3 made='' out
    shift 4
    out=$model_dir/test
    case $model_dir in "$REPO_DIR/weights/"*)
        out=$REPO_DIR/out/${model_dir##*/}
        if [ -z "$data_dir${MNIST:-}" ] && [ ! -d "$REPO_DIR/data/$dataset" ]; then launch_subset "$dataset"; fi
        ;;
    esac
    data_dir=${data_dir:-$REPO_DIR/data/$dataset}
    [ "$dataset" = folder ] || [ -n "$made" ] || launch_make_data "$dataset" "$data_dir"
    launch_run exec "$PYTHON" "$REPO_DIR/scripts/image_${model}_test.py" --model_path "$model_dir" --data_dir "$data_dir" \
        --out_dir "${OUT_DIR:-$out}" "$@"
}

launch_dry_run() { # launch_dry_run ARGUMENTS...: prints True if --dry_run is set
    local dry_run
    dry_run=$(launch_flag dry_run "$@")
    case " $* " in *" --dry_run "--* | *" --dry_run ") dry_run=True ;; esac # without a value
    case $dry_run in [Tt]rue | TRUE) echo True ;; esac
}

launch_script() { # launch_script RUN_DIR DRY_RUN SCRIPT ARGUMENTS...: trains in NPROC processes, or shows what it would do
    local run_dir=$1 dry_run=$2 script=$3 nproc=${NPROC:-1}
    local -a starter=()
    shift 3
    [ -n "$dry_run" ] || [ "$nproc" -eq 1 ] || launch_find_mpiexec "$nproc"
    local -a command=(${starter[@]+"${starter[@]}"} "$PYTHON" "$REPO_DIR/scripts/$script" "$@")
    if [ -n "${DRY_RUN:-}$dry_run" ]; then launch_run "${command[@]}"; else launch_training "$run_dir" "${command[@]}"; fi
}

launch_train() { # launch_train DATASET MODEL DATA_DIR NAME ARGUMENTS...
    local dataset=$1 model=$2 data_dir=${3:-$REPO_DIR/data/$1} name=$4 size=${SIZE:-paper} dry_run run_dir vae_path predictor=''
    shift 4
    local -a given=("$@")
    dry_run=$(launch_dry_run "$@")
    vae_path=$(launch_flag vae_path "$@")
    run_dir=$(launch_flag run_dir "$@")
    run_dir=${run_dir:-${RUN_DIR:-$REPO_DIR/runs/${name}_$size}}
    local -a configs=(--config "$REPO_DIR/configs/${dataset}_${model}_$size.yaml")
    if [ ! -f "${configs[1]}" ]; then
        configs=(--config "$REPO_DIR/configs/${dataset}_causaldae_$size.yaml" --config "$REPO_DIR/configs/baselines/$model.yaml")
    fi
    if [ "$size" = latent ]; then # Diff-SCM has its implicit predictor alone
        [ "$model" != causalvae ] || launch_die "SIZE: expected paper, fast or mini with causalvae, got latent"
        [ -n "$vae_path" ] || set -- --vae_path "$run_dir/autoencoder" "$@"
    elif [ "$model" = diffscm ] && [ -z "$vae_path" ]; then
        predictor=$run_dir/predictor
    fi
    set -- "${configs[@]}" --data_dir "$data_dir" --run_dir "$run_dir" "$@"
    if [ -z "$dry_run" ]; then
        if [ "$size" != latent ] && { [ -n "$predictor" ] && [ ! -f "$predictor/config.json" ] ||
            [ "$dataset" != folder ] && ! launch_has_files "$data_dir"; }; then launch_check "$@"; fi
        [ "$dataset" = folder ] || launch_make_data "$dataset" "$data_dir"
        if [ -n "$predictor" ]; then launch_predictor "$predictor" "$size" "$data_dir" ${given[@]+"${given[@]}"}; fi
        if [ "$size" = latent ] && [ -z "$vae_path" ]; then
            launch_autoencoder "$run_dir/autoencoder" "${configs[1]}" "$dataset" "$data_dir" ${given[@]+"${given[@]}"}
        fi
    fi
    launch_script "$run_dir" "$dry_run" image_train.py "$@"
}

launch_distill() { # launch_distill DATASET MODEL DATA_DIR NAME ARGUMENTS...
    local dataset=$1 data_dir=${3:-$REPO_DIR/data/$1} run_dir dry_run few_steps
    shift 4
    dry_run=$(launch_dry_run "$@")
    few_steps=$(launch_flag few_steps "$@")
    model_dir=${model_dir%/}
    run_dir=$(launch_flag run_dir "$@")
    run_dir=${run_dir:-${RUN_DIR:-$REPO_DIR/runs/${model_dir##*/}_${few_steps:-4}step}}
    [ -n "$dry_run" ] || launch_make_data "$dataset" "$data_dir"
    launch_script "$run_dir" "$dry_run" distill.py --model_path "$model_dir" --data_dir "$data_dir" --run_dir "$run_dir" "$@"
}

launch() {
    local task=$1 dataset=$2 model=$3 nproc=${NPROC:-1} name=$2 data_dir model_dir=${RUN_DIR:-}
    shift 3
    case ${SIZE:-paper} in paper | fast | mini | latent) ;; *) launch_die "SIZE: expected paper, fast, mini or latent, got $SIZE" ;; esac
    case ${RESTARTS:-3} in *[!0-9]*) launch_die "RESTARTS: expected a number, got $RESTARTS" ;; esac
    case $nproc in '' | 0* | *[!0-9]*) launch_die "NPROC: expected a positive number, got $nproc" ;; esac
    data_dir=$(launch_flag data_dir "$@")
    data_dir=${data_dir:-${DATA_DIR:-}}
    if [ "$dataset" = folder ]; then
        [ -n "$data_dir" ] || launch_die "data_dir: expected the folder of your images, got none; set --data_dir"
        name=${data_dir%/} name=${name##*/}
    fi
    [ "$task" != distill ] || model_dir= # RUN_DIR is that of the student
    if [ "$task" != train ]; then
        model_dir=${model_dir:-$(launch_flag model_path "$@")}
        [ -n "$model_dir" ] || launch_find_model "${name}_$model" "${SIZE:-}"
    fi
    if [ "$nproc" -gt 1 ] && [ -z "${MPIEXEC:-}" ]; then EXTRAS=${EXTRAS:+$EXTRAS,}mpi; fi
    # shellcheck source=scripts/setup_env.sh
    . "$REPO_DIR/scripts/setup_env.sh"
    "launch_$task" "$dataset" "$model" "$data_dir" "${name}_$model" "$@"
}
