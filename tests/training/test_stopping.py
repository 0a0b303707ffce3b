"""Stopping early by a signal or a time limit: after the current step, with a checkpoint, in all processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loops import loop
from processes import ended, start_group

from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.training.stopping import StopRequest


@pytest.fixture
def interruptible() -> Iterator[None]:
    """The usual handler of SIGINT, also in the background of a shell, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        trained = loop(tmp_path, stop=stop, save_interval=1000)
        step = trained.run_step

        def run_step() -> dict[str, float]:
            if trained.step == 1:
                os.kill(os.getpid(), number)
            return step()

        trained.run_step = run_step  # type: ignore[method-assign]
        trained.run()
        assert (trained.stopped, trained.step, stop.reason()) == (True, 2, f"{number.name} received")
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path).step == 2
    resumed = loop(tmp_path, save_interval=1000)
    resumed.run()
    assert (resumed.stopped, resumed.step) == (False, 6)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_at_once() -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert stop.reason() == "SIGINT received"
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.reason() == ""


def test_the_time_limit_counts_from_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = StopRequest(max_hours=2.0)
    now[0] += 7199.0
    assert limit.reason() == ""
    now[0] += 1.0
    assert limit.reason() == "max_hours 2 reached"
    assert StopRequest().reason() == ""


def test_the_time_limit_ends_the_run(tmp_path: Path) -> None:
    trained = loop(tmp_path, save_interval=1000, max_hours=1e-9)
    trained.run()
    assert (trained.stopped, trained.step) == (True, 1)
    assert load_checkpoint(tmp_path).step == 1


WORKER = """
import sys
from pathlib import Path
from causaldiffae import dist_util
from causaldiffae.training.stopping import StopRequest
from loops import loop

with StopRequest() as stop:
    dist_util.setup_dist("gloo", timeout_minutes=3.0)
    trained = loop(Path(sys.argv[1]), stop=stop, total_steps=10**6, save_interval=10**6, batch_size=2)
    step = trained.run_step
    def run_step():
        means = step()
        if trained.step == 3:
            print("running", flush=True)
        return means
    trained.run_step = run_step
    trained.run()
    print(f"stopped {trained.stopped} at {trained.step}", flush=True)
    dist_util.cleanup()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    """Only one of them receives the signal."""
    both = start_group(WORKER, tmp_path)
    assert both[1].stdout is not None
    if both[1].stdout.readline() == "running\n":  # else it has failed, see below
        both[1].send_signal(signal.SIGUSR1)
    first, second = ended(both)
    assert first.code == second.code == 0, first.err + second.err
    last = f"stopped True at {load_checkpoint(tmp_path).step}"
    assert first.out.splitlines()[-1] == second.out.splitlines()[-1] == last
