"""Records outputs and public names of the package, and compares two records, which a refactoring must leave equal.

    python tools/parity.py record before.json
    python tools/parity.py compare before.json

Only scripts and the public interface are used, so the record does not depend on the layout of the package: losses of
ten seeded training steps for every model type and for the predictors, counterfactuals of every shipped model, results
of a small evaluation, public names, flags, configuration keys, and the files of runs and model folders. Numbers are
compared exactly: record and compare on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

REPO = Path(__file__).resolve().parents[1]
MODEL_TYPES = ("causaldae", "diffscm", "conditional", "diffae", "causalvae")
SMALL = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "14",
    "encoder_channels": "8,8,8,8",
    "decoder_channels": "8,8",
    "rep_dim": 8,
    "batch_size": 8,
    "total_steps": 10,
    "log_interval": 1,
    "save_interval": 10,
    "sample_interval": 1000,
    "drop_prob": 0.2,
    "label_forcing": 0.3,
    "tensorboard": False,
    "class_cond": True,
}
TIMINGS = {
    "folder",
    "out",
    "timing",
    "images_per_second",
    "seconds",
    "drawing_seconds",
    "training_seconds",
    "generated",
    "versions",
    "path",
}


def run(*arguments: object) -> str:
    """Runs a Python script of the repository and returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def flags(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def make_data(folder: Path) -> Path:
    out = folder / "morphomnist"
    arguments = ["--mnist", REPO / "assets" / "mnist_share", "--out", out, "--num_train", 48, "--num_test", 8]
    run("scripts/make_dataset.py", "morphomnist", *arguments, "--workers", 1)
    return out


def training(folder: Path, data: Path) -> dict[str, Any]:
    """Logged values of ten steps, and keys of configuration and checkpoint, by model type."""
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {name: {"model_type": name} for name in MODEL_TYPES}
    cases |= {"affine": {"mechanism": "affine"}, "one_hop": {"mechanism": "one_hop"}, "masked": {"masking": True}}
    cases["masked"]["label_fraction"] = 0.5
    cases["diffscm"] |= {"label_cond": True}
    for name, changes in cases.items():
        run_dir = folder / "runs" / name
        values = {**SMALL, **changes, "dataset": "morphomnist", "data_dir": data, "run_dir": run_dir}
        run("scripts/image_train.py", *flags(values))
        with (run_dir / "progress.csv").open(encoding="utf-8") as file:
            rows = [{key: value for key, value in row.items() if key not in TIMINGS} for row in csv.DictReader(file)]
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        step = next(run_dir.glob("step_*"))
        checkpoint = json.loads((step / "config.json").read_text(encoding="utf-8"))
        found[name] = {
            "losses": rows,
            "config": {part: sorted(values) for part, values in config.items()},
            "run": sorted(path.name for path in run_dir.iterdir()),
            "checkpoint": sorted(path.name for path in step.iterdir()),
            "checkpoint_config": sorted(checkpoint),
            "dataset": checkpoint.get("dataset", checkpoint.get("config", {}).get("dataset")),
        }
    predictor = folder / "noised"
    settings = {"dataset": "morphomnist", "data_dir": data, "out": predictor, "classifier_width": 32, "batch_size": 8}
    settings |= {"channel_mult": "1,2", "iterations": 10}
    run("classifiers/noised_classifier.py", *flags(settings))
    found["noised_classifier"] = without_timings(json.loads((predictor / "config.json").read_text(encoding="utf-8")))
    return found


COUNTERFACTUALS = """
import hashlib, json, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
from causaldiffae import CounterfactualModel
name = sys.argv[1]
model = CounterfactualModel.from_pretrained(name)
spec = model.spec
found = {}
for i, variable in enumerate(spec.graph.names):
    low, high = spec.low[i], spec.high[i]
    value = float(round(low + 0.7 * (high - low)))
    images = model.examples(2)
    cf = model.counterfactual(images, do={variable: value})
    found[variable] = {
        "images": hashlib.sha256(np.ascontiguousarray(cf.images).tobytes()).hexdigest()[:16],
        "labels": {name: np.asarray(values, float).round(9).tolist() for name, values in cf.labels.items()},
    }
json.dump(found, sys.stdout)
"""


def counterfactuals() -> dict[str, Any]:
    """Hashes of two counterfactuals of every variable, by shipped model."""
    found = {}
    for folder in sorted((REPO / "weights").iterdir()):
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found[folder.name] = {"files": sorted(path.name for path in folder.iterdir()), "keys": sorted(described)}
        if described.get("model_type") in (*MODEL_TYPES, "causaldiffae"):
            found[folder.name]["answers"] = json.loads(run("-c", COUNTERFACTUALS, str(folder)))
    return found


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timings(each) for key, each in value.items() if key not in TIMINGS}
    return [without_timings(each) for each in value] if isinstance(value, list) else value


