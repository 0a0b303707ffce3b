"""Costs of every configuration: parameters, arithmetic and memory of training.

    python tools/model_costs.py
    python tools/model_costs.py configs/pendulum_causaldae_paper.yaml

Nothing is timed, see causaldiffae/training/costs.py; activations are those of float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.script_util import parse_config, run_cli
from causaldiffae.training.costs import training_costs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="configuration files; default: all of built-in data")
    args = parser.parse_args(argv)
    print(f"{'configuration':32s}{'pixels':>7s}{'parameters':>12s}{'GFLOP/image':>12s}{'state MiB':>11s}"
          f"{'MiB/image':>11s}{'batch':>6s}{'memory GiB':>11s}{'PFLOP':>10s}")  # fmt: skip
    for path in args.configs or sorted(CONFIGS.glob("[!n]*_*_*.yaml")):
        config = parse_config(["--config", str(path)])
        train = config.train
        if train.dataset == "folder":
            continue
        spec = dataset_spec(train.dataset, train.image_size or None, train.channels or None)
        costs = training_costs(config, spec)
        batch = train.microbatch if train.microbatch > 0 else train.batch_size
        memory = (costs.state_mib + batch * costs.activation_mib) / 1024
        total = costs.gflop * train.batch_size * train.total_steps / 1e6
        print(f"{path.stem:32s}{spec.image_size:7d}{costs.parameters:12,}{costs.gflop:12.2f}{costs.state_mib:11,.0f}"
              f"{costs.activation_mib:11.1f}{batch:6d}{memory:11.1f}{total:10,.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
