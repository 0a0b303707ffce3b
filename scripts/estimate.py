"""Estimates parameters, memory and time of training from trial steps on this machine, without a run.

    causaldiffae estimate --data_dir my_images                  # your own images: every size, and which one fits
    causaldiffae estimate --dataset pendulum --size mini        # SIZE=mini in the environment does the same
    causaldiffae estimate --config pendulum_causaldae_fast      # one configuration, printed in full
    causaldiffae estimate --data_dir my_images --sides 32,64,128

--size SIZE[,SIZE] selects sizes, --model NAME a model or baseline, --sides image sides in pixels; --table FILE also
writes the table into a Markdown file. All flags of training change what is estimated. On a GPU memory is measured in a
step of the whole microbatch, on a CPU it is counted.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import image_train

from causaldiffae import dist_util
from causaldiffae.config import parse_ints
from causaldiffae.datasets.folder.image_folder import is_image_folder
from causaldiffae.errors import InputError, check_local
from causaldiffae.files import yaml
from causaldiffae.script_util import parse_config, run_cli
from causaldiffae.training.devices import use_device
from causaldiffae.training.size_table import as_text, conclusion, config_files, machine, make_rows, write_table

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--size", default="")
    parser.add_argument("--model", default=os.environ.get("MODEL", "causaldae"))
    parser.add_argument("--sides", default="")
    parser.add_argument("--table", type=Path)
    try:
        own, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    check_local(table=own.table)
    train = parse_config(rest, __doc__ or "").train
    given = next(iter(yaml.config_files(rest)), "")
    if given and own.size:
        raise InputError(f"size: expected none together with --config, got {own.size}")
    if given and not (own.sides or own.table):
        image_train.main([*rest, "--dry_run=True"])
        return
    if not train.dataset and train.data_dir and not is_image_folder(train.data_dir):
        raise InputError(f"data_dir: expected a folder with a table of labels, got {train.data_dir}; or set --dataset")
    if not (train.dataset or train.data_dir):
        raise InputError(
            "dataset: expected a value, got none; set --data_dir my_images for your own images, --dataset NAME or "
            "--config NAME"
        )
    dataset = train.dataset or "folder"
    sizes = [size.strip() for size in (own.size or os.environ.get("SIZE", "")).split(",") if size.strip()]
    files = {Path(given).stem: []} if given else config_files(CONFIGS, dataset, own.model, sizes)
    use_device(train.device)
    device = dist_util.dev()
    print(f"{machine(device)}; times are measured on trial steps", flush=True)
    rows = make_rows(files, [f"--dataset={dataset}", *rest], parse_ints("sides", own.sides), device)
    print(f"{as_text(rows)}\n{conclusion(rows)}")
    for row in rows:
        if row.found is not None and row.found.advice():
            print(f"{row.size}, {row.side} pixels: {row.found.advice()}")
    if own.table:
        write_table(own.table, rows, ["causaldiffae", "estimate", *argv], device)


if __name__ == "__main__":
    run_cli(main)
