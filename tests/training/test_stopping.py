"""An early end by a signal or the clock: noticed between steps, with a checkpoint, by all processes at once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import REPO
from tiny import small_config, squares

from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.stopping import StopRequest

WORKER = """
import sys
from causaldiffae import dist_util
from causaldiffae.logger import Logger
from causaldiffae.training.stopping import StopRequest
from causaldiffae.train_util import TrainLoop
from tiny import small_config, squares

with StopRequest() as stop:
    dist_util.setup_dist("gloo", timeout_minutes=3.0)
    config = small_config(total_steps=10**6, save_interval=10**6, batch_size=2, channel_mult="1",
                          attention_resolutions="")
    loop = TrainLoop(config, squares(), Logger(sys.argv[1], use_tensorboard=False), stop=stop)
    step = loop.run_step
    def run_step():
        means = step()
        if loop.step == 3:
            print("running", flush=True)
        return means
    loop.run_step = run_step
    loop.run()
    print(f"stopped {loop.stopped} at {loop.step}", flush=True)
    dist_util.cleanup()
"""


def loop(folder: Path, stop: StopRequest | None = None, **changes: object) -> TrainLoop:
    config = small_config(**({"channel_mult": "1", "attention_resolutions": "", "save_interval": 1000} | changes))
    return TrainLoop(config, squares(), Logger(folder, use_tensorboard=False), stop=stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        trained = loop(tmp_path, stop)
        step = trained.run_step

        def run_step() -> dict[str, float]:
            if trained.step == 1:
                os.kill(os.getpid(), number)
            return step()

        trained.run_step = run_step  # type: ignore[method-assign]
        trained.run()
        assert (trained.stopped, trained.step, stop.reason()) == (True, 2, number.name)
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path).step == 2
    resumed = loop(tmp_path)
    resumed.run()
    assert (resumed.stopped, resumed.step) == (False, 6)


def test_the_clock_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = StopRequest(max_hours=2.0)
    now[0] += 7199.0
    assert limit.reason() == ""
    now[0] += 1.0
    assert limit.reason() == "max_hours = 2"
    assert StopRequest().reason() == ""
    monkeypatch.undo()
    trained = loop(tmp_path, max_hours=1e-9)
    trained.run()
    assert (trained.stopped, trained.step) == (True, 1)
    assert load_checkpoint(tmp_path).step == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    """The signal reaches one of them only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    plain = {k: v for k, v in os.environ.items() if not re.match(r"(OMPI_|PMI|SLURM_|MASTER_|(LOCAL_)?RANK$)", k)}
    plain |= {
        "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    plain |= {"GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            env=plain | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert both[1].stdout is not None
    if both[1].stdout.readline() == "running\n":  # else it ended, and says below why
        both[1].send_signal(signal.SIGUSR1)
    said = []
    for process in both:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        said.append(out.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0] == f"stopped True at {load_checkpoint(tmp_path).step}"
