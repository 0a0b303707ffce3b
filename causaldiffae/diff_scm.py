"""Diff-SCM: counterfactuals by anti-causal guidance (Sanchez and Tsaftaris, CLeaR 2022, arXiv 2202.10166).

A diffusion model of the images is guided by an anti-causal predictor p(y | x_t). Algorithm 3 in the terms of
`counterfactual.py`:

    abduction    x_T = ODE encoding of x0 under eps(x_t, t), unguided                       (algorithm 2)
    action       y' = scm(u, do), the labels after the intervention
    prediction   ODE decoding of x_T under eps - s sqrt(1 - abar_t) grad log p(y' | x_t)    (algorithm 1, guided)

The *explicit* predictor is a separate network (`predictors/noised_predictor.py`). The *implicit* one is the score
network itself, trained with and without labels: grad log p(y | x_t) ~ eps(x_t, t) - eps(x_t, t, y), which gives
eps(null) + s [eps(y') - eps(null)] (Ho and Salimans, 2022, arXiv 2207.12598). In both cases the guidance scale s is the
weight w of `guidance.py`.

The paper has one variable, the class. Here the labels may have a causal graph: their noise is abducted, and do() is
propagated to descendants before the image is guided towards all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.model import LabelModel, LabelTrainingStep, batched_model_outputs, label_scm, unet_from_config
from causaldiffae.nn import repeat_times
from causaldiffae.noise_schedule import NoiseSchedule
from causaldiffae.predictors.noised_predictor import NoisedPredictor, label_heads
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel

DiffScmTrainingStep = LabelTrainingStep


class DiffScm(LabelModel):
    """A structural model of the labels, a score network and an anti-causal predictor.

    Args:
        scm: over blocks of one entry, the normalised labels, or of one entry per category.
        network: the score network; conditional on the labels (`cond_dim`) to serve as implicit predictor.
        spec: the variables of the data set.
        class_cond: whether the network is also conditioned on a class that is not a variable of the graph.
    """

    needs_labels = False
    unconditional_abduction = True

    def __init__(self, scm: LatentSCM, network: UNetModel | DiT, spec: DatasetSpec, class_cond: bool = False) -> None:
        super().__init__(scm)
        self.heads, self.class_cond = label_heads(spec), class_cond
        if network.cond_dim not in (None, label_width(spec)):
            raise InputError(f"model: expected conditioning of width {label_width(spec)}, got {network.cond_dim}")
        self.network = network
        self.predictor: NoisedPredictor | None = None
        self.schedule: NoiseSchedule | None = None

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> DiffScm:
        """Builds the model for a data set, without an explicit predictor."""
        width, scm = label_width(spec) if config.label_cond else None, label_scm(config, spec)
        if config.network == "dit":
            return cls(scm, dit_from_config(config, spec, learn_sigma, width), spec)
        return cls(scm, unet_from_config(config, spec, learn_sigma, width), spec, config.class_cond)

    def set_predictor(self, predictor: NoisedPredictor, schedule: NoiseSchedule) -> None:
        """Sets the explicit predictor that guides decoding.

        Args:
            predictor: a predictor of the same labels and noise schedule (checked by `load_noised_predictor`).
            schedule: noise schedule of the score network.
        """
        self.predictor, self.schedule = predictor, schedule

    @property
    def default_scale(self) -> float:
        """The guidance scale s if none is given, chosen for MNIST (`scripts/sweep_scale.py`)."""
        return 1.5 if self.predictor is None else 4.5

    @property
    def has_labels(self) -> bool:
        """Whether the score network takes labels and can serve as implicit predictor."""
        return self.network.cond_dim is not None

    # ------------------------------------------------------------------ the labels

    def abduct(self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Returns the exogenous noise (B, n, d) of the labels of images.

        Args:
            x_start: (B, C, H, W) in [-1, 1].
            labels: (B, n) normalised; by default predicted from the images by the explicit predictor.
            generator: for the noise of discrete variables, on the device of the images; by default seeded with 0.

        Raises:
            InputError: without labels or an explicit predictor.
        """
        if labels is None:
            if self.predictor is None:
                raise InputError("labels: expected labels for a model without an explicit predictor, got none")
            clean = torch.zeros(len(x_start), device=x_start.device)
            labels = self.predictor.read(self.predictor(x_start, clean))
        return super().abduct(x_start, labels, generator)

    def embed_labels(self, z: Tensor) -> Tensor:
        """Returns label blocks (B, n, d) as network input (B, width): categories one-hot, numbers unchanged."""
        columns, labels = [], self.read_labels(z)
        for i, head in enumerate(self.heads):
            column = labels[:, i]
            if head.values:
                columns.append(F.one_hot(head.category(column), len(head.values)).to(z.dtype))
            else:
                columns.append(column[:, None])
        return torch.cat(columns, dim=1)

    # ------------------------------------------------------------------ the model output

    def model_output(
        self, x_t: Tensor, t: Tensor, z: Tensor | None, classes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Returns the output (B, C, H, W), given label blocks (B, n, d) if the network is conditional, where `keep`."""
        if z is None or not self.has_labels:
            return self.network(x_t, t, classes)
        return self.network(x_t, t, classes, self.embed_labels(z), keep)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the output (B, C, H, W) under each of several label blocks (B, n, d); None is no guidance (s = 0).

        Raises:
            InputError: for labels without an explicit or implicit predictor.
        """
        labels = [condition for condition in conditions if condition is not None]
        if labels and self.predictor is None and not self.has_labels:
            raise InputError(
                "predictor_path: expected a noised predictor for a score network trained without labels, got none; "
                "classifiers/noised_classifier.py trains one"
            )
        if not labels or self.predictor is None:
            return batched_model_outputs(self.model_output, x_t, t, conditions, classes)
        free = self.model_output(x_t, t, None, classes)
        changes = self._explicit(x_t, t, torch.cat(labels), len(labels))
        guided = iter([_add_to_mean(free, change) for change in changes])
        return [free if condition is None else next(guided) for condition in conditions]

    def _explicit(self, x_t: Tensor, t: Tensor, z: Tensor, count: int) -> tuple[Tensor, ...]:
        """The change of the output that adds -sqrt(1 - abar_t) grad log p(y | x_t) to eps."""
        assert self.predictor is not None and self.schedule is not None
        gradient = self.predictor.gradient(x_t.repeat(count, 1, 1, 1), repeat_times(t, count), self.read_labels(z))
        level = self.schedule.level(repeat_times(t, count), gradient)
        return self.schedule.output_of_eps_change(-level.noise * gradient, level).chunk(count)


def dit_from_config(config: ModelConfig, spec: DatasetSpec, learn_sigma: bool, width: int | None) -> DiT:
    """Builds the transformer; its classes are the categories of the only variable of the data set."""
    if config.class_cond:
        raise InputError("class_cond: expected False for network dit, got True; --network unet takes a class")
    if width is not None and (len(spec.graph) != 1 or not spec.category_values(0)):
        raise InputError(f"label_cond: expected one categorical variable for network dit, got those of {spec.name}")
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


def own_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model without its noised predictor, which has a folder of its own (`NOISED_PREDICTOR_FOLDER`)."""
    others = "predictor." if isinstance(model, DiffScm) else ()
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(others)}


def label_width(spec: DatasetSpec) -> int:
    """Returns the width of the labels as network input: 1 per number and 1 per category."""
    return sum(len(head.values) or 1 for head in label_heads(spec))


def _add_to_mean(output: Tensor, change: Tensor) -> Tensor:
    """Adds to the first C channels and keeps those of a learned variance."""
    channels = change.shape[1]
    moved = output[:, :channels] + change.to(output.dtype)
    return moved if output.shape[1] == channels else torch.cat([moved, output[:, channels:]], dim=1)
