# shellcheck shell=bash
# Sourced by every launcher: finds or makes the clone's environment, and sets REPO_DIR, ENV_DIR and PYTHON.
#
#   EXTRAS=dev,mpi               extras of setup.py that the launcher needs (set before sourcing)
#   CAUSALDIFFAE_VENV=/path      another environment; used as it is if it has all requirements, otherwise set up there
#   CAUSALDIFFAE_TORCH="..."     another torch build, as arguments of pip: "torch==2.12.0 torchvision==0.27.0", or
#                                "torch torchvision --index-url https://download.pytorch.org/whl/cpu"
#   CAUSALDIFFAE_PYTHON=python3.12   the interpreter to make the environment with
#
# Where nvidia-smi shows a GPU, torch must be able to use it; otherwise the set-up names a build that can.
# A stamp in the environment says where it was made and, once it is complete, what it was made from.

set -o pipefail
REPO_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
ENV_DIR=${CAUSALDIFFAE_VENV:-$REPO_DIR/.venv}
case $ENV_DIR in /*) ;; *) ENV_DIR=$PWD/$ENV_DIR ;; esac
PYTHON=$ENV_DIR/bin/python
EXTRAS=${EXTRAS:-}
SETUP_STAMP=$ENV_DIR/.causaldiffae-setup
SETUP_LOG=$ENV_DIR/setup.log

# Only this clone's package and this environment's libraries are imported.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_ROOT
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

setup_say() { printf '[setup] %s\n' "$*" >&2; }
setup_die() { setup_say "error: $*" && exit 1; }
setup_lists() { case ",$1," in *",$2,"*) ;; *) return 1 ;; esac } # setup_lists a,b,c b
setup_works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
setup_made_from() { echo "$(cksum <"$REPO_DIR/setup.py") $("$PYTHON" --version) $REPO_DIR"; }

setup_read_stamp() { # sets place, made_from, extras and torch; empty where the stamp does not say
    place='' made_from='' extras='' torch=''
    [ ! -f "$SETUP_STAMP" ] || { read -r place && read -r made_from && read -r extras && read -r torch; } <"$SETUP_STAMP" || true
}

setup_has_requirements() { # whether the environment meets every requirement of setup.py and of the extras
    "$PYTHON" - "$REPO_DIR/setup.py" "$EXTRAS" <<'PY' 2>/dev/null
import importlib.metadata, re, runpy, sys, types
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
package = {}
sys.modules["setuptools"] = types.SimpleNamespace(find_packages=lambda **_: [], setup=package.update)
runpy.run_path(sys.argv[1])
lines = list(package["install_requires"])
for extra in filter(None, re.split(r"[,\s]+", sys.argv[2])):
    lines += package["extras_require"][extra]
for requirement in map(Requirement, lines):
    if requirement.marker is None or requirement.marker.evaluate():
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), requirement
PY
}

setup_stamp_fits() {
    local place made_from extras torch extra
    setup_read_stamp
    [ "$place" = "$ENV_DIR" ] && [ "$made_from" = "$(setup_made_from)" ] || return 1
    [ -z "${CAUSALDIFFAE_TORCH:-}" ] || [ "$torch" = "$CAUSALDIFFAE_TORCH" ] || return 1
    for extra in ${EXTRAS//,/ }; do setup_lists "$extras" "$extra" || return 1; done
}

setup_is_ready() {
    setup_works "$PYTHON" || return 1
    setup_stamp_fits || { [ -n "${CAUSALDIFFAE_VENV:-}" ] && [ -z "${CAUSALDIFFAE_TORCH:-}" ] && setup_has_requirements; }
}

setup_find_python() { # prints the first interpreter that is new enough and can make environments
    local candidate usable=
    for candidate in ${CAUSALDIFFAE_PYTHON:+"$CAUSALDIFFAE_PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        setup_works "$candidate" || continue
        usable=${usable:-$candidate}
        "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 || "$candidate" -m virtualenv --version >/dev/null 2>&1 || continue
        echo "$candidate" && return
    done
    [ -z "$usable" ] || setup_die "$usable: expected the modules venv and ensurepip, or virtualenv." \
        "Install them (Debian and Ubuntu: apt install python3-venv), or set CAUSALDIFFAE_PYTHON."
    setup_die "expected Python 3.10 or newer, found none. Install it, or set CAUSALDIFFAE_PYTHON."
}

setup_make_environment() {
    local python
    if [ -n "${CAUSALDIFFAE_VENV:-}" ] && [ -d "$ENV_DIR" ] && [ -n "$(ls -A -- "$ENV_DIR")" ]; then
        setup_die "CAUSALDIFFAE_VENV: expected an environment with Python 3.10 or newer, or an empty folder, got $ENV_DIR"
    fi
    python=$(setup_find_python) || exit 1
    setup_say "making $ENV_DIR with $("$python" --version 2>&1) ($python)"
    rm -rf -- "$ENV_DIR"
    "$python" -m venv -- "$ENV_DIR" >&2 || "$python" -m virtualenv -- "$ENV_DIR" >&2 || {
        rm -rf -- "$ENV_DIR"
        setup_die "$python could not make $ENV_DIR"
    }
}

setup_run() { # setup_run TEXT ARGUMENTS...: runs Python; its output goes to the console and to the log
    setup_say "$1"
    "$PYTHON" "${@:2}" 2>&1 </dev/null | tee -a "$SETUP_LOG" >&2 ||
        setup_die "$1: failed (log: $SETUP_LOG). Fix the problem and run the same command again."
}

setup_gpu_build() { # prints the torch build for the driver and the GPU that nvidia-smi shows; returns 1 without a GPU
    local shown capability driver=
    case ${CUDA_VISIBLE_DEVICES-all} in '' | -1) return 1 ;; esac
    shown=$(nvidia-smi 2>/dev/null) && capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || return 1
    [[ ! $shown =~ CUDA\ Version:\ *([0-9]+)\.([0-9]+) ]] || driver=$((10#${BASH_REMATCH[1]} * 100 + 10#${BASH_REMATCH[2]}))
    [[ $capability =~ ^([0-9]+)\.([0-9]+) ]] && capability=$((BASH_REMATCH[1] * 100 + BASH_REMATCH[2])) || return 1
    if [ "${driver:-1300}" -lt 1200 ] || { [ "$capability" -ge 1000 ] && [ "${driver:-1300}" -lt 1208 ]; }; then
        echo driver # no build of torch 2.11 or newer
    elif [ "$capability" -lt 705 ] || { [ "${driver:-1300}" -lt 1300 ] && [ "$capability" -lt 1000 ]; }; then
        echo "torch>=2.11,<2.15 torchvision --index-url https://download.pytorch.org/whl/cu126"
    elif [ "${driver:-1300}" -lt 1300 ]; then
        echo "torch==2.11.* torchvision --index-url https://download.pytorch.org/whl/cu128"
    else
        echo "torch>=2.11 torchvision --index-url https://download.pytorch.org/whl/cu130"
    fi
}

setup_check_gpu() { # setup_check_gpu TORCH: where nvidia-smi shows a GPU, one operation must run on it
    local build advice cpu="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    case $1 in */cpu) return ;; esac # chosen by the user
    build=$(setup_gpu_build) || return 0
    setup_say "checking that torch can use the GPU"
    "$PYTHON" -c 'import torch; torch.ones(1, device="cuda").add_(1).item()' >>"$SETUP_LOG" 2>&1 && return
    advice="Set CAUSALDIFFAE_TORCH=\"$build\""
    [ "$build" != driver ] || advice="Install a newer driver (nvidia.com/drivers)"
    setup_die "torch cannot use the GPU (log: $SETUP_LOG). $advice, or CAUSALDIFFAE_TORCH=\"$cpu\" to do without it," \
        "and run the same command again."
}

