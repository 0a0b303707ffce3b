"""Diff-SCM: counterfactuals by anti-causal guidance (Sanchez and Tsaftaris, CLeaR 2022, arXiv 2202.10166).

A diffusion model of the images knows nothing of causes. An anti-causal predictor p(y | x_t) tells it, at every noise
level, which way the labels lie. Algorithm 3 in the terms of `counterfactual.py`:

    abduction    x_T = ODE encoding of x0 under eps(x_t, t), unguided             (algorithm 2)
    action       y' = scm(u, do), the labels after the intervention
    prediction   ODE decoding of x_T under eps - s sqrt(1 - abar_t) grad log p(y' | x_t)     (algorithm 1, guided)

The *explicit* predictor is a network of its own (`noised_predictor.py`). The *implicit* one is the score network
itself, trained with and without labels: grad log p(y | x_t) ~ eps(x_t, t) - eps(x_t, t, y), so that its guidance is
eps(null) + s [eps(y') - eps(null)] (Ho and Salimans, 2022). Either way eps under labels minus eps without them is what
is scaled, and s is the weight w of `guidance.py`.

The paper has one variable, the class. Here the labels may have a causal graph of their own: their noise is abducted
and do() travels to descendants before the image is guided to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.model import TrainingDraws, TrainingStep, label_scm, mechanism_nll, unet_from_config
from causaldiffae.nn import repeat_times
from causaldiffae.noise_schedule import NoiseSchedule
from causaldiffae.predictors.noised_predictor import NoisedPredictor, label_heads
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel


class DiffScm(nn.Module):
    """A structural model of the labels, a score network, and an anti-causal predictor.

    Args:
        scm: over blocks of one entry, the normalised labels.
        network: the score network; conditional on the labels (`cond_dim`) where it is to be the implicit predictor.
        spec: the data set's variables.
        class_cond: whether it is also conditioned on a class that is no variable of the graph.
    """

    needs_labels = False
    unconditional_abduction = True

    def __init__(self, scm: LatentSCM, network: UNetModel | DiT, spec: DatasetSpec, class_cond: bool = False) -> None:
        super().__init__()
        self.heads, self.class_cond = label_heads(spec), class_cond
        if scm.block_size != 1 or network.cond_dim not in (None, label_width(spec)):
            raise InputError(f"model: {len(spec.graph)} labels and conditioning of width {network.cond_dim} do not fit")
        self.scm, self.network = scm, network
        self.predictor: NoisedPredictor | None = None
        self.schedule: NoiseSchedule | None = None

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> DiffScm:
        """Builds the model for a data set, without a predictor of its own."""
        width, scm = label_width(spec) if config.label_cond else None, label_scm(config, spec)
        if config.network == "dit":
            return cls(scm, dit_from_config(config, spec, learn_sigma, width), spec)
        return cls(scm, unet_from_config(config, spec, learn_sigma, width), spec, config.class_cond)

    def set_predictor(self, predictor: NoisedPredictor, schedule: NoiseSchedule) -> None:
        """Guides decoding by an explicit predictor from now on.

        Args:
            predictor: of the same labels and noise schedule (`load_noised_predictor` checks).
            schedule: of the process of the score network.
        """
        self.predictor, self.schedule = predictor, schedule

    @property
    def has_labels(self) -> bool:
        """Whether the score network can be asked under labels: whether it is an implicit predictor."""
        return self.network.cond_dim is not None

    @property
    def latent_shape(self) -> tuple[int, int]:
        """n and 1: the labels."""
        return len(self.scm.graph), 1

    # ------------------------------------------------------------------ the labels

    def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
        """Exogenous noise of the images' labels, (B, n, 1).

        Args:
            x_start: (B, C, H, W) in [-1, 1].
            labels: (B, n) normalised; where they are not known, the explicit predictor reads them off the images.

        Raises:
            InputError: if neither is there.
        """
        if labels is None:
            if self.predictor is None:
                raise InputError("labels: without an explicit predictor this model needs the images' labels")
            clean = torch.zeros(len(x_start), device=x_start.device)
            labels = self.predictor.read(self.predictor(x_start, clean))
        return self.scm.abduct(labels.to(x_start.dtype)[:, :, None])

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        """Labels (B, n, 1) from their noise; `do` is in normalised label units."""
        return self.scm.predict(u, do)

    def read_labels(self, z: Tensor) -> Tensor:
        """(B, n, 1) -> (B, n)."""
        return z[:, :, 0]

    def embed_labels(self, z: Tensor) -> Tensor:
        """Labels (B, n, 1) as the score network takes them: categories as one of K, numbers as they are, (B, width)."""
        columns = []
        for i, head in enumerate(self.heads):
            column = z[:, i, 0]
            if head.values:
                columns.append(F.one_hot(head.category(column), len(head.values)).to(z.dtype))
            else:
                columns.append(column[:, None])
        return torch.cat(columns, dim=1)

    # ------------------------------------------------------------------ the score

    def model_output(
        self, x_t: Tensor, t: Tensor, z: Tensor | None, classes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """The score network's output (B, C, H, W), under labels z (B, n, 1) where it takes any and `keep` is True."""
        if z is None or not self.has_labels:
            return self.network(x_t, t, classes)
        return self.network(x_t, t, classes, self.embed_labels(z), keep)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """The network's output (B, C, H, W) under each of several labels (B, n, 1), None being no guidance (s = 0).

        Raises:
            InputError: for labels where there is neither an explicit nor an implicit predictor.
        """
        asked = [condition for condition in conditions if condition is not None]
        if not asked:
            return [self.model_output(x_t, t, None, classes)] * len(conditions)
        if self.predictor is None and not self.has_labels:
            raise InputError(
                "predictor: this score network was trained without labels; --predictor_path must name a noised "
                "predictor (classifiers/noised_classifier.py trains one)"
            )
        if self.predictor is None:
            return self._implicit(x_t, t, conditions, classes)
        free = self.model_output(x_t, t, None, classes)
        changes = self._explicit(x_t, t, torch.cat(asked), len(asked))
        guided = iter([_add_to_mean(free, change) for change in changes])
        return [free if condition is None else next(guided) for condition in conditions]

    def _explicit(self, x_t: Tensor, t: Tensor, z: Tensor, count: int) -> tuple[Tensor, ...]:
        """How labels change the output: what -sqrt(1 - abar_t) grad log p(y | x_t) on eps amounts to."""
        assert self.predictor is not None and self.schedule is not None
        gradient = self.predictor.gradient(x_t.repeat(count, 1, 1, 1), repeat_times(t, count), z[:, :, 0])
        level = self.schedule.level(repeat_times(t, count), gradient)
        return self.schedule.output_of_eps_change(-level.noise * gradient, level).chunk(count)

    def _implicit(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None
    ) -> list[Tensor]:
        """All conditions as one batch."""
        count, batch = len(conditions), len(x_t)
        some = next(condition for condition in conditions if condition is not None)
        z = torch.cat([some if condition is None else condition for condition in conditions])
        keep = torch.tensor([condition is not None for condition in conditions], device=x_t.device)
        several = None if classes is None else classes.repeat(count)
        output = self.model_output(
            x_t.repeat(count, 1, 1, 1), repeat_times(t, count), z, several, keep.repeat_interleave(batch)
        )
        return list(output.chunk(count))


