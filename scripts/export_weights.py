"""Exports a run as a model folder: weights in half precision, their configuration, the training log and the reference.

python scripts/export_weights.py --model_path runs/pendulum_causaldae_mini --out weights/pendulum_causaldae_mini
python scripts/export_weights.py --model_path weights/pendulum_causaldae_mini --data_dir data/pendulum

The second command adds to a run or model folder the reference with which images and labels are compared
(docs/counterfactuals.md); training has written it since it exists.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.reference import FILE, TrainingReference
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.published.autoencoder import keep_with_model
from causaldiffae.script_util import LoadedModel, describe_checkpoint, load_model, run_cli

LOG_FILES = ("progress.csv", "config.yaml", "responses.json", FILE)


def write_reference(loaded: LoadedModel, folder: Path, data_dir: str) -> None:
    """Writes the reference of a model's training data into a run or model folder."""
    spec, train = loaded.spec, loaded.config.train
    data = read_split(spec.name, data_dir, "train", limit=train.num_images or None, spec=spec)
    TrainingReference.fit(data).write(folder)
    print(f"{folder / FILE}: from {len(data):,} training images of {data_dir}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, required=True, help="run directory or step folder")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--data_dir", default="", help="training data, to write the reference of a model without one")
    parser.add_argument(
        "--ema", help="rate of the moving average; default: the first; 'none' exports the trained weights"
    )
    args = parser.parse_args(argv)
    if args.out is None and not args.data_dir:
        raise InputError("out: expected a folder to write, got none")
    loaded = load_model(str(args.model_path), ema=args.ema)
    own = Path(loaded.path) if loaded.step is None else Path(loaded.path).parent
    if args.out is None:
        write_reference(loaded, own, args.data_dir)
        return
    if loaded.step is None:
        raise InputError(f"model_path: expected a run, got {args.model_path}, which is already a model folder")
    description = {**describe_checkpoint(loaded.config, loaded.spec, loaded.codec), "trained_steps": loaded.step}
    folder = export_weights(args.out, loaded.model.state_dict(), description, torch.float16)
    keep_with_model(loaded.codec, folder)
    for name in LOG_FILES:
        if (own / name).is_file():
            shutil.copyfile(own / name, folder / name)
    if args.data_dir:
        write_reference(loaded, folder, args.data_dir)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: step {loaded.step}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
