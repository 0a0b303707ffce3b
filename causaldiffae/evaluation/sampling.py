"""Draws of the noise of images: from its prior, for samples, and from its posterior, for the spread of an answer.

A counterfactual is computed from the mean of q(u | x0). Its spread is that of `samples` further abductions:

    u ~ q(u | x0)                    also the noise of discrete variables, given their category
    x_T = encoding of x0 under z(u)  every draw reconstructs the image; with abduction by noise, x_T is drawn as well
    x_T' = sqrt(1 - s^2) x_T + s e   with e ~ N(0, I), where x_T is perturbed by a share s > 0; by default 0

The labels of models without an encoder are given, so only x_T and the noise of discrete variables vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaldiffae.counterfactual import Abduction, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.inputs import check_classes
from causaldiffae.guidance import Guidance
from causaldiffae.model import CausalAutoencoder, LabelModel
from causaldiffae.nn import DirectModel
from causaldiffae.scm import sample_noise
from causaldiffae.script_util import LoadedModel
from causaldiffae.solvers import SolverState


def draw_from_prior(loaded: LoadedModel, device: torch.device, count: int, classes: Any, seed: int) -> Abduction:
    """Draws u from its prior, x_T ~ N(0, I) and, unless they are given, classes, for `count` samples.

    Raises:
        InputError: for a model whose latents have no prior in label units (an unaligned DiffAE).
    """
    model, spec = loaded.model, loaded.spec
    scm = getattr(model, "scm", None)
    if scm is None or getattr(model, "aligned", True) is False:
        raise InputError("sample: expected a model with a prior over labels; the latents of this model have none")
    if not (isinstance(count, int) and count > 0):
        raise InputError(f"sample: expected a positive integer, got {count!r}")
    generator = torch.Generator().manual_seed(seed)
    u = sample_noise(scm, *spec.normalised_range(), count, generator).to(device)
    shape = (count, *loaded.input_shape)
    direct = isinstance(model, DirectModel)
    state = None if direct else SolverState(torch.randn(shape, generator=generator).to(device))
    if isinstance(model, LabelModel) and not model.discrete:  # categories are numbers of a block of one entry
        for name, categories in spec.normalised_categories().items():
            if name in spec.graph.roots:
                chosen_ones = torch.randint(len(categories), (count,), generator=generator)
                u[:, spec.graph.index(name), 0] = torch.tensor(categories, dtype=u.dtype)[chosen_ones].to(device)
    drawn = torch.randint(spec.num_classes or 1, (count,), generator=generator)
    given = drawn if classes is None else torch.as_tensor(classes).expand(count)
    chosen = check_classes(spec, given, count, device) if model.class_cond else None
    return Abduction(u, model.predict(u), state, chosen)


def conditions_of_sample(engine: CounterfactualEngine, drawn: Abduction, do: Mapping[str, Any]) -> Mapping[str, Any]:
    """The intervention under which a draw is decoded.

    x_T of a Diff-SCM is decoded without labels if nothing is set: a sample sets all variables to the labels that are
    drawn, so that its image shows them.
    """
    if not engine.model.unconditional_abduction:
        return do
    spec, count = engine.spec, len(drawn.u)
    checked = spec.check_do(do, count)
    z = engine.model.predict(drawn.u, engine.act(checked, count))
    labels = spec.nearest_categories(engine.read_labels(z)).cpu().numpy()
    return CheckedDo(spec.do_labels({name: labels[:, i] for i, name in enumerate(spec.graph.names)}) | checked)


class Spread(NamedTuple):
    """Spread of counterfactuals over several abductions of the same images.

    Attributes:
        pixel_std: (N, 1, H, W) float32, standard deviation in grey levels, 0..255; over channels, the root of the mean
            variance.
        label_std: (N, n), standard deviation of the predicted labels, in label units; for a category, the share of the
            draws that are not of the most frequent one.
    """

    pixel_std: np.ndarray
    label_std: np.ndarray


def check_samples(samples: int, x_T_noise: float = 0.0) -> None:
    """`InputError` for a number of draws that has no spread, or a share outside 0..1; 1 stands for no draws."""
    if type(samples) is not int or samples < 1:
        raise InputError(f"samples: expected a positive integer, got {samples!r}")
    if not 0.0 <= x_T_noise <= 1.0:
        raise InputError(f"x_T_noise: expected a number between 0 and 1, got {x_T_noise!r}")
    if x_T_noise and samples == 1:
        raise InputError("x_T_noise: expected 2 or more samples, got 1")


def draw_abduction(
    engine: CounterfactualEngine,
    abducted: Abduction,
    generator: torch.Generator,
    labels: Tensor | None = None,
    x_T_noise: float = 0.0,
    variance_factor: float = 1.0,
) -> Abduction:
    """Draws another abduction of the same images, see the head of this file.

    Args:
        abducted: result of `engine.abduct`.
        generator: on the device of the images.
        labels: (B, n) as given to `engine.abduct`.
        x_T_noise: the share s.
        variance_factor: `LossConfig.variance_factor`, by which training reduced the variance of q(u | x0).
    """
    model, x_start = engine.model, abducted.x_start
    assert x_start is not None
    given = None if labels is None else engine.spec.normalise(labels)
    if isinstance(model, CausalAutoencoder):
        posterior = model.encode(x_start)
        noise = torch.randn(posterior.mean.shape, generator=generator, device=x_start.device)
        u = model.scm.infer(posterior.sample(variance_factor**0.5 * noise), generator)
        u = u if given is None or not engine.use_labels else model.with_labels(u, given, generator)
    else:
        u = model.abduct(x_start, given, generator)
    drawn = engine.encoded(abducted, u, generator)
    if not x_T_noise or drawn.state is None:
        return drawn
    x_T, before = drawn.state.x_T, drawn.state.x_before
    noise = torch.randn(x_T.shape, generator=generator, device=x_T.device)
    kept = (1.0 - x_T_noise**2) ** 0.5
    changed = {"x_T": kept * x_T + x_T_noise * noise}
    if before is not None:
        changed["x_before"] = kept * before + x_T_noise * noise
    return replace(drawn, state=replace(drawn.state, **changed))


@torch.inference_mode()
def spread(
    engine: CounterfactualEngine,
    data: tuple[Tensor, Tensor | None, Tensor | None],
    dos: Sequence[Mapping[str, Any]],
    samples: int,
    seed: int = 0,
    guidances: Sequence[Guidance] | None = None,
    x_T_noise: float = 0.0,
    variance_factor: float = 1.0,
) -> list[Spread]:
    """The spread of each intervention over `samples` abductions.

    Args:
        data: images, classes and labels, as for `engine.abduct`.
        samples: 2 or more.
        guidances: one per intervention; by default the engine's own.
        x_T_noise, variance_factor: as in `draw_abduction`.
    """
    x_start, classes, labels = data
    generator = torch.Generator(x_start.device).manual_seed(seed)
    abducted = engine.abduct(x_start, classes, torch.Generator(x_start.device).manual_seed(seed), labels)
    tables: list[list[Tensor]] = [[] for _ in dos]
    means: list[Tensor | float] = [0.0 for _ in dos]
    squares: list[Tensor | float] = [0.0 for _ in dos]
    for k in range(samples):
        drawn = draw_abduction(engine, abducted, generator, labels, x_T_noise, variance_factor)
        for i, result in enumerate(engine.predict(drawn, dos, guidances)):
            images = result.images.double()
            before = images - means[i]
            means[i] = means[i] + before / (k + 1)  # Welford's method
            squares[i] = squares[i] + before * (images - means[i])
            tables[i].append(result.labels.double().cpu())
    found = []
    for table, square in zip(tables, squares, strict=True):
        assert isinstance(square, Tensor)
        variance = (square / (samples - 1)).mean(dim=1, keepdim=True)
        pixel_std = (127.5 * variance.sqrt()).float().cpu().numpy()
        found.append(Spread(pixel_std, _label_spread(torch.stack(table), engine.spec)))
    return found


def _label_spread(labels: Tensor, spec: DatasetSpec) -> np.ndarray:
    """Spread (B, n) of labels (K, B, n)."""
    found = (labels - labels[0]).std(dim=0)  # exactly 0 for equal labels
    nearest = spec.nearest_categories(labels)
    for i in range(len(spec.graph)):
        if values := spec.category_values(i):
            counts = torch.stack([(nearest[:, :, i] == value).double().mean(dim=0) for value in values])
            found[:, i] = 1.0 - counts.amax(dim=0)
    return found.numpy()


def spread_of_split(
    engine: CounterfactualEngine,
    data: ImageData,
    dos: Sequence[CheckedDo],
    samples: int,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
    guidances: Sequence[Guidance] | None = None,
    x_T_noise: float = 0.0,
    variance_factor: float = 1.0,
) -> list[Spread]:
    """`spread` of all images of a split, in batches."""
    parts = []
    for start in range(0, len(data), batch_size):
        rows = slice(start, min(start + batch_size, len(data)))
        inputs = model_inputs(data.subset(range(rows.start, rows.stop)), device)
        batch = [do.rows(rows) for do in dos]
        parts.append(spread(engine, inputs, batch, samples, seed + start, guidances, x_T_noise, variance_factor))
    return [Spread(*(np.concatenate(each) for each in zip(*found, strict=True))) for found in zip(*parts, strict=True)]
