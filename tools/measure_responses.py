"""Measures how the pictures of a model follow interventions, and writes its responses.json.

    python tools/measure_responses.py --model_path weights/pendulum_causaldae_mini --data_dir data/pendulum

Training does the same on 32 images with every preview, by the network alone; here, images are decoded as the explorer
and the Python interface do by default, with label correction. The files of shipped weights were written by this
command: for CausalCircuit on 200 images, for MNIST on 128, and for MorphoMNIST with --label_predictor
weights/morphomnist_28_predictor, since measured thickness is off on true images of thick strokes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causaldiffae.datasets.images import evenly_spread
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.script_util import load_model, run_cli
from causaldiffae.training.responses import FILE, describe, find_reader, measure_responses, write_responses


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="model folder, or a step of a run")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--num_images", type=int, default=256, help="test images, evenly spread over the split")
    parser.add_argument("--label_predictor", default="", help="predictor that reads labels; default: as in training")
    parser.add_argument("--dry_run", action="store_true", help="print the responses only")
    args = parser.parse_args(argv)
    loaded = load_model(args.model_path)
    folder = Path(loaded.path)
    if not folder.is_dir():
        raise InputError(f"model_path: expected a folder for {FILE}, got the file {folder}")
    test = read_split(loaded.spec.name, args.data_dir, "test", spec=loaded.spec)
    if not 0 < args.num_images <= len(test):
        raise InputError(f"num_images: expected a number between 1 and {len(test)}, got {args.num_images}")
    engine = loaded.engine()
    reader = find_reader(loaded.spec, engine, args.label_predictor)
    if reader is None:
        raise InputError("label_predictor: expected a folder for a model whose labels nothing else reads, got none")
    responses = measure_responses(engine, test.subset(evenly_spread(args.num_images, len(test))), reader)
    print("\n".join(describe(responses)))
    if not args.dry_run:
        write_responses(folder, responses)
        print(f"written to {folder / FILE}")


if __name__ == "__main__":
    run_cli(main)
