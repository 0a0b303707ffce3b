"""The training loop on eight images: it learns, resumes bit for bit, and does not care how a batch is shared out."""

import csv
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO, TESTS
from PIL import Image
from tiny import randomise, small_config, squares

from causaldiffae import train_util
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.config import Config
from causaldiffae.errors import InputError
from causaldiffae.logger import Logger
from causaldiffae.resample import LossSecondMomentResampler
from causaldiffae.script_util import load_model
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import acceleration
from causaldiffae.training import previews as training_pictures
from causaldiffae.training.step_draws import step_seed


def loop(folder: Path, test: bool = False, num_classes: int | None = None, **changes: Any) -> TrainLoop:
    config = small_config(**({"channel_mult": "1", "attention_resolutions": ""} | changes))
    data = squares(num_classes=num_classes)
    return TrainLoop(config, data, Logger(folder, use_tensorboard=False), data if test else None)


def everything(trained: TrainLoop) -> dict[str, torch.Tensor]:
    """Weights, moving averages, the optimizer's and the sampler's state, by name."""
    found = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    for rate, ema in trained.emas.items():
        found |= {f"ema {rate}.{key}": value for key, value in ema.items()}
    for i, state in trained.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return found | {f"sampler.{key}": value for key, value in trained.sampler.state_dict().items()}


def assert_same(a: TrainLoop, b: TrainLoop) -> None:
    left, right = everything(a), everything(b)
    assert left.keys() == right.keys()
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different
    assert a.step == b.step


# ---------------------------------------------------------------------- learning


def test_loss_falls_on_eight_images(tmp_path: Path) -> None:
    trained = loop(tmp_path, total_steps=80, lr=3e-3, label_std=0.3, kl_weight=0.1, log_interval=20, save_interval=1000)
    first = trained.run_step()
    trained.run()
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [int(row["step"]) for row in rows] == [20, 40, 60, 80]
    last = {key: float(value) for key, value in rows[-1].items()}
    assert 0.8 < first["mse"] < 1.2, "a network that predicts zero has the noise's variance as its error"
    assert last["mse"] < 0.5 * first["mse"]
    assert last["label_mse"] < 0.3 * first["label_mse"]
    assert last["label_kl"] < first["label_kl"]
    assert last["mechanism_nll"] < first["mechanism_nll"]
    assert float(rows[0]["images_per_second"]) > 0
    assert last["label_kl_size"] + last["label_kl_grey"] == pytest.approx(last["label_kl"], rel=1e-4)


def test_the_pictures_figures_are_in_their_steps_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Effectiveness of steps 2, 4 and 5, the last, whose row is written though the log interval does not end there."""

    clock = [0.0]

    def drawn(model: Any, *_: Any) -> training_pictures.TrainingPicture:
        clock[0] += 100.0
        return training_pictures.TrainingPicture(np.zeros((2, 2, 1), np.uint8), {"size": float(trained.step)})

    monkeypatch.setattr(train_util, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(train_util, "draw_counterfactuals", drawn)
    trained = loop(tmp_path, test=True, total_steps=5, log_interval=2, sample_interval=2, save_interval=1000)
    step = trained.run_step

    def timed_step() -> dict[str, float]:
        clock[0] += 0.1
        return step()

    monkeypatch.setattr(trained, "run_step", timed_step)
    trained.run()
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [(row["step"], row["effectiveness_size"]) for row in rows] == [("2", "2.0"), ("4", "4.0"), ("5", "5.0")]
    assert [float(row["images_per_second"]) for row in rows] == pytest.approx([80.0] * 3), "8 images in 0.1 s"


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
def test_every_kind_of_training_runs_to_its_pictures(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps with all that a run does: figures, a checkpoint that opens, pictures."""
    if "use_bf16" in changes:  # also where the processor would be slow at it
        monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    if "diffusion_steps" not in changes:
        monkeypatch.setattr(training_pictures, "PICTURE_STEPS", 3)
    trained = loop(tmp_path, test=True, num_classes=3, total_steps=2, **changes)
    trained.run()
    assert all(value.isfinite().all() for value in everything(trained).values())
    assert load_model(str(tmp_path)).step == 2
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["counterfactuals_0000002.png"]


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bf16_reaches_the_network_where_the_hardware_has_it(
    in_hardware: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: in_hardware)
    expected = nullcontext() if in_hardware else pytest.warns(UserWarning, match="float32 is used")
    with expected:
        trained = loop(tmp_path, use_bf16=True)
    seen: list[torch.dtype] = []
    trained.model.unet.out.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trained.run_step()
    assert seen == [torch.bfloat16 if in_hardware else torch.float32]
    assert all(p.dtype is torch.float32 for p in trained.model.parameters())


