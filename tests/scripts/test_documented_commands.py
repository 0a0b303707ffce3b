"""Every command printed in the documents is run in a copy of the repository, on a few images, for a few steps.

Commands that cannot be run there are listed in `ELSEWHERE` with the reason; a command in neither place fails the first
test. Data sets are made first, then models are trained, then the rest; `forms` replaces DATA, RUN and the like.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from folders import make_folder
from forked_python import ForkedPython
from paths import REPO

from causaldiffae.datasets.mnist import copy_files
from causaldiffae.generators import circuit_scene

DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\./|(?:causaldiffae|python3?|pip|conda|mamba|pytest|docker|git|mpiexec|mpirun|srun|sbatch"
    r"|torchrun|jupytext|jupyter|sha256sum|apt|bash|sh|curl|wget|gsutil|huggingface-cli|hf) )"
)
SHELL = ("bash", "sh", "console", "")
"""The languages of blocks whose lines are commands."""

CI = "`.ci/run` runs it"
SUITE = "the suite runs it: "
NETWORK = "needs the network"
MEASURES = "a measurement of minutes"
WEIGHTS = "needs weights of gigabytes; tests/evaluation/test_imagenet.py runs the script on small ones"
OWN_DATA = SUITE + "tests/datasets/folder/test_own_data.py"
LATENT = SUITE + "tests/scripts/test_latent_training.py"
ELSEWHERE = {
    "git clone <this repository> causaldiffae && cd causaldiffae": NETWORK,
    "causaldiffae --help": SUITE + "tests/scripts/test_command.py",
    "python classifiers/folder_classifier.py --data_dir my_images --out my_predictor --image_size 32": OWN_DATA,
    "python classifiers/folder_classifier.py --data_dir my_images --image_size 32 --seed 1 "
    "--out RUN/correction_predictor": OWN_DATA,
    "python scripts/evaluate.py --model_path RUN --data_dir my_images --predictor my_predictor --out results.json": (
        OWN_DATA
    ),
    "causaldiffae evaluate --answers asked --data_dir data/morphomnist --out results/conditional_vae.json": (
        SUITE + "tests/evaluation/test_questions.py"
    ),
    "python examples/conditional_vae.py --questions asked --data_dir data/morphomnist": SUITE
    + "tests/test_examples.py",
    "OMP_NUM_THREADS=1 python tools/step_parts.py --size paper --batch_size 8": SUITE
    + "tests/training/test_step_parts.py",
    "OMP_NUM_THREADS=1 python tools/step_parts.py --size mini --batch_size 16": SUITE
    + "tests/training/test_step_parts.py",
    "python scripts/export_weights.py --model_path RUN --average FORMER --share 0.7 --out weights/NAME": SUITE
    + "tests/scripts/test_export_weights.py",
    "python scripts/sweep_steps.py --model_path weights/morphomnist_causaldae_mini --student "
    "weights/morphomnist_causaldae_mini_2step --data_dir DATA --out_dir OUT --num_images 1000 --do thickness=3.5 "
    "--do intensity=90 --do intensity=200 --settings exact_ddim:2,few_step:2,few_step:2+1": (
        SUITE + "tests/evaluation/test_step_sweep.py"
    ),
    "python scripts/sweep_steps.py --model_path weights/morphomnist_causaldae_mini --student "
    "weights/morphomnist_causaldae_mini_4step --data_dir DATA --out_dir OUT --num_images 1000 --do thickness=3.5 "
    "--do intensity=90 --do intensity=200 --settings exact_ddim:4,few_step:4,few_step:4+1": (
        SUITE + "tests/evaluation/test_step_sweep.py"
    ),
    "causaldiffae distill --model_path weights/morphomnist_causaldae_mini --data_dir data/morphomnist "
    "--run_dir STUDENT --few_steps 4 --minutes 26": SUITE + "tests/scripts/test_distill.py",
    "causaldiffae distill --model_path RUN --data_dir DATA --run_dir STUDENT --few_steps 4": SUITE
    + "tests/scripts/test_distill.py",
    "python scripts/make_dataset.py circuit --out DATA --image_size 128 --num 4000 --num_test 200": SUITE
    + "tests/generators/test_circuit_writer.py",
    "python scripts/train_autoencoder.py --dataset circuit --data_dir DATA --image_size 128 --out RUN/autoencoder "
    "--iterations 2400": LATENT,
    "python scripts/image_train.py --config configs/circuit_causaldae_latent.yaml --data_dir DATA "
    "--vae_path RUN/autoencoder --run_dir RUN --minutes 47": LATENT,
    "python scripts/image_causaldae_test.py --model_path RUN --data_dir DATA --out_dir OUT --num_images 64 --steps 15 "
    "--do arm=0.5 --do blue=0.9 --do green=0.9 --do red=0.2": LATENT,
    "causaldiffae estimate --dataset pendulum --sides 32,64,128 --table docs/practical_guide.md": SUITE
    + "tests/training/test_size_table.py",
    "SIZE=latent ./scripts/train.sh --data_dir my_images": LATENT,
    "SIZE=latent ./scripts/train.sh --data_dir my_images --image_size 256": LATENT,
    "SIZE=latent ./scripts/train.sh --data_dir my_images --vae_path weights/sd-vae-ft-mse": LATENT,
    "SIZE=latent ./scripts/counterfactual.sh --data_dir my_images --do age=60": LATENT,
    "./scripts/demo.sh": SUITE + "tests/scripts/test_demo.py (slow)",
    "./scripts/test.sh": CI,
    "./scripts/test.sh -m slow": CI,
    "./.ci/run": "runs everything",
    "ruff check . && ruff format --check . && mypy": CI,
    "mkdocs build --strict": CI,
    "pytest tests/test_scm.py tests/mechanisms": CI,
    "sbatch scripts/slurm.sbatch train_morphomnist_causaldae.sh --batch_size 64": SUITE + "tests/scripts/test_slurm.py",
    "python tools/compare_mechanisms.py": SUITE + "tests/test_tools.py",
    "python tools/compare_mechanisms.py --model_path weights/circuit_causaldae_mini --data_dir data/circuit": (
        SUITE + "tests/test_tools.py"
    ),
    "python tools/convert_model.py --model_path MODEL --data_dir DATA --separate_embeddings --out OUT": SUITE
    + "tests/scripts/test_convert_model.py",
    "python tools/convert_model.py --model_path weights/circuit_causaldae_mini --data_dir data/circuit "
    "--labels labels.csv --mechanism_width 128 --mechanism_depth 3 --steps 16000 --batch_size 1024 --out OUT": SUITE
    + "tests/scripts/test_convert_model.py",
    "python tools/convert_model.py --model_path OUT --data_dir data/circuit --labels labels.csv --steps 40000 "
    "--batch_size 1024 --lr 5e-3 --out OUT2": SUITE + "tests/scripts/test_convert_model.py",
    "python tools/unusual_inputs.py --model_path weights/morphomnist_causaldae_mini --data_dir data/morphomnist": (
        SUITE + "tests/test_tools.py (slow)"
    ),
    "python scripts/export_weights.py --model_path weights/pendulum_causaldae_mini --data_dir data/pendulum": (
        SUITE + "tests/scripts/test_scripts.py"
    ),
    "python tools/measure_responses.py --model_path RUN --data_dir DATA --num_images 256": (
        SUITE + "tests/test_tools.py"
    ),
    "python tools/model_costs.py": SUITE + "tests/training/test_costs.py",
    "causaldiffae train --config pendulum_causaldae_mini --mechanism affine --separate_embeddings False "
    "--block_null True --block_drop_prob 0.3 --init_weights weights/pendulum_causaldae_mini "
    "--data_dir data/pendulum --run_dir runs/fine_tuned --lr 3e-4 --kl_anneal_steps 1": (
        SUITE + "tests/scripts/test_fine_tuning.py (slow)"
    ),
    "OMP_NUM_THREADS=1 python tools/crashes.py --kills 100": SUITE + "tests/checkpoints/test_crashes.py (slow)",
    "OMP_NUM_THREADS=1 python tools/soak.py --data_dir data/pendulum --run_dir /tmp/soak --minutes 10": MEASURES,
    "python tools/process_throughput.py --data_dir data/pendulum --rounds 4": MEASURES,
    "OMP_NUM_THREADS=1 python tools/data_throughput.py --images 20000 --steps 60": SUITE + "tests/test_tools.py",
    "python tools/parity.py record before.json": SUITE + "tests/test_parity.py",
    "python tools/parity.py compare before.json": SUITE + "tests/test_parity.py",
    "python -m build": SUITE + "tests/scripts/test_wheel.py (slow)",
    "python docs/tutorial.py": SUITE + "tests/test_docs.py",
    "pip install -e .": NETWORK,
    "pip install -e '.[dev,app,docs]'": NETWORK,
    "python scripts/benchmark.py": SUITE + "tests/evaluation/test_speed.py",
    "python scripts/benchmark.py --repeats 3 --reference_steps 3 --steps 10": SUITE + "tests/evaluation/test_speed.py",
    "./scripts/gpu_check.sh --json gpu_check.json": SUITE + "tests/evaluation/test_gpu_check.py",
    "pytest tests/fuzz": CI,
    "python tools/fuzz/atheris_targets.py idx corpus/idx -max_total_time=3600": CI,
    "pip install -e .[fuzz]": NETWORK,
    "pip install -e '.[circuit]'": NETWORK,
    "pip install -e '.[imagenet]'": NETWORK,
    "causaldiffae make-dataset mnist --download --out data/mnist": NETWORK,
    "causaldiffae make-dataset morphomnist --download --out data/morphomnist": NETWORK,
    "./scripts/test_imagenet_diffscm.sh --model_path DiT-XL-2-256x256.pt --vae_path VAE --image cat.jpg "
    '--do "tiger"': WEIGHTS,
    "./scripts/test_imagenet_diffscm.sh --model_path weights/DiT-XL-2-256x256.pt --vae_path weights/sd-vae-ft-mse "
    '--image cat.jpg --do "tiger"': WEIGHTS,
    "sha256sum FILE": WEIGHTS,
    "mpiexec -n 5 python image_causaldae_train.py": "of the published code",
}

_FEW = {
    "num_channels": "32",
    "num_res_blocks": "1",
    "channel_mult": "1,1",
    "attention_resolutions": "",
    "encoder_channels": "8,8,8,8",
    "decoder_channels": "8,8",
    "diffusion_steps": "50",
    "batch_size": "4",
    "total_steps": "2",
    "minutes": "0",
    "compile": "False",
    "log_interval": "1",
    "save_interval": "2",
    "sample_interval": "2",
    "tensorboard": "False",
}
_NOISED = ["--classifier_width=32", "--channel_mult=1,1", "--iterations=2", "--batch_size=8", "--diffusion_steps=50"]
_PREDICTOR = ["--steps=3", "--batch_size=8", "--base_images=8", "--repeats=1", "--vae_steps=3"]
TINY = {
    "make_dataset.py pendulum": ["--workers=1"],
    "make_dataset.py morphomnist": ["--num_train=48", "--num_test=8", "--workers=1"],
    "make_dataset.py circuit": ["--workers=1", "--num=8", "--num_val=2", "--num_test=4", "--image_size=32"],
    "measured_digits.py": ["--num=40", "--workers=1"],
    "attributes.py": ["--num=40", "--pairs=2"],
    "figures.py": ["--num=40", "--pairs=2"],
    "image_train.py": [f"--{name}={value}" for name, value in _FEW.items()],
    "estimate.py": [f"--{name}={value}" for name, value in _FEW.items()],
    "noised_classifier.py": _NOISED,
    **{f"image_{name}_test.py": ["--num_images=2", "--steps=2"]
       for name in ("causaldae", "conditional", "diffae", "causalvae", "diffscm")},
    **{f"{name}_classifier.py": _PREDICTOR for name in ("morphomnist", "pendulum")},
    "circuit_classifier.py": [*_PREDICTOR, "--image_size=32"],
    "sweep_scale.py": ["--num_images=4", "--num_reference=8", "--steps=2", "--scales=0,1"],
    "sweep_steps.py": ["--num_images=2", "--settings=ddim:3,dpmpp2m:2"],
    "reproduce.py": ["--dry_run=True"],
    "write_tables.py": [],
    "evaluate.py": ["--num_images=3", "--steps=2", "--workers=1", "--cycles=1", "--dci_resamples=1"],
    "plot_run.py": ["--images=1", "--steps=2"],
    "mutate.py": ["--inputs=100"],
    "explore.py": ["--port=0"],
}  # fmt: skip
"""Appended to the arguments of a script, however it is started."""
SUBCOMMANDS = {
    "make-dataset": "make_dataset.py",
    "check": "make_dataset.py",
    "train": "image_train.py",
    "estimate": "estimate.py",
    "train-predictor": "noised_classifier.py",
    "test": "image_causaldae_test.py",
    "evaluate": "evaluate.py",
    "plot": "plot_run.py",
    "distill": "distill.py",
    "export": "export_weights.py",
}
"""Subcommands of `causaldiffae` and the scripts whose arguments they take."""
TINY |= {
    f"command.py {subcommand}{name.removeprefix(script)}": arguments
    for subcommand, script in SUBCOMMANDS.items()
    for name, arguments in list(TINY.items())
    if name.startswith(script)
}

_FEW_PENDULUMS = """
from causaldiffae.generators import pendulum
whole = pendulum.grid
pendulum.grid = lambda: tuple(values[::37] for values in whole())
"""
_FEW_PICTURES = """
from causaldiffae.training import previews
previews.PREVIEW_STEPS = previews.PREVIEW_IMAGES = 2
"""
BEFORE = {
    "make_dataset.py pendulum": _FEW_PENDULUMS,
    "command.py make-dataset pendulum": _FEW_PENDULUMS,
    "image_train.py": _FEW_PICTURES,
    "command.py train": _FEW_PICTURES,
}

STAGES = ["make_dataset.py", "make-dataset", "measured_digits.py", "attributes.py", "figures.py"], ["train"], [""]
"""A command belongs to the first stage of which it contains a word."""
TIMEOUT = 400  # seconds for a command


def printed_commands(text: str) -> list[str]:
    """The commands of a Markdown text: lines of its shell blocks, and spans that begin with a program."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = []
    for language, body in blocks:
        if language in SHELL:
            lines += re.sub(r"\\\n\s*", "", body).splitlines()
    found = [re.sub(r"(?:^|\s+)#\s.*$", "", line).strip() for line in lines]
    comments = [part for line in lines for part in re.findall(r"#\s+needs (pip .*?) and ", line)]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [*filter(None, found), *comments, *(span for span in spans if PROGRAM.match(span))]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


