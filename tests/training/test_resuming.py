"""Interrupted and resumed is uninterrupted: at any step, across epochs, in pieces, and among other processes."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_util import HARD, REPO, assert_same
from tiny import small_config, squares

from causaldiffae.errors import InputError
from causaldiffae.logger import Logger
from causaldiffae.script_util import load_model
from causaldiffae.train_util import TrainLoop

# Seven images of a step and ten in all: epochs end within steps, and after every tenth step at once.
OPTIONS = HARD | {"channel_mult": "1", "attention_resolutions": "", "batch_size": 7, "encoder_norm": "batch"}


def loop(folder: Path, **changes: Any) -> TrainLoop:
    config = small_config(**(OPTIONS | changes))
    return TrainLoop(config, squares(10), Logger(folder, use_tensorboard=False))


def steps_of(trained: TrainLoop, count: int) -> list[dict[str, float]]:
    return [trained.run_step() for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"microbatch": 3, "save_interval": 2, "grad_clip": 1.0}])
def test_at_any_step_with_all_its_losses(tmp_path: Path, options: dict[str, Any]) -> None:
    """A run that is thrown away and opened again after every single step."""
    total = 14
    whole = loop(tmp_path / "whole", **options, total_steps=total)
    told = steps_of(whole, total)
    again = []
    for step in range(total):
        part = loop(tmp_path / "parts", **options, total_steps=total)
        assert part.step == step
        again += steps_of(part, 1)
        part.save()
        part.writer.finish()
    last = loop(tmp_path / "parts", **options, total_steps=total)
    assert again == told
    assert (whole.sampler.state_dict()["count"] == 10).all(), "the sampler has left its uniform start"
    assert_same(whole, last)


def test_the_global_random_state_does_not_matter(tmp_path: Path) -> None:
    told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trained = loop(tmp_path / str(seed))
        torch.manual_seed(seed)
        told.append(steps_of(trained, 2))
    assert told[0] == told[1]


def test_another_order_of_the_batches_is_a_warning(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=1).run()
    with pytest.warns(UserWarning) as caught:
        assert loop(tmp_path, seed=3, batch_size=5).step == 1
    texts = [str(warning.message) for warning in caught]
    assert texts[0].endswith("step_0000001: seed: 0 before, 3 now: the batches are others")
    assert texts[1].endswith("step_0000001: images of a step: 7 before, 5 now: the batches are others")


def test_an_explicit_checkpoint_that_fails_is_an_error(tmp_path: Path) -> None:
    first = loop(tmp_path, total_steps=2, save_interval=1)
    first.run()
    (tmp_path / "step_0000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="a damaged checkpoint is passed over: .*manifest.json: it is missing"):
        assert loop(tmp_path).step == 1
    for wrong, message in (("step_0000002", "manifest.json: it is missing"), ("none", "there is no such folder")):
        with pytest.raises(InputError, match=message):
            loop(tmp_path / "fresh", resume_checkpoint=str(tmp_path / wrong))


def test_every_n_th_checkpoint_stays(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=7, save_interval=1, keep_last=1, keep_every=3).run()
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_0000003", "step_0000006", "step_0000007"]
    assert load_model(str(tmp_path)).step == 7


WORKER = """
import sys
from causaldiffae import dist_util
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop
from tiny import small_config, squares

dist_util.setup_dist("gloo", timeout_minutes=3.0)
TrainLoop(small_config(**eval(sys.argv[2])), squares(10), Logger(sys.argv[1], use_tensorboard=False)).run()
dist_util.cleanup()
"""


def train_in_processes(folder: Path, count: int, options: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    plain = {k: v for k, v in os.environ.items() if not re.match(r"(OMPI_|PMI|SLURM_|MASTER_|(LOCAL_)?RANK$)", k)}
    plain |= {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    plain |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", WORKER, str(folder)]
    started = [
        subprocess.Popen(
            [*command, repr(options | {"batch_size": 4 // count})],
            env=plain | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_one_and_two_again_are_one(tmp_path: Path) -> None:
    """Three steps in two processes, three in one, three in two: up to the order of sums, nine steps in one."""
    options = OPTIONS | {"encoder_norm": "none", "dropout": 0.0, "lr": 1e-5, "ema_rate": "0.5"}
    for total, count in ((3, 2), (6, 1), (9, 2)):
        train_in_processes(tmp_path / "changing", count, options | {"total_steps": total})
    train_in_processes(tmp_path / "one", 1, options | {"total_steps": 9})
    ours, theirs = (load_model(str(tmp_path / name), ema="none").model.state_dict() for name in ("changing", "one"))
    for key, value in theirs.items():
        # Nine steps of Adam move a weight by 9e-5 at most; rounding that turned one step around would show as 2e-5.
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=4e-6)
