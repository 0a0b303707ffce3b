# shellcheck shell=bash
# Sourced by the train_* and test_* launchers: launch train|test DATASET MODEL [arguments for the script]
#
#   SIZE=paper|fast|mini   which configs/DATASET_MODEL_SIZE.yaml (default paper); if there is none,
#                          configs/DATASET_causaldae_SIZE.yaml with configs/baselines/MODEL.yaml over it
#   DATA_DIR=DIR           the data set (default data/DATASET in the clone; made there if it is missing)
#   MODEL=causaldae        for train.sh and counterfactual.sh: or diffscm, conditional, diffae, causalvae
#   MNIST=DIR              IDX files from which MNIST and MorphoMNIST are made (default: downloaded)
#   RUN_DIR=DIR            checkpoints and logs (default runs/DATASET_MODEL_SIZE in the clone)
#   OUT_DIR=DIR            output of a test (default RUN_DIR/test)
#   NPROC=5                train under mpiexec with that many processes (default 1, without MPI)
#   RESTARTS=3             after a crash, resume from the newest checkpoint at most so often; not if no checkpoint was
#                          written since the last start, and not after an error in the input (exit code 2)
#   MPIEXEC="srun --mpi=pmix"   the command to use instead of mpiexec
#   DRY_RUN=1              print the commands without running them
#
# SIGTERM, SIGUSR1 and Ctrl-C end training after the current step, with a checkpoint and exit code 0. The same command
# resumes it.

launch_die() { echo "$*" >&2 && exit 2; }

launch_run() { # launch_run [exec] COMMAND...: with exec, signals reach the command itself
    if [ -z "${DRY_RUN:-}" ]; then
        "$@"
    else
        [ "$1" != exec ] || shift
        printf '%q ' "$@"
        echo
    fi
}

launch_make_data() { # launch_make_data DATASET DIR: makes the data set if DIR is missing or empty
    [ -d "$2" ] && [ -n "$(ls -A -- "$2")" ] && return
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

launch_training() { # launch_training RUN_DIR COMMAND...: passes signals on, and restarts the command after a crash
    local run_dir=$1 restarts=${RESTARTS:-3} before child signalled status
    shift
    trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
    trap 'signalled=1; kill -USR1 "$child" 2>/dev/null || true' USR1
    while :; do
        before=$(launch_newest "$run_dir")
        "$@" &
        child=$! signalled=1
        while [ -n "$signalled" ]; do # a signal ends `wait`, not the child
            signalled='' status=0
            wait "$child" || status=$?
        done
        case $status in 0 | 2) exit "$status" ;; esac
        if [ "$restarts" -le 0 ] || [[ $run_dir != *://* && $(launch_newest "$run_dir") = "$before" ]]; then
            exit "$status"
        fi
        restarts=$((restarts - 1))
        echo "training ended with exit code $status; resuming from its newest checkpoint ($restarts restarts left)" >&2
    done
}

launch_data_dir() { # launch_data_dir ARGUMENTS...: prints the folder that the last --data_dir names, or DATA_DIR
    local found=${DATA_DIR:-}
    while [ $# -gt 0 ]; do
        case $1 in
        --data_dir=*) found=${1#*=} ;;
        --data_dir) found=${2:-} ;;
        esac
        shift
    done
    [ -n "$found" ] || launch_die "data_dir: expected the folder of your images, got none; set --data_dir"
    printf '%s\n' "$found"
}

launch_label_flags() { # launch_label_flags ARGUMENTS...: prints those that select labelled images, one word per line
    while [ $# -gt 0 ]; do
        case $1 in
        --masking=* | --label_fraction=* | --label_seed=* | --num_images=*) printf '%s\n' "$1" ;;
        --masking | --label_fraction | --label_seed | --num_images) printf '%s\n' "$1" "${2:-}" ;;
        esac
        shift
    done
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

launch() {
    local task=$1 dataset=$2 model=$3 size=${SIZE:-paper} nproc=${NPROC:-1} data_dir
    shift 3
    case $size in paper | fast | mini) ;; *) launch_die "SIZE: expected paper, fast or mini, got $size" ;; esac
    case ${RESTARTS:-3} in *[!0-9]*) launch_die "RESTARTS: expected a number, got $RESTARTS" ;; esac
    case $nproc in '' | 0* | *[!0-9]*) launch_die "NPROC: expected a positive number, got $nproc" ;; esac
    if [ "$dataset" = folder ]; then data_dir=$(launch_data_dir "$@") || exit 2; fi
    if [ "$nproc" -gt 1 ] && [ -z "${MPIEXEC:-}" ]; then EXTRAS=${EXTRAS:+$EXTRAS,}mpi; fi
    # shellcheck source=scripts/setup_env.sh
    . "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"

    local name=$dataset
    if [ "$dataset" = folder ]; then
        name=${data_dir%/}
        name=${name##*/}
    else
        data_dir=${DATA_DIR:-$REPO_DIR/data/$dataset}
        launch_make_data "$dataset" "$data_dir"
    fi
    local run_dir=${RUN_DIR:-$REPO_DIR/runs/${name}_${model}_$size}
    if [ "$task" = test ]; then
        launch_run exec "$PYTHON" "$REPO_DIR/scripts/image_${model}_test.py" --model_path "$run_dir" --data_dir "$data_dir" \
            --out_dir "${OUT_DIR:-$run_dir/test}" "$@"
        return
    fi
    local -a configs=(--config "$REPO_DIR/configs/${dataset}_${model}_$size.yaml") starter=()
    if [ ! -f "${configs[1]}" ]; then
        configs=(--config "$REPO_DIR/configs/${dataset}_causaldae_$size.yaml" --config "$REPO_DIR/configs/baselines/$model.yaml")
    fi
    if [ "$model" = diffscm ] && [ ! -f "$run_dir/predictor/config.json" ]; then
        local word
        local -a label_flags=() # the predictor sees the labels that the run sees
        while IFS= read -r word; do label_flags+=("$word"); done < <(launch_label_flags "$@")
        launch_run "$PYTHON" "$REPO_DIR/classifiers/noised_classifier.py" --config "$REPO_DIR/configs/noised_$size.yaml" \
            "${configs[@]/#--config/--score_config}" ${label_flags[@]+"${label_flags[@]}"} \
            --data_dir "$data_dir" --out "$run_dir/predictor"
    fi
    [ "$nproc" -eq 1 ] || launch_find_mpiexec "$nproc"
    local -a command=(${starter[@]+"${starter[@]}"} "$PYTHON" "$REPO_DIR/scripts/image_train.py" "${configs[@]}"
        --data_dir "$data_dir" --run_dir "$run_dir" "$@")
    if [ -n "${DRY_RUN:-}" ]; then launch_run "${command[@]}"; else launch_training "$run_dir" "${command[@]}"; fi
}