PRINTED = sorted({each for path in DOCUMENTS for each in printed_commands(path.read_text(encoding="utf-8"))})


def forms(printed: str) -> list[str]:
    """One command for every name in {braces}, with folders of the copy in place of the placeholders."""
    braces = re.search(r"\{([\w,]+)\}", printed)
    if braces:
        names = {"dataset": ["morphomnist", "pendulum"]}.get(braces[1], braces[1].split(","))
        return [form for name in names for form in forms(printed.replace(braces[0], name))]
    dataset = next((name for name in ("morphomnist", "circuit", "mnist") if f"{name}_" in printed), "pendulum")
    folders = {
        "MNIST_DIR": "assets/mnist_share",
        "DATA": f"data/{dataset}",
        "RUN": f"runs/{dataset}_causaldae_mini",
        "OUT": f"out/{dataset}_sweep",
        "DIR": f"out/{dataset}_predictor",
        "NAME": dataset,
    }
    return [re.sub(r"\b(" + "|".join(folders) + r")\b", lambda found: folders[found[0]], printed)]


COMMANDS = sorted({form for printed in PRINTED if printed not in ELSEWHERE for form in forms(printed)})


def commands_of_stage(number: int) -> list[list[str]]:
    """The commands of a stage. Those of one script are one list, since they may write to the same folder."""
    lists: dict[str, list[str]] = {}
    for command in COMMANDS:
        if number == next(i for i, words in enumerate(STAGES) if any(word in command for word in words)):
            script = re.search(r"\S+\.(?:sh|py)|causaldiffae [\w-]+", command)
            assert script is not None, command
            lists.setdefault(script[0], []).append(command)
    return sorted(lists.values(), key=len, reverse=True)


