"""Images, classes and labels that users give to `CounterfactualModel`, as the engine takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaldiffae.datasets.image_input import Images, as_model_images
from causaldiffae.datasets.images import ImageData, model_inputs
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.script_util import Model


def prepare_inputs(
    model: Model,
    spec: DatasetSpec,
    device: torch.device,
    images: Images | ImageData,
    classes: Any,
    labels: Any,
    read: Callable[[str, Tensor], np.ndarray],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images (N, C, S, S) in [-1, 1], classes (N,) or None, and labels (N, n) in label units or None.

    Args:
        classes, labels: those of a split (`ImageData`) by default.
        read: reads "classes" or "labels" from images, if the model needs them and they are not given.

    Raises:
        InputError: for classes or labels of another shape or type.
    """
    if isinstance(images, ImageData):
        _, own_classes, own_labels = model_inputs(images, device)
        classes = own_classes if classes is None else classes
        labels = own_labels if labels is None else labels
        x_start = as_model_images(images.images, spec).to(device)
    else:
        x_start = as_model_images(images, spec).to(device)
    if model.class_cond:
        classes = read("classes", x_start) if classes is None else classes
        classes = check_classes(spec, classes, len(x_start), device)
    if model.needs_labels and labels is None:
        labels = read("labels", x_start)
    if labels is not None:
        try:
            labels = torch.as_tensor(np.asarray(labels, np.float32)).to(device)
        except (TypeError, ValueError):
            order = ", ".join(spec.graph.names)
            raise InputError(
                f"labels: expected numbers (N, {len(spec.graph)}) in the order {order}, a category by its number, got "
                f"{str(labels)[:80]}"
            ) from None
        expected = (len(x_start), len(spec.graph))
        if labels.shape != expected:
            raise InputError(f"labels: expected shape {expected}, got {tuple(labels.shape)}")
    return x_start, classes if model.class_cond else None, labels


def check_classes(spec: DatasetSpec, classes: Any, count: int, device: torch.device) -> Tensor:
    """Classes (count,) int64; `InputError` for others."""
    given = torch.as_tensor(np.asarray(classes) if not isinstance(classes, Tensor) else classes)
    largest = (spec.num_classes or 1) - 1
    if given.shape != (count,) or given.is_floating_point() or not bool(((given >= 0) & (given <= largest)).all()):
        raise InputError(f"classes: expected {count} integers in 0..{largest}, got {str(classes)[:80]}")
    return given.long().to(device)


def by_name(spec: DatasetSpec, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of labels (N, n) by the names of the variables."""
    return {name: labels[:, i] for i, name in enumerate(spec.graph.names)}
