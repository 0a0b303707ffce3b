"""Plots a run's training curves, and with --traverse counterfactuals of its model.

    python scripts/plot_run.py runs/pendulum_causaldae_mini
    python scripts/plot_run.py weights/pendulum_causaldae_mini --out plots --traverse True

Writes curves.png and run.html (curves, causal graph) to RUN/plots or --out; with --traverse True also
traversal_NAME.png for every variable and traversals.gif, for test images of --data_dir. By default these are example
images or, for a model of your own images, test images of the folder that it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causaldiffae import dist_util
from causaldiffae.checkpoints.model_folders import config_file
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError, check_local
from causaldiffae.evaluation.run_page import write_run_page
from causaldiffae.files.reading import read_json
from causaldiffae.files.storage import is_remote
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.script_util import run_cli
from causaldiffae.training.devices import add_device_flag, use_device


def traversed_images(model: CounterfactualModel, run: Path, data_dir: str, count: int) -> ImageData:
    """Test images in `data_dir`; without it, those of the run's folder, or examples of a built-in data set."""
    if not data_dir and model.spec.name != "folder":
        return model.examples(count)
    if not data_dir:
        config = config_file(run)
        data_dir = "" if config is None else read_json(config).get("config", {}).get("train", {}).get("data_dir", "")
        if not data_dir or not (is_remote(data_dir) or Path(data_dir).is_dir()):
            raise InputError(
                f"data_dir: expected the folder of the run's images, got {data_dir!r}, which is missing; set --data_dir"
            )
    return read_split(model.spec.name, data_dir, "test", limit=count, spec=model.spec)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory, or model folder with its log")
    parser.add_argument("--out", type=Path, help="folder to write to; default RUN/plots")
    parser.add_argument(
        "--traverse",
        choices=("True", "False"),
        default="False",
        help="also draw images with each variable set over its range",
    )
    parser.add_argument("--data_dir", default="", help="data set of the traversed images")
    parser.add_argument("--images", type=int, default=4, help="number of traversed images; default %(default)s")
    parser.add_argument("--steps", type=int, default=15, help="evaluations in each direction; default %(default)s")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    check_local(run=args.run, out=args.out)
    use_device(args.device)
    if not 1 <= args.images <= 16:
        raise InputError(f"images: expected 1 to 16, got {args.images}")
    model, images = None, None
    if args.traverse == "True":
        model = CounterfactualModel.from_pretrained(args.run, device=dist_util.dev(), steps=args.steps)
        images = traversed_images(model, args.run, args.data_dir, args.images)
    for path in write_run_page(args.run, args.out or args.run / "plots", model, images):
        print(path)


if __name__ == "__main__":
    run_cli(main)
