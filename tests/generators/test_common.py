"""What holds for every generator: the laws of an intervention, refusals, and data set folders."""

import math
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from causaldiffae.errors import InputError
from causaldiffae.generators import circuit, morphomnist, pendulum
from causaldiffae.generators.common import Generator, complete_folder, is_finished, measure_in_blocks
from causaldiffae.generators.workers import ATTEMPTS, parallel_map


class Case(NamedTuple):
    generator: Generator
    labels: np.ndarray
    values: dict[str, float]
    """A value of each variable that no image has."""


RNG = np.random.default_rng(0)
CASES = {
    "circuit": Case(
        circuit.CircuitGenerator(),
        circuit.predict(circuit.sample_noise(60, RNG), {}),
        {"arm": 0.52, "blue": 0.52, "green": 0.52, "red": 0.52},
    ),
    "morphomnist": Case(
        morphomnist.MorphoMnistGenerator(),
        morphomnist.sample_labels(60, RNG),
        {"thickness": 3.3, "intensity": 80.5},
    ),
    "pendulum": Case(
        pendulum.PendulumGenerator(),
        pendulum.true_labels(RNG.integers(-40, 44, 60), RNG.integers(60, 100, 60)),
        {"angle": 20.5, "light": 120.5, "shadow_length": 6.1, "shadow_position": 9.1},
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_do_factual_changes_nothing(case: Case) -> None:
    names = case.generator.graph.names
    for chosen in ((), names[:1], names[1:2], (names[0], names[-1]), names):
        do = {name: case.labels[:, names.index(name)] for name in chosen}
        moved = case.generator.counterfactual_labels(case.labels, do)
        np.testing.assert_allclose(moved, case.labels, rtol=1e-12)


def test_do_changes_descendants_and_nothing_else(case: Case) -> None:
    graph = case.generator.graph
    for name, value in case.values.items():
        moved = case.generator.counterfactual_labels(case.labels, {name: value})
        np.testing.assert_array_equal(moved[:, graph.index(name)], value)
        for other in set(graph.names) - {name}:
            same = moved[:, graph.index(other)] == case.labels[:, graph.index(other)]
            # Not every image's: an arm that presses a button neither before nor after does not change its light.
            assert same.all() if other not in graph.descendants(name) else (~same).sum() > 10, (name, other)


def test_do_removes_the_influence_of_causes(case: Case) -> None:
    graph, do = case.generator.graph, case.values
    moved = case.generator.counterfactual_labels(case.labels, do)
    np.testing.assert_array_equal(moved, np.broadcast_to([do[name] for name in graph.names], moved.shape))
    effect = graph.topological_order[-1]
    moved = case.generator.counterfactual_labels(case.labels, {graph.roots[0]: do[graph.roots[0]], effect: do[effect]})
    np.testing.assert_array_equal(moved[:, graph.index(effect)], do[effect])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("steep", "expected a number, got 'steep'"),
        ([0.5, 0.5], r"expected one number or 60, one per image, got shape \(2,\)"),
        (math.nan, "expected a .*number.*, got nan"),
        ([0.5] * 59 + [math.inf], "expected a .*number.*, got inf"),
    ],
)
def test_refused_values(case: Case, value: Any, message: str) -> None:
    name = case.generator.graph.names[0]
    with pytest.raises(InputError, match=f"do: {name}: {message}"):
        case.generator.counterfactual_labels(case.labels, {name: value})


def test_refused_variables_and_labels(case: Case) -> None:
    with pytest.raises(InputError, match="'wind'"):
        case.generator.counterfactual_labels(case.labels, {"wind": 1.0})
    with pytest.raises(InputError, match=r"labels: expected shape \(images, \d\), columns .*, got \(3, 1\)"):
        case.generator.counterfactual_labels(np.zeros((3, 1)), {})


def test_measure_in_blocks_is_one_call() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3)).astype(np.uint8)
    found = measure_in_blocks(lambda block: block.reshape(len(block), -1)[:, :2], images, 2)
    np.testing.assert_array_equal(found, images.reshape(300, -1)[:, :2])
    for wrong in (images.astype(float), images[:, :3], images[..., :2], images[0]):
        with pytest.raises(InputError, match=r"images: expected uint8 \(N, S, S, 3 or more\), got"):
            measure_in_blocks(np.mean, wrong, 2)
    with pytest.raises(InputError, match="images: expected 16 or more pixels per side, got 4"):
        measure_in_blocks(np.mean, images, 2, smallest=16)


def test_a_folder_appears_when_complete(tmp_path: Path) -> None:
    recipe = {"dataset": "x", "sizes": (1, 2)}
    with complete_folder(tmp_path / "deep" / "set", recipe) as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "deep" / "set").exists()
    assert is_finished(tmp_path / "deep" / "set", recipe)
    assert not is_finished(tmp_path / "new", recipe)
    with pytest.raises(RuntimeError, match="disk full"), complete_folder(tmp_path / "other", recipe):
        raise RuntimeError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"], "a failure leaves nothing"
    with pytest.raises(InputError, match="expected a writable place"), complete_folder(tmp_path / "deep/set/a/b", {}):
        pass


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder, got one with other files"):
        is_finished(tmp_path, {})
    (tmp_path / "recipe.json").write_text('{"dataset": "soup"}')
    with pytest.raises(InputError, match="expected a new or empty folder, got a data set of another recipe"):
        is_finished(tmp_path, {"dataset": "pendulum"})
    with pytest.raises(InputError, match="diary.txt: expected a new or empty folder, got a file"):
        is_finished(tmp_path / "diary.txt", {})


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_map_keeps_the_order(workers: int) -> None:
    found = list(parallel_map(math.sqrt, [4, 1, 9], workers=workers, description="x", progress=False))
    assert found == [2, 1, 3]


def crash_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def crash(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_items_of_processes_that_died_are_computed_again(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    markers = [tmp_path / str(i) for i in range(3)]
    with pytest.warns(UserWarning, match="x: a worker process died .*; starting again with [123] batch"):
        found = list(parallel_map(crash_once, markers, workers=2, description="x", progress=False))
    assert found == ["0", "1", "2"]


def test_processes_that_always_die_are_reported() -> None:
    with (
        pytest.warns(UserWarning, match="starting again with 2 batches left") as warned,
        pytest.raises(InputError, match="x: a worker process died .*; try again with fewer workers"),
    ):
        list(parallel_map(crash, [1, 2], workers=2, description="x", progress=False))
    assert len(warned) == ATTEMPTS - 1


def test_only_deaths_without_a_new_result_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def __enter__(self) -> "Dying":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def map(self, function: Any, items: Any) -> Any:
            yield function(items[0])
            raise BrokenProcessPool  # also after the last item

    monkeypatch.setattr("causaldiffae.generators.workers.worker_pool", lambda _: Dying())
    with pytest.warns(UserWarning, match="1 batch left") as warned:
        found = list(parallel_map(abs, [-1, -2, -3, -4, -5], workers=2, description="x", progress=False))
    assert found == [1, 2, 3, 4, 5] and len(warned) == 4 > ATTEMPTS


def test_refused_numbers_of_workers() -> None:
    with pytest.raises(InputError, match="workers: expected 1 or more, got 0"):
        list(parallel_map(math.sqrt, [4], workers=0, description="x", progress=False))
