"""Measures where the time of a training step goes: forward and backward pass, clipping, AdamW, moving average.

    OMP_NUM_THREADS=1 python tools/step_parts.py --size paper --batch_size 8

Steps are taken on random images, in bfloat16 where the processor supports it. Prints medians of processor time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.nn import update_ema
from causaldiffae.script_util import create_model_and_diffusion, model_entry, parse_config
from causaldiffae.training.acceleration import accelerate, activation_dtype
from causaldiffae.training.random_draws import trial_draws

REPO = Path(__file__).resolve().parents[1]
PARTS = ("forward", "backward", "norm and clipping", "AdamW", "moving average")


def measure(size: str, count: int, steps: int, compiled: bool) -> list[float]:
    """Median seconds of the parts of a step of MorphoMNIST's configuration on `count` images, without the first two."""
    config = parse_config([f"--config={REPO}/configs/morphomnist_causaldae_{size}.yaml"])
    spec = dataset_spec("morphomnist")
    model, diffusion = create_model_and_diffusion(config, spec)
    step = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    accelerate(model, "cpu", compiled=compiled)
    parameters = list(model.parameters())
    optimizer, average = torch.optim.AdamW(parameters, lr=1e-5, fused=True), [p.detach().clone() for p in parameters]
    images, labels = torch.randn(count, 1, 28, 28).clamp(-1, 1), torch.zeros(count, len(spec.graph))
    t = torch.arange(count) * diffusion.num_timesteps // count
    draws, classes = trial_draws(images, t, model.latent_shape), torch.zeros(count, dtype=torch.long)
    dtype, found = activation_dtype("auto", "cpu"), []
    for _ in range(steps + 2):
        clock = [time.process_time()]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss, _ = step(images, labels, classes if config.model.class_cond else None, draws.keep, draws, 1.0)
        clock.append(time.process_time())
        loss.backward()
        clock.append(time.process_time())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        clock.append(time.process_time())
        optimizer.step()
        clock.append(time.process_time())
        update_ema(average, [p.detach() for p in parameters], 0.9999)
        clock.append(time.process_time())
        optimizer.zero_grad(set_to_none=True)
        found.append([after - before for before, after in itertools.pairwise(clock)])
    return [statistics.median(times) for times in zip(*found[2:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="mini", choices=("mini", "fast", "paper"))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    times = measure(options.size, options.batch_size, options.steps, options.compile)
    for name, seconds in zip(PARTS, times, strict=True):
        print(f"{name:20s}{1000 * seconds:8.1f} ms {100 * seconds / sum(times):6.1f} %")
    print(f"{'step':20s}{1000 * sum(times):8.1f} ms")


if __name__ == "__main__":
    main()
