"""Speed benchmark: this package beside the reference recipe, in one process.

    python scripts/benchmark.py                                      # paper-size MorphoMNIST U-Net, 28 px
    python scripts/benchmark.py --size mini --compile False --json speed.json
    python scripts/benchmark.py --device cuda --batch_size 128

Both sides have the same weights and run in turn. A ratio is the median over pairs of runs. Pairs are added until its
95 % interval is narrower than --max_spread; if --max_seconds are not enough, the ratio is withheld, with the reason.
causaldiffae/evaluation/speed.py describes the reference recipe. composition_l1 is the error of the null intervention
with the shipped mini weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from causaldiffae.config import flag, with_help
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError, check_least, check_local
from causaldiffae.evaluation.speed import (
    SpeedSettings,
    Timing,
    composition_l1,
    evaluations,
    make_bench,
    peak_memory,
    time_counterfactuals,
    time_forward,
    time_training,
)
from causaldiffae.files.reading import without_nan, write_json
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import load_model, parse_config, parse_flags, run_cli

ROOT = Path(__file__).resolve().parent.parent
COMPOSITION_IMAGES = 32


@with_help
@dataclass(frozen=True)
class BenchmarkConfig(SpeedSettings):
    """Options of the benchmark."""

    dataset: str = flag("morphomnist", "data set of the configuration")
    size: str = flag("paper", "size of the configuration: paper, fast or mini")
    json: str = flag("", "also write the results to this file")
    threads: int = flag(0, "PyTorch threads; 0 for the default")
    compile: bool = flag(True, "compile the score network of this package")
    use_bf16: bool = flag(True, "bfloat16 activations in this package, where supported")
    device: str = flag("auto", "cpu or cuda; auto takes CUDA if PyTorch finds a GPU")

    def __post_init__(self) -> None:
        check_least(self, batch_size=1, repeats=1, steps=2, reference_steps=1, threads=0, max_spread=0, max_seconds=0)
        check_local(json=self.json)
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device: expected auto, cpu or cuda, got {self.device!r}")
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: expected cpu, got cuda, and PyTorch finds no GPU")


def measure_composition(settings: BenchmarkConfig) -> tuple[float, float]:
    """L1 of the null intervention with the shipped weights, before and after rounding to 8 bits."""
    shipped = load_model(str(ROOT / "weights" / "morphomnist_causaldae_mini"), settings.device)
    digits = read_split("mnist", ROOT / "assets" / "mnist_share", "test", limit=COMPOSITION_IMAGES)
    classes = torch.from_numpy(digits.labels[:, 0]).long().to(settings.device)
    images = to_model_range(digits.images).to(settings.device)
    return composition_l1(shipped.model, shipped.config, shipped.spec, images, classes, settings.steps)


def main(argv: list[str]) -> None:
    settings = parse_flags(BenchmarkConfig, argv, __doc__ or "")
    path = ROOT / "configs" / f"{settings.dataset}_causaldae_{settings.size}.yaml"
    if not path.is_file():
        raise InputError(f"size: expected a configuration configs/{path.name}, got none")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = parse_config(["--config", str(path)])
    spec = dataset_spec(settings.dataset, config.train.image_size or None, config.train.channels or None)
    bench = make_bench(config, spec, settings)
    print(f"{path.name}: {count_parameters(bench.ours):,} parameters, batches of {settings.batch_size}, "
          f"{torch.get_num_threads()} threads, {settings.device}, torch {torch.__version__}")  # fmt: skip
    measurements: list[tuple[str, Callable[[], Timing], int]] = [
        ("forward, images/s", lambda: time_forward(bench), 1),
        ("training, images/s", lambda: time_training(bench), 1),
        ("counterfactuals/s", lambda: time_counterfactuals(bench, 1), 1),
        ("counterfactuals/s, 4 interventions", lambda: time_counterfactuals(bench, 4), 4),
    ]
    print(f"{'':36s}{'reference':>14s}{'ours':>14s}{'ratio':>10s}   95 % interval", flush=True)
    timings = []
    for name, measure, interventions in measurements:
        timings.append(measure())
        print(timing_row(name, timings[-1], settings.batch_size * interventions, settings.max_spread), flush=True)
    memory = peak_memory(config, spec, settings, True), peak_memory(config, spec, settings, False)
    null, null_8bit = measure_composition(settings)
    rows: list[tuple[str, float, float]] = [("training memory, MiB", *memory)]
    rows += [(f"evaluations, {count} intervention(s)", *evaluations(count, settings.steps)) for count in (1, 4)]
    for name, before, after in rows:
        print(f"{name:36s}{before:14.0f}{after:14.0f}{after / before:10.2f}")
    print(f"null intervention, shipped mini weights, {settings.steps} steps: L1 {null:.3f} on 0..255, "
          f"{null_8bit:.3f} between 8-bit images\n"
          f"reference counterfactuals: {settings.reference_steps} of its 250 steps timed, and scaled")  # fmt: skip
    reasons = {timing.name: reason for timing in timings if (reason := timing.withheld(settings.max_spread))}
    for name, reason in reasons.items():
        print(f"withheld: {name}: {reason}; the machine is busy: repeat later, or with a larger --max_seconds")
    if settings.json:
        forward, training, one, four = (None if timing.name in reasons else timing.ratio for timing in timings)
        report = {
            "forward_ratio": forward,
            "train_ratio": training,
            "memory_ratio": memory[1] / memory[0],
            "counterfactual_speedup": one and 1 / one,
            "counterfactual_speedup_4": four and 1 / four,
            "composition_l1": null,
            "composition_l1_8bit": null_8bit,
            "withheld": reasons,
            "pairs": {timing.name: len(timing.ours) for timing in timings},
            "spread": {timing.name: finite(timing.spread) for timing in timings},
            "settings": asdict(settings),
            "torch": torch.__version__,
        }
        write_json(Path(settings.json), without_nan(report))


def timing_row(name: str, timing: Timing, count: int, max_spread: float) -> str:
    """A line of the table: medians of both sides for `count` images, and how many times as fast this package is."""
    reference = timing.scale * statistics.median(timing.reference)
    line = f"{name:36s}{count / reference:14.3f}{count / statistics.median(timing.ours):14.3f}"
    if timing.withheld(max_spread):
        return f"{line}{'withheld':>10s}"
    low, high = timing.interval
    found = f"   {1 / high:.2f} to {1 / low:.2f}" if math.isfinite(high) else "   too few pairs"
    return f"{line}{1 / timing.ratio:10.2f}{found}"


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    run_cli(main)
