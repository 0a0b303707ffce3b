"""Compares the mechanisms of continuous variables on the true structural models of three data sets.

    python tools/compare_mechanisms.py
    python tools/compare_mechanisms.py --mechanisms affine spline --steps 5000 --batch_size 32

Every mechanism is fitted to labels drawn from the generator, without images. Then each variable with descendants is set
to values drawn evenly over its range, and the predicted labels of its descendants are compared with those of the
generator for the same noise, given the true factual labels. Errors are means of |predicted - true| in label units.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.generators import circuit, morphomnist, pendulum
from causaldiffae.generators.common import Generator
from causaldiffae.losses import Observed
from causaldiffae.model import mechanism_nll
from causaldiffae.scm import LatentSCM

DIGITS = 3


class Source(NamedTuple):
    """True structural model of a data set, and a function that draws n labels from it."""

    generator: Generator
    draw: Callable[[int, np.random.Generator], np.ndarray]


def _draw_pendulum(n: int, rng: np.random.Generator) -> np.ndarray:
    """The labels of n images of the grid; the light 100 is missing from it."""
    light = rng.choice([light for light in range(60, 148) if light != 100], n)
    return pendulum.true_labels(rng.integers(-40, 44, n), light)


SOURCES: dict[str, Source] = {
    "morphomnist": Source(morphomnist.MorphoMnistGenerator(), morphomnist.sample_labels),
    "pendulum": Source(pendulum.PendulumGenerator(), _draw_pendulum),
    "circuit": Source(circuit.CircuitGenerator(), lambda n, rng: circuit.predict(circuit.sample_noise(n, rng), {})),
}


def fit(spec: DatasetSpec, labels: np.ndarray, mechanism: str, settings: argparse.Namespace) -> LatentSCM:
    """Fits a structural model to labels (N, n) by maximum likelihood."""
    torch.manual_seed(settings.seed)
    scm = LatentSCM(spec.graph, 1, mechanism, width=64, depth=2)
    data = spec.normalise(torch.from_numpy(labels).float())
    optimizer = torch.optim.AdamW(scm.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 3.0 * (1 - step / settings.steps)))
    everyone = Observed.of(torch.ones(settings.batch_size, len(spec.graph), dtype=torch.bool))
    for _ in range(settings.steps):
        batch = data[torch.randint(len(data), (settings.batch_size,))]
        optimizer.zero_grad()
        mechanism_nll(scm, batch, everyone).backward()
        torch.nn.utils.clip_grad_norm_(scm.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return scm.eval()


def errors(
    spec: DatasetSpec, scm: LatentSCM, generator: Generator, labels: np.ndarray, seed: int
) -> Iterator[tuple[str, str, float]]:
    """Yields intervened variable, descendant and mean error of its predicted label."""
    rng = np.random.default_rng(seed)
    u = scm.abduct(scm.label_blocks(spec.normalise(torch.from_numpy(labels).float())))
    for i, name in enumerate(spec.graph.names):
        values = rng.uniform(spec.low[i], spec.high[i], len(labels))
        true = generator.counterfactual_labels(labels, {name: values})
        do = spec.normalise_do(spec.check_do({name: values}, len(labels)))
        found = spec.denormalise(scm.read_labels(scm.predict(u, do))).numpy()
        for other in sorted(spec.graph.descendants(name), key=spec.graph.index):
            j = spec.graph.index(other)
            yield name, other, float(np.abs(found[:, j] - true[:, j]).mean())


def compare(name: str, settings: argparse.Namespace) -> list[str]:
    """Rows of the table of one data set."""
    spec, source = dataset_spec(name), SOURCES[name]
    train, test = (source.draw(n, np.random.default_rng(seed)) for n, seed in ((settings.num_train, 0), (2000, 1)))
    columns: dict[tuple[str, str], list[float]] = {}
    for mechanism in settings.mechanisms:
        scm = fit(spec, train, mechanism, settings)
        with torch.inference_mode():
            for cause, effect, error in errors(spec, scm, source.generator, test, seed=2):
                columns.setdefault((cause, effect), []).append(error)
    return [
        f"| {name} | {cause} | {effect} | {' | '.join(f'{error:.{DIGITS}g}' for error in found)} |"
        for (cause, effect), found in columns.items()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--mechanisms", nargs="+", default=["additive", "affine", "spline"])
    parser.add_argument("--num_train", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    settings: Any = parser.parse_args(argv)
    print(f"| data set | do() | effect | {' | '.join(settings.mechanisms)} |")
    print("|---|---|---|" + "---|" * len(settings.mechanisms))
    for name in settings.datasets:
        print("\n".join(compare(name, settings)), flush=True)


if __name__ == "__main__":
    main()
