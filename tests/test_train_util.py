"""The training loop on eight images: learning, reproducibility, microbatches and processes, previews."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loops import assert_same, loop, state_of
from PIL import Image
from processes import run_group
from tiny import randomise

from causaldiffae import train_util
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.config import RECIPES, Config
from causaldiffae.errors import InputError
from causaldiffae.scm import MECHANISMS
from causaldiffae.script_util import MODELS, load_model
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import acceleration, previews
from causaldiffae.training.random_draws import stream_seed
from causaldiffae.training.response_tracker import ResponseTracker


def rows_of(folder: Path) -> list[dict[str, float]]:
    """progress.csv as numbers."""
    with (folder / "progress.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


# ---------------------------------------------------------------------- learning


def test_loss_falls_on_eight_images(tmp_path: Path) -> None:
    trained = loop(tmp_path, total_steps=80, lr=3e-3, label_std=0.3, kl_weight=0.1, log_interval=20, save_interval=1000)
    first = trained.run_step()
    trained.run()
    rows = rows_of(tmp_path)
    last = rows[-1]
    assert [row["step"] for row in rows] == [20, 40, 60, 80]
    assert 0.8 < first["mse"] < 1.2, "the error of a network that predicts zero is the variance of the noise"
    assert last["mse"] < 0.5 * first["mse"]
    assert last["label_mse"] < 0.3 * first["label_mse"]
    assert last["label_kl"] < first["label_kl"]
    assert last["mechanism_nll"] < first["mechanism_nll"]
    assert rows[0]["images_per_second"] > 0 and rows[-1]["kl_weight"] == 0.1
    assert last["label_kl_size"] + last["label_kl_grey"] == pytest.approx(last["label_kl"], rel=1e-4)


def test_preview_figures_are_in_the_row_of_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step, 5, has a row although it is no multiple of the log interval; previews do not count as time."""
    clock = [0.0]

    def draw(*_: Any) -> np.ndarray:
        clock[0] += 100.0
        return np.zeros((2, 2, 3), np.uint8)

    def run_step() -> dict[str, float]:
        clock[0] += 0.1
        return step()

    monkeypatch.setattr(train_util, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(ResponseTracker, "preview", draw)
    monkeypatch.setattr(ResponseTracker, "measure", lambda *_: {"response_size": float(trained.step)})
    trained = loop(tmp_path, preview=True, total_steps=5, log_interval=2, sample_interval=2, save_interval=1000)
    step = trained.run_step
    monkeypatch.setattr(trained, "run_step", run_step)
    trained.run()
    rows = rows_of(tmp_path)
    assert [(row["step"], row["response_size"]) for row in rows] == [(2, 2), (4, 4), (5, 5)]
    assert [row["images_per_second"] for row in rows] == pytest.approx([80.0] * 3), "8 images in 0.1 s"


@pytest.mark.parametrize(
    "changes",
    [
        {"class_cond": True},
        {"use_bf16": True},
        {"learn_sigma": True, "rescale_learned_sigmas": True},
        {"use_kl": True},
        {"predict_xstart": True},
        {"predict_v": True, "patch_size": 2},
        {"mechanism": "affine", "encoder_norm": "batch", "use_checkpoint": True},
        {"mechanism": "one_hop", "learned_null": True, "drop_prob": 0.5},
        {"schedule_sampler": "loss-second-moment", "grad_clip": 1.0, "microbatch": 3},
        {"diffusion_steps": 22},
        {"zero_terminal_snr": True, "predict_v": True, "min_snr_gamma": 5.0, "channels_last": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_kind_of_training_runs(tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps with finite state, a checkpoint that opens, and a preview."""
    if "use_bf16" in changes:  # also where the processor emulates it
        monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    if "diffusion_steps" not in changes:
        monkeypatch.setattr(previews, "PREVIEW_STEPS", 3)
    trained = loop(tmp_path, preview=True, num_classes=3, total_steps=2, **changes)
    trained.run()
    assert all(value.isfinite().all() for value in state_of(trained).values())
    assert load_model(str(tmp_path)).step == 2
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["counterfactuals_0000002.png"]


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bf16_requires_hardware(in_hardware: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: in_hardware)
    with nullcontext() if in_hardware else pytest.warns(UserWarning, match="using float32"):
        trained = loop(tmp_path, use_bf16=True)
    seen: list[torch.dtype] = []
    trained.model.unet.out.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trained.run_step()
    assert seen == [torch.bfloat16 if in_hardware else torch.float32]
    assert all(p.dtype is torch.float32 for p in trained.model.parameters())


def test_the_batch_reaches_the_network(tmp_path: Path) -> None:
    trained = loop(tmp_path, num_classes=3, class_cond=True)
    seen: list[tuple[Any, ...]] = []
    trained.training_step.register_forward_pre_hook(lambda module, args: seen.append(args))
    trained.run_step()
    images, labels, classes, labelled, draws, kl_weight, of_batch = seen[0]
    batch = trained.source.batch(0)
    for found, expected in ((images, batch.images), (labels, batch.labels), (classes, batch.classes)):
        assert torch.equal(found, expected)
    assert labelled.shape == labels.shape and labelled.all() and torch.equal(of_batch, labelled)
    assert draws.keep.all() and kl_weight == 1.0
    assert labels.abs().max() < 3, "labels are normalised"


def test_gamma_rises_linearly(tmp_path: Path) -> None:
    trained, weights = loop(tmp_path, kl_weight=0.5, kl_anneal_steps=4), []
    trained.training_step.register_forward_pre_hook(lambda module, args: weights.append(args[5]))
    for _ in range(6):
        trained.run_step()
    assert weights == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_learning_rate_schedule(tmp_path: Path) -> None:
    rate = loop(tmp_path, lr=1.0, total_steps=10, warmup_steps=2, lr_anneal_steps=4).learning_rate
    assert [rate(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    trained = loop(tmp_path, lr=1e-3, warmup_steps=4)
    trained.run_step()
    assert trained.optimizer.param_groups[0]["lr"] == 2.5e-4


def test_latents_are_dropped_at_the_given_rate(tmp_path: Path) -> None:
    trained = loop(tmp_path, drop_prob=0.25)
    keep = []
    for step in range(100):
        trained.step = step
        keep.append(trained.draw(trained.source.batch(0)).keep)
    assert abs(1 - float(torch.cat(keep).float().mean()) - 0.25) < 0.05


def test_gradients_are_clipped(tmp_path: Path) -> None:
    trained = loop(tmp_path, grad_clip=0.01)
    assert trained.run_step()["grad_norm"] > 0.01
    clipped = torch.stack([p.grad.norm() for p in trained.model.parameters() if p.grad is not None]).norm()
    assert abs(float(clipped) - 0.01) < 1e-4


@pytest.mark.parametrize(("warmup", "rate"), [(False, 0.9), (True, 2 / 11)])
def test_moving_averages(tmp_path: Path, warmup: bool, rate: float) -> None:
    trained = loop(tmp_path, ema_rate="0.9,0", ema_warmup=warmup, encoder_norm="batch")
    before = {key: value.clone() for key, value in trained.model.state_dict().items()}
    trained.run_step()
    now = trained.model.state_dict()
    for key, value in trained.emas["0.9"].items():
        expected = rate * before[key] + (1 - rate) * now[key] if value.is_floating_point() else now[key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(trained.emas["0"][key], now[key])


def test_starting_from_weights(tmp_path: Path) -> None:
    first = loop(tmp_path / "a", total_steps=2)
    first.run()
    second = loop(tmp_path / "b", init_weights=str(tmp_path / "a"))
    assert second.step == 0
    for key, value in second.model.state_dict().items():
        assert torch.equal(value, first.emas["0.9"][key])
        assert torch.equal(second.emas["0.9"][key], value)
    with pytest.raises(InputError, match=r"expected weights of this network, got .*; set --mechanism_width 16$"):
        loop(tmp_path / "c", init_weights=str(tmp_path / "a"), mechanism_width=8)


def test_checkpoints_describe_themselves(tmp_path: Path) -> None:
    trained = loop(tmp_path, total_steps=1)
    trained.run()
    described = load_checkpoint(tmp_path).config
    assert described["model_type"] == "causaldae"
    assert Config.from_dict(described["config"]) == trained.config
    assert described["digest"] == trained.config.digest()
    assert described["dataset"] == trained.spec.to_dict()


# ---------------------------------------------------------------------- reproducibility


def test_seeds_differ_by_seed_step_and_stream() -> None:
    seeds = {stream_seed(seed, step, name) for seed in (0, 1) for step in (0, 1) for name in ("image", "latent")}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)


def test_runs_follow_from_their_seed(tmp_path: Path) -> None:
    a, b, c = (loop(tmp_path / name, seed=seed, total_steps=2) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for each in (a, b, c):
        each.run()
    assert_same(a, b)
    assert not torch.equal(a.model.unet.out[2].weight, c.model.unet.out[2].weight)


def gradient(trained: TrainLoop) -> torch.Tensor:
    randomise(trained.model)
    trained.run_step()
    return torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_microbatches_equal_the_whole_batch(tmp_path: Path, size: int) -> None:
    whole, parts = (gradient(loop(tmp_path, drop_prob=0.3, microbatch=pieces)) for pieces in (0, size))
    assert (whole - parts).norm() < 1e-5 * whole.norm()


WORKER = """
import json
import sys
from pathlib import Path
import torch
from causaldiffae import dist_util
from loops import loop
from tiny import randomise

dist_util.setup_dist("gloo", timeout_minutes=3.0)
folder = Path(sys.argv[1])
trained = loop(folder, images=16, **json.loads(sys.argv[2]))
randomise(trained.model)
trained.run_step()
gradient = [p.grad.flatten() for p in trained.model.parameters()]
start = [p.detach().clone().flatten() for p in trained.model.parameters()]
trained.run()
end = [p.detach().flatten() for p in trained.model.parameters()]
average = [value.flatten() for value in trained.emas["0.9"].values()]
found = {"gradient": gradient, "update": [b - a for a, b in zip(start, end)], "end": end, "average": average}
found = {name: torch.cat(parts) for name, parts in found.items()}
found["losses"] = trained.sampler.state_dict()["history"].flatten()
torch.save(found, folder / f"rank{dist_util.rank()}.pt")
dist_util.cleanup()
"""
"""Trains with the options in its second argument, and saves figures of each process in the folder of the first."""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    options = {"total_steps": 3, "drop_prob": 0.3, "schedule_sampler": "loss-second-moment", "learned_null": True}
    for folder, world in (("one", 1), ("two", 2)):
        run_group(WORKER, tmp_path / folder, json.dumps(options | {"batch_size": 8 // world}), world=world)
    one, first, second = (torch.load(tmp_path / name) for name in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    # Adam turns the rounding error of a tiny gradient into a full step, so the update is compared as a whole.
    for name, tolerance in (("gradient", 1e-5), ("losses", 1e-5), ("end", 1e-3), ("average", 1e-3), ("update", 0.1)):
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - one[name]).norm() < tolerance * one[name].norm(), name


LABELS_ONLY: dict[str, Any] = {
    "model_type": "diffscm",
    "network": "dit",
    "num_channels": 32,
    "depth": 1,
    "patch_size": 2,
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    **{
        f"{kind} {mechanism}": {"model_type": kind, "mechanism": mechanism}
        for kind in MODELS
        for mechanism in MECHANISMS
    },
    **{f"{kind} reference": RECIPES["reference"] | {"model_type": kind} for kind in MODELS},
    "causaldae null blocks": {"block_null": True, "learned_null": True},
    "causaldae dropped blocks": {"block_null": True, "block_drop_prob": 0.5},
    "diffae aligned": {"model_type": "diffae", "aligned": True, "class_cond": True},
    "diffscm implicit": {"model_type": "diffscm", "label_cond": True, "learned_null": True, "cond_hidden": 8},
    "diffscm dit": LABELS_ONLY | {"mechanism": "one_hop"},
}
"""Every model type with every mechanism and the published settings, and what else adds parameters."""


@pytest.mark.parametrize("options", COMBINATIONS.values(), ids=COMBINATIONS)
def test_every_trained_parameter_has_a_gradient(tmp_path: Path, options: dict[str, Any]) -> None:
    """Otherwise the second step in several processes fails."""
    trained = loop(tmp_path, num_classes=3, **options)
    trained.run_step()
    trained.run_step()
    parameters = trained.model.named_parameters()
    assert not [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None]


EVERY_KIND = """
import json, sys
from pathlib import Path
import torch
from causaldiffae import dist_util
from loops import loop

dist_util.setup_dist("gloo", timeout_minutes=3.0)
for name, options in json.loads(sys.argv[2]).items():
    trained = loop(Path(sys.argv[1], name), num_classes=3, total_steps=3, batch_size=4, save_interval=100, **options)
    trained.run()
    weights = torch.cat([value.detach().double().flatten() for value in trained.model.parameters()])
    ours, theirs = dist_util.all_gather(weights)
    assert trained.step == 3 and weights.isfinite().all() and torch.equal(ours, theirs), name
dist_util.cleanup()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_model_type_and_mechanism_in_two_processes(tmp_path: Path) -> None:
    run_group(EVERY_KIND, tmp_path, json.dumps(COMBINATIONS))


# ---------------------------------------------------------------------- previews


def test_previews_show_every_intervention_and_do_not_affect_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "PREVIEW_STEPS", 3)
    with_previews = loop(tmp_path / "a", preview=True, sample_interval=1, total_steps=2)
    without = loop(tmp_path / "b", total_steps=2)
    with_previews.run()
    without.run()
    assert_same(with_previews, without)
    images = sorted((tmp_path / "a" / "images").iterdir())
    assert [path.name for path in images] == ["counterfactuals_0000001.png", "counterfactuals_0000002.png"]
    # Six rows; an image, its reconstruction and both ends of two variables; 96 pixels and a gap each.
    with Image.open(images[0]) as image:
        assert image.width == 6 * 98 + 2 and image.height > 6 * 98 + 2, "six columns with headings, six images"
    assert not (tmp_path / "b" / "images").exists()
