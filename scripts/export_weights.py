"""Exports a run as a model folder: weights in half precision, their configuration, and the training log.

python scripts/export_weights.py --model_path runs/pendulum_causaldae_mini --out weights/pendulum_causaldae_mini
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.errors import InputError
from causaldiffae.published.autoencoder import keep_with_model
from causaldiffae.script_util import describe_checkpoint, load_model, run_cli

LOG_FILES = ("progress.csv", "config.yaml", "responses.json")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, required=True, help="run directory or step folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--ema", help="rate of the moving average; default: the first; 'none' exports the trained weights"
    )
    args = parser.parse_args(argv)
    loaded = load_model(str(args.model_path), ema=args.ema)
    if loaded.step is None:
        raise InputError(f"model_path: expected a run, got {args.model_path}, which is already a model folder")
    run_dir = Path(loaded.path).parent
    description = {**describe_checkpoint(loaded.config, loaded.spec, loaded.codec), "trained_steps": loaded.step}
    folder = export_weights(args.out, loaded.model.state_dict(), description, torch.float16)
    keep_with_model(loaded.codec, folder)
    for name in LOG_FILES:
        if (run_dir / name).is_file():
            shutil.copyfile(run_dir / name, folder / name)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: step {loaded.step}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
