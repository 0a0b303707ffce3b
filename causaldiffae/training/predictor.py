"""Trains an anti-causal predictor: pictures of the training split and pictures whose labels were drawn independently.

A share of the training images is cut off for validation, and the weights that do best there are kept; test images are
only looked at for the figures at the end. Half of every batch are images of the split, half interventional ones
(`interventional_data.py`), all with a little noise, and shifted where labels do not depend on the place:

    loss = weighted sum over numbers of |prediction - label| in normalised units + half the cross-entropy of categories

Gradient descent leaves the last layer's numbers a little noisy, so these are fitted once more, by ridge regression on
the features, and kept where validation images are read better.

The last minute trains the small VAE whose encoder CLD compares images by.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from causaldiffae.baselines.causalvae import ConvDecoder
from causaldiffae.datasets.images import ImageData, evenly_spread, to_model_range
from causaldiffae.datasets.interventional import cached_interventional
from causaldiffae.datasets.registry import exact_labels, find_dataset, read_split, truth_is_known
from causaldiffae.errors import InputError, check_given, check_least
from causaldiffae.logger import progress_bar
from causaldiffae.losses import prior_kl
from causaldiffae.predictors.predictor import (
    CLASS,
    VAE_LATENTS,
    Predictor,
    check_fits,
    config_for,
    load_predictor,
    save_predictor,
)
from causaldiffae.script_util import argument_parser, parse_flat

VALIDATION_SHARE: Final = 1 / 16
_CLASS_WEIGHT: Final = 0.5


@dataclass(frozen=True)
class PredictorTraining:
    """A training run.

    Attributes:
        data_dir: the data set's folder.
        out: the model folder to write.
        image_size, channels: as the models that are judged have them; 0 keeps the data set's own.
        steps: training steps.
        batch_size: images a step.
        lr: the highest learning rate of one cycle.
        noise: grey levels of the noise on training images, at most.
        base_images: how many training images interventional ones are drawn from; 0 for all.
        repeats: how many interventional images are drawn from each.
        cache_dir: where these are kept; by default in data_dir.
        vae_steps: training steps of the VAE.
        workers: processes that draw.
        seed: of everything that is drawn.
        init: a predictor's folder to go on from, its VAE included; none starts anew.
    """

    data_dir: str = ""
    out: str = ""
    image_size: int = 0
    channels: int = 0
    steps: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    noise: float = 6.0
    base_images: int = 6000
    repeats: int = 3
    cache_dir: str = ""
    vae_steps: int = 1500
    workers: int = 1
    seed: int = 0
    init: str = ""

    def __post_init__(self) -> None:
        check_given(self, "data_dir", "out")
        check_least(self, steps=1, batch_size=2, repeats=1, base_images=0, vae_steps=0)


@dataclass(frozen=True)
class PredictorData:
    """What a predictor learns from and is tested on; interventional images are None without a generator."""

    train: ImageData
    validation: ImageData
    test: ImageData
    drawn_train: ImageData | None
    drawn_validation: ImageData | None
    drawn_test: ImageData | None


def cut_validation(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images to train on and of those to choose by, both rising; a random sixteenth is cut off."""
    if count < 2:
        raise InputError(f"training images: {count} found, 2 or more are needed to cut off a validation split")
    order = np.random.Generator(np.random.Philox(key=[seed, 0x7072])).permutation(count)
    held = max(int(count * VALIDATION_SHARE), 1)
    return np.sort(order[held:]), np.sort(order[:held])


def prepare(config: PredictorTraining, dataset: str, progress: bool = True) -> PredictorData:
    """Reads the splits and draws the interventional images, or reads those of an earlier run."""
    size, channels = config.image_size or None, config.channels or None
    whole = read_split(dataset, config.data_dir, "train", size, channels)
    test = read_split(dataset, config.data_dir, "test", size, channels)
    train_places, validation_places = cut_validation(len(whole), config.seed)
    train, validation = whole.subset(train_places), whole.subset(validation_places)
    drawn: list[ImageData | None] = [None, None, None]
    if truth_is_known(whole) and truth_is_known(test):
        bases = train.subset(range(min(config.base_images or len(train), len(train))))
        few = validation.subset(range(min(400, len(validation))))
        folder = config.cache_dir or config.data_dir
        wanted = [(bases, config.repeats, 1, True), (few, 1, 2, False), (test, 1, 3, False)]
        drawn = [
            cached_interventional(part, folder, repeats, config.seed + stream, bend, config.workers, progress)
            for part, repeats, stream, bend in wanted
        ]
    exact = [replace(part, labels=exact_labels(part)) for part in (train, validation, test)]
    return PredictorData(*exact, *drawn)


def data_digest(data: ImageData) -> str:
    """Sixteen hexadecimal digits that tell one set of images and labels from another."""
    digest = hashlib.sha256(repr((data.spec.name, data.split, data.images.shape)).encode())
    for array in (data.images, data.labels, data.classes):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------- training


