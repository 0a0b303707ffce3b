"""Warnings about suspicious options and data before training or an intervention."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from causaldiffae.config import Config, TrainConfig
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.label_subsets import never_together
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph

_MAX_NAMES: Final = 5


def check_platform() -> None:
    """Raises `InputError` on Windows, which cannot flush folders to disk and has no SIGUSR1."""
    if platform.system() == "Windows":
        raise InputError("training: expected Linux or macOS, got Windows; run it in WSL (wsl --install)")


def option_warnings(config: Config) -> list[str]:
    """Returns warnings about options that do not go together, one sentence each."""
    model, loss, train = config.model, config.loss, config.train
    found = []
    if model.model_type == "diffscm" and model.label_cond and not (loss.drop_prob or loss.masking):
        found.append(
            "drop_prob: expected a number above 0 with label_cond, since Diff-SCM encodes without labels, got 0"
        )
    if train.lr_anneal_steps > train.total_steps:
        found.append(
            f"lr_anneal_steps: expected at most the {train.total_steps} steps of the run, got {train.lr_anneal_steps}; "
            "the learning rate stays below lr"
        )
    return found


def training_warnings(train: TrainConfig, data: ImageData, world: int = 1, needs_all_labels: bool = False) -> list[str]:
    """Returns warnings about a training run, one sentence each.

    Args:
        train: options of the run.
        data: training split with labels in label units.
        world: number of processes, each with batches of `train.batch_size`.
        needs_all_labels: whether the network is conditioned on all labels of an image, and not on an encoder's z.
    """
    graph, images = data.spec.graph, train.batch_size * world
    found = [*_labels_outside(data), *_labels_apart(data)]
    if needs_all_labels and data.observed.any() and not data.observed.all(axis=1).any():
        found.append(
            "labels: expected training images with all labels, which condition this network, got none; use a model "
            "with an encoder (--model_type causaldae)"
        )
    isolated = [name for name in graph.names if not graph.parents[name] and not graph.descendants(name)]
    if isolated and len(graph) > 1:
        found.append(
            f"graph: {_listed(isolated)}: no parents and no descendants, so interventions change no other variable; "
            "add edges to the graph if they should"
        )
    if images > len(data):
        found.append(
            f"batch_size: expected at most the {len(data)} training images per step, got {images}; --batch_size "
            f"{max(1, len(data) // world)} is faster and equally effective"
        )
    return found


def out_of_memory_message(train: TrainConfig, image_size: int) -> str:
    """Returns the message for a batch that exceeds the memory of the device."""
    images = train.microbatch or train.batch_size
    problem = f"batch_size: {images} images of {image_size}x{image_size} pixels exceed the memory of the device"
    if images == 1:
        advice = "reduce --num_channels or use a smaller configuration"
    else:
        advice = f"--microbatch {max(1, images // 2)} splits the batch"
    if train.data_on_device != "never":
        advice += "; --data_on_device never keeps the training images in host memory"
    return f"{problem}; {advice}"


def intervention_warnings(graph: CausalGraph, interventions: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns a warning if interventions have no descendants."""
    on_variables = [[name for name in do if name in graph.names] for do in interventions]  # not on the class
    leaves = [name for do in on_variables if not any(graph.descendants(each) for each in do) for name in do]
    if not leaves or len(graph) == 1:
        return []
    return [
        f"do: {_listed(leaves)}: no descendants in the graph, so no other variable changes; if it should, add edges to "
        "the graph and train again"
    ]


def _labels_outside(data: ImageData) -> list[str]:
    spec, found = data.spec, []
    for i, name in enumerate(spec.graph.names):
        values, low, high = data.labels[:, i], spec.low[i], spec.high[i]
        slack = 1e-4 * max(1.0, abs(low), abs(high))  # labels are float32, ranges may have been rounded
        outside = np.flatnonzero((values < low - slack) | (values > high + slack))
        if len(outside):
            first = outside[0]
            found.append(
                f"{name}: expected labels in {low:g}..{high:g}, got {len(outside)} of {len(values)} outside in split "
                f"{data.split}, such as {values[first]:g} for {data.ids[first]}; check the unit or correct the range"
            )
    return found


def _labels_apart(data: ImageData) -> list[str]:
    """Variables without labels, and mechanisms whose child and parents are never labelled on the same image."""
    graph, observed = data.spec.graph, data.observed
    if not observed.any():  # all labels are hidden on purpose
        return []
    unknown = [name for name in graph.names if not observed[:, graph.index(name)].any()]
    apart = [
        f"{name} (of {', '.join(graph.parents[name])})"
        for name in never_together(graph, observed)
        if not {name, *graph.parents[name]} & set(unknown)
    ]
    found = []
    if unknown:
        found.append(
            f"labels: {_listed(unknown)}: expected labels of training images, got none, so they are not learned"
        )
    if apart:
        found.append(
            f"labels: {_listed(apart)}: no training image has the labels of the variable and all its parents, so its "
            "mechanism gets no likelihood term, only what the encoder reads; label some images with all of them"
        )
    return found


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
