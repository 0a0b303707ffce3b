"""Training of the anti-causal predictor on observational and interventional images.

Half of every batch comes from the training split, the other half are interventional images
(`datasets/interventional.py`), whose labels are independent. Images are augmented with noise, and with shifts where the
labels do not depend on the position. The loss is

    weighted sum over continuous variables of |prediction - label|, normalised + 0.5 * cross-entropy of categories.

Finally, the last layer is refitted for the continuous variables by ridge regression on its features, which removes the
noise of gradient descent, and a small VAE is trained, whose latents the metric CLD compares. Part of the training
images is held out for validation; test images are used only for the reported errors.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from causaldiffae import dist_util
from causaldiffae.baselines.causalvae import ConvDecoder
from causaldiffae.config import DEVICE_HELP, flag, with_help
from causaldiffae.datasets.folder.image_folder import has_split
from causaldiffae.datasets.images import ImageData, evenly_spread, to_model_range
from causaldiffae.datasets.interventional import cached_interventional
from causaldiffae.datasets.label_subsets import labelled_only
from causaldiffae.datasets.registry import find_dataset, read_split, truth_is_known
from causaldiffae.errors import check_given, check_least, check_local
from causaldiffae.logger import progress_bar
from causaldiffae.losses import prior_kl
from causaldiffae.metrics.effectiveness import nearest_category
from causaldiffae.predictors.common import check_output
from causaldiffae.predictors.predictor import (
    CLASS,
    MODEL_TYPE,
    VAE_LATENTS,
    Predictor,
    check_fits,
    config_for,
    load_predictor,
    save_predictor,
)
from causaldiffae.script_util import parse_flags
from causaldiffae.training.devices import use_device
from causaldiffae.training.fitting import fit, split_validation
from causaldiffae.training.preflight import check_platform

_CLASS_WEIGHT: Final = 0.5
NOT_RECORDED: Final = ("data_dir", "cache_dir", "device")
"""Options that do not belong in the figures of a predictor."""


@with_help
@dataclass(frozen=True)
class PredictorTraining:
    """Options of the training run."""

    data_dir: str = flag("", "folder of the data set")
    out: str = flag("", "output model folder")
    image_size: int = flag(0, "image size of the evaluated models; 0 uses that of the data set")
    channels: int = flag(0, "number of channels of the evaluated models; 0 uses that of the data set")
    steps: int = flag(3000, "training steps")
    batch_size: int = flag(128, "images per step")
    lr: float = flag(2e-3, "peak learning rate of the one-cycle policy")
    noise: float = flag(6.0, "maximum standard deviation of the noise added to training images, in grey levels")
    base_images: int = flag(6000, "training images from which interventional images are generated; 0 for all")
    repeats: int = flag(3, "interventional images per training image; 0 trains on observational images only")
    cache_dir: str = flag("", "cache folder of the interventional images; default: data_dir")
    vae_steps: int = flag(1500, "training steps of the VAE")
    workers: int = flag(1, "processes that generate interventional images")
    seed: int = flag(0, "random seed")
    init: str = flag("", "predictor folder with initial weights, including those of the VAE")
    graph: str = flag("", "causal graph file of a folder data set; default: graph.yaml in data_dir")
    device: str = flag("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_given(self, "data_dir", "out")
        check_local(out=self.out, cache_dir=self.cache_dir)
        check_least(self, steps=1, batch_size=2, repeats=0, base_images=0, vae_steps=0)


@dataclass(frozen=True)
class PredictorData:
    """Training, validation and test images; interventional ones are None for a data set without a generator."""

    train: ImageData
    validation: ImageData
    test: ImageData
    interventional_train: ImageData | None
    interventional_validation: ImageData | None
    interventional_test: ImageData | None


def prepare(config: PredictorTraining, dataset: str, progress: bool = True) -> PredictorData:
    """Reads the labelled images of the splits, and generates the interventional images unless they are cached.

    Images of a folder may lack some labels. Its validation images are those of its split val, if there are any.
    """
    size, channels = config.image_size or None, config.channels or None
    whole = labelled_only(read_split(dataset, config.data_dir, "train", size, channels, graph=config.graph or None))
    test = labelled_only(read_split(dataset, config.data_dir, "test", spec=whole.spec))
    if find_dataset(dataset).spec is None and has_split(config.data_dir, whole.spec, "val"):
        train, validation = whole, labelled_only(read_split(dataset, config.data_dir, "val", spec=whole.spec))
    else:
        train, validation = map(whole.subset, split_validation(len(whole), config.seed))
    drawn: list[ImageData | None] = [None, None, None]
    if truth_is_known(whole) and truth_is_known(test):
        bases = train.subset(range(min(config.base_images or len(train), len(train))))
        few = validation.subset(range(min(400, len(validation))))
        folder = config.cache_dir or config.data_dir
        parts = [(bases, config.repeats, 1, True), (few, 1, 2, False), (test, 1, 3, False)]
        drawn = [
            cached_interventional(part, folder, repeats, config.seed + stream, bend, config.workers, progress)
            if config.repeats or part is test
            else None
            for part, repeats, stream, bend in parts
        ]
    return PredictorData(train, validation, test, *drawn)


def data_digest(data: ImageData) -> str:
    """Returns sixteen hexadecimal digits that identify images and labels."""
    digest = hashlib.sha256(repr((data.spec.name, data.split, data.images.shape)).encode())
    for array in (data.images, data.labels, data.classes):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def head_targets(data: ImageData, predictor: Predictor) -> Tensor:
    """Returns targets (N, heads) float32: normalised continuous labels, and indices of categories and classes.

    The target of a missing label is NaN.
    """
    spec, labels, columns = predictor.spec, data.labels.astype(np.float64), []
    for i, head in enumerate(predictor.heads):
        if head.name == CLASS and i == len(spec.graph):
            assert data.classes is not None
            columns.append(data.classes.astype(np.float64))
        elif head.values:
            columns.append(nearest_category(labels[:, i], head.values))
        else:
            columns.append((labels[:, i] - spec.shift[i]) / spec.scale[i])
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _inputs_and_targets(data: ImageData, predictor: Predictor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images), head_targets(data, predictor)


def augment(images: Tensor, noise: float, shift: int, generator: torch.Generator) -> Tensor:
    """Adds noise up to `noise` grey levels to images (B, C, H, W) in [-1, 1], and shifts them by up to `shift` pixels.

    Shifted images are padded by replicating their border pixels. Random numbers are drawn on the device of `generator`.
    """
    device = images.device
    if shift:
        padded = functional.pad(images, (shift,) * 4, mode="replicate")
        size = images.shape[-1]
        steps = torch.randint(0, 2 * shift + 1, (2, len(images)), generator=generator).to(device)
        rows = (steps[0][:, None] + torch.arange(size, device=device))[:, None, :, None]
        columns = (steps[1][:, None] + torch.arange(size, device=device))[:, None, None, :]
        batch = torch.arange(len(images), device=device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=device)[None, :, None, None]
        images = padded[batch, channels, rows, columns]
    level = torch.rand((len(images), 1, 1, 1), generator=generator) * noise / 127.5
    return (images + (level * torch.randn(images.shape, generator=generator)).to(device)).clamp(-1, 1)


def prediction_loss(predictor: Predictor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Computes the sum of the losses of all heads, each averaged over the images with its label.

    Args:
        outputs: (B, outputs) of the network.
        targets: (B, heads) of `head_targets`.
    """
    total, weights = outputs.new_zeros(()), find_dataset(predictor.spec.name).predictor.head_weights
    for i, head in enumerate(predictor.heads):
        found, target = outputs[:, head.start : head.start + head.size], targets[:, i]
        labelled = target.isfinite()
        if not bool(labelled.all()):
            found, target = found[labelled], target[labelled]
        if not len(target):
            continue
        if head.values:
            total = total + _CLASS_WEIGHT * functional.cross_entropy(found, target.long())
        else:
            total = total + weights.get(head.name, 1.0) * (found[:, 0] - target).abs().mean()
    return total


