"""Steps without a finite loss and gradient: they leave the weights alone, are counted, and are reported."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import assert_same, loop, state_of

from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.errors import InputError
from causaldiffae.train_util import TrainLoop


def spoil(trained: TrainLoop, steps: set[int], where: str = "images") -> None:
    """Makes the loss (by a pixel) or only the gradient (by a hook) non-finite in these steps."""
    if where == "gradient":
        trained.model.unet.out[2].weight.register_hook(lambda g: g * math.inf if trained.step in steps else g)
        return
    batch = trained.source.batch

    def bad_batch(step: int) -> Any:
        found = batch(step)
        if step in steps:
            found.images[0, 0, 0, 0] = math.nan
        return found

    trained.source.batch = bad_batch  # type: ignore[method-assign]


@pytest.mark.parametrize("where", ["images", "gradient"])
@pytest.mark.parametrize("options", [{}, {"microbatch": 3, "grad_clip": 1.0, "encoder_norm": "batch"}])
def test_a_skipped_step_changes_nothing_but_its_number(tmp_path: Path, where: str, options: dict[str, Any]) -> None:
    trained = loop(tmp_path, total_steps=6, schedule_sampler="loss-second-moment", **options)
    spoil(trained, {2}, where)
    trained.run_step()
    trained.run_step()
    before = {key: value.clone() for key, value in state_of(trained).items()}
    assert trained.run_step() == {}
    after = state_of(trained)
    assert not [key for key in before if not torch.equal(before[key], after[key])]
    assert (trained.step, trained.skipped.total, trained.skipped.consecutive) == (3, 1, 1)
    trained.run()
    assert (trained.skipped.total, trained.skipped.consecutive) == (1, 0)
    assert all(value.isfinite().all() for value in state_of(trained).values())
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [row["skipped_steps"] for row in rows] == ["1.0"] * 3
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


def test_the_report_lists_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = loop(tmp_path, batch_size=4)
    t = trained.draw(trained.source.batch(0)).t.tolist()
    indices = trained.source.indices(0).tolist()
    spoil(trained, {0})
    trained.run_step()
    (entry,) = json.loads((tmp_path / "not_finite.json").read_text())["skipped"]
    assert entry == {"step": 0, "t": t, "indices": indices, "images": [str(i) for i in indices]}
    message = "step 0: loss or gradient not finite, skipped; images are listed in not_finite.json\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(("limit", "bad", "last"), [(0, {1}, [1]), (2, {1, 2, 4, 7, 8, 9, 10}, [7, 8, 9])])
def test_too_many_in_a_row_end_the_run(tmp_path: Path, limit: int, bad: set[int], last: list[int]) -> None:
    trained = loop(tmp_path, total_steps=20, save_interval=3, max_skipped_steps=limit)
    spoil(trained, bad)
    message = f"max_skipped_steps: expected at most {limit} consecutive .* got {limit + 1} up to step {last[-1]};"
    with pytest.raises(InputError, match=message):
        trained.run()
    assert [entry["step"] for entry in json.loads((tmp_path / "not_finite.json").read_text())["skipped"]] == last
    if limit:
        kept = load_checkpoint(tmp_path, with_training=True)
        assert kept.step == 9 and kept.training_state["skipped"] == {"total": 5, "row": 2}
        assert all(value.isfinite().all() for value in kept.model_state.values())


def test_a_row_continues_after_an_interruption(tmp_path: Path) -> None:
    def train(folder: Path, total_steps: int) -> TrainLoop:
        trained = loop(folder, total_steps=total_steps, save_interval=1, max_skipped_steps=4)
        spoil(trained, {2, 3, 4, 5})
        trained.run()
        return trained

    train(tmp_path / "parts", 4)
    parts, whole = train(tmp_path / "parts", 8), train(tmp_path / "whole", 8)
    assert parts.skipped.state_dict() == whole.skipped.state_dict() == {"total": 4, "row": 0}
    assert_same(parts, whole)


@pytest.mark.parametrize("tensor", [lambda t: t.model.unet.out[2].bias, lambda t: t.emas["0.9"]["unet.out.2.bias"]])
def test_non_finite_weights_are_never_saved(tmp_path: Path, tensor: Callable[[TrainLoop], torch.Tensor]) -> None:
    trained = loop(tmp_path)
    trained.run()
    trained.step += 1
    with torch.no_grad():
        tensor(trained)[0] = math.inf
    with pytest.raises(
        InputError, match="weights: expected finite values after step 7, got NaN or infinity; no checkpoint was written"
    ):
        trained.save()
    trained.writer.finish()
    assert load_checkpoint(tmp_path).step == 6
