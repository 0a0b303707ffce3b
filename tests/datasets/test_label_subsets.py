"""Labelled images: chosen once, nested, listed beside the data; the others enter no label term."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import small_config, squares

from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.label_subsets import (
    choose_labelled,
    digest,
    labelled_mask,
    labelled_only,
    list_path,
    never_together,
    with_labels_of,
)
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.image_datasets import BatchSource
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop


def test_shares_are_exact_nested_and_follow_the_seed() -> None:
    shares = {fraction: choose_labelled(1000, fraction, seed=3) for fraction in (0.0, 0.01, 0.1, 0.5, 1.0)}
    assert [int(chosen.sum()) for chosen in shares.values()] == [0, 10, 100, 500, 1000]
    chain = list(shares.values())
    assert all(not (small & ~large).any() for small, large in pairwise(chain))
    assert np.array_equal(shares[0.1], choose_labelled(1000, 0.1, seed=3))
    assert not np.array_equal(shares[0.1], choose_labelled(1000, 0.1, seed=4))
    assert choose_labelled(20, 0.001, 0).sum() == 1, "a share above 0 is at least one image"


def test_the_choice_is_listed_beside_the_data(tmp_path: Path) -> None:
    data = squares(40)
    first = with_labels_of(data, 0.25, 7, tmp_path)
    assert first.labelled is not None and first.labelled.sum() == 10
    path = list_path(tmp_path, data, 0.25, 7)
    assert path.read_text().split() == [name for name, chosen in zip(data.ids, first.labelled, strict=True) if chosen]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labelled_train_40_fraction0.25_seed7.txt"]
    path.write_text("".join(f"{i}\n" for i in range(10)))  # an existing list is used
    again = with_labels_of(data, 0.25, 7, tmp_path)
    assert again.labelled is not None and again.labelled[:10].all() and again.labelled.sum() == 10
    assert digest(again.labelled) != digest(first.labelled)
    assert with_labels_of(data, 1.0, 7, tmp_path).labelled.all()  # type: ignore[union-attr]
    assert len(list(tmp_path.iterdir())) == 1, "a share of 1 needs no list"


def test_images_without_labels_get_none(tmp_path: Path) -> None:
    data = replace(squares(40), labelled=np.arange(40) % 2 == 0)
    chosen = with_labels_of(data, 0.5, 0, tmp_path, write=False).labelled
    assert chosen is not None and not (chosen & ~data.labelled).any() and 0 < chosen.sum() < 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n1\n99\n", "expected images of the split, got '99'; delete the file to reset it"),
        (b"0\n1\n", "expected 10 distinct names, got 2"),
        (b"0\n" * 10, "expected 10 distinct names, got 1"),
        ("\n".join(map(str, range(11))).encode(), "expected 10 distinct names, got 11"),
        (b"\xff\xfe\x00", "expected UTF-8 text"),
    ],
)
def test_a_list_of_other_images_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    data = squares(40)
    list_path(tmp_path, data, 0.25, 0).write_bytes(content)
    with pytest.raises(DataError, match=message):
        with_labels_of(data, 0.25, 0, tmp_path)


def test_a_list_that_cannot_be_written_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="cannot write the list of labelled images"):
        chosen = with_labels_of(squares(40), 0.25, 0, "/nowhere")
    assert np.array_equal(chosen.labelled, choose_labelled(40, 0.25, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_other_shares_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=r"label_fraction: expected a number in 0\.\.1, got "):
        choose_labelled(10, fraction, 0)


def test_batches_hide_labels_of_unlabelled_images() -> None:
    data = replace(squares(8), labelled=np.array([True] * 2 + [False] * 6))
    source = BatchSource(data, 8, seed=0)
    batch = source.batch(0)
    assert torch.equal(batch.labelled, (batch.indices < 2)[:, None].expand(8, 2))
    assert (batch.labels[~batch.labelled] == 0).all()
    assert (batch.labels[batch.labelled] != 0).any()
    assert batch.labelled_fraction == 0.25 and torch.equal(batch.labelled_of_batch, batch.labelled)
    halves = [BatchSource(data, 8, seed=0, rank=rank, world=2).batch(0) for rank in range(2)]
    assert [half.labelled_fraction for half in halves] == [0.25, 0.25], "of the whole batch"
    assert torch.equal(torch.cat([half.labelled for half in halves]), batch.labelled)
    assert all(torch.equal(half.labelled_of_batch, batch.labelled) for half in halves)


def with_missing() -> ImageData:
    """Eight images without the size of 0 to 2, without the grey of 2 to 4, and without the label of 5, hidden."""
    data = squares(8)
    data.labels[:3, 0], data.labels[2:5, 1] = np.nan, np.nan
    return replace(data, labelled=np.arange(8) != 5)


def test_labels_are_missing_by_variable() -> None:
    data = with_missing()
    expected = [[False, True]] * 2 + [[False, False]] + [[True, False]] * 2 + [[False, False]] + [[True, True]] * 2
    assert data.observed.tolist() == expected and data.subset([4, 6]).observed.tolist() == [expected[4], expected[6]]
    batch = BatchSource(data, 8, shuffle=False).batch(0)
    assert batch.labelled.tolist() == expected and batch.labelled_fraction == 6 / 8
    assert batch.labels.isfinite().all() and not batch.labels[~batch.labelled].any()
    known = data.spec.normalise(torch.from_numpy(data.labels))
    assert torch.equal(batch.labels[batch.labelled], known[batch.labelled])


def test_labels_hidden_by_variable_are_chosen_for_each_variable_and_listed(tmp_path: Path) -> None:
    data = squares(40)
    chosen = with_labels_of(data, 0.25, 7, tmp_path, by_variable=True)
    assert chosen.observed.sum(axis=0).tolist() == [10, 10]
    assert not np.array_equal(chosen.observed[:, 0], chosen.observed[:, 1])
    for i, name in enumerate(("size", "grey")):
        listed = list_path(tmp_path, data, 0.25, 7, name).read_text().split()
        assert listed == [data.ids[row] for row in np.flatnonzero(chosen.observed[:, i])]
    assert len(list(tmp_path.iterdir())) == 2
    again = with_labels_of(data, 0.25, 7, tmp_path, by_variable=True)
    assert np.array_equal(again.observed, chosen.observed)
    missing = replace(data, labels=np.where(np.arange(40)[:, None] < 20, np.nan, data.labels).astype(np.float32))
    rest = with_labels_of(missing, 0.25, 7, tmp_path, by_variable=True).observed
    assert np.array_equal(rest, chosen.observed & (np.arange(40) >= 20)[:, None]), "missing labels stay missing"


def test_digests_and_masks_of_whole_images_do_not_depend_on_their_form() -> None:
    images = np.arange(8) < 3
    by_label = np.repeat(images[:, None], 2, axis=1)
    assert digest(images) == digest(by_label) and np.array_equal(labelled_mask(by_label), images)
    by_label[5, 1] = True
    assert digest(images) != digest(by_label) and labelled_mask(by_label) is by_label


def test_images_with_some_label_are_labelled() -> None:
    assert labelled_only(with_missing()).ids == ["0", "1", "3", "4", "6", "7"]


def loop(folder: Path, data: ImageData, **changes: Any) -> TrainLoop:
    config = small_config(**({"channel_mult": "1", "attention_resolutions": "", "masking": True} | changes))
    return TrainLoop(config, data, Logger(folder, use_tensorboard=False))


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1, 0.01, 0.0])
def test_every_share_trains(tmp_path: Path, fraction: float) -> None:
    data = with_labels_of(squares(40), fraction, 0, tmp_path)
    trained = loop(tmp_path, data, label_fraction=fraction, total_steps=3)
    trained.run()
    assert all(value.isfinite().all() for value in trained.model.state_dict().values())
    described = load_checkpoint(tmp_path).config
    assert described["labelled_images"] == int(data.labelled.sum())  # type: ignore[union-attr]
    assert described["labelled"] == digest(data.labelled)  # type: ignore[arg-type]


def test_labels_of_unlabelled_images_do_not_affect_training(tmp_path: Path) -> None:
    labelled = np.arange(8) < 3
    first = replace(squares(8), labelled=labelled)
    second = replace(first, labels=np.where(labelled[:, None], first.labels, 777.0).astype(np.float32))
    a, b = (loop(tmp_path / name, data) for name, data in (("a", first), ("b", second)))
    for _ in range(2):
        assert a.run_step() == b.run_step()
    different = [k for k, v in a.model.state_dict().items() if not torch.equal(v, b.model.state_dict()[k])]
    assert not different


@pytest.mark.parametrize("model_type", ["causaldae", "causalvae", "diffae", "conditional", "diffscm"])
def test_missing_labels_do_not_affect_training(tmp_path: Path, model_type: str) -> None:
    """The loss never sees NaN, nor a value that may not be used."""
    first = with_missing()
    second = replace(first, labels=np.where(first.observed, first.labels, 777.0).astype(np.float32))
    second = replace(second, labelled=first.observed)
    changes = {"model_type": model_type, "label_cond": model_type == "diffscm", "microbatch": 4}
    a, b = (loop(tmp_path / name, data, **changes) for name, data in (("a", first), ("b", second)))
    for _ in range(2):
        found = a.run_step()
        assert found == b.run_step() and all(np.isfinite(value) for value in found.values()) and found
    different = [k for k, v in a.model.state_dict().items() if not torch.equal(v, b.model.state_dict()[k])]
    assert not different


def test_two_annotation_campaigns_that_never_overlap_train(tmp_path: Path) -> None:
    """Size is known on one half of the images and grey on the other; the encoder learns to read both from all."""
    data = squares(32)
    data.labels[:16, 0], data.labels[16:, 1] = np.nan, np.nan
    trained = loop(tmp_path, data, batch_size=16, total_steps=150, lr=3e-3, label_std=0.1, kl_weight=0.1)
    trained.run()
    assert all(value.isfinite().all() for value in trained.model.state_dict().values())
    model, truth = trained.model.eval(), squares(32)
    with torch.no_grad():
        read = model.read_labels(model.predict(model.abduct(to_model_range(truth.images))))
    expected = truth.spec.normalise(torch.from_numpy(truth.labels))
    errors = ((read - expected) ** 2).mean(dim=0) / expected.var(dim=0)
    assert errors.max() < 0.5, "of the variance, also of the half without the label"
    described = load_checkpoint(tmp_path).config
    assert described["labelled_images"] == 32 and described["labelled"] == digest(data.observed)


@pytest.mark.parametrize("by", ["image", "variable"])
def test_microbatches_with_few_labels_have_the_gradient_of_the_whole_batch(tmp_path: Path, by: str) -> None:
    """The label terms are means over the observed labels of the whole batch."""
    by_label = np.stack([np.arange(8) == 5, np.arange(8) % 3 == 0], axis=1)
    data = replace(squares(8), labelled=np.arange(8) == 5 if by == "image" else by_label)
    whole, cut = (loop(tmp_path / str(size), data, microbatch=size, lr=1e-2) for size in (0, 2))
    gradients = []
    for trained in (whole, cut):
        trained.run_step()
        gradients.append({name: p.grad.clone() for name, p in trained.model.named_parameters() if p.grad is not None})
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1e-2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_does_not_resume_with_other_labels(tmp_path: Path) -> None:
    data = squares(8)
    loop(tmp_path, replace(data, labelled=np.arange(8) < 4), total_steps=1).run()
    loop(tmp_path, replace(data, labelled=np.arange(8) < 4))
    by_label = np.repeat((np.arange(8) < 4)[:, None], 2, axis=1)
    loop(tmp_path, replace(data, labelled=by_label.copy()))
    by_label[0, 0] = False
    for other in (np.arange(8) >= 4, by_label):
        with pytest.raises(InputError, match="expected the labelled images of this checkpoint"):
            loop(tmp_path, replace(data, labelled=other))


def test_variables_that_are_never_labelled_with_their_parents() -> None:
    graph = CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c"), ("a", "d"), ("c", "d")))
    observed = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1]], bool)
    assert never_together(graph, observed) == ["d"] and never_together(graph, observed[:1]) == ["c", "d"]
    assert never_together(graph, np.ones((1, 4), bool)) == []
