"""Checks a GPU beside the CPU, and measures speed and memory: see docs/performance.md.

    ./scripts/gpu_check.sh                        # 8 minutes on one GPU; a short form on a CPU
    ./scripts/gpu_check.sh --json gpu_check.json --minutes 4

Loss, gradient, reconstructions and counterfactuals of the shipped model agree on CPU and GPU; compiled gradients agree
with eager ones; bfloat16 does not move the measured labels. Then training and sampling speed with FLOP utilisation,
memory, and modes of compilation for mini, fast and paper. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from causaldiffae import dist_util
from causaldiffae.errors import InputError, check_local
from causaldiffae.evaluation.check_list import Outcome, hardware, run_checks, write_report
from causaldiffae.evaluation.gpu_check import GpuChecks, Plan, short_plan
from causaldiffae.script_util import run_cli
from causaldiffae.training.devices import add_device_flag, describe_device, use_device

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_flag(parser)
    parser.add_argument("--minutes", type=float, default=8.0, help="checks that would start later are skipped")
    parser.add_argument("--json", type=Path, help="also write the results, the hardware and the command to this file")
    parser.add_argument("--short", action="store_true", help="few images and a small network; always on a CPU")
    parser.add_argument("--no_compile", action="store_true", help="skip the checks that compile, which take minutes")
    options = parser.parse_args(argv)
    check_local(json=options.json)
    if not 0 <= options.minutes < 1e6:
        raise InputError(f"minutes: expected 0 or more, got {options.minutes}")
    use_device(options.device)
    device = dist_util.dev()
    plan = Plan(device, ROOT, compiled=not options.no_compile)
    if options.short or device.type == "cpu":
        plan = short_plan(plan)
    print(describe_device(), flush=True)
    machine, command = hardware(device), ["./scripts/gpu_check.sh", *argv]

    def save(outcomes: Sequence[Outcome]) -> None:
        if options.json:
            write_report(options.json, outcomes, command, machine)

    outcomes = run_checks(GpuChecks(plan).checks(), options.minutes, lambda line: print(line, flush=True), save=save)
    failed = [each.name for each in outcomes if each.verdict == "failed"]
    print(f"{len(outcomes)} results, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
