"""A test in batches: what is finished stays on disk, and a resumed test equals one that was not interrupted."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import squares

from causaldiffae.datasets.images import ImageData
from causaldiffae.evaluation import batched_test
from causaldiffae.evaluation.batched_test import (
    FOLDER,
    TABLE,
    FinishedBatches,
    expected_seconds,
    format_duration,
    join_batches,
    run_batches,
)
from causaldiffae.evaluation.interventions import InterventionResult, write_csv

DATA = squares(7)
DOS = ({"size": 3.0}, {"grey": 90.0})


def result(do: dict[str, float], data: ImageData, seed: int) -> InterventionResult:
    """Images and labels that differ by image, intervention and seed; the second intervention has no truth."""
    value = int(sum(do.values())) + seed
    known = "size" in do
    return InterventionResult(
        do, data.images, data.images // 2, data.images + value, data.images + 1 if known else None, data.labels,
        data.labels + value, data.labels - value if known else None, np.full_like(data.labels, np.nan),
        measured_classes=np.arange(len(data)) if not known else None,
    )  # fmt: skip


class Evaluation:
    """Records the batches it is called with; raises at the batch `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.called = stop, list[tuple[list[str], int]]()

    def __call__(self, data: ImageData, seed: int) -> list[InterventionResult]:
        if len(self.called) == self.stop:
            raise KeyboardInterrupt
        self.called.append((list(data.ids), seed))
        return [result(do, data, seed) for do in DOS]


def run(out: Path, evaluation: Evaluation, digest: str = "a", **options: object) -> list[InterventionResult]:
    return run_batches(FinishedBatches(out, digest), evaluation, DATA, DOS, 3, seed=5, **options)  # type: ignore[arg-type]


def assert_equal(found: list[InterventionResult], expected: list[InterventionResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.do == other.do
        for field in fields(InterventionResult):
            if field.name != "do":
                first, second = getattr(one, field.name), getattr(other, field.name)
                assert (first is None) == (second is None), field.name
                assert first is None or (np.array_equal(first, second, equal_nan=True) and first.dtype == second.dtype)


def interrupted(out: Path, after: int) -> Evaluation:
    evaluation = Evaluation(stop=after)
    with pytest.raises(KeyboardInterrupt, match=rf"after {3 * after} of 7 images; run the same command to resume"):
        run(out, evaluation)
    return evaluation


def test_every_batch_is_evaluated_once_with_a_seed_of_its_own(tmp_path: Path) -> None:
    evaluation = Evaluation()
    results = run(tmp_path, evaluation)
    assert [(len(ids), seed) for ids, seed in evaluation.called] == [(3, 5), (3, 8), (1, 11)]
    assert [name for ids, _ in evaluation.called for name in ids] == list(DATA.ids)
    assert np.array_equal(results[0].factual, DATA.images) and results[1].truth is None


def test_a_resumed_test_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Evaluation())
    interrupted(tmp_path / "out", after=2)
    rest = Evaluation()
    assert_equal(run(tmp_path / "out", rest), whole)
    assert [seed for _, seed in rest.called] == [11]
    assert (tmp_path / "out" / TABLE).read_bytes() == (tmp_path / "whole" / TABLE).read_bytes()


def test_the_table_holds_the_finished_batches(tmp_path: Path) -> None:
    interrupted(tmp_path, after=1)
    part = DATA.subset(range(3))
    write_csv(tmp_path / "expected.csv", [result(do, part, 5) for do in DOS], part)
    assert (tmp_path / TABLE).read_bytes() == (tmp_path / "expected.csv").read_bytes()
    run(tmp_path, Evaluation(), in_table=1)
    lines = (tmp_path / TABLE).read_text().splitlines()
    assert len(lines) == 1 + 7 * 2 and not any("do(grey" in line for line in lines)


def test_batches_of_other_settings_are_discarded(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    again = Evaluation()
    run(tmp_path, again, digest="b")
    assert len(again.called) == 3


def test_a_damaged_batch_is_evaluated_again(tmp_path: Path) -> None:
    whole = run(tmp_path, Evaluation())
    (path, *_) = sorted((tmp_path / FOLDER).glob("batch_*"))
    path.write_bytes(path.read_bytes()[:-20])
    again = Evaluation()
    assert_equal(run(tmp_path, again), whole)
    assert len(again.called) == 1


def test_the_batches_of_a_complete_test_are_removed(tmp_path: Path) -> None:
    finished = FinishedBatches(tmp_path, "a")
    run_batches(finished, Evaluation(), DATA, DOS, 3)
    finished.remove()
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]


def test_the_announcement_counts_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(tmp_path, after=1)
    run(tmp_path, Evaluation(), announce=lambda left: f"{left} images are left")
    assert "4 images are left" in capsys.readouterr().err
    run(tmp_path, Evaluation(), announce=lambda left: f"{left} images are left")
    assert "images are left" not in capsys.readouterr().err


def test_what_is_unknown_in_one_batch_is_unknown_in_all() -> None:
    one = result(DOS[0], DATA, 0)
    known, unknown = replace(one, truth=one.factual), replace(one, truth=None)
    for batches in ([[known], [unknown]], [[unknown], [known]]):
        (joined,) = join_batches(batches)
        assert joined.truth is None and len(joined.factual) == 14
    (joined,) = join_batches([[known], [known]])
    assert joined.truth is not None and len(joined.truth) == 14


@pytest.mark.parametrize("at", [lambda steps: 2.0 + 0.5 * steps, lambda steps: 3.0])
def test_the_time_of_many_steps_is_extrapolated(at: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def trial(steps: int) -> None:
        nonlocal clock
        clock += at(steps)

    monkeypatch.setattr(batched_test, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert expected_seconds(trial, 50) == pytest.approx(at(50))


def test_durations() -> None:
    texts = {59: "less than a minute", 60: "about 1 minute", 100: "about 2 minutes", 5399: "about 90 minutes"}
    assert {seconds: format_duration(seconds) for seconds in texts} == texts
    assert format_duration(12240) == "about 3.4 hours"