setup_install() {
    local place made_from extras torch extra before other
    local -a torch_arguments
    setup_read_stamp
    # A moved environment contains its old path. An unknown folder in CAUSALDIFFAE_VENV is never deleted.
    if [ -z "${CAUSALDIFFAE_VENV:-}" ] && { [ "${place:-$ENV_DIR}" != "$ENV_DIR" ] || ! setup_works "$PYTHON"; }; then
        rm -rf -- "$ENV_DIR"
    fi
    setup_works "$PYTHON" || setup_make_environment
    # Launchers import their own clone's package all the same; `python` and `causaldiffae` started by hand do not.
    other=${made_from#*Python } other=${other#* }
    if [ -n "$made_from" ] && [ "$other" != "$REPO_DIR" ] && [ -d "$other" ]; then
        setup_say "note: $ENV_DIR was set up for the clone $other; its package and command now come from $REPO_DIR"
    fi
    printf '%s\n' "$ENV_DIR" "" "$extras" "$torch" >"$SETUP_STAMP" # not complete
    before=$torch torch=${CAUSALDIFFAE_TORCH:-${torch:-torch>=2.11 torchvision}}
    "$PYTHON" -m pip --version >"$SETUP_LOG" 2>&1 || setup_run "installing pip" -m ensurepip
    for extra in ${EXTRAS//,/ }; do
        setup_lists "$extras" "$extra" || extras=${extras:+$extras,}$extra
    done
    # pip keeps an installed build of the same version.
    if [ "$torch" != "$before" ] && [ -n "${CAUSALDIFFAE_TORCH:-}" ]; then
        setup_run "removing another build of torch" -m pip uninstall -y torch torchvision
    fi
    read -r -a torch_arguments <<<"$torch"
    # One command for both, so that pip picks a matching pair.
    setup_run "installing $torch (some gigabytes the first time)" -m pip install "${torch_arguments[@]}"
    printf '%s\n' "$ENV_DIR" "" "$extras" "$torch" >"$SETUP_STAMP"
    setup_run "installing this clone${extras:+ with extras $extras}" -m pip install -e "$REPO_DIR${extras:+[$extras]}"
    setup_run "checking that torch and torchvision match (otherwise set CAUSALDIFFAE_TORCH)" -c '
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)'
    setup_check_gpu "$torch"
    printf '%s\n' "$ENV_DIR" "$(setup_made_from)" "$extras" "$torch" >"$SETUP_STAMP"
    setup_say "ready: $ENV_DIR"
}

setup_main() {
    if ! setup_is_ready; then
        mkdir -p -- "$(dirname -- "$ENV_DIR")" || setup_die "cannot make the folder of $ENV_DIR"
        # One launcher installs; others that start meanwhile wait.
        if command -v flock >/dev/null 2>&1 && { exec 9>"$ENV_DIR.lock"; } 2>/dev/null; then
            flock -n 9 || { setup_say "waiting for another launcher that sets up $ENV_DIR" && flock 9; }
            setup_is_ready || setup_install
            exec 9>&-
        else
            setup_install
        fi
    fi
    export VIRTUAL_ENV=$ENV_DIR PATH=$ENV_DIR/bin:$PATH PYTHONPATH=$REPO_DIR
    local place
    place=$(cd / && "$PYTHON" -c 'import importlib.util as u; print(*u.find_spec("causaldiffae").submodule_search_locations)') || place=
    [ "$place" = "$REPO_DIR/causaldiffae" ] ||
        setup_die "python would import causaldiffae from ${place:-nowhere}, not from this clone ($REPO_DIR)"
}

setup_main
