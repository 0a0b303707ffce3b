# shellcheck shell=bash
# Sourced by every launcher: finds or makes the clone's own environment, and leaves REPO_DIR, ENV_DIR and PYTHON set.
#
#   EXTRAS=dev,mpi               extras of setup.py that the launcher needs (set before sourcing)
#   CAUSALDIFFAE_VENV=/path      another environment; used as it is where it has everything, set up there otherwise
#   CAUSALDIFFAE_TORCH="..."     another torch build, as arguments of pip: "torch==2.12.0 torchvision==0.27.0", or
#                                "torch torchvision --index-url https://download.pytorch.org/whl/cpu"
#   CAUSALDIFFAE_PYTHON=python3.12   the interpreter to make the environment with
#
# The stamp in the environment says what it was made from. It is written last, so whatever breaks, the next run retries.

REPO_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
ENV_DIR=${CAUSALDIFFAE_VENV:-$REPO_DIR/.venv}
case $ENV_DIR in /*) ;; *) ENV_DIR=$PWD/$ENV_DIR ;; esac
PYTHON=$ENV_DIR/bin/python
EXTRAS=${EXTRAS:-}

# Only this clone's package and this environment's libraries count: no user site, no outer environment, no path of others.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_ROOT
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

setup_say() { printf '[setup] %s\n' "$*" >&2; }
setup_die() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}

setup_find_python() { # prints the first interpreter that is new enough; one that can make environments wins
    local candidate usable=
    for candidate in ${CAUSALDIFFAE_PYTHON:+"$CAUSALDIFFAE_PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 || "$candidate" -m virtualenv --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        usable=${usable:-$candidate}
    done
    [ -z "$usable" ] || setup_die "$usable cannot make an environment: its modules venv and ensurepip are missing." \
        "Install them (Debian and Ubuntu: apt install python3-venv) or virtualenv, or name a Python in CAUSALDIFFAE_PYTHON."
    setup_die "Python 3.10 or newer is needed, tried python3, python3.13 to python3.10 and python." \
        "Install one, or name it in CAUSALDIFFAE_PYTHON."
}

setup_python_works() { "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

setup_fingerprint() { # what an environment is made from, except extras and torch build
    "$PYTHON" - "$REPO_DIR" "$ENV_DIR" <<'PY'
import hashlib, pathlib, sys
repo, env = sys.argv[1:]
made_from = [(pathlib.Path(repo) / "setup.py").read_bytes(), sys.version.encode(), repo.encode(), env.encode()]
print(hashlib.sha256(b"\0".join(made_from)).hexdigest())
PY
}

setup_stamp_fits() { # same fingerprint, all extras there, and the torch build that was asked for (if one was)
    local fingerprint='' extras='' torch='' wanted
    [ -f "$SETUP_STAMP" ] && setup_python_works || return 1
    { IFS= read -r fingerprint && IFS= read -r extras && IFS= read -r torch; } <"$SETUP_STAMP" || return 1
    [ "$fingerprint" = "$(setup_fingerprint)" ] || return 1
    [ -z "${CAUSALDIFFAE_TORCH:-}" ] || [ "$torch" = "$CAUSALDIFFAE_TORCH" ] || return 1
    for wanted in ${EXTRAS//,/ }; do
        case ",$extras," in *",$wanted,"*) ;; *) return 1 ;; esac
    done
}

setup_has_everything() { # every requirement of setup.py and of the extras is met by what is installed
    setup_python_works && "$PYTHON" - "$REPO_DIR/setup.py" "$EXTRAS" <<'PY' 2>/dev/null
import importlib.metadata, re, runpy, sys, types
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
asked = {}
sys.modules["setuptools"] = types.SimpleNamespace(find_packages=lambda **_: [], setup=asked.update)
runpy.run_path(sys.argv[1])
lines = list(asked["install_requires"])
for extra in filter(None, re.split(r"[,\s]+", sys.argv[2])):
    lines += asked["extras_require"][extra]
for requirement in map(Requirement, lines):
    if requirement.marker is not None and not requirement.marker.evaluate():
        continue
    version = importlib.metadata.version(requirement.name)
    if not requirement.specifier.contains(version, prereleases=True):
        sys.exit(f"{requirement} is asked for, {version} is there")
PY
}

setup_run() { # setup_run TEXT COMMAND...: runs it with its output in the log and a sign of life on the console
    local text=$1 ticker status=0
    shift
    setup_say "$text"
    printf '\n$ %s\n' "$*" >>"$SETUP_LOG"
    (
        seconds=0
        while sleep 15 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
            seconds=$((seconds + 15))
            setup_say "  ${seconds} s: $(grep -aE '^ *(Collecting|Downloading|Installing|Building|Successfully)' "$SETUP_LOG" | tail -n 1 | cut -c 1-90)"
        done
    ) 9>&- & # the lock must not live on in a sleep
    ticker=$!
    "$@" >>"$SETUP_LOG" 2>&1 </dev/null || status=$?
    kill "$ticker" 2>/dev/null
    wait "$ticker" 2>/dev/null
    return "$status"
}

setup_fail() { # setup_fail TEXT: the end of the log and out
    setup_say "the last lines of $SETUP_LOG:"
    tail -n 20 "$SETUP_LOG" | cut -c 1-300 >&2
    setup_die "$* (the whole log: $SETUP_LOG). Start the same command again once it is mended."
}

setup_make_environment() {
    local python output
    if [ -n "${CAUSALDIFFAE_VENV:-}" ] && [ -d "$ENV_DIR" ] && [ -n "$(ls -A -- "$ENV_DIR")" ]; then
        setup_die "CAUSALDIFFAE_VENV: $ENV_DIR is no environment with Python 3.10 or newer (no working bin/python), and not empty."
    fi
    python=$(setup_find_python) || exit 1
    setup_say "making $ENV_DIR with $("$python" --version 2>&1) ($python)"
    rm -rf -- "$ENV_DIR"
    if ! output=$("$python" -m venv -- "$ENV_DIR" 2>&1) && ! output=$("$python" -m virtualenv -- "$ENV_DIR" 2>&1); then
        rm -rf -- "$ENV_DIR"
        printf '%s\n' "$output" | tail -n 20 >&2
        setup_die "$python could not make the environment $ENV_DIR." \
            "Its modules venv and ensurepip are needed (Debian and Ubuntu: apt install python3-venv)."
    fi
}

setup_install() {
    local fingerprint='' extras='' torch='' known all
    [ ! -f "$SETUP_STAMP" ] || { IFS= read -r fingerprint && IFS= read -r extras && IFS= read -r torch; } <"$SETUP_STAMP" || true
    rm -f -- "$SETUP_STAMP"
    # An environment that was moved or copied along with its clone still points to the old place: make a new one.
    if [ -z "${CAUSALDIFFAE_VENV:-}" ] && [ -e "$ENV_DIR" ] &&
        ! { setup_python_works && grep -qsxF -- "$ENV_DIR" "$ENV_DIR/.made-for"; }; then
        setup_say "$ENV_DIR is broken or was made for another place, it is made anew"
        rm -rf -- "$ENV_DIR"
    fi
    setup_python_works || setup_make_environment
    printf '%s\n' "$ENV_DIR" >"$ENV_DIR/.made-for"
    SETUP_LOG=$ENV_DIR/setup.log
    : >"$SETUP_LOG"
    "$PYTHON" -m pip --version >>"$SETUP_LOG" 2>&1 || "$PYTHON" -m ensurepip >>"$SETUP_LOG" 2>&1 ||
        setup_fail "$ENV_DIR has no pip, and ensurepip cannot provide it"

    all=$extras
    for known in ${EXTRAS//,/ }; do
        case ",$all," in *",$known,"*) ;; *) all=${all:+$all,}$known ;; esac
    done
    torch=${CAUSALDIFFAE_TORCH:-${torch:-torch>=2.11 torchvision}}
    local -a torch_arguments
    read -r -a torch_arguments <<<"$torch"
    # One command for both, so that the resolver picks a torch and a torchvision that belong together.
    setup_run "installing $torch (some gigabytes the first time)" "$PYTHON" -m pip install "${torch_arguments[@]}" ||
        setup_fail "torch and torchvision could not be installed"
    setup_run "installing this clone${all:+ with extras $all} and what it needs" \
        "$PYTHON" -m pip install -e "$REPO_DIR${all:+[$all]}" ||
        setup_fail "the requirements could not be installed"
    setup_run "checking that torch and torchvision go together" "$PYTHON" -c '
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)' ||
        setup_fail "torch and torchvision in $ENV_DIR do not go together; name a matching pair in CAUSALDIFFAE_TORCH"
    printf '%s\n%s\n%s\n' "$(setup_fingerprint)" "$all" "$torch" >"$SETUP_STAMP.$$"
    mv -f -- "$SETUP_STAMP.$$" "$SETUP_STAMP"
    setup_say "ready: $ENV_DIR"
}

setup_is_ready() {
    setup_stamp_fits || { [ -n "${CAUSALDIFFAE_VENV:-}" ] && [ -z "${CAUSALDIFFAE_TORCH:-}" ] && setup_has_everything; }
}

setup_main() {
    SETUP_STAMP=$ENV_DIR/.causaldiffae-stamp
    if ! setup_is_ready; then
        mkdir -p -- "$(dirname -- "$ENV_DIR")" || setup_die "the folder of $ENV_DIR cannot be made"
        # One launcher installs; others that start meanwhile wait, and then find everything done.
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