def train_predictor(
    config: PredictorTraining,
    prepared: PredictorData,
    on_step: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Predictor, float]:
    """Trains the heads; returns the predictor with the weights of lowest validation loss, and that loss.

    Random numbers are drawn on the CPU, so that they do not depend on the device.
    """
    torch.manual_seed(config.seed)
    predictor = Predictor(prepared.train.spec, config_for(prepared.train.spec))
    if config.init:
        earlier = load_predictor(config.init).predictor
        check_fits(earlier, predictor.spec, config.init)
        predictor.load_state_dict(earlier.state_dict())
    predictor.to(device)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [] if prepared.interventional_train is None else [prepared.interventional_train]
    pools = [_inputs_and_targets(part, predictor) for part in (prepared.train, *drawn)]
    parameters = [p for name, p in predictor.named_parameters() if not name.startswith("vae_encoder")]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-2)
    shift = find_dataset(prepared.train.spec.name).predictor.shift

    def loss(step: int) -> Tensor:
        images, targets = [], []
        for pool_images, pool_targets in pools:
            indices = torch.randint(len(pool_images), (config.batch_size // len(pools),), generator=generator)
            images.append(to_model_range(pool_images[indices].to(device)))
            targets.append(pool_targets[indices].to(device))
        augmented = augment(torch.cat(images), config.noise, shift, generator)
        return prediction_loss(predictor, predictor(augmented), torch.cat(targets))

    def score() -> float:
        return validation_loss(predictor, prepared)

    best = fit(predictor, optimizer, loss, score, steps=config.steps, warmup=0.15, on_step=on_step)
    return predictor, best


@torch.inference_mode()
def refit_last_layer(predictor: Predictor, prepared: PredictorData, limit: int = 8000, ridge: float = 1e-4) -> None:
    """Refits the last layer for continuous variables by ridge regression on up to `limit` training images of each kind.

    The new weights of a variable are kept only if they reduce its validation error. The network must be in evaluation
    mode. The regression runs on the CPU in float64.
    """
    device = predictor.last.weight.device

    def features_and_targets(*parts: ImageData | None) -> tuple[Tensor, Tensor]:
        features, targets = [], []
        for part in parts:
            if part is not None:
                images, labels = _inputs_and_targets(
                    part.subset(evenly_spread(min(limit, len(part)), len(part))), predictor
                )
                pieces = [
                    torch.cat(predictor.features(piece.to(device)), dim=1).cpu()
                    for piece in to_model_range(images).split(256)
                ]
                features.append(torch.cat(pieces).double())
                targets.append(labels.double())
        x = torch.cat(features)
        return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1), torch.cat(targets)

    inputs, targets = features_and_targets(prepared.train, prepared.interventional_train)
    held_out, truth = features_and_targets(prepared.validation, prepared.interventional_validation)
    for i, head in enumerate(predictor.heads):
        rows, held_rows = targets[:, i].isfinite(), truth[:, i].isfinite()
        if head.values or not (rows.any() and held_rows.any()):
            continue
        x, y, held_x, held_y = inputs[rows], targets[rows, i], held_out[held_rows], truth[held_rows, i]
        gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
        solved = torch.linalg.solve(gram, x.T @ y / len(x))
        old = torch.cat([predictor.last.weight[head.start], predictor.last.bias[head.start : head.start + 1]])
        old = old.cpu().double()
        errors = [(held_x @ weights - held_y).abs().mean() for weights in (old, solved)]
        if errors[1] < errors[0]:
            predictor.last.weight[head.start] = solved[:-1].float().to(device)
            predictor.last.bias[head.start] = solved[-1].float().to(device)


@torch.inference_mode()
def validation_loss(predictor: Predictor, prepared: PredictorData) -> float:
    """Averages the losses on observational and interventional validation images."""
    predictor.eval()
    losses, device = [], predictor.last.weight.device
    for part in (prepared.validation, prepared.interventional_validation):
        if part is not None:
            images, targets = _inputs_and_targets(part, predictor)
            outputs = torch.cat([predictor(piece.to(device)).cpu() for piece in to_model_range(images).split(256)])
            losses.append(float(prediction_loss(predictor, outputs, targets)))
    return sum(losses) / len(losses)


def train_vae(config: PredictorTraining, predictor: Predictor, train: ImageData) -> float:
    """Trains `predictor.vae_encoder` with a temporary decoder; returns the mean loss of the last 100 steps.

    The loss in nats per image is a Gaussian negative log-likelihood, whose standard deviation is a tenth of the image
    range, plus the KL divergence from N(0, 1).
    """
    spec, device = predictor.spec, predictor.last.weight.device
    torch.manual_seed(config.seed + 1)
    decoder = ConvDecoder(VAE_LATENTS, spec.image_size, spec.channels, (32, 32, 16)).to(device)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.Adam([*predictor.vae_encoder.parameters(), *decoder.parameters()], lr=1e-3)
    images, losses = torch.from_numpy(train.images), []
    for _ in range(config.vae_steps):
        x_start = to_model_range(images[torch.randint(len(images), (64,), generator=generator)].to(device))
        posterior = predictor.vae_encoder(x_start)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator).to(device))
        error = ((decoder(z.flatten(1)) - x_start) ** 2).flatten(1).sum(dim=1) / (2 * 0.2**2)
        loss = (error + prior_kl(posterior)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:])) if losses else float("nan")


