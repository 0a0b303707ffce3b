"""Speed benchmark: this package beside the reference recipe, in one process.

    python scripts/benchmark.py                                      # paper-size MorphoMNIST U-Net, 28 px
    python scripts/benchmark.py --size mini --compile False --json speed.json
    python scripts/benchmark.py --device cuda --batch_size 128

Both sides have the same weights and run in turn; medians are compared, and a spread above 20 % is reported.
causaldiffae/evaluation/speed.py describes the reference recipe. composition_l1 is the error of the null intervention
with the shipped mini weights.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from causaldiffae.config import flag, with_help
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError, check_least
from causaldiffae.evaluation.speed import (
    WIDE_SPREAD,
    SpeedSettings,
    composition_l1,
    evaluations,
    make_bench,
    peak_memory,
    time_counterfactuals,
    time_forward,
    time_training,
)
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
        check_least(self, batch_size=1, repeats=1, steps=2, reference_steps=1, threads=0)
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
        raise InputError(f"size: got {settings.size!r} for {settings.dataset}, but there is no {path.name} in configs/")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = parse_config(["--config", str(path)])
    spec = dataset_spec(settings.dataset, config.train.image_size or None, config.train.channels or None)
    bench = make_bench(config, spec, settings)
    print(f"{path.name}: {count_parameters(bench.ours):,} parameters, batches of {settings.batch_size}, "
          f"{torch.get_num_threads()} threads, {settings.device}, torch {torch.__version__}")  # fmt: skip
    forward, training = time_forward(bench), time_training(bench)
    one, four = time_counterfactuals(bench, 1), time_counterfactuals(bench, 4)
    memory = [peak_memory(config, spec, settings, reference) for reference in (True, False)]
    null, null_8bit = measure_composition(settings)
    figures = {
        "forward_ratio": forward.ratio,
        "train_ratio": training.ratio,
        "memory_ratio": memory[1] / memory[0],
        "counterfactual_speedup": 1 / one.ratio,
        "counterfactual_speedup_4": 1 / four.ratio,
        "composition_l1": null,
        "composition_l1_8bit": null_8bit,
    }
    rows = []
    timings = {"forward, images/s": forward, "training, images/s": training}
    timings |= {"counterfactuals/s": one, "counterfactuals/s, 4 interventions": four}
    for name, timing in timings.items():
        count = settings.batch_size * (4 if timing is four else 1)
        reference = timing.scale * statistics.median(timing.reference)
        rows.append((name, 3, count / reference, count / statistics.median(timing.ours)))
    rows.append(("training memory, MiB", 0, *memory))
    rows += [(f"evaluations, {count} intervention(s)", 0, *evaluations(count, settings.steps)) for count in (1, 4)]
    print(f"{'':36s}{'reference':>14s}{'ours':>14s}{'ratio':>10s}")
    for name, decimals, before, after in rows:
        print(f"{name:36s}{before:14.{decimals}f}{after:14.{decimals}f}{after / before:10.2f}")
    print(f"null intervention, shipped mini weights, {settings.steps} steps: L1 {null:.3f} on 0..255, "
          f"{null_8bit:.3f} between 8-bit images\n"
          f"reference counterfactuals: {settings.reference_steps} of its 250 steps timed, and scaled")  # fmt: skip
    for timing in timings.values():
        if timing.spread > WIDE_SPREAD:
            print(f"warning: {timing.name}: timings spread by {100 * timing.spread:.0f} %")
    if settings.json:
        report = {**figures, "settings": asdict(settings), "torch": torch.__version__}
        report["spread"] = {timing.name: timing.spread for timing in timings.values()}
        Path(settings.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_cli(main)
