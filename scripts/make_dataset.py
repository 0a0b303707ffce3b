"""Writes a data set: `python scripts/make_dataset.py pendulum --out DIR`, `... morphomnist --mnist DIR --out DIR`,
`... circuit --out DIR --num N`. Or checks your own: `python scripts/make_dataset.py check DIR --graph G.yaml`.

The folder gets its name only when it is complete; a complete folder is left as it is when the command runs again.
Exit code 2 means that the request or a file must be corrected: one line on standard error, from `check` one for each
problem found.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from causaldiffae.errors import InputError, check_local

if TYPE_CHECKING:
    from causaldiffae.datasets.folder.check import TrainingSize

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MAX_CONFIG = 1 << 20

FASHION_MNIST_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def download(name: str, folder: Path) -> Path:
    """Fetches "MNIST" or "FashionMNIST" with torchvision."""
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--download: {name} could not be fetched into {folder} ({reason})") from None
    return folder


def write_pendulum(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.pendulum import write_dataset

    return write_dataset(args.out, workers=args.workers, progress=not args.quiet)


def write_morphomnist(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.morphomnist import write_dataset

    if args.mnist is None and not args.download:
        raise InputError("--mnist: expected the folder with MNIST's four IDX files, or --download")
    mnist = args.mnist or args.out.absolute().parent / "mnist"
    if args.download:
        download("MNIST", mnist)
    chosen = {name: getattr(args, name) for name in ("labels", "seed", "num_train", "num_test", "workers")}
    return write_dataset(mnist, args.out, progress=not args.quiet, **chosen)


def write_circuit(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.circuit_writer import write_dataset

    chosen = {name: getattr(args, name) for name in ("num_val", "num_test", "image_size", "seed", "workers")}
    return write_dataset(args.out, num_train=args.num, progress=not args.quiet, **chosen)


def copy_mnist(args: argparse.Namespace, torchvision_name: str = "MNIST") -> Path:
    from causaldiffae.datasets.mnist import copy_files

    if args.download:
        args.source = download(
            torchvision_name, args.source or args.out.absolute().parent / f"{torchvision_name}_download"
        )
    if args.source is None:
        raise InputError("--source: expected the folder with the four IDX files, or --download")
    return copy_files(args.dataset, args.source, args.out)


def copy_fashion_mnist(args: argparse.Namespace) -> Path:
    if args.source is None and FASHION_MNIST_OF_DEBIAN.is_dir() and not args.download:
        args.source = FASHION_MNIST_OF_DEBIAN
    return copy_mnist(args, "FashionMNIST")


class Recipe(NamedTuple):
    """A subcommand: its help, its function, and its own flags as arguments of `add_argument`."""

    help: str
    write: Callable[[argparse.Namespace], Path]
    flags: dict[str, dict[str, Any]]


MORPHOMNIST_FLAGS: dict[str, dict[str, Any]] = {
    "--mnist": {"type": Path, "help": "folder with MNIST's four IDX files, or the one to --download into"},
    "--download": {"action": "store_true", "help": "fetch MNIST first, into --mnist or `mnist` beside --out"},
    "--labels": {"type": Path, "help": "folder with {train,t10k}-morpho.csv[.gz] or one of the two; default: drawn"},
    "--seed": {"type": int, "default": 0, "help": "seed of the drawn labels; default: %(default)s"},
    "--num_train": {"type": int, "help": "write the first N training images only; default: all"},
    "--num_test": {"type": int, "help": "write the first N test images only; default: all"},
}
CIRCUIT_FLAGS: dict[str, dict[str, Any]] = {
    "--num": {"type": int, "default": 10_000, "help": "training pairs; default: %(default)s"},
    "--num_val": {"type": int, "help": "pairs in val.npz; default: a tenth of --num"},
    "--num_test": {"type": int, "help": "pairs in test.npz; default: a tenth of --num"},
    "--image_size": {"type": int, "default": 512, "help": "pixels per side; default: %(default)s, as published"},
    "--seed": {"type": int, "default": 0, "help": "random seed; default: %(default)s"},
}
CLASS_FLAGS: dict[str, dict[str, Any]] = {
    "--source --mnist": {"type": Path, "help": "folder with the four IDX files"},
    "--download": {"action": "store_true", "help": "fetch them first, into a folder beside --out"},
}
RECIPES = {
    "pendulum": Recipe("7,308 images of a pendulum, a light and a shadow", write_pendulum, {}),
    "morphomnist": Recipe("MNIST redrawn with thickness and intensity", write_morphomnist, MORPHOMNIST_FLAGS),
    "mnist": Recipe("MNIST: class -> image", copy_mnist, CLASS_FLAGS),
    "fashion_mnist": Recipe("Fashion-MNIST: class -> image", copy_fashion_mnist, CLASS_FLAGS),
    "circuit": Recipe("a stand-in for CausalCircuit, drawn with MuJoCo", write_circuit, CIRCUIT_FLAGS),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.help, description=recipe.help)
        command.add_argument("--out", type=Path, required=True, help="the folder to write; new or empty")
        command.add_argument("--workers", type=int, default=cores, help="processes; default: %(default)s")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        for flag, options in recipe.flags.items():
            command.add_argument(*flag.split(), **options)
    text = "checks a folder of images with labels.csv and a graph, and lists all problems"
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("data_dir", metavar="DIR", help="the folder; a path, or an address like gs://bucket/set")
    command.add_argument("--graph", help="the graph's file; default: graph.yaml (.json, .gml, .dot ...) in the folder")
    text = "training configuration, a file or one of the package's names; its image size and number of latents are used"
    command.add_argument("--config", help=text)
    command.add_argument("--image_size", type=int, help="default: as in --config, or in the graph's file, or 64")
    command.add_argument(
        "--channels", type=int, help="1, 3 or 4; default: as in --config, or in the graph's file, or 3"
    )
    text = "write labels.csv without the images that are missing or damaged; the old one becomes labels.csv.orig"
    command.add_argument("--drop_broken", action="store_true", help=text)
    text = "follow links and paths out of the folder; for your own folders only"
    command.add_argument("--follow_links", action="store_true", help=text)
    return parser.parse_args(argv)


def training_sizes(config: str | None) -> dict[str, TrainingSize]:
    """Sizes in a configuration, or in all that the package has for image folders."""
    from causaldiffae.datasets.folder.check import TrainingSize
    from causaldiffae.files.reading import read_file
    from causaldiffae.files.yaml import parse_yaml

    if config and not Path(config).is_file() and (CONFIGS / f"{config}.yaml").is_file():
        config = str(CONFIGS / f"{config}.yaml")
    files = [Path(config)] if config else sorted(CONFIGS.glob("folder_causaldae_*.yaml"))
    sizes = {}
    for file in files:
        values = parse_yaml(read_file(file, MAX_CONFIG).decode(errors="replace"), str(file))
        if not isinstance(values, dict):
            raise InputError(f"config: expected a file of keys and values, got {file}")
        try:
            size, channels, block = (int(values.get(key, 0)) for key in TrainingSize._fields)
        except (TypeError, ValueError):
            raise InputError(f"{file}: expected integers as {', '.join(TrainingSize._fields)}") from None
        sizes[file.stem] = TrainingSize(size, channels, block)
    return dict(sorted(sizes.items(), key=lambda item: item[1].image_size))


def check(args: argparse.Namespace) -> int:
    """Prints the problems that `check_folder` found on standard error, or a summary; returns the exit code."""
    from causaldiffae.datasets.folder.check import check_folder
    from causaldiffae.files.storage import follow_links

    if args.follow_links:
        follow_links()
    sizes = training_sizes(args.config)
    report = check_folder(args.data_dir, args.graph, args.image_size, args.channels, args.drop_broken, sizes)
    for line in report.notes:
        print(f"note: {line}")
    for line in report.hints:
        print(f"warning: {line}", file=sys.stderr)
    if not report.count:
        print("\n".join(report.summary))
        return 0
    for line in report.problems:
        print(f"error: {line}", file=sys.stderr)
    if report.count > len(report.problems):
        print(f"error: ... and {report.count - len(report.problems)} more", file=sys.stderr)
    print(f"{args.data_dir}: {report.count} problem{'s' if report.count > 1 else ''} found", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the subcommand on the command line; returns the exit code."""
    args = parse(argv)
    try:
        if args.dataset == "check":
            return check(args)
        check_local(out=args.out)
        print(RECIPES[args.dataset].write(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
