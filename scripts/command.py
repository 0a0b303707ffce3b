"""The command `causaldiffae`: the programs of this folder as subcommands.

    causaldiffae check my_images
    causaldiffae train --config folder_causaldae_mini --data_dir my_images --run_dir RUN
    causaldiffae test --model_path RUN --data_dir my_images --out_dir OUT
    causaldiffae SUBCOMMAND --help

A configuration is a file, or the name of one of the package's: `--config pendulum_causaldae_mini`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).resolve().parent
CONFIGS = SCRIPTS.parent / "configs"
"""Beside this folder in a clone and in the installed package."""
CONFIG_FLAGS = ("--config", "--score_config")


def model_type(argv: Sequence[str]) -> str:
    """Type of the model in `--model_path`; "causaldae" where its folder does not say."""
    from causaldiffae.checkpoints.model_folders import describe_folder, find_model
    from causaldiffae.errors import InputError

    path = ""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name == "--model_path":
            path = value if equals else following
    try:
        found = describe_folder(find_model(path)) if path else None
    except InputError:  # the script reports it
        found = None
    return "causaldae" if found is None else found.model_type


class Subcommand(NamedTuple):
    """A program, its arguments before those of the user, and one line of help."""

    program: str | Callable[[Sequence[str]], str]
    help: str
    arguments: tuple[str, ...] = ()


SUBCOMMANDS = {
    "check": Subcommand("make_dataset", "check a folder of images, its table and its graph", ("check",)),
    "make-dataset": Subcommand("make_dataset", "write one of the built-in data sets"),
    "estimate": Subcommand("estimate", "estimate memory and time of training, and which size fits"),
    "train": Subcommand("image_train", "train a model, or resume its run"),
    "train-predictor": Subcommand("noised_classifier", "train the predictor that guides a Diff-SCM, before its model"),
    "test": Subcommand(lambda argv: f"image_{model_type(argv)}_test", "counterfactuals of the test images"),
    "evaluate": Subcommand("evaluate", "score counterfactuals by all metrics"),
    "explore": Subcommand("explore", "serve a local page with a slider for each variable"),
    "distill": Subcommand("distill", "distil a model into one that takes a few steps"),
    "plot": Subcommand("plot_run", "plot the training curves of a run, and traversals of its model"),
    "export": Subcommand("export_weights", "export a run as a model folder"),
}


def usage() -> str:
    """Text of `causaldiffae --help`."""
    lines = [f"  {name:{max(map(len, SUBCOMMANDS))}}  {entry.help}" for name, entry in SUBCOMMANDS.items()]
    return "\n".join(["usage: causaldiffae SUBCOMMAND [arguments]", "", *lines, "", (__doc__ or "").strip()])


def with_shipped_configs(argv: Sequence[str]) -> list[str]:
    """Replaces names of the package's configurations by their files; existing files come first.

    A name is "pendulum_causaldae_mini", "baselines/diffae" or, as in a clone, "configs/pendulum_causaldae_mini.yaml".
    """
    found, after_flag = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if after_flag:
            found.append(shipped_config(argument))
        elif flag in CONFIG_FLAGS and equals:
            found.append(f"{flag}={shipped_config(value)}")
        else:
            found.append(argument)
        after_flag = not after_flag and argument in CONFIG_FLAGS
    return found


def shipped_config(name: str) -> str:
    """The file of a configuration of the package; other names are returned unchanged."""
    path = CONFIGS / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(path) if path.is_file() and not Path(name).is_file() else name


def run_program(name: str, argv: Sequence[str]) -> None:
    """Runs the main function of a program; its nonzero result is the exit code."""
    for folder in (SCRIPTS, SCRIPTS.parent / "classifiers"):  # programs import their neighbours by name
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    code = importlib.import_module(name).main(list(argv))
    if code:
        sys.exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the subcommand on the command line."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(usage())
        return
    if name not in SUBCOMMANDS:
        sys.stderr.write(f"error: subcommand: expected {', '.join(SUBCOMMANDS)}, got {name!r}\n")
        sys.exit(2)
    entry = SUBCOMMANDS[name]
    # argparse takes the program's name from here; `check` is a subcommand of its program, too
    sys.argv[0] = "causaldiffae" if entry.program == "make_dataset" and entry.arguments else f"causaldiffae {name}"
    from causaldiffae.script_util import run_cli

    def run(argv: list[str]) -> None:
        program = entry.program if isinstance(entry.program, str) else entry.program(argv)
        run_program(program, [*entry.arguments, *with_shipped_configs(argv)])

    run_cli(run, rest)


if __name__ == "__main__":
    main()
