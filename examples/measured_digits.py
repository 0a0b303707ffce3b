"""Example of your own data set: MNIST digits as PNG files, with measured labels and a causal graph.

    python examples/measured_digits.py --mnist MNIST_DIR --out my_digits --num 2400
    causaldiffae check my_digits
    SIZE=mini ./scripts/train.sh --data_dir my_digits
    SIZE=mini ./scripts/counterfactual.sh --data_dir my_digits --do thickness=4 --do slant=0.4

It writes images, labels.csv and graph.yaml, as you would. Without --mnist it uses the 512 digits in
assets/mnist_share: enough to try the commands, too few for a good model.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from causaldiffae.errors import InputError
from causaldiffae.files.idx import read_digits
from causaldiffae.generators.morphology import measure_batch
from causaldiffae.script_util import run_cli

SHARE = Path(__file__).resolve().parent.parent / "assets" / "mnist_share"
COLUMNS = ("area", "length", "thickness", "slant", "width", "height")
KEPT = ("thickness", "slant", "width")
GRAPH = """\
# Thick strokes make a digit wide, and so does a slant.
edges: [[thickness, width], [slant, width]]
variables:
  thickness: {unit: pixels}
  slant: {unit: rad}
  width: {unit: pixels}
image_size: 32
channels: 1
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--mnist", type=Path, default=SHARE, help="folder with MNIST's IDX files; default: the shipped share"
    )
    parser.add_argument("--num", type=int, default=2400, help="number of digits; default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes that measure; default %(default)s")
    args = parser.parse_args(argv)
    if args.num < 1 or args.workers < 1:
        raise InputError("--num, --workers: expected 1 or more")
    if args.out.exists():
        raise InputError(f"--out: expected a new folder, got {args.out}, which exists")
    digits = read_digits(args.mnist, "train")[0][: args.num]
    measured = measure_batch(digits, workers=args.workers, progress=True)
    measured = measured[:, [COLUMNS.index(name) for name in KEPT]]
    (args.out / "images").mkdir(parents=True)
    with (args.out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *KEPT])
        for i, (digit, row) in enumerate(zip(digits, measured, strict=True)):
            if not np.isfinite(row).all():
                continue
            name = f"images/{i:05d}.png"
            Image.fromarray(digit).save(args.out / name)
            writer.writerow([name, *(f"{value:.4f}" for value in row)])
    (args.out / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_cli(main)
