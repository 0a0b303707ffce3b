"""Costs of every configuration: parameters, arithmetic and memory of training.

    python tools/model_costs.py
    python tools/model_costs.py configs/pendulum_causaldae_paper.yaml

Nothing is timed: arithmetic is counted by torch's FlopCounterMode in one training step, activations are the distinct
tensors that autograd keeps for the backward pass of an image, in float32. Weights, gradients, optimizer and moving
averages are counted as in causaldiffae/training/estimate.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from causaldiffae.config import Config
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, model_entry, parse_config, run_cli
from causaldiffae.training.estimate import AVERAGE_BYTES, TRAINING_BYTES
from causaldiffae.training.random_draws import trial_draws

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IMAGES = 2


class Costs(NamedTuple):
    """Costs of training a model; `gflop` and `activation_mib` are per image."""

    parameters: int
    gflop: float
    state_mib: float
    activation_mib: float


def training_costs(config: Config, spec: DatasetSpec) -> Costs:
    """Counts the costs in one training step."""
    model, diffusion = create_model_and_diffusion(config, spec)
    step = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    x_start = torch.randn(IMAGES, spec.channels, spec.image_size, spec.image_size).clamp(-1, 1)
    labels, zeros = torch.zeros(IMAGES, len(spec.graph)), torch.zeros(IMAGES, dtype=torch.long)
    draws = trial_draws(x_start, zeros, model.latent_shape)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = step(x_start, labels, zeros if config.model.class_cond else None, draws.keep, draws, 1.0)
        loss.backward()
    parameters = count_parameters(model)
    return Costs(
        parameters=parameters,
        gflop=counter.get_total_flops() / IMAGES / 1e9,
        state_mib=parameters * (TRAINING_BYTES + AVERAGE_BYTES * len(config.ema_rates())) / 2**20,
        activation_mib=sum(kept.values()) / IMAGES / 2**20,
    )


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
