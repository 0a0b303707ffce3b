"""Writes the tables of README.md and docs/ from the results files in docs/results/.

    python scripts/write_tables.py
    python scripts/write_tables.py --add demo=demo_out/report.json    # first replaces docs/results/demo.json

A page holds a pair of marks, `<!-- table: KIND [NAME] -->` and `<!-- end of table -->`; what is between them is written
from docs/results/NAME.json (or .csv). The kinds are in causaldiffae/evaluation/result_tables.py. Prints the pages that
changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causaldiffae.errors import InputError
from causaldiffae.evaluation.markdown_tables import update_pages
from causaldiffae.script_util import run_cli

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE", help="results to copy; repeatable")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs/; default: the clone")
    args = parser.parse_args(argv)
    added = {}
    for text in args.add:
        name, equals, source = text.partition("=")
        if not equals:
            raise InputError(f"add: expected NAME=FILE, got {text!r}")
        added[name] = Path(source)
    for path in update_pages(args.root, added):
        print(path)


if __name__ == "__main__":
    run_cli(main)
