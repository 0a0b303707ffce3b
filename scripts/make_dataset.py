"""Writes a data set: `python scripts/make_dataset.py pendulum --out DIR`, `... morphomnist --mnist DIR --out DIR`,
`... circuit --out DIR --num N`. Or checks one of your own: `python scripts/make_dataset.py check DIR --graph G.yaml`.

The folder appears under its name only when it is complete; run again, a complete one is left as it is.
Exit codes: 0 done, 2 something in the request or in a file has to be mended (one line on standard error;
`check` writes one for everything it finds).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from causaldiffae.errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


@dataclass(frozen=True)
class Recipe:
    """One subcommand: its help, its own flags, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    write: Callable[[argparse.Namespace], Path]


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Pendulum is one fixed grid."""


def _write_pendulum(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.pendulum import write_dataset

    return write_dataset(args.out, workers=args.workers, progress=not args.quiet)


def _morphomnist_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's four IDX files, or the one to --download into")
    parser.add_argument(
        "--download", action="store_true", help="fetch MNIST first, into --mnist or else into `mnist` beside --out"
    )
    parser.add_argument(
        "--labels", type=Path, help="folder with {train,t10k}-morpho.csv[.gz] or one of the two; default: drawn"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawn labels; default: %(default)s")
    parser.add_argument("--num_train", type=int, help="write the first N training images only; default: all")
    parser.add_argument("--num_test", type=int, help="write the first N test images only; default: all")


def _write_morphomnist(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.morphomnist import write_dataset

    if args.mnist is None and not args.download:
        raise InputError("--mnist: the folder with MNIST's four IDX files is needed, or --download")
    mnist = args.mnist or args.out.absolute().parent / "mnist"
    if args.download:
        _download_mnist(mnist)
    return write_dataset(
        mnist,
        args.out,
        labels=args.labels,
        seed=args.seed,
        num_train=args.num_train,
        num_test=args.num_test,
        workers=args.workers,
        progress=not args.quiet,
    )


def _download_mnist(folder: Path) -> None:
    _download("MNIST", folder)


def _download(name: str, folder: Path) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--download: {name} could not be fetched into {folder} ({reason})") from None


def _classes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", "--mnist", type=Path, help="folder with the four IDX files")
    parser.add_argument("--download", action="store_true", help="fetch them first, into a folder beside --out")


def _write_classes(name: str, published: str, known: Sequence[Path]) -> Callable[[argparse.Namespace], Path]:
    """Copies a data set of classes: from --source, from a folder where a system package puts it, or downloaded."""

    def write(args: argparse.Namespace) -> Path:
        from causaldiffae.datasets.mnist import copy_files

        source = args.source or next((folder for folder in known if folder.is_dir()), None)
        if args.download:
            source = args.source or args.out.absolute().parent / f"{published}_download"
            _download(published, source)
        if source is None:
            raise InputError("--source: the folder with the four IDX files is needed, or --download")
        return copy_files(name, source, args.out)

    return write


def _circuit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num", type=int, default=10_000, help="pairs to train on; default: %(default)s")
    parser.add_argument("--num_val", type=int, help="pairs in val.npz; default: a tenth of --num")
    parser.add_argument("--num_test", type=int, help="pairs in test.npz; default: a tenth of --num")
    parser.add_argument("--image_size", type=int, default=512, help="pixels a side; default: %(default)s, as published")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: %(default)s")


def _write_circuit(args: argparse.Namespace) -> Path:
    from causaldiffae.generators.circuit_writer import write_dataset

    return write_dataset(
        args.out,
        num_train=args.num,
        num_val=args.num_val,
        num_test=args.num_test,
        image_size=args.image_size,
        seed=args.seed,
        workers=args.workers,
        progress=not args.quiet,
    )


RECIPES = {
    "pendulum": Recipe("7,308 pictures of a pendulum, a light and a shadow", _no_arguments, _write_pendulum),
    "morphomnist": Recipe("MNIST redrawn with thickness and intensity", _morphomnist_arguments, _write_morphomnist),
    "mnist": Recipe("MNIST: class -> image", _classes_arguments, _write_classes("mnist", "MNIST", [])),
    "fashion_mnist": Recipe(
        "Fashion-MNIST: class -> image", _classes_arguments, _write_classes("fashion_mnist", "FashionMNIST", [DEBIAN])
    ),
    "circuit": Recipe("a stand-in for CausalCircuit, drawn with MuJoCo", _circuit_arguments, _write_circuit),
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.help, description=recipe.help)
        command.add_argument("--out", type=Path, required=True, help="the folder to write; new or empty")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        command.add_argument("--workers", type=int, default=cores, help="processes; default: %(default)s")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        recipe.add_arguments(command)
    text = "reads a folder of images with labels.csv and a graph, and says all that is wrong with it"
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("data_dir", metavar="DIR", help="the folder; a path, or an address like gs://bucket/set")
    command.add_argument("--graph", help="the graph's file; default: graph.yaml (.json, .gml, .dot) in the folder")
    command.add_argument("--image_size", type=int, help="default: what the graph's file says, or 64")
    command.add_argument("--channels", type=int, help="1, 3 or 4; default: what the graph's file says, or 3")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> int:
    """Prints what `check_folder` found: problems on standard error, else a summary."""
    from causaldiffae.datasets.folder.check import check_folder
    from causaldiffae.datasets.folder.reader import Request

    report = check_folder(args.data_dir, Request(args.graph, args.image_size, args.channels))
    for line in report.problems:
        print(f"error: {line}", file=sys.stderr)
    if report.count > len(report.problems):
        print(f"error: ... and {report.count - len(report.problems)} more", file=sys.stderr)
    if report.count:
        print(f"{args.data_dir}: {report.count} problem{'s' if report.count > 1 else ''} found", file=sys.stderr)
        return 2
    print("\n".join(report.summary))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the data set that the command line names; returns the exit code."""
    args = _parse(argv)
    try:
        if args.dataset == "check":
            return _check(args)
        out = RECIPES[args.dataset].write(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