def errors_on(predictor: Predictor, data: ImageData | None) -> dict[str, float] | None:
    """Returns mean absolute errors of continuous labels in label units, and accuracies of categories and classes.

    Each is a mean over the images with this label, whose number `NAME_images` is given if some lack it.
    """
    if data is None:
        return None
    read = predictor.read(data.images)
    figures: dict[str, float] = {"images": float(len(data))}
    for i, head in enumerate(predictor.heads[: len(predictor.spec.graph)]):
        rows = np.isfinite(data.labels[:, i])
        found, true = read.labels[rows, i], data.labels[rows, i]
        if not len(true):
            continue
        if head.values:
            categories = (nearest_category(labels, head.values) for labels in (found, true))
            figures[f"{head.name}_accuracy"] = float(np.equal(*categories).mean())
        else:
            figures[head.name] = float(np.abs(found - true).mean())
        if len(true) < len(data):
            figures[f"{head.name}_images"] = float(len(true))
    if read.classes is not None and data.classes is not None:
        figures["class_accuracy"] = float((read.classes == data.classes).mean())
    return figures


def run_training(argv: list[str], description: str, dataset: str, **defaults: Any) -> str:
    """Runs a classifier script: trains and saves a predictor, and returns the table to print."""
    check_platform()
    config = parse_flags(PredictorTraining, argv, description, defaults=defaults)
    check_output(config.out, MODEL_TYPE)
    use_device(config.device)
    start = time.monotonic()
    prepared = prepare(config, dataset)
    drawn = time.monotonic()
    with progress_bar(total=config.steps, desc="predictor", unit="step") as bar:
        predictor, _ = train_predictor(config, prepared, bar.update, dist_util.dev())
    refit_last_layer(predictor, prepared)
    vae_loss = train_vae(config, predictor, prepared.train)
    figures = {
        "validation_loss": validation_loss(predictor, prepared),
        "observational": errors_on(predictor, prepared.test),
        "interventional": errors_on(predictor, prepared.interventional_test),
        "validation_observational": errors_on(predictor, prepared.validation),
        "validation_interventional": errors_on(predictor, prepared.interventional_validation),
        "vae_loss": None if config.vae_steps == 0 else vae_loss,
        "training": {key: value for key, value in asdict(config).items() if key not in NOT_RECORDED},
        "train_digest": data_digest(prepared.train),
        "test_digest": data_digest(prepared.test),
        "drawing_seconds": round(drawn - start, 1),
        "training_seconds": round(time.monotonic() - drawn, 1),
    }
    folder = save_predictor(Path(config.out), predictor.cpu(), figures)
    return f"{figures_table(figures)}\n\nwritten to {folder}"


def figures_table(figures: dict[str, Any]) -> str:
    """Formats the errors on test images: one row for observational, one for interventional images."""
    kinds = [kind for kind in ("observational", "interventional") if figures.get(kind)]
    names = list(figures["observational"])
    lines = ["test images: mean absolute errors in label units, accuracies, and numbers of images"]
    width = max(18, *(len(name) + 2 for name in names))
    lines.append(f"{'':16s}" + "".join(f"{name:>{width}s}" for name in names))
    for kind in kinds:
        decimals = {name: 0 if name == "images" or name.endswith("_images") else 4 for name in names}
        cells = [f"{figures[kind].get(name, np.nan):{width}.{decimals[name]}f}" for name in names]
        lines.append(f"{kind:16s}" + "".join(cells))
    return "\n".join(lines)