def test_the_batch_reaches_the_network(tmp_path: Path) -> None:
    trained = loop(tmp_path, num_classes=3, class_cond=True)
    seen: dict[str, Any] = {}
    trained.training_step.register_forward_pre_hook(lambda module, args: seen.update(args=args))
    trained.run_step()
    images, labels, classes, labelled, draws, kl_weight, share = seen["args"]
    batch = trained.source.batch(0)
    assert torch.equal(images, batch.images)
    assert torch.equal(labels, batch.labels)
    assert torch.equal(classes, batch.classes)
    assert labelled.all()
    assert draws.keep.all()
    assert kl_weight == share == 1.0
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


def test_latents_are_dropped_at_their_rate(tmp_path: Path) -> None:
    trained = loop(tmp_path, drop_prob=0.25)
    keep = []
    for step in range(100):
        trained.step = step
        keep.append(trained._draw(trained.source.batch(0)).keep)
    assert abs(1 - float(torch.cat(keep).float().mean()) - 0.25) < 0.05


def test_gradients_are_clipped(tmp_path: Path) -> None:
    trained = loop(tmp_path, grad_clip=0.01)
    norms = trained.run_step()
    assert norms["grad_norm"] > 0.01
    clipped = torch.stack([p.grad.norm() for p in trained.model.parameters() if p.grad is not None]).norm()
    assert abs(float(clipped) - 0.01) < 1e-4


