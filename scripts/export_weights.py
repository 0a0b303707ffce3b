"""Exports a run as a model folder: weights in half precision, their configuration, the training log and the reference.

python scripts/export_weights.py --model_path runs/pendulum_causaldae_mini --out weights/pendulum_causaldae_mini
python scripts/export_weights.py --model_path weights/pendulum_causaldae_mini --data_dir data/pendulum
python scripts/export_weights.py --model_path runs/fine_tuned --average weights/start --share 0.7 --out weights/average

The second command adds the reference with which images and labels are compared (docs/counterfactuals.md) to an older
run or model folder; training now writes it. The third one averages a fine-tuned model and the model that it started
from, which keeps much of the accuracy of the first and of the robustness of the second (Wortsman et al., 2022, arXiv
2109.01903).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import CONFIG, MODEL, export_weights
from causaldiffae.checkpoints.folder_layout import RESPONSES
from causaldiffae.checkpoints.model_folders import copy_beside, copy_files
from causaldiffae.datasets.reference import FILE, TrainingReference
from causaldiffae.datasets.registry import read_split
from causaldiffae.diff_scm import own_weights
from causaldiffae.errors import InputError, check_local
from causaldiffae.files.reading import read_json
from causaldiffae.published.autoencoder import keep_with_model
from causaldiffae.script_util import LoadedModel, describe_checkpoint, load_model, run_cli


def write_reference(loaded: LoadedModel, folder: Path, data_dir: str) -> None:
    """Writes the reference of a model's training data into a run or model folder."""
    spec, train = loaded.spec, loaded.config.train
    data = read_split(spec.name, data_dir, "train", limit=train.num_images or None, spec=spec)
    TrainingReference.fit(data).write(folder)
    print(f"{folder / FILE}: from {len(data):,} training images of {data_dir}")


def averaged(loaded: LoadedModel, other: LoadedModel, share: float) -> dict[str, Tensor]:
    """Weights share * loaded + (1 - share) * other, tensor by tensor; other tensors than floating-point are `loaded`'s.

    Raises:
        InputError: for a share outside [0, 1], or models of different data sets, networks or diffusion processes.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share: expected a number between 0 and 1, got {share:g}")
    ours, theirs = ((each.spec, each.config.model, each.config.diffusion) for each in (loaded, other))
    if ours != theirs:
        raise InputError(
            f"average: expected a model of the same data set, networks and diffusion, got another one in {other.path}"
        )
    state, start = own_weights(loaded.model), own_weights(other.model)
    return {k: torch.lerp(start[k], v, share) if v.is_floating_point() else v for k, v in state.items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path",
        required=True,
        help="run directory or step folder; with --average also a model folder",
    )
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--data_dir", default="", help="training data, to write the reference of a model without one")
    parser.add_argument(
        "--ema", help="rate of the moving average; default: the first; 'none' exports the trained weights"
    )
    parser.add_argument("--average", default="", help="run or model folder whose weights are averaged with these")
    parser.add_argument("--share", type=float, default=0.5, help="share of --model_path in the average")
    args = parser.parse_args(argv)
    check_local(out=args.out)
    if args.out is None and not args.data_dir:
        raise InputError("out: expected a folder to write, got none")
    loaded = load_model(args.model_path, ema=args.ema)
    own = Path(loaded.path) if loaded.step is None else Path(loaded.path).parent
    if args.out is None:
        write_reference(loaded, own, args.data_dir)
        return
    if loaded.step is None and not args.average:
        raise InputError(f"model_path: expected a run, got {args.model_path}, which is already a model folder")
    if args.out.resolve() == own.resolve():
        raise InputError(f"out: expected another folder than that of the model, got {args.out}")
    steps = loaded.step if loaded.step is not None else read_json(own / CONFIG).get("trained_steps")
    description = {**describe_checkpoint(loaded.config, loaded.spec, loaded.codec), "trained_steps": steps}
    state = own_weights(loaded.model)
    if args.average:
        state = averaged(loaded, load_model(args.average, ema=args.ema), args.share)
        description["averaged_share"] = args.share
    folder = export_weights(args.out, state, description, torch.float16)
    keep_with_model(loaded.codec, folder)
    copy_files(Path(loaded.path), folder, (RESPONSES,) if args.average else ())  # averaged weights have other responses
    copy_beside(Path(loaded.path), Path("config.yaml"), folder)
    if args.data_dir:
        write_reference(loaded, folder, args.data_dir)
    size = (folder / MODEL).stat().st_size
    print(f"{folder}: step {steps}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
