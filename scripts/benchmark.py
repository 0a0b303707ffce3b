"""Speed beside the reference recipe, in one run: forward, training step, counterfactuals, memory, evaluations.

    python scripts/benchmark.py                                      # paper-size MorphoMNIST U-Net, 28 px
    python scripts/benchmark.py --size mini --compile False --json speed.json
    python scripts/benchmark.py --device cuda --batch_size 128

Both sides have the same weights and run in turn; medians are compared, and a spread above 20 % is said. The reference
recipe is in causaldiffae/speed.py. composition_l1 is the null intervention's error of the shipped mini weights.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError, check_least
from causaldiffae.evaluation.speed import (
    WIDE_SPREAD,
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
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import argument_parser, load_model, parse_config, parse_flat, run_cli

ROOT = Path(__file__).resolve().parent.parent
COMPOSITION_IMAGES = 32


@dataclass(frozen=True)
class BenchmarkConfig(SpeedSettings):
    """What is measured, and of which network.

    Attributes:
        dataset: whose configuration is taken.
        size: "paper", "fast" or "mini".
        json: also write the figures to this file.
        threads: of PyTorch; 0 leaves them.
        compile, use_bf16: on, as whoever wants speed has them; where the machine cannot, a line says what is used.
        batch_size, repeats, steps, reference_steps, channels_last, device: see `SpeedSettings`.
    """

    dataset: str = "morphomnist"
    size: str = "paper"
    json: str = ""
    threads: int = 0
    compile: bool = True
    use_bf16: bool = True

    def __post_init__(self) -> None:
        check_least(self, batch_size=1, repeats=1, steps=2, reference_steps=1, threads=0)
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device: {self.device!r} given, allowed are cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: cuda given, and there is no GPU that PyTorch can use")


def per_second(timing: Timing, count: int) -> tuple[float, float]:
    """Images a second of both sides."""
    return count / (timing.scale * statistics.median(timing.reference)), count / statistics.median(timing.ours)


def main(argv: list[str]) -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(BenchmarkConfig, nested_key=None, instantiate=False)
    values = parse_flat(parser, argv)
    settings = BenchmarkConfig(**{field.name: values[field.name] for field in fields(BenchmarkConfig)})
    path = ROOT / "configs" / f"{settings.dataset}_causaldae_{settings.size}.yaml"
    if not path.is_file():
        raise InputError(f"size: {settings.size} of {settings.dataset} given, there is no {path.name} in configs/")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    shipped = load_model(str(ROOT / "weights" / "morphomnist_causaldae_mini"), settings.device)
    config = parse_config(["--config", str(path)])
    spec = dataset_spec(settings.dataset, config.train.image_size or None, config.train.channels or None)
    bench = make_bench(config, spec, settings)
    count = settings.batch_size
    print(
        f"{path.name}: {count_parameters(bench.ours):,} parameters, {settings.batch_size} images at a time, "
        f"{torch.get_num_threads()} threads, {settings.device}, torch {torch.__version__}"
    )
    timings = [
        time_forward(bench),
        time_training(bench),
        time_counterfactuals(bench, 1),
        time_counterfactuals(bench, 4),
    ]
    memory = [peak_memory(config, spec, settings, reference) for reference in (True, False)]
    digits = read_split("mnist", ROOT / "assets" / "mnist_share", "test", limit=COMPOSITION_IMAGES)
    classes = torch.from_numpy(digits.labels[:, 0]).long().to(settings.device)
    images = to_model_range(digits.images).to(settings.device)
    null, on_pictures = composition_l1(shipped.model, shipped.config, shipped.spec, images, classes, settings.steps)

    figures = {
        "forward_ratio": timings[0].ratio,
        "train_ratio": timings[1].ratio,
        "memory_ratio": memory[1] / memory[0],
        "counterfactual_speedup": 1 / timings[2].ratio,
        "counterfactual_speedup_4": 1 / timings[3].ratio,
        "composition_l1": null,
        "composition_l1_8bit": on_pictures,
    }
    lines = [f"{'':32s}{'reference':>14s}{'ours':>14s}{'ratio':>10s}"]
    units = ("forward, images/s", "training, images/s", "counterfactuals/s", "counterfactuals/s, 4 at once")
    for timing, unit, several in zip(timings, units, (1, 1, 1, 4), strict=True):
        before, after = per_second(timing, count * several)
        lines.append(f"{unit:32s}{before:14.3f}{after:14.3f}{after / before:10.2f}")
    lines.append(f"{'training memory, MiB':32s}{memory[0]:14.0f}{memory[1]:14.0f}{memory[1] / memory[0]:10.2f}")
    for several in (1, 4):
        before, after = evaluations(several, settings.steps)
        lines.append(f"{f'evaluations, {several} intervention(s)':32s}{before:14d}{after:14d}{after / before:10.2f}")
    lines.append(
        f"null intervention, shipped mini weights, {settings.steps} steps: L1 {null:.3f} on 0..255, "
        f"{on_pictures:.3f} between 8-bit pictures"
    )
    lines.append(f"reference's counterfactuals: {settings.reference_steps} of its 250 steps timed, and scaled")
    lines += [
        f"warning: {timing.name} spread by {100 * timing.spread:.0f} %, more than {100 * WIDE_SPREAD:.0f} %"
        for timing in timings
        if timing.spread > WIDE_SPREAD
    ]
    print("\n".join(lines))
    if settings.json:
        described = {**figures, "settings": asdict(settings), "torch": torch.__version__}
        described["spread"] = {timing.name: timing.spread for timing in timings}
        Path(settings.json).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_cli(main)
