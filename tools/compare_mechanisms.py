"""Compares the mechanisms of continuous variables on the true structural models of three data sets.

    python tools/compare_mechanisms.py
    python tools/compare_mechanisms.py --mechanisms affine spline --steps 5000 --batch_size 32
    python tools/compare_mechanisms.py --model_path weights/circuit_causaldae_mini --data_dir DATA

Every mechanism is fitted to labels drawn from the generator, without images. Then each variable with descendants is set
to values drawn evenly over its range, and the predicted labels of its descendants are compared with those of the
generator for the same noise, given the true factual labels. Errors are means of |predicted - true| in label units.

With `--model_path`, the mechanisms are those of a CausalDiffAE, and labels are predicted for test images: given their
true labels, given the labels that its encoder reads, and by the generator given those that the encoder reads. The last
column is the error that the encoder alone causes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaldiffae.datasets.images import model_inputs
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.generators import circuit, morphomnist, pendulum
from causaldiffae.generators.common import Generator
from causaldiffae.losses import Observed
from causaldiffae.model import CausalDiffAE, mechanism_nll
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import load_model, run_cli

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


Predict = Callable[[dict[str, np.ndarray]], np.ndarray]
"""An intervention, one value per image and variable -> labels (N, n) in label units."""


def errors(
    spec: DatasetSpec, generator: Generator, labels: np.ndarray, predictions: Sequence[Predict], seed: int
) -> dict[tuple[str, str], list[float]]:
    """The mean error of every prediction, by intervened variable and descendant; `labels` (N, n) are the true ones."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str], list[float]] = {}
    for i, name in enumerate(spec.graph.names):
        do = {name: rng.uniform(spec.low[i], spec.high[i], len(labels))}
        true = generator.counterfactual_labels(labels, do)
        predicted = [predict(do) for predict in predictions]
        for other in sorted(spec.graph.descendants(name), key=spec.graph.index):
            j = spec.graph.index(other)
            found[name, other] = [float(np.abs(each[:, j] - true[:, j]).mean()) for each in predicted]
    return found


def by_mechanisms(spec: DatasetSpec, scm: LatentSCM, u: Tensor) -> Predict:
    """The prediction of a structural model from exogenous noise (N, n, d)."""

    def predict(do: dict[str, np.ndarray]) -> np.ndarray:
        z = scm.predict(u, spec.normalise_do(spec.check_do(do, len(u))))
        return spec.denormalise(scm.read_labels(z)).numpy()

    return predict


def rows(dataset: str, found: dict[tuple[str, str], list[float]]) -> list[str]:
    """Rows of a table."""
    return [
        f"| {dataset} | {cause} | {effect} | {' | '.join(f'{error:.{DIGITS}g}' for error in each)} |"
        for (cause, effect), each in found.items()
    ]


def compare(name: str, settings: argparse.Namespace) -> list[str]:
    """Rows of the table of one data set."""
    spec, source = dataset_spec(name), SOURCES[name]
    train, test = (source.draw(n, np.random.default_rng(seed)) for n, seed in ((settings.num_train, 0), (2000, 1)))
    fitted = [fit(spec, train, mechanism, settings) for mechanism in settings.mechanisms]
    blocks = fitted[0].label_blocks(spec.normalise(torch.from_numpy(test).float()))
    with torch.inference_mode():
        predictions = [by_mechanisms(spec, scm, scm.abduct(blocks)) for scm in fitted]
        return rows(name, errors(spec, source.generator, test, predictions, seed=2))


@torch.inference_mode()
def compare_model(model_path: str, data_dir: str) -> list[str]:
    """Rows of the table of a model."""
    loaded = load_model(model_path)
    spec, model = loaded.spec, loaded.model
    if not isinstance(model, CausalDiffAE) or loaded.codec is not None or spec.name not in SOURCES:
        raise InputError(f"model_path: expected a CausalDiffAE of the pixels of {', '.join(SOURCES)}")
    generator, data = SOURCES[spec.name].generator, read_split(spec.name, data_dir, "test", spec=spec)
    inputs = model_inputs(data)
    given = model.scm.abduct(model.scm.label_blocks(spec.normalise(inputs.labels)))
    encoded = model.abduct(inputs.x_start)
    read = spec.denormalise(model.read_labels(model.predict(encoded))).double().numpy().clip(spec.low, spec.high)
    predictions = [by_mechanisms(spec, model.scm, u) for u in (given, encoded)]
    predictions.append(lambda do: generator.counterfactual_labels(read, do))
    return rows(spec.name, errors(spec, generator, data.labels.astype(np.float64), predictions, seed=2))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--mechanisms", nargs="+", default=["additive", "affine", "spline"])
    parser.add_argument("--num_train", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model_path", default="", help="a CausalDiffAE, in place of mechanisms that are fitted")
    parser.add_argument("--data_dir", default="", help="folder of its data set")
    settings: Any = parser.parse_args(argv)
    if settings.model_path:
        print("| data set | do() | effect | true labels | labels of the encoder | the same, true mechanisms |")
        print("|---|---|---|---|---|---|")
        print("\n".join(compare_model(settings.model_path, settings.data_dir)))
        return
    print(f"| data set | do() | effect | {' | '.join(settings.mechanisms)} |")
    print("|---|---|---|" + "---|" * len(settings.mechanisms))
    for name in settings.datasets:
        print("\n".join(compare(name, settings)), flush=True)


if __name__ == "__main__":
    run_cli(main)