def dit_from_config(config: ModelConfig, spec: DatasetSpec, learn_sigma: bool, width: int | None) -> DiT:
    """The transformer of a configuration, whose classes are the categories of the data set's one variable."""
    if config.class_cond:
        raise InputError("class_cond: a transformer takes no class beside its labels; network unet does")
    if width is not None and (len(spec.graph) != 1 or not spec.category_values(0)):
        raise InputError(f"label_cond: a transformer takes one categorical variable, {spec.name} has other labels")
    return DiT(
        image_size=spec.image_size,
        patch_size=config.patch_size,
        in_channels=spec.channels,
        hidden_size=config.num_channels,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=width or 0,
        learn_sigma=learn_sigma,
    )


def label_width(spec: DatasetSpec) -> int:
    """Width of a data set's labels as the score network takes them: one for a number, one for each category."""
    return sum(len(head.values) or 1 for head in label_heads(spec))


def _add_to_mean(output: Tensor, change: Tensor) -> Tensor:
    """Adds to the first C channels, behind which a learned variance may stand."""
    channels = change.shape[1]
    moved = output[:, :channels] + change.to(output.dtype)
    return moved if output.shape[1] == channels else torch.cat([moved, output[:, channels:]], dim=1)


class DiffScmTrainingStep(TrainingStep):
    """The diffusion loss, with labels where the network takes them, and the labels' likelihood under their graph."""

    def represent(
        self, x_start: Tensor, labels: Tensor, labelled: Tensor, draws: TrainingDraws, share: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The labels themselves as z; nothing is encoded, so no divergence is to be paid."""
        none = torch.zeros_like(labels[:, 0])
        nll = mechanism_nll(cast(DiffScm, self.model).scm, labels, labelled, share)
        return labels[:, :, None], {"prior_kl": none, "label_kl": none, "mechanism_nll": nll, "label_mse": none}