def test_moving_averages(tmp_path: Path) -> None:
    trained = loop(tmp_path, ema_rate="0.9,0", encoder_norm="batch")
    before = {key: value.clone() for key, value in trained.model.state_dict().items()}
    trained.run_step()
    now = trained.model.state_dict()
    for key, value in trained.emas["0.9"].items():
        expected = 0.9 * before[key] + 0.1 * now[key] if value.is_floating_point() else now[key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(trained.emas["0"][key], now[key])


def test_moving_average_warms_up(tmp_path: Path) -> None:
    trained = loop(tmp_path, ema_rate="0.9", ema_warmup=True)
    before = {key: value.clone() for key, value in trained.model.state_dict().items()}
    trained.run_step()
    rate, key = 2 / 11, "unet.out.2.weight"
    expected = rate * before[key] + (1 - rate) * trained.model.state_dict()[key]
    torch.testing.assert_close(trained.emas["0.9"][key], expected)


# ---------------------------------------------------------------------- resuming


HARD = {
    "dropout": 0.3,
    "drop_prob": 0.3,
    "schedule_sampler": "loss-second-moment",
    "noise_schedule": "cosine",
    "diffusion_steps": 4,
}


@pytest.fixture
def short_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that leaves the uniform start within the few steps of a test."""
    monkeypatch.setattr(
        train_util,
        "create_named_schedule_sampler",
        lambda name, steps: LossSecondMomentResampler(steps, history_per_term=2),
    )


@pytest.mark.usefixtures("short_history")
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    options = HARD | {
        "total_steps": 8,
        "save_interval": 5,
        "lr_anneal_steps": 6,
        "ema_rate": "0.5,0.9",
        "encoder_norm": "batch",
    }
    whole = loop(tmp_path / "whole", **options)
    whole.run()
    broken = loop(tmp_path / "broken", **options)
    step = broken.run_step

    def run_step() -> dict[str, float]:
        if broken.step == 7:  # two steps after the checkpoint, which are lost
            raise KeyboardInterrupt
        return step()

    broken.run_step = run_step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = loop(tmp_path / "broken", **options)
    assert resumed.step == 5
    resumed.run()
    assert (whole.sampler.weights() != 1).all(), "the sampler has left its uniform start"
    assert_same(whole, resumed)
    for rate in ("0.5", "0.9"):
        mine, theirs = (load_checkpoint(tmp_path / name, ema=rate).model_state for name in ("whole", "broken"))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_resuming_from_a_named_step(tmp_path: Path) -> None:
    loop(tmp_path / "a").run()
    steps = sorted(path.name for path in (tmp_path / "a").glob("step_*"))
    assert steps == ["step_0000003", "step_0000006"]
    resumed = loop(tmp_path / "b", resume_checkpoint=str(tmp_path / "a" / steps[0]))
    assert resumed.step == 3
    resumed.run()
    assert_same(resumed, loop(tmp_path / "a"))


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    loop(tmp_path).run()
    again = loop(tmp_path)
    again.run()
    assert again.step == 6


def test_resuming_another_configuration_is_refused(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=1).run()
    with pytest.raises(InputError, match="a checkpoint of another configuration; give another run_dir"):
        loop(tmp_path, mechanism_width=8)
    assert loop(tmp_path, lr=0.5).step == 1


def test_starting_from_weights(tmp_path: Path) -> None:
    first = loop(tmp_path / "a", total_steps=2)
    first.run()
    second = loop(tmp_path / "b", init_weights=str(tmp_path / "a"))
    assert second.step == 0
    for key, value in second.model.state_dict().items():
        assert torch.equal(value, first.emas["0.9"][key])
        assert torch.equal(second.emas["0.9"][key], value)
    with pytest.raises(InputError, match="init_weights: .* holds weights of another data set or another network"):
        loop(tmp_path / "c", init_weights=str(tmp_path / "a"), mechanism_width=8)


def test_seeds() -> None:
    seeds = {step_seed(seed, step, name) for seed in (0, 1) for step in (0, 1) for name in ("image", "latent")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_runs_follow_from_their_seed(tmp_path: Path) -> None:
    a, b, c = (loop(tmp_path / name, seed=seed, total_steps=2) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for each in (a, b, c):
        each.run()
    assert_same(a, b)
    assert not torch.equal(a.model.unet.out[2].weight, c.model.unet.out[2].weight)


# ---------------------------------------------------------------------- sharing out a batch


def gradient(trained: TrainLoop) -> torch.Tensor:
    randomise(trained.model)
    trained.run_step()
    return torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_microbatches_are_the_whole_batch(tmp_path: Path, size: int) -> None:
    options = {"drop_prob": 0.3, "grad_clip": 0.0}
    whole, parts = gradient(loop(tmp_path, **options)), gradient(loop(tmp_path, microbatch=size, **options))
    assert (whole - parts).norm() < 1e-5 * whole.norm()


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from causaldiffae import dist_util
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop
from tiny import randomise, small_config, squares

dist_util.setup_dist("gloo", timeout_minutes=3.0)
config = small_config(**eval(sys.argv[3]))
trained = TrainLoop(config, squares(16), Logger(sys.argv[2], use_tensorboard=False))
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
torch.save(found, Path(sys.argv[2]) / f"rank{dist_util.rank()}.pt")
dist_util.cleanup()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    options = {"total_steps": 3, "drop_prob": 0.3, "schedule_sampler": "loss-second-moment", "learned_null": True}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    plain = {
        k: v
        for k, v in os.environ.items()
        if not re.match(r"(OMPI_|PMI|SLURM_|MASTER_|(LOCAL_)?(RANK|WORLD_SIZE)$)", k)
    }
    plain |= {
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }

    def start(folder: str, batch_size: int, **more: str) -> "subprocess.Popen[str]":
        arguments = [str(TESTS), str(tmp_path / folder), repr(options | {"batch_size": batch_size})]
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], env=plain | more, stderr=subprocess.PIPE, text=True
        )

    pair = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [start("one", 8)]
    started += [start("two", 4, RANK=rank, LOCAL_RANK=rank, **pair) for rank in ("0", "1")]
    for process in started:
        _, errors = process.communicate(timeout=350)
        assert process.returncode == 0, errors
    one, first, second = (torch.load(tmp_path / name) for name in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    # Adam turns the rounding of a tiny gradient into a step of full length, so the update is compared as a whole.
    for name, tolerance in (("gradient", 1e-5), ("losses", 1e-5), ("end", 1e-3), ("average", 1e-3), ("update", 0.1)):
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - one[name]).norm() < tolerance * one[name].norm(), name


# ---------------------------------------------------------------------- pictures


def test_pictures_show_every_intervention_and_leave_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_pictures, "PICTURE_STEPS", 3)
    with_pictures = loop(tmp_path / "a", test=True, sample_interval=1, total_steps=2)
    without = loop(tmp_path / "b", total_steps=2)
    with_pictures.run()
    without.run()
    assert_same(with_pictures, without)
    pictures = sorted((tmp_path / "a" / "images").iterdir())
    assert [path.name for path in pictures] == ["counterfactuals_0000001.png", "counterfactuals_0000002.png"]
    # Six images; the image, its reconstruction, and both ends of two variables; eight pixels and a gap each.
    assert Image.open(pictures[0]).size == (6 * 10 + 2, 6 * 10 + 2)
    assert not (tmp_path / "b" / "images").exists()


def test_checkpoints_describe_themselves(tmp_path: Path) -> None:
    trained = loop(tmp_path, total_steps=1)
    trained.run()
    described = load_checkpoint(tmp_path).config
    assert described["model_type"] == "causaldae"
    assert Config.from_dict(described["config"]) == trained.config
    assert described["digest"] == trained.config.digest()
    assert described["dataset"] == trained.spec.to_dict()
