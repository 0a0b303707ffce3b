"""Gives a trained CausalDiffAE other mechanisms, another encoder or separate embeddings; its decoder stays.

    python tools/convert_model.py --model_path weights/NAME --data_dir DATA --out OUT --separate_embeddings
    python tools/convert_model.py --model_path weights/NAME --data_dir DATA --out OUT --mechanism spline
    python tools/convert_model.py --model_path weights/NAME --data_dir DATA --out OUT --encoder_steps 20000

`--separate_embeddings` replaces the hidden layer that embeds all latents by one per variable, fitted to the old one by
least squares on latents of the training labels, with variables dropped as in training.

`--mechanism` fits mechanisms of another kind to the training labels by maximum likelihood. Then the encoder is trained
to infer the noise that these mechanisms require for the labels of an image. The network keeps its weights: it depends
on the labels alone. `--mechanism_width` and `--mechanism_depth` change the size of the mechanisms. They need no images:
`--labels FILE` fits them to a table with more labels, a CSV file with a column for every variable. Mechanisms of the
kind and size that the model has are trained on.

`--encoder_steps` alone trains the encoder on, and `--encoder_channels` trains one of other widths from random weights.
With other mechanisms the encoder is trained by default, with `--encoder_steps 0` it is not.

Mechanisms and encoder keep the weights with the lowest loss on a held-out sixteenth of the data.

OUT is a model folder, for instance the start of a further training (`--init_weights OUT`).
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from causaldiffae.checkpoints.checkpoint import CONFIG, check_free, export_weights
from causaldiffae.config import Config, ModelConfig
from causaldiffae.datasets.images import check_complete, model_inputs
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json, reading
from causaldiffae.image_datasets import ImageData
from causaldiffae.losses import Observed, label_kl
from causaldiffae.mechanisms.elementwise import FAMILIES
from causaldiffae.model import CausalDiffAE, mechanism_nll
from causaldiffae.nn import mlp
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, describe_checkpoint, load_model, run_cli
from causaldiffae.training.fitting import fit, split_validation

OF_MECHANISMS = ("mechanism", "mechanism_width", "mechanism_depth")
ENCODER_STEPS = 20_000
WARMUP = 0.1
"""Share of the steps of each fit in which the learning rate increases."""


def separate_embedding(model: CausalDiffAE, labels: Tensor, hidden: int, steps: int) -> tuple[nn.Module, float]:
    """Fits a separate embedding; returns it and its mean squared error relative to the variance of the old one.

    Args:
        labels: normalised labels (N, n) of the training images.
        hidden: width of each variable's hidden layer.
    """
    blocks, old = model.scm.label_blocks(labels), model.unet.up_emb
    n, width = blocks.shape[1], blocks.shape[1] * blocks.shape[2]
    new = mlp([width, hidden, model.unet.emb_channels], n)
    with torch.no_grad():
        variance = old(blocks.flatten(1)).var(dim=0).mean()

    def loss(chosen: Tensor) -> Tensor:
        z = chosen + 0.05 * torch.randn(chosen.shape)
        if model.null_blocks is not None:
            z = model.drop_blocks(z, torch.rand(z.shape[:2]) >= 0.1)
        with torch.no_grad():
            target = old(z.flatten(1))
        return (new(z.flatten(1)) - target).square().mean() / variance

    @torch.no_grad()
    def validation_loss() -> float:
        return float(loss(blocks))

    optimizer = torch.optim.AdamW(new.parameters(), lr=3e-3, weight_decay=1e-4)

    def training_loss(_: int) -> Tensor:
        return loss(blocks[torch.randint(len(blocks), (256,))])

    return new, fit(new, optimizer, training_loss, validation_loss, steps=steps, warmup=WARMUP)


def fit_mechanisms(model: CausalDiffAE, labels: Tensor, steps: int, batch_size: int, lr: float) -> float:
    """Fits the mechanisms to normalised labels (N, n); returns the negative log-likelihood of held-out ones.

    Args:
        lr: the largest learning rate.
    """
    training, validation = split_validation(len(labels), seed=0)

    def nll(chosen: Tensor) -> Tensor:
        return mechanism_nll(model.scm, chosen, Observed.of(torch.ones_like(chosen, dtype=torch.bool)))

    def loss(_: int) -> Tensor:
        chosen = labels[training[torch.randint(len(training), (batch_size,)).numpy()]]
        return nll(chosen + 0.005 * torch.randn(chosen.shape))

    @torch.no_grad()
    def validation_loss() -> float:
        return float(nll(labels[validation]))

    optimizer = torch.optim.AdamW(model.scm.parameters(), lr=lr, weight_decay=1e-4)
    return fit(model.scm, optimizer, loss, validation_loss, steps=steps, warmup=WARMUP)


def read_labels(path: Path, spec: DatasetSpec) -> Tensor:
    """Reads labels (N, n) in label units from a CSV file with the names of the variables in its header.

    Raises:
        DataError: for a variable without a column, or a cell that is no number.
    """
    with reading("a CSV file of numbers with a header", str(path)), path.open(encoding="utf-8-sig", newline="") as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
        table = np.genfromtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    if missing := [name for name in spec.graph.names if name not in names]:
        raise DataError(f"{path}: expected a column {missing[0]!r}, got {', '.join(names)}")
    if table.shape[1] != len(names):
        raise DataError(f"{path}: expected rows of {len(names)} numbers below the header, got none")
    labels = table[:, [names.index(name) for name in spec.graph.names]]
    if not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels).all(axis=1))[0])
        raise DataError(f"{path}: expected numbers, got another value in row {row + 1} below the header")
    return torch.from_numpy(labels)


def fit_encoder(model: CausalDiffAE, data: ImageData, labels: Tensor, std: float, steps: int) -> float:
    """Trains the encoder on the labels; returns the root mean square error of held-out ones, in normalised units.

    Args:
        std: standard deviation of the latents around their labels, `label_std`.
    """
    training, validation = split_validation(len(labels), seed=0)

    def divergence(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        posterior = model.encode(model_inputs(data.subset(rows), "cpu")[0])
        u = posterior.mean + torch.exp(0.5 * posterior.logvar) * torch.randn(posterior.mean.shape)
        _, mean, stretch = model.scm.relaxed(posterior.mean, u)
        anchors = model.scm.label_blocks(labels[rows])
        return label_kl(mean, posterior.logvar + 2.0 * stretch, anchors, std).mean(), mean

    def loss(_: int) -> Tensor:
        return divergence(training[torch.randint(len(training), (64,)).numpy()])[0]

    @torch.no_grad()
    def validation_loss() -> float:
        model.encoder.eval()
        return float(divergence(validation)[0])

    optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=1e-3, weight_decay=1e-4)
    with tqdm(total=steps, desc="encoder", mininterval=15.0) as progress:
        more = progress.update
        fit(model.encoder, optimizer, loss, validation_loss, steps=steps, warmup=WARMUP, on_step=more)
    with torch.no_grad():
        mean = divergence(validation)[1]
    return float((model.read_labels(mean) - labels[validation]).square().mean().sqrt())


def converted(loaded: LoadedModel, after: Config, data: ImageData, settings: argparse.Namespace) -> CausalDiffAE:
    """The model under another configuration, fitted where it differs and where the settings ask for it."""
    spec, before, model = data.spec, loaded.config.model, cast(CausalDiffAE, loaded.model)
    table = None if settings.labels is None else read_labels(settings.labels, spec)
    labels = spec.normalise(torch.from_numpy(data.labels).float())
    if before.separate_embeddings != after.model.separate_embeddings:
        model.unet.up_emb, error = separate_embedding(
            model.requires_grad_(False), labels, before.cond_hidden, settings.steps
        )
        print(f"embedding: {error:.1%} of the variance is not reproduced")
    new = cast(CausalDiffAE, create_model_and_diffusion(after, spec)[0])
    other = ("scm.",) * (not same_mechanisms(before, after.model)) + ("encoder.",) * other_encoder(before, after.model)
    new.load_state_dict(new.state_dict() | {k: v for k, v in model.state_dict().items() if not k.startswith(other)})
    if fits_mechanisms(before, after.model, settings):
        given = labels if table is None else spec.normalise(table.float())
        nll = fit_mechanisms(new, given, settings.steps, settings.batch_size, settings.lr)
        print(f"mechanisms: held-out negative log-likelihood {nll:.4f}", flush=True)
    if steps := encoder_steps(before, after.model, settings):
        new.requires_grad_(False).encoder.requires_grad_(True)
        error = fit_encoder(new, data, labels, after.loss.label_std, steps)
        print(f"encoder: error of the labels {error:.4f} standard deviations")
    return new


def fits_mechanisms(before: ModelConfig, after: ModelConfig, settings: argparse.Namespace) -> bool:
    """Whether mechanisms are fitted: others, or those of the model to a table of labels."""
    return settings.labels is not None or not same_mechanisms(before, after)


def encoder_steps(before: ModelConfig, after: ModelConfig, settings: argparse.Namespace) -> int:
    """Steps of the encoder: as set, otherwise those of an encoder that the conversion requires."""
    if settings.encoder_steps is not None:
        return cast(int, settings.encoder_steps)
    required = other_encoder(before, after) or fits_mechanisms(before, after, settings)
    return ENCODER_STEPS if required else 0


def other_encoder(before: ModelConfig, after: ModelConfig) -> bool:
    """Whether the encoders of two configurations have other widths."""
    return before.encoder_channels != after.encoder_channels


def same_mechanisms(before: ModelConfig, after: ModelConfig) -> bool:
    """Whether two configurations have mechanisms of one kind and size."""
    return all(getattr(before, name) == getattr(after, name) for name in OF_MECHANISMS)


def check_convertible(loaded: LoadedModel, after: ModelConfig, settings: argparse.Namespace) -> None:
    """Raises `InputError` for a model that cannot be converted as requested, or a folder that cannot be written."""
    before = loaded.config.model
    fits, steps = fits_mechanisms(before, after, settings), encoder_steps(before, after, settings)
    if before.model_type != "causaldae":
        raise InputError(f"model_path: expected model_type causaldae, got {before.model_type}")
    if loaded.codec is not None or loaded.pixel_range != (-1.0, 1.0):
        raise InputError("model_path: expected a model of pixels in [-1, 1], got one of codes or other pixels")
    if after.separate_embeddings != before.separate_embeddings and not before.cond_hidden:
        raise InputError("separate_embeddings: expected a model with cond_hidden, got one with a linear embedding")
    if after == before and not fits and not steps:
        raise InputError(
            "mechanism: expected another one than that of the model, --labels, --encoder_steps or --separate_embeddings"
        )
    if other_encoder(before, after) and not steps:
        raise InputError("encoder_steps: expected 1 or more for an encoder of other widths, got 0")
    if fits and after.mechanism not in FAMILIES:
        raise InputError(f"mechanism: expected {', '.join(FAMILIES)}, got {after.mechanism}")
    if fits and not loaded.spec.graph.edges:
        raise InputError("mechanism: expected a graph with edges, got one without")
    check_free(settings.out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="run or model folder of a CausalDiffAE")
    parser.add_argument("--data_dir", required=True, help="its training data, all labelled")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--separate_embeddings", action="store_true", help="one hidden layer per variable")
    parser.add_argument("--mechanism", default="", help="additive, affine or spline; by default unchanged")
    parser.add_argument("--mechanism_width", type=int, help="hidden width of the mechanisms; by default unchanged")
    parser.add_argument("--mechanism_depth", type=int, help="their hidden layers; by default unchanged")
    parser.add_argument("--labels", type=Path, help="CSV file of labels, to which the mechanisms are fitted")
    parser.add_argument("--steps", type=int, default=3000, help="steps of the embedding and of the mechanisms")
    parser.add_argument("--batch_size", type=int, default=256, help="labels of a step of the mechanisms")
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate of the mechanisms")
    parser.add_argument("--encoder_channels", default="", help="widths of the encoder; by default unchanged")
    parser.add_argument("--encoder_steps", type=int, help=f"steps of its training; {ENCODER_STEPS} where it is needed")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    loaded = load_model(args.model_path)
    config = loaded.config.model
    given = {name: value for name in (*OF_MECHANISMS, "encoder_channels") if (value := getattr(args, name))}
    separate = args.separate_embeddings or config.separate_embeddings
    model_config = replace(config, separate_embeddings=separate, **given)
    check_convertible(loaded, model_config, args)
    spec, limit = loaded.spec, loaded.config.train.num_images or None
    data = read_split(spec.name, args.data_dir, "train", limit=limit, spec=spec)
    check_complete(data.labels, spec.graph.names)
    after = replace(loaded.config, model=model_config)
    state = converted(loaded, after, data, args).state_dict()
    steps = loaded.step or read_json(Path(loaded.path) / CONFIG).get("trained_steps")
    described = describe_checkpoint(after, spec, loaded.codec) | {"trained_steps": steps}
    export_weights(args.out, state, described)
    print(args.out)


if __name__ == "__main__":
    run_cli(main)