def why_unknown(printed: str) -> str:
    """Why a command is neither run by this file nor listed in ELSEWHERE; "" if it is."""
    if printed in ELSEWHERE:
        return ""
    for form in forms(printed):
        scripts = re.findall(r"(?:^| )(?:\./)?([\w/]+\.(?:sh|py))", form)
        subcommand = re.match(r"causaldiffae ([\w-]+)", form)
        if subcommand:
            if subcommand[1] not in SUBCOMMANDS:
                return f"SUBCOMMANDS does not know {subcommand[1]}"
        elif not scripts:
            return "it starts no script of this repository"
        for script in scripts:
            if not (REPO / script).is_file():
                return f"{script} does not exist"
            if script.endswith(".py") and Path(script).name not in {name.split()[0] for name in TINY}:
                return f"TINY does not say how to keep {script} short"
    return ""


@pytest.mark.parametrize("printed", PRINTED)
def test_every_command_is_run_or_an_exception(printed: str) -> None:
    assert not why_unknown(printed), f"`{printed}` is neither run here nor listed in ELSEWHERE: {why_unknown(printed)}"


def test_exceptions_are_printed_and_run_elsewhere() -> None:
    assert set(ELSEWHERE) <= set(PRINTED), f"no document prints {set(ELSEWHERE) - set(PRINTED)}"
    run_by_ci = (REPO / ".ci" / "run").read_text(encoding="utf-8")
    assert "./scripts/test.sh" in run_by_ci and "tools/fuzz/atheris_targets.py" in run_by_ci
    news = ("python scripts/new.py", "./scripts/new.sh", "SIZE=mini ./scripts/new.sh --do a=1", "make all")
    for new in (*news, "causaldiffae new --do a=1"):
        assert why_unknown(new)
    assert len(COMMANDS) > 30


