"""Serves a page on 127.0.0.1 on which sliders and buttons set the variables of an image.

    ./scripts/explore.sh                                           # sets up the environment, shows the shipped weights
    python scripts/explore.py --model_path runs/pendulum_causaldae_mini --data_dir data/pendulum

Offers the model and all models in the folders beside it. Without --data_dir it shows example images that come with the
repository; any JPEG, PNG, WebP, TIFF, BMP or GIF can be uploaded. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from causaldiffae import dist_util
from causaldiffae.checkpoints.model_folders import WEIGHTS, find_model
from causaldiffae.errors import InputError
from causaldiffae.explorer.registry import ModelRegistry, find_models
from causaldiffae.explorer.server import PORT, serve
from causaldiffae.files.storage import is_remote
from causaldiffae.script_util import run_cli
from causaldiffae.training.devices import add_device_flag, use_device

DEFAULT = WEIGHTS / "morphomnist_causaldae_mini"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(DEFAULT), help="run directory, model folder or shipped name; "
                        "default weights/morphomnist_causaldae_mini")  # fmt: skip
    parser.add_argument("--data_dir", default="", help="a data set's folder to take images from; default: examples")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or the next free one")
    # Small networks gain nothing from a second thread, and are ten times slower when another process uses that core.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default 1, large models need more")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    use_device(args.device)
    if args.threads < 1:
        raise InputError(f"threads: expected 1 or more, got {args.threads}")
    if args.data_dir and not Path(args.data_dir).is_dir() and not is_remote(args.data_dir):
        raise InputError(f"data_dir: expected a folder, got {args.data_dir} (it is missing)")
    torch.set_num_threads(args.threads)
    registry = ModelRegistry(find_models(find_model(args.model_path)), args.data_dir, dist_util.dev())
    registry.images(registry.titles[0])  # refuses a damaged model before the server starts
    serve(registry, args.port, lambda address: print(f"{address}   (press Ctrl-C to stop)", flush=True))


if __name__ == "__main__":
    run_cli(main)
