"""Batches: a function of seed and step, independent of the number of processes, across the ends of epochs."""

import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import STOCHASTIC, assert_same
from paths import REPO
from tiny import small_config, squares

from causaldiffae import image_datasets
from causaldiffae.datasets.dataset import DATASETS, Dataset
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.prefetch import Prefetcher, memory_map
from causaldiffae.errors import InputError
from causaldiffae.image_datasets import BatchSource, fits_on, load_data
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop


def data_of(count: int) -> ImageData:
    return squares(count, num_classes=5)


def test_batches_run_across_epoch_ends_and_drop_nothing() -> None:
    source = BatchSource(data_of(10), 4, seed=3)
    seen = np.concatenate([source.batch(step).indices.numpy() for step in range(5)])  # 20 images: two epochs
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    large = BatchSource(data_of(3), 7, seed=3).indices(1)
    assert len(large) == 7 and sorted(large[2:5]) == [0, 1, 2]


@pytest.mark.parametrize("fits", [True, False])
def test_images_are_moved_to_the_device_if_they_fit(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(image_datasets, "fits_on", lambda device, size: bool(sizes.append(size)) or fits)
    data = data_of(10)
    source = BatchSource(data, 4, seed=3, device="meta")
    assert sizes == [data.images.nbytes]
    assert source.images.device.type == ("meta" if fits else "cpu") and source.labels.device.type == "meta"
    for on_device, device in (("never", "cpu"), ("always", "meta")):
        chosen = BatchSource(data, 4, seed=3, device="meta", data_on_device=on_device)
        assert chosen.images.device.type == device
    assert fits_on(torch.device("cpu"), 1 << 60)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000, 9000))
    assert fits_on(torch.device("cuda"), 1000) and not fits_on(torch.device("cuda"), 1001)


def mapped(data: ImageData, path: Path, skipped: int = 3) -> ImageData:
    """The same images as a view into a memory map that has further rows before them."""
    np.save(path, np.concatenate([np.zeros_like(data.images[:skipped]), data.images]))
    images = np.lib.format.open_memmap(path, mode="c")[skipped:]
    assert memory_map(np.asarray(images)) is not None and memory_map(data.images) is None
    return replace(data, images=np.asarray(images))


@pytest.mark.parametrize("on_device", ["auto", "always", "never"])
@pytest.mark.parametrize("world", [1, 2])
def test_prefetched_batches_are_those_of_images_in_memory(tmp_path: Path, on_device: str, world: int) -> None:
    """In any order of the steps: after a resume, and where some are read twice."""
    data = data_of(10)
    source = BatchSource(data, 4, seed=3)
    from_file = mapped(data, tmp_path / "images.npy")
    shares = [
        BatchSource(from_file, 4, seed=3, rank=rank, world=world, data_on_device=on_device) for rank in range(world)
    ]
    for step in (0, 1, 2, 3, 7, 8, 8, 0, 100, 101, 102):
        expected, found = source.batch(step), [share.batch(step) for share in shares]
        assert torch.equal(torch.cat([batch.images for batch in found]), expected.images)
        assert torch.equal(torch.cat([batch.indices for batch in found]), expected.indices)
    memory = torch.from_numpy(from_file.images).data_ptr()
    assert (shares[0].images.data_ptr() == memory) == (on_device != "always")


def test_a_resumed_run_from_a_memory_map_equals_one_from_memory(tmp_path: Path) -> None:
    options = STOCHASTIC | {"channel_mult": "1", "attention_resolutions": "", "batch_size": 7}

    def train(folder: str, data: ImageData, total_steps: int) -> TrainLoop:
        config = small_config(**options, total_steps=total_steps)
        trained = TrainLoop(config, data, Logger(tmp_path / folder, use_tensorboard=False))
        trained.run()
        return trained

    whole, from_file = train("whole", squares(10), 6), mapped(squares(10), tmp_path / "images.npy")
    train("parts", from_file, 3)
    assert_same(train("parts", from_file, 6), whole)