def evaluation(folder: Path, data: Path) -> dict[str, Any]:
    """Outputs of a test script and results of an evaluation on a few images."""
    model, out = "weights/morphomnist_causaldae_mini", folder / "test"
    options = ["--do", "thickness=3.5", "--do", "intensity=90", "--steps", 5, "--sweep_w", "0.5,1.5"]
    run("scripts/image_causaldae_test.py", "--model_path", model, "--data_dir", data, "--out_dir", out, *options)
    small = {"num_images": 6, "steps": 5, "workers": 1, "cycles": 2, "dci_resamples": 2}
    results = ["--data_dir", data, "--out", folder / "results.json", *flags(small)]
    run("scripts/evaluate.py", "--model_path", model, *results)
    figures = without_timings(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    for key in ("command", "data_dir", "machine", "settings", "model", "judge"):
        figures.pop(key, None)
    with np.load(out / "counterfactuals.npz", allow_pickle=False) as arrays:
        digests = {name: sha256(np.ascontiguousarray(arrays[name]).tobytes()) for name in sorted(arrays.files)}
    table = (out / "counterfactuals.csv").read_bytes()
    return {"results": figures, "test": {"arrays": digests, "csv": sha256(table)}}


def names() -> dict[str, Any]:
    """Public names of the package, names of scripts and configurations, and all flags."""
    public = "import causaldiffae, json; print(json.dumps({n: sorted(m for m in dir(getattr(causaldiffae, n)) "
    public += "if not m.startswith('_')) for n in causaldiffae.__all__}))"
    scripts = sorted(str(path.relative_to(REPO)) for folder in ("scripts", "classifiers") for path in
                     (REPO / folder).glob("*") if path.suffix in (".py", ".sh"))  # fmt: skip
    found = {}
    for script in scripts:
        if script.endswith(".py"):
            text = run(script, "--help")
            found[script] = sorted(set(re.findall(r"(?:^|\s)(--[a-zA-Z][\w-]*)", text)))
    subcommands = ("pendulum", "morphomnist", "mnist", "fashion_mnist", "circuit", "check")
    for name in subcommands:
        text = run("scripts/make_dataset.py", name, "--help")
        found[f"make_dataset {name}"] = sorted(set(re.findall(r"(?:^|\s)(--[a-zA-Z][\w-]*)", text)))
    configs = sorted(str(path.relative_to(REPO)) for path in (REPO / "configs").rglob("*.yaml"))
    return {"public": json.loads(run("-c", public)), "scripts": scripts, "flags": found, "configs": configs}


def record() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_data(folder)
        return {
            "names": names(),
            "counterfactuals": counterfactuals(),
            "evaluation": evaluation(folder, data),
            "training": training(folder, data),
        }


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Lists what is missing or different in `after`, one line each; additions are not listed."""
    if isinstance(before, dict) and isinstance(after, dict):
        missing = [f"{path}/{key}: missing" for key in before if key not in after]
        return missing + [
            d for key in before if key in after for d in differences(before[key], after[key], f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and all(isinstance(each, str) for each in before):
        return [f"{path}: {each} is missing" for each in before if each not in after]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [d for i, pair in enumerate(zip(before, after, strict=True)) for d in differences(*pair, f"{path}[{i}]")]
    return [] if before == after else [f"{path}: {str(before)[:80]} before, {str(after)[:80]} after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    found = json.loads(json.dumps(record()))
    if arguments.task == "record":
        arguments.file.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        print(f"recorded {arguments.file}")
        return
    before = without_timings(json.loads(arguments.file.read_text(encoding="utf-8")))
    different = differences(before, without_timings(found))
    print("\n".join(different) or "equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
