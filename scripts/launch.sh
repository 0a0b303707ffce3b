# shellcheck shell=bash
# Sourced by the train_* and test_* launchers: launch train|test DATASET MODEL [arguments for the script]
#
#   SIZE=paper|fast|mini   which configs/DATASET_MODEL_SIZE.yaml (default paper); without such a file a model has
#                          configs/DATASET_causaldae_SIZE.yaml and configs/baselines/MODEL.yaml over it
#   DATA_DIR=DIR           the data set (default data/DATASET in the clone; made there when it is missing)
#   MODEL=causaldae        train.sh and counterfactual.sh: or diffscm, conditional, diffae, causalvae
#   MNIST=DIR              MNIST and MorphoMNIST are made from these IDX files; without it MNIST is downloaded
#   RUN_DIR=DIR            checkpoints and logs (default runs/DATASET_MODEL_SIZE in the clone)
#   OUT_DIR=DIR            what a test writes (default RUN_DIR/test)
#   NPROC=5                training under mpiexec with that many processes (default 1, which needs no MPI)
#   RESTARTS=3             after a crash training goes on from its newest checkpoint, at most so often, and only if it had
#                          written one since it was started; not after an error that you must mend (exit code 2)
#   MPIEXEC="srun --mpi=pmix"   another starter than the environment's or the system's mpiexec
#   DRY_RUN=1              print the commands, run none
#
# SIGTERM, SIGUSR1 and Ctrl-C are passed on: training ends after its current step, with a checkpoint and exit code 0. The
# same command goes on from there.