@pytest.mark.parametrize("on_device", ["auto", "always", "never"])
def test_images_in_a_memory_map_are_prefetched(tmp_path: Path, on_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they are read into memory; on the CPU, images in memory have nothing to wait for."""
    prefetched: list[bool] = []
    monkeypatch.setattr(
        image_datasets, "Prefetcher", lambda *given: prefetched.append(memory_map(given[0]) is not None)
    )
    for data in (data_of(10), mapped(data_of(10), tmp_path / "images.npy")):
        BatchSource(data, 4, data_on_device=on_device)
    assert prefetched == ([] if on_device == "always" else [True])


def test_the_next_batch_is_gathered_before_it_is_asked_for() -> None:
    gathered: list[int] = []
    ready, checked = threading.Event(), threading.Event()

    def rows(step: int) -> np.ndarray:
        assert threading.current_thread() is not threading.main_thread()
        gathered.append(step)
        if step == 6:
            ready.set()
        if step == 7:
            assert checked.wait(30)
        return np.array([step, 0])

    images = np.arange(10, dtype=np.uint8)[:, None]
    prefetcher = Prefetcher(images, rows, torch.device("cpu"))
    first = prefetcher.batch(5)
    assert ready.wait(30) and gathered == [5, 6]
    second = prefetcher.batch(6)
    assert (first.tolist(), second.tolist()) == ([[5], [0]], [[6], [0]]), "the two have buffers of their own"
    checked.set()
    assert prefetcher.batch(7).tolist() == [[7], [0]]
    assert gathered.count(6) == gathered.count(7) == 1


def test_a_source_that_is_no_longer_used_frees_its_images(tmp_path: Path) -> None:
    """At once, and not when the garbage collector runs."""
    for data in (data_of(10), mapped(data_of(10), tmp_path / "images.npy")):
        source = BatchSource(data, 4)
        source.batch(0)
        alive = weakref.ref(source)
        gc.disable()
        try:
            del source
            assert alive() is None
        finally:
            gc.enable()


def test_an_error_of_the_thread_is_raised(tmp_path: Path) -> None:
    source = BatchSource(mapped(data_of(10), tmp_path / "images.npy"), 4)
    with pytest.raises(InputError, match="step: expected a non-negative integer, got -1"):
        source.batch(-1)
    assert len(source.batch(0).images) == 4


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, second = BatchSource(data_of(10), 4, seed=3), BatchSource(data_of(10), 4, seed=3)
    for step in range(6):
        first.batch(step)
    np.testing.assert_array_equal(first.indices(17), second.indices(17))
    other = BatchSource(data_of(100), 50, seed=4)
    assert other.indices(0).tolist() != BatchSource(data_of(100), 50).indices(0).tolist()


def test_two_processes_share_the_batch_of_one() -> None:
    whole = BatchSource(data_of(10), 6, seed=1)
    shares = [BatchSource(data_of(10), 6, seed=1, rank=rank, world=2) for rank in (0, 1)]
    for step in range(4):
        together = torch.cat([share.batch(step).indices for share in shares])
        assert torch.equal(together, whole.batch(step).indices)


def test_a_batch_holds_the_images_of_its_indices() -> None:
    data = data_of(10)
    batch = BatchSource(data, 4, shuffle=False).batch(1)
    assert batch.indices.tolist() == [4, 5, 6, 7] and batch.classes is not None and data.classes is not None
    assert batch.classes.tolist() == data.classes[4:8].tolist()
    assert torch.equal(batch.images, to_model_range(data.images[4:8]))
    np.testing.assert_allclose(batch.labels, data.spec.normalise(data.labels[4:8]))
    assert BatchSource(squares(4), 2).batch(0).classes is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"batch_size": 3, "world": 2}, "batch_size: expected a multiple of the 2 processes, got 3"),
        ({"rank": 2, "world": 2}, r"rank: expected a number in 0\.\.1, got 2"),
        ({"seed": -1}, "seed: expected a non-negative integer, got -1"),
        ({"data": data_of(0)}, "data set squares: expected images in split train, got none"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSource(**{"data": data_of(4), "batch_size": 2, **arguments})
    with pytest.raises(InputError, match="step: expected a non-negative integer, got -1"):
        BatchSource(data_of(4), 2).batch(-1)


def test_load_data_is_an_endless_iterator_like_that_of_guided_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(8)
    monkeypatch.setitem(DATASETS, "squares", Dataset("squares", data.spec, lambda *_: data, source=""))
    arguments: dict[str, Any] = {"dataset": "squares", "data_dir": REPO, "batch_size": 3, "deterministic": True}
    loader = load_data(**arguments, class_cond=True)
    classes = [next(loader)[1]["y"].tolist() for _ in range(3)]
    assert data.classes is not None and np.concatenate(classes).tolist() == np.resize(data.classes, 9).tolist()
    images, cond = next(load_data(**arguments, start_step=2))
    assert images.shape == (3, 1, 8, 8) and list(cond) == ["c"] and cond["c"].shape == (3, 2)
    assert torch.equal(images, to_model_range(data.images[[6, 7, 0]]))
    with pytest.raises(InputError, match="class_cond: expected a data set with classes, got mnist"):
        load_data(dataset="mnist", data_dir=REPO / "assets" / "mnist_share", batch_size=2, class_cond=True)