def test_a_new_command_is_found() -> None:
    text = "Say `python new.py` or\n`SIZE=mini ./scripts/new.sh\n--do a=1`, not `--do`:\n\n"
    text += "```bash\n./new.sh   # comment\nfoo \\\n bar\n\npip install this\n```\n\n```text\nx0 -> u\n```\n\n"
    text += "```python\nx = 1\n```\n"
    found = printed_commands(text)
    assert found == ["./new.sh", "foo bar", "pip install this", "python new.py", "SIZE=mini ./scripts/new.sh --do a=1"]
    assert python_blocks(text) == ["x = 1\n"]


# ------------------------------------------------------------------------------------------------ running


class CommandRunner:
    """Runs commands in a copy of the repository; `errors` maps a command to its output if it failed, else to ""."""

    def __init__(self, folder: Path, python: ForkedPython) -> None:
        self.clone = folder / "causaldiffae"
        ignored = shutil.ignore_patterns(
            ".*", "data", "runs", "out", "demo_out", "build", "dist", "__pycache__", "*.egg-info"
        )
        shutil.copytree(REPO, self.clone, ignore=ignored)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")},
            "PATH": os.pathsep.join([str(python.folder / "bin"), str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(self.clone),
            "CAUSALDIFFAE_VENV": str(python.folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "MNIST": "assets/mnist_share",
            "OMP_NUM_THREADS": "1",
            "https_proxy": "http://127.0.0.1:9",  # nothing listens: network access fails at once
            "http_proxy": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1",
        }
        self.errors: dict[str, str] = {}

    def run(self, command: str) -> None:
        """Runs a command and records its error."""
        if "explore.sh" in command:
            self.errors[command] = self._serve(command)
            return
        started, line = time.perf_counter(), re.sub(r"\bNPROC=\d+", "NPROC=2", command)
        if "train_pendulum" in line:
            line += " --image_size=32"
        process = subprocess.Popen(
            ["bash", "-c", line], cwd=self.clone, env=self.environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output = process.communicate(timeout=TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0] + f"\nno exit within {TIMEOUT} s"
        print(f"{time.perf_counter() - started:6.1f} s {line}")
        self.errors[command] = "" if process.returncode == 0 else output or f"exit code {process.returncode}"

    def _serve(self, command: str) -> str:
        """Starts a server, fetches its page and ends it by Ctrl-C; returns an error or ""."""
        process = subprocess.Popen(
            ["bash", "-c", "exec " + command], cwd=self.clone, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        found = re.match(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        error = "no address printed"
        if found:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(found[0], timeout=60) as page:
                error = "" if "causaldiffae" in page.read().decode() else "unexpected page"
        process.send_signal(signal.SIGINT)
        process.wait(60)
        return error


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandRunner]:
    folder = tmp_path_factory.mktemp("documented")
    with ForkedPython(folder / "env", TINY, BEFORE, unforked=["explore.py"]) as python:
        runner = CommandRunner(folder, python)
        command = python.folder / "bin" / "causaldiffae"
        command.write_text(f'#!/bin/sh\nexec "{python.folder}/bin/python" "{runner.clone}/scripts/command.py" "$@"\n')
        command.chmod(0o755)
        for name in ("mnist", "fashion_mnist"):  # in place of --download
            copy_files(name, REPO / "assets" / "mnist_share", runner.clone / "data" / name)
        make_folder(runner.clone / "my_images")
        with ThreadPoolExecutor(2) as pool:
            for number in range(len(STAGES)):
                list(pool.map(lambda commands: [runner.run(each) for each in commands], commands_of_stage(number)))
        yield runner


@pytest.mark.slow
@pytest.mark.timeout(2400)  # the first waits for all commands
@pytest.mark.xdist_group("documented commands")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(runner: CommandRunner, command: str) -> None:
    if "make_dataset.py circuit" in command and not circuit_scene.can_render():
        pytest.skip("MuJoCo or the EGL libraries it draws with are missing")
    error = runner.errors[command]
    assert not error, f"{command}\n{error[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(2400)  # the first waits for all commands
@pytest.mark.xdist_group("documented commands")
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_blocks(path.read_text(encoding="utf-8"))],
                         ids=lambda path: path.name)  # fmt: skip
def test_python_blocks_run(runner: CommandRunner, path: Path) -> None:
    """The blocks of a document one after the other, as in one session."""
    script = runner.clone / f"blocks_{path.stem}.py"
    script.write_text("\n".join(python_blocks(path.read_text(encoding="utf-8"))), encoding="utf-8")
    command = f"python {script.name}"
    runner.run(command)
    assert not runner.errors[command], runner.errors[command]