launch_run() { # launch_run [exec] COMMAND...: with exec, signals sent to the launcher reach the command itself
    if [ -n "${DRY_RUN:-}" ]; then
        [ "$1" != exec ] || shift
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

launch_make_data() { # launch_make_data DATASET DIR
    # A finished set is never touched: make_dataset.py puts a set in place only when it is whole.
    [ -d "$2" ] && [ -n "$(ls -A -- "$2")" ] && return
    local -a source_arguments=()
    if [ "$1" = morphomnist ] || [ "$1" = mnist ]; then
        if [ -n "${MNIST:-}" ]; then source_arguments=(--mnist "$MNIST"); else source_arguments=(--download); fi
    fi
    if [ "$1" = fashion_mnist ] && [ ! -d /usr/share/datasets/fashion-mnist ]; then source_arguments=(--download); fi
    # The stand-in is drawn at the size that the models see, a quarter of the publisher's 512 pixels.
    if [ "$1" = circuit ]; then source_arguments=(--image_size 128); fi
    launch_run "$PYTHON" "$REPO_DIR/scripts/make_dataset.py" "$1" ${source_arguments[@]+"${source_arguments[@]}"} --out "$2"
}

launch_newest() { # launch_newest DIR: prints the newest step folder
    local path newest=
    for path in "$1"/step_*; do newest=$path; done
    printf '%s\n' "$newest"
}

launch_wait() { # launch_wait PID: the exit code of a child, to which signals are passed on
    local child=$1 signalled status=0
    trap 'signalled=1; kill -TERM "$child" 2>/dev/null' TERM INT
    trap 'signalled=1; kill -USR1 "$child" 2>/dev/null' USR1
    while :; do # a signal ends `wait`, not the child
        signalled='' status=0
        wait "$child" || status=$?
        [ -n "$signalled" ] || break
    done
    trap - TERM INT USR1
    return "$status"
}

launch_training() { # launch_training RUN_DIR COMMAND...: runs it, and again after a crash
    local run_dir=$1 restarts=${RESTARTS:-3} status before
    shift
    while :; do
        before=$(launch_newest "$run_dir")
        status=0
        "$@" &
        launch_wait $! || status=$?
        case $status in 0 | 2) exit "$status" ;; esac
        if [ "$restarts" -le 0 ] || [[ $run_dir != *://* && $(launch_newest "$run_dir") = "$before" ]]; then
            exit "$status"
        fi
        restarts=$((restarts - 1))
        echo "training ended with exit code $status; it goes on from its newest checkpoint ($restarts restarts left)" >&2
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
    [ -n "$found" ] || { echo "data_dir: it is not given; --data_dir must name the folder of your images" >&2 && return 2; }
    printf '%s\n' "$found"
}

launch() {
    local task=$1 dataset=$2 model=$3 size=${SIZE:-paper} nproc=${NPROC:-1}
    shift 3
    case $size in paper | fast | mini) ;; *) echo "SIZE: $size is unknown, allowed are paper, fast, mini" >&2 && exit 2 ;; esac
    case ${RESTARTS:-3} in *[!0-9]*) echo "RESTARTS: $RESTARTS is no number of restarts, 0 or more is needed" >&2 && exit 2 ;; esac
    case $nproc in '' | 0* | *[!0-9]*) echo "NPROC: $nproc is no number of processes, 1 or more is needed" >&2 && exit 2 ;; esac
    local own_dir=
    if [ "$dataset" = folder ]; then own_dir=$(launch_data_dir "$@") || exit 2; fi
    if [ "$nproc" -gt 1 ] && [ -z "${MPIEXEC:-}" ]; then EXTRAS=${EXTRAS:+$EXTRAS,}mpi; fi
    # shellcheck source=scripts/setup_env.sh
    . "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"

    local name=${dataset}_${model}_$size data_dir=${DATA_DIR:-$REPO_DIR/data/$dataset}
    if [ "$dataset" = folder ]; then
        data_dir=$own_dir
        name=${data_dir%/}
        name=${name##*/}_${model}_$size
    else
        launch_make_data "$dataset" "$data_dir"
    fi
    local run_dir=${RUN_DIR:-$REPO_DIR/runs/$name}
    if [ "$task" = test ]; then
        launch_run exec "$PYTHON" "$REPO_DIR/scripts/image_${model}_test.py" --model_path "$run_dir" --data_dir "$data_dir" \
            --out_dir "${OUT_DIR:-$run_dir/test}" "$@"
        return
    fi
    local -a starter=()
    if [ "$nproc" -gt 1 ]; then
        if [ -n "${MPIEXEC:-}" ]; then
            read -r -a starter <<<"$MPIEXEC"
        elif [ -x "$ENV_DIR/bin/mpiexec" ]; then
            starter=("$ENV_DIR/bin/mpiexec")
        elif command -v mpiexec >/dev/null; then
            starter=("$(command -v mpiexec)")
        else
            setup_die "NPROC=$nproc needs mpiexec, and there is none; name yours in MPIEXEC"
        fi
        starter+=(-n "$nproc")
    fi
    local own=$REPO_DIR/configs/${dataset}_${model}_$size.yaml
    local -a configs=(--config "$own")
    if [ ! -f "$own" ]; then
        configs=(--config "$REPO_DIR/configs/${dataset}_causaldae_$size.yaml" --config "$REPO_DIR/configs/baselines/$model.yaml")
    fi
    if [ "$model" = diffscm ] && [ ! -f "$run_dir/predictor/config.json" ]; then
        launch_run "$PYTHON" "$REPO_DIR/classifiers/noised_classifier.py" --config "$REPO_DIR/configs/noised_$size.yaml" \
            "${configs[@]/#--config/--score_config}" --data_dir "$data_dir" --out "$run_dir/predictor"
    fi
    local -a command=(${starter[@]+"${starter[@]}"} "$PYTHON" "$REPO_DIR/scripts/image_train.py" "${configs[@]}"
        --data_dir "$data_dir" --run_dir "$run_dir" "$@")
    if [ -n "${DRY_RUN:-}" ]; then launch_run "${command[@]}"; else launch_training "$run_dir" "${command[@]}"; fi
}
