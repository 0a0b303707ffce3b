"""Training of the anti-causal predictor on noised images: -log p(y | x_t), x_t ~ q(x_t | x_0), t uniform.

Part of the training images is held out for validation, and the weights with the lowest validation loss are kept. The
predictor is then evaluated on test images at several noise levels, since accuracy on x_0 does not imply accuracy at
the high noise levels where decoding begins, nor vice versa.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.config import CHOICES, DEVICE_HELP, DiffusionConfig, flag, with_help
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.label_subsets import labelled_only, with_labels_of
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.image_datasets import BatchSource
from causaldiffae.logger import progress_bar
from causaldiffae.losses import Observed
from causaldiffae.predictors.common import check_output
from causaldiffae.predictors.noised_predictor import (
    MODEL_TYPE,
    SCHEDULE,
    NoisedPredictor,
    NoisedPredictorConfig,
    save_noised_predictor,
)
from causaldiffae.script_util import argument_parser, create_gaussian_diffusion, parse_config, parse_flat
from causaldiffae.training.devices import use_device
from causaldiffae.training.fitting import fit, split_validation
from causaldiffae.training.preflight import check_platform

NOISE_LEVELS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
MASKING: Final = ("masking", "label_fraction", "label_seed", "mask_by")
_NOISE_SEED: Final = 0x6E6F
_LATENT: Final = "_latent"
"""End of the names of configurations for training in latent space, to which the launchers add `vae_path`."""


@with_help
@dataclass(frozen=True)
class NoisedTraining:
    """Options of the training run."""

    dataset: str = flag("", "name of the data set")
    data_dir: str = flag("", "folder of the data set")
    out: str = flag("", "output model folder; RUN/predictor for the score network in RUN")
    image_size: int = flag(0, "image size of the score network; 0 uses that of the data set")
    channels: int = flag(0, "number of channels of the score network; 0 uses that of the data set")
    num_images: int = flag(0, "use only the first num_images training images; 0 for all")
    num_test: int = flag(2000, "number of test images for the evaluation; 0 for all")
    iterations: int = flag(3000, "training steps")
    batch_size: int = flag(256, "images per step")
    lr: float = flag(3e-4, "peak learning rate, reached after 5 % of the steps, followed by cosine annealing")
    weight_decay: float = flag(0.05, "weight decay of AdamW")
    device: str = flag("auto", DEVICE_HELP)
    seed: int = flag(0, "random seed")
    masking: bool = flag(False, "weak supervision: only label_fraction of the images have labels")
    label_fraction: float = flag(1.0, "fraction of the training images with labels")
    label_seed: int = flag(0, "random seed of the selection of labelled images")
    mask_by: str = flag("image", "hide all labels of an image (image), or each variable's independently (variable)")
    graph: str = flag("", "causal graph file of a folder data set; default: graph.yaml in data_dir")

    def __post_init__(self) -> None:
        check_given(self, "dataset", "data_dir", "out")
        check_local(out=self.out)
        if self.mask_by not in CHOICES["mask_by"]:
            raise InputError(f"mask_by: expected image or variable, got {self.mask_by!r}")
        check_least(self, iterations=1, batch_size=1, num_images=0, num_test=0)


def negative_log_likelihood(
    predictor: NoisedPredictor,
    diffusion: GaussianDiffusion,
    x_start: Tensor,
    labels: Tensor,
    t: Tensor,
    noise: Tensor,
    observed: Observed,
) -> Tensor:
    """Computes the sum over variables of -log p(y_i | x_t) in nats, each averaged over the images with this label.

    Args:
        labels: (B, n) normalised; any finite number for a missing label.
    """
    x_t = diffusion.q_sample(x_start, t, noise)
    log_prob = predictor.log_prob(predictor(x_t, diffusion.model_timesteps(t)), labels)
    return -observed.mean((log_prob * observed.weights()).sum(dim=1))


def train_noised_predictor(
    config: NoisedTraining,
    network: NoisedPredictorConfig,
    diffusion: GaussianDiffusion,
    train: ImageData,
    validation: ImageData,
    on_step: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[NoisedPredictor, float]:
    """Trains a predictor; returns it with the weights of lowest validation loss, and that loss.

    Images without labels are not used, and missing labels have no term in the loss.
    """
    torch.manual_seed(config.seed)
    train, validation = labelled_only(train), labelled_only(validation)
    predictor = NoisedPredictor(train.spec, network).to(device)
    source = BatchSource(train, config.batch_size, seed=config.seed, device=device)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator(device).manual_seed(config.seed)

    def loss(step: int) -> Tensor:
        batch = source.batch(step)
        t = torch.randint(diffusion.num_timesteps, (len(batch.images),), generator=generator, device=device)
        noise = torch.randn(batch.images.shape, generator=generator, device=device)
        observed = Observed.of(batch.labelled)
        return negative_log_likelihood(predictor, diffusion, batch.images, batch.labels, t, noise, observed)

    def score() -> float:
        return validation_loss(predictor, diffusion, validation)

    best = fit(predictor, optimizer, loss, score, steps=config.iterations, warmup=0.05, on_step=on_step)
    return predictor, best


def validation_loss(predictor: NoisedPredictor, diffusion: GaussianDiffusion, data: ImageData) -> float:
    """Computes the sum over variables of -log p(y_i | x_t), each averaged over the images with this label.

    Timesteps are spread evenly over each batch, and the noise is the same in every call.
    """
    predictor.eval()
    data = labelled_only(data)
    device = next(predictor.parameters()).device
    source = BatchSource(data, min(256, len(data)), shuffle=False, device=device)
    generator = torch.Generator(device).manual_seed(_NOISE_SEED)
    total, whole = 0.0, torch.from_numpy(data.observed).to(device)
    for step in range(-(-len(data) // source.batch_size)):
        batch = source.batch(step)
        count = min(source.batch_size, len(data) - step * source.batch_size)  # then it begins again at the first images
        images, labels, observed = batch.images[:count], batch.labels[:count], Observed(batch.labelled[:count], whole)
        t = torch.linspace(0, diffusion.num_timesteps - 1, count, device=device).round().long()
        noise = torch.randn(images.shape, generator=generator, device=device)
        total += count * negative_log_likelihood(predictor, diffusion, images, labels, t, noise, observed).item()
    return total / len(data)


@torch.inference_mode()
def figures_by_level(
    predictor: NoisedPredictor, diffusion: GaussianDiffusion, data: ImageData, levels: tuple[float, ...] = NOISE_LEVELS
) -> list[dict[str, float]]:
    """Evaluates the predictor on labelled images at each noise level t / T; returns one row per level.

    A row holds the accuracy of each categorical variable, the mean absolute error of each continuous variable in label
    units, and log p(y | x_t), the sum over variables; each is a mean over the images with the label of the variable,
    whose number `NAME_images` is given if some lack it.
    """
    predictor.eval()
    data = labelled_only(data)
    spec, device = data.spec, next(predictor.parameters()).device
    observed = Observed.of(torch.from_numpy(data.observed).to(device))
    labels = spec.normalise(torch.from_numpy(data.labels.astype(np.float32))).to(device)
    labels = torch.where(observed.labels, labels, torch.zeros_like(labels))
    generator, rows = torch.Generator(device).manual_seed(_NOISE_SEED), []
    for level in levels:
        step = round(level * (diffusion.num_timesteps - 1))
        read, log_prob = [], []
        for start in range(0, len(data), 256):
            x_start = to_model_range(data.images[start : start + 256]).to(device)
            t = torch.full((len(x_start),), step, device=device)
            noise = torch.randn(x_start.shape, generator=generator, device=device)
            outputs = predictor(diffusion.q_sample(x_start, t, noise), diffusion.model_timesteps(t))
            read.append(predictor.read(outputs))
            log_prob.append(predictor.log_prob(outputs, labels[start : start + 256]))
        found = torch.cat(read)
        errors = (spec.denormalise(found) - spec.denormalise(labels)).abs()
        log_probs = (torch.cat(log_prob) * observed.weights()).sum(dim=1)
        row = {"level": level, "log_prob": float(observed.mean(log_probs))}
        for i, (name, head) in enumerate(zip(spec.graph.names, predictor.heads, strict=True)):
            known = observed.labels[:, i]
            if not known.any():
                continue
            if head.values:
                right = head.category(found[known, i]) == head.category(labels[known, i])
                row[f"{name}_accuracy"] = float(right.float().mean())
            else:
                row[f"{name}_error"] = float(errors[known, i].mean())
            if not known.all():
                row[f"{name}_images"] = float(known.sum())
        rows.append(row)
    return rows


def run_training(argv: list[str], description: str) -> str:
    """Runs the script: trains and saves a predictor, and returns the table to print."""
    check_platform()
    config, network, diffusion_config = _parse(argv, description)
    check_output(config.out, MODEL_TYPE)
    use_device(config.device)
    diffusion = create_gaussian_diffusion(diffusion_config)
    size, channels = config.image_size or None, config.channels or None
    whole = read_split(
        config.dataset, config.data_dir, "train", size, channels, config.num_images or None, graph=config.graph or None
    )
    if config.masking:
        by_variable = config.mask_by == "variable"
        whole = with_labels_of(
            whole, config.label_fraction, config.label_seed, config.data_dir, by_variable=by_variable
        )
    whole = labelled_only(whole)
    test = read_split(config.dataset, config.data_dir, "test", limit=config.num_test or None, spec=whole.spec)
    NoisedPredictor(whole.spec, network)  # validates the sizes before training starts
    train, validation = map(whole.subset, split_validation(len(whole), config.seed))
    if np.isnan(test.labels).all():
        warnings.warn("the test images have no labels, so validation images evaluate the predictor", stacklevel=2)
        test = validation
    start = time.monotonic()
    with progress_bar(total=config.iterations, desc="noised predictor", unit="step") as bar:
        predictor, best = train_noised_predictor(
            config, network, diffusion, train, validation, bar.update, dist_util.dev()
        )
    by_level = figures_by_level(predictor, diffusion, test)
    figures = {
        "validation_loss": best,
        "by_level": by_level,
        "test_images": len(test),
        "training": {key: value for key, value in asdict(config).items() if key not in ("data_dir", "graph", "device")},
        "training_seconds": round(time.monotonic() - start, 1),
    }
    folder = save_noised_predictor(Path(config.out), predictor, diffusion_config, figures)
    return f"{levels_table(by_level, whole.spec)}\n\nwritten to {folder}"


def _parse(argv: list[str], description: str) -> tuple[NoisedTraining, NoisedPredictorConfig, DiffusionConfig]:
    parser = argument_parser(description)
    for part in (NoisedTraining, NoisedPredictorConfig):
        parser.add_class_arguments(part, nested_key=None, instantiate=False)
    skipped = {field.name for field in fields(DiffusionConfig)} - set(SCHEDULE)
    parser.add_class_arguments(DiffusionConfig, nested_key=None, skip=skipped, instantiate=False)
    text = "configuration file of the score network, which sets data set, image size, channels and schedule"
    parser.add_argument("--score_config", action="append", default=[], help=text)
    values = parse_flat(parser, argv)
    if values.score_config:
        score = parse_config([part for path in values.score_config for part in ("--config", path)])
        named = (path for path in values.score_config if Path(path).stem.endswith(_LATENT))
        if latent := score.train.vae_path or next(named, ""):
            raise InputError(
                f"score_config: expected a score network of pixels, got one in latent space ({latent}), which is "
                "guided by its implicit predictor alone"
            )
        parser.set_defaults(
            {name: getattr(score.train, name) for name in ("dataset", "graph", "image_size", "channels")}
        )
        parser.set_defaults({name: getattr(score.diffusion, name) for name in SCHEDULE})
        parser.set_defaults({name: getattr(score.loss, name) for name in MASKING})
        if score.loss.masking:  # the selection depends on the number of images
            parser.set_defaults({"num_images": score.train.num_images})
        values = parse_flat(parser, argv)
    return (
        NoisedTraining(**{field.name: values[field.name] for field in fields(NoisedTraining)}),
        NoisedPredictorConfig(**{field.name: values[field.name] for field in fields(NoisedPredictorConfig)}),
        DiffusionConfig(**{name: values[name] for name in SCHEDULE}),
    )


def levels_table(rows: list[dict[str, float]], spec: DatasetSpec) -> str:
    """Formats the rows of `figures_by_level`."""
    names = [name for name in rows[0] if name != "level"]
    lines = [
        f"test images at noise levels t/T, data set {spec.name}",
        f"{'t/T':>6s}" + "".join(f"{n:>24s}" for n in names),
    ]
    lines += [f"{row['level']:6.2f}" + "".join(f"{row[name]:24.4f}" for name in names) for row in rows]
    return "\n".join(lines)