class _Pool:
    """Images of one kind on one device, drawn at random."""

    def __init__(self, data: ImageData, predictor: Predictor) -> None:
        spec = predictor.spec
        self.images = torch.from_numpy(data.images)
        targets = data.labels.astype(np.float64)
        columns = []
        for i, head in enumerate(predictor.heads):
            if head.name == CLASS and i == len(spec.graph):
                assert data.classes is not None
                columns.append(data.classes.astype(np.float64))
            elif head.values:
                columns.append(np.abs(targets[:, i, None] - np.asarray(head.values)).argmin(axis=1).astype(np.float64))
            else:
                columns.append((targets[:, i] - spec.shift[i]) / spec.scale[i])
        self.targets = torch.from_numpy(np.stack(columns, axis=1)).float()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        places = torch.randint(len(self.images), (count,), generator=generator)
        return to_model_range(self.images[places]), self.targets[places]


def augment(images: Tensor, noise: float, shift: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] with noise of up to `noise` grey levels each, and moved by up to `shift` pixels.

    What moves in from outside is the image's own edge.
    """
    if shift:
        padded = functional.pad(images, (shift,) * 4, mode="replicate")
        size = images.shape[-1]
        steps = torch.randint(0, 2 * shift + 1, (2, len(images)), generator=generator)
        rows = (steps[0][:, None] + torch.arange(size))[:, None, :, None]
        columns = (steps[1][:, None] + torch.arange(size))[:, None, None, :]
        batch = torch.arange(len(images))[:, None, None, None]
        images = padded[batch, torch.arange(images.shape[1])[None, :, None, None], rows, columns]
    level = torch.rand((len(images), 1, 1, 1), generator=generator) * noise / 127.5
    return (images + level * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def prediction_loss(predictor: Predictor, outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of all heads' losses, a mean over images; targets (B, heads) hold numbers and places of categories."""
    total, weights = outputs.new_zeros(()), find_dataset(predictor.spec.name).predictor.head_weights
    for i, head in enumerate(predictor.heads):
        found = outputs[:, head.start : head.start + head.size]
        if head.values:
            total = total + _CLASS_WEIGHT * functional.cross_entropy(found, targets[:, i].long())
        else:
            total = total + weights.get(head.name, 1.0) * (found[:, 0] - targets[:, i]).abs().mean()
    return total


