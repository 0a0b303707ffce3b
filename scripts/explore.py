"""A page in the browser on which sliders ask a trained model counterfactual questions; 127.0.0.1 only.

    ./scripts/explore.sh                                           # sets up the environment, shows the shipped weights
    python scripts/explore.py --model_path runs/pendulum_causaldae_mini --data_dir data/pendulum

Offers the model and all models in the folders beside it. Without --data_dir the pictures are examples that come with
the repository; any JPEG, PNG or WebP can be uploaded. Nothing is sent anywhere.
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
from causaldiffae.script_util import run_cli

DEFAULT = WEIGHTS / "morphomnist_causaldae_mini"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(DEFAULT), help="run directory, model folder or shipped name; "
                        "default weights/morphomnist_causaldae_mini")  # fmt: skip
    parser.add_argument("--data_dir", default="", help="a data set's folder to take pictures from; default: examples")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or the next free one")
    # A network this small gains nothing from a second thread, and loses tenfold where another process wants the core.
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; more suit larger models; default 1")
    args = parser.parse_args(argv)
    if args.threads < 1:
        raise InputError(f"threads: {args.threads} given, 1 or more is needed")
    if args.data_dir and not Path(args.data_dir).is_dir() and "://" not in args.data_dir:
        raise InputError(f"{args.data_dir}: the folder is missing")
    torch.set_num_threads(args.threads)
    registry = ModelRegistry(find_models(find_model(args.model_path)), args.data_dir, dist_util.dev())
    registry.pictures(registry.titles[0])  # a damaged model is told here, and the page's first answer comes sooner
    serve(registry, args.port, lambda address: print(f"{address}   (Ctrl-C ends it)", flush=True))


if __name__ == "__main__":
    run_cli(main)
