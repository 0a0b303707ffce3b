"""What is odd about a training or a question before it starts, and what to do about it; nothing here is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from causaldiffae.config import TrainConfig
from causaldiffae.datasets.images import ImageData
from causaldiffae.graphs import CausalGraph

_NAMED: Final = 5


def training_warnings(train: TrainConfig, data: ImageData, world: int = 1) -> list[str]:
    """One sentence for everything that is odd about training on this data.

    Args:
        data: the training split, labels in their own units.
        world: how many processes train, each with batches of `train.batch_size`.
    """
    found = [*_labels_outside(data), *_isolated(data.spec.graph)]
    images = train.batch_size * world
    if images > len(data):
        found.append(
            f"batch_size: a step takes {images} images and there are {len(data)}, so images are taken more than once; "
            f"--batch_size {max(1, len(data) // world)} or less learns as much in less time"
        )
    return found


def out_of_memory_message(train: TrainConfig, image_size: int) -> str:
    """Of a batch for which the device's memory was too small."""
    taken = train.microbatch or train.batch_size
    what = f"{taken} images of {image_size}x{image_size} pixels at a time do not fit into the device's memory"
    if taken == 1:
        return f"batch_size: {what}; a smaller network is needed (--num_channels, or another configuration)"
    return f"batch_size: {what}; --microbatch {max(1, taken // 2)} takes the same batch in smaller pieces"


def intervention_warnings(graph: CausalGraph, questions: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence about those interventions from which nothing follows."""
    alone = [name for do in questions if not any(graph.descendants(each) for each in do) for name in do]
    if not alone or len(graph) == 1:
        return []
    return [
        f"do: without effects in the graph: {_listed(alone)}; nothing else moves with them. Where something should, "
        "add edges to the graph and train again"
    ]


def _labels_outside(data: ImageData) -> list[str]:
    spec, found = data.spec, []
    for i, name in enumerate(spec.graph.names):
        values = data.labels[:, i]
        slack = 1e-4 * max(1.0, abs(spec.low[i]), abs(spec.high[i]))  # float32, and ranges that were printed
        outside = np.flatnonzero((values < spec.low[i] - slack) | (values > spec.high[i] + slack))
        if len(outside):
            first = outside[0]
            found.append(
                f"{name}: {len(outside)} of {len(values)} labels of split {data.split} are outside the range "
                f"{spec.low[i]:g}..{spec.high[i]:g}, the first is {values[first]:g} of {data.ids[first]}; check their "
                "unit, or mend the range"
            )
    return found


def _isolated(graph: CausalGraph) -> list[str]:
    alone = [name for name in graph.names if not graph.parents[name] and not graph.descendants(name)]
    if not alone or len(graph) == 1:
        return []
    return [
        f"graph: without causes and effects: {_listed(alone)}; interventions on them move nothing else. Where "
        "something should follow, add edges to the graph"
    ]


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