def train_predictor(
    config: PredictorTraining, prepared: PredictorData, on_step: Callable[[], object] | None = None
) -> tuple[Predictor, float]:
    """Trains the heads and returns the predictor as it was best on the validation images, and its loss there."""
    torch.manual_seed(config.seed)
    predictor = Predictor(prepared.train.spec, config_for(prepared.train.spec))
    if config.init:
        earlier = load_predictor(config.init).predictor
        check_fits(earlier, predictor.spec, config.init)
        predictor.load_state_dict(earlier.state_dict())
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [] if prepared.drawn_train is None else [prepared.drawn_train]
    pools = [_Pool(part, predictor) for part in (prepared.train, *drawn)]
    parameters = [p for name, p in predictor.named_parameters() if not name.startswith("vae_encoder")]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps, pct_start=0.15)
    shift = find_dataset(prepared.train.spec.name).predictor.shift
    best, best_state = float("inf"), {k: v.clone() for k, v in predictor.state_dict().items()}
    for step in range(1, config.steps + 1):
        predictor.train()
        parts = [pool.draw(config.batch_size // len(pools), generator) for pool in pools]
        images, targets = (torch.cat([part[i] for part in parts]) for i in range(2))
        loss = prediction_loss(predictor, predictor(augment(images, config.noise, shift, generator)), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        if step % max(config.steps // 20, 1) == 0 or step == config.steps:
            score = validation_loss(predictor, prepared)
            if score < best:
                best, best_state = score, {k: v.clone() for k, v in predictor.state_dict().items()}
        if on_step is not None:
            on_step()
    predictor.load_state_dict(best_state)
    return predictor.eval(), best


@torch.inference_mode()
def refit_numbers(predictor: Predictor, prepared: PredictorData, limit: int = 8000, ridge: float = 1e-4) -> None:
    """Fits the last layer's numbers by ridge regression on up to `limit` training images of each kind.

    A number keeps its weights where the new ones read the validation images no better; the network must be in
    evaluation mode.
    """

    def inputs_and_targets(*parts: ImageData | None) -> tuple[Tensor, Tensor]:
        found = []
        for part in parts:
            if part is not None:
                pool = _Pool(part.subset(evenly_spread(min(limit, len(part)), len(part))), predictor)
                pieces = [
                    torch.cat(predictor.features(piece), dim=1) for piece in to_model_range(pool.images).split(256)
                ]
                found.append((torch.cat(pieces).double(), pool.targets.double()))
        inputs, targets = (torch.cat([pair[i] for pair in found]) for i in range(2))
        return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1), targets

    inputs, targets = inputs_and_targets(prepared.train, prepared.drawn_train)
    held, truth = inputs_and_targets(prepared.validation, prepared.drawn_validation)
    gram = inputs.T @ inputs / len(inputs) + ridge * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    solved = torch.linalg.solve(gram, inputs.T @ targets / len(inputs))
    for i, head in enumerate(predictor.heads):
        old = torch.cat([predictor.last.weight[head.start], predictor.last.bias[head.start : head.start + 1]]).double()
        errors = [(held @ weights - truth[:, i]).abs().mean() for weights in (old, solved[:, i])]
        if not head.values and errors[1] < errors[0]:
            predictor.last.weight[head.start] = solved[:-1, i].float()
            predictor.last.bias[head.start] = solved[-1, i].float()


@torch.inference_mode()
def validation_loss(predictor: Predictor, prepared: PredictorData) -> float:
    """The loss on validation images, observational and interventional ones weighing the same."""
    predictor.eval()
    losses = []
    for part in (prepared.validation, prepared.drawn_validation):
        if part is not None:
            pool = _Pool(part, predictor)
            pieces = to_model_range(pool.images).split(256)
            outputs = torch.cat([predictor(piece) for piece in pieces])
            losses.append(float(prediction_loss(predictor, outputs, pool.targets)))
    return sum(losses) / len(losses)


def train_vae(config: PredictorTraining, predictor: Predictor, train: ImageData) -> float:
    """Trains `predictor.vae_encoder` with a decoder that is thrown away; returns the last steps' mean loss.

    Squared error in units of a tenth of the range, plus the divergence from N(0, 1): both in nats per image.
    """
    spec = predictor.spec
    torch.manual_seed(config.seed + 1)
    decoder = ConvDecoder(VAE_LATENTS, spec.image_size, spec.channels, (32, 32, 16))
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.Adam([*predictor.vae_encoder.parameters(), *decoder.parameters()], lr=1e-3)
    images, losses = torch.from_numpy(train.images), []
    for _ in range(config.vae_steps):
        x_start = to_model_range(images[torch.randint(len(images), (64,), generator=generator)])
        posterior = predictor.vae_encoder(x_start)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
        error = ((decoder(z.flatten(1)) - x_start) ** 2).flatten(1).sum(dim=1) / (2 * 0.2**2)
        loss = (error + prior_kl(posterior)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:])) if losses else float("nan")


# ---------------------------------------------------------------------- figures


def errors_on(predictor: Predictor, data: ImageData | None) -> dict[str, float] | None:
    """Mean absolute error of every continuous label in label units, share of right categories and classes."""
    if data is None:
        return None
    read = predictor.read(data.images)
    figures: dict[str, float] = {"images": float(len(data))}
    for i, head in enumerate(predictor.heads[: len(predictor.spec.graph)]):
        if head.values:
            figures[f"{head.name}_accuracy"] = float((read.labels[:, i] == data.labels[:, i]).mean())
        else:
            figures[head.name] = float(np.abs(read.labels[:, i] - data.labels[:, i]).mean())
    if read.classes is not None and data.classes is not None:
        figures["class_accuracy"] = float((read.classes == data.classes).mean())
    return figures


def run_training(argv: list[str], description: str, dataset: str, **defaults: Any) -> str:
    """A classifier script's main: trains, saves, and returns the table to print."""
    parser = argument_parser(description)
    parser.add_class_arguments(PredictorTraining, nested_key=None, instantiate=False)
    parser.set_defaults(defaults)
    values = parse_flat(parser, argv)
    config = PredictorTraining(**{name: values[name] for name in PredictorTraining.__dataclass_fields__})
    begin = time.monotonic()
    prepared = prepare(config, dataset)
    drawn = time.monotonic()
    with progress_bar(total=config.steps, desc="predictor", unit="step") as bar:
        predictor, _ = train_predictor(config, prepared, bar.update)
    refit_numbers(predictor, prepared)
    vae_loss = train_vae(config, predictor, prepared.train)
    figures = {
        "validation_loss": validation_loss(predictor, prepared),
        "observational": errors_on(predictor, prepared.test),
        "interventional": errors_on(predictor, prepared.drawn_test),
        "validation_observational": errors_on(predictor, prepared.validation),
        "validation_interventional": errors_on(predictor, prepared.drawn_validation),
        "vae_loss": None if config.vae_steps == 0 else vae_loss,
        "training": {key: value for key, value in asdict(config).items() if key not in ("data_dir", "cache_dir")},
        "train_digest": data_digest(prepared.train),
        "test_digest": data_digest(prepared.test),
        "drawing_seconds": round(drawn - begin, 1),
        "training_seconds": round(time.monotonic() - drawn, 1),
    }
    folder = save_predictor(Path(config.out), predictor, figures)
    return f"{figures_table(figures)}\n\nwritten to {folder}"


def figures_table(figures: dict[str, Any]) -> str:
    """Errors on true images, one row for each kind."""
    kinds = [kind for kind in ("observational", "interventional") if figures.get(kind)]
    names = list(figures["observational"])
    lines = ["mean absolute error on true test images, label units", f"{'':16s}" + "".join(f"{n:>18s}" for n in names)]
    lines += [f"{kind:16s}" + "".join(f"{figures[kind][name]:18.4f}" for name in names) for kind in kinds]
    return "\n".join(lines)
