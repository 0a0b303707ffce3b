"""The lease of a remote run directory: one trainer at a time, without locks and without common clocks."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_storage import FakeBlobfile, install_service
from processes import plain_environment
from support import CHECKPOINT_CONFIG, small_network

from causaldiffae.checkpoints import lease
from causaldiffae.checkpoints.checkpoint import save_checkpoint
from causaldiffae.checkpoints.lease import EXPIRES_AFTER, OWN_NAME, hold_lease, take_lease
from causaldiffae.checkpoints.remote import RemoteRun, run_folder
from causaldiffae.errors import DataError, InputError
from causaldiffae.training.run_lock import lock_run_dir

RUN = "gs://bucket/run"
ELSEWHERE = {"process": 7, "host": "node7", "machine": "another machine", "job": [None, 0]}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    fake = install_service(tmp_path, monkeypatch)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return fake


def leases(service: FakeBlobfile) -> list[str]:
    folder = service.bucket / "run" / "lock"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def other(service: FakeBlobfile, age: float = 0.0, **changes: Any) -> Path:
    """Writes the lease of another process, renewed `age` seconds ago by the time of the service."""
    path = service.bucket / "run" / "lock" / "other.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ELSEWHERE | changes))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def test_a_second_trainer_is_refused_with_owner_and_age(service: FakeBlobfile) -> None:
    other(service, age=40)
    message = rf"run_dir: {RUN} is in use by process 7 on node7, which renewed its lease [4-9]\d seconds ago; wait or"
    with pytest.raises(InputError, match=message), hold_lease(RUN):
        pass
    assert leases(service) == ["other.json"]
    (service.bucket / "run" / "lock" / "other.json").unlink()
    with hold_lease(f"{RUN}/"):
        assert leases(service) == [OWN_NAME]
    assert leases(service) == []


def test_the_run_directory_is_locked_in_the_bucket_too(service: FakeBlobfile) -> None:
    with lock_run_dir(RUN):
        assert leases(service) == [OWN_NAME]
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), lock_run_dir(RUN):
            pass
        assert leases(service) == [OWN_NAME]
    other(service)
    with pytest.raises(InputError, match="in use by process 7 on node7"), lock_run_dir(RUN):
        pass


def test_of_two_that_start_at_once_at_most_one_stays(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes its lease between this one's writing and listing."""
    listing = FakeBlobfile.scandir

    def scandir(fake: FakeBlobfile, address: str) -> Any:
        other(service)
        return listing(fake, address)

    monkeypatch.setattr(FakeBlobfile, "scandir", scandir)
    with pytest.raises(InputError, match="in use by process 7"), hold_lease(RUN):
        pass


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_clock_of_this_machine_does_not_matter(
    service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """That of the service is an hour behind or ahead; a lease that was just renewed counts, an old one does not."""
    listing = FakeBlobfile.scandir

    def scandir(fake: FakeBlobfile, address: str) -> Any:
        for entry in listing(fake, address):
            entry.stat.mtime += 3600 * hours
            yield entry

    monkeypatch.setattr(FakeBlobfile, "scandir", scandir)
    other(service)
    with pytest.raises(InputError, match="in use by process 7"), hold_lease(RUN):
        pass
    other(service, EXPIRES_AFTER + 60)
    with hold_lease(RUN):
        assert leases(service) == [OWN_NAME]


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""], env=plain_environment()) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    ("owner", "age", "counts"),
    [
        ({}, EXPIRES_AFTER + 60, False),
        ({}, EXPIRES_AFTER - 60, True),
        ({"process": -1}, 0, False),  # stands for a process of this machine that has ended
        ({"process": -1, "job": ["123", 1]}, 0, False),  # killed, and restarted in the same job
        ({"process": os.getppid(), "machine": "here"}, 0, True),
        ({"job": ["123", 0]}, 0, False),  # this job before it was requeued
        ({"job": ["123", 1]}, 0, True),  # another step of this job
        ({"job": ["124", 0]}, 0, True),
        ({"job": "123"}, 0, True),
    ],
)
def test_leases_that_do_not_count_are_removed(
    service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch, owner: dict[str, Any], age: float, counts: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold_lease(RUN):
        own = json.loads((service.bucket / "run" / "lock" / OWN_NAME).read_text())
    if owner.get("process") == -1:
        owner = owner | {"process": dead_process(), "machine": own["machine"]}
    elif owner.get("machine") == "here":
        owner = owner | {"machine": own["machine"]}
    other(service, age, **owner)
    if counts:
        with pytest.raises(InputError, match="in use by process"), hold_lease(RUN):
            pass
        assert leases(service) == ["other.json"]
    else:
        with hold_lease(RUN):
            assert leases(service) == [OWN_NAME]


def test_a_lease_that_is_no_json_counts_until_it_expires(service: FakeBlobfile) -> None:
    path = other(service)
    path.write_bytes(b"\xff no json")
    with pytest.raises(InputError, match="in use by process None"), hold_lease(RUN):
        pass
    os.utime(path, (0, 0))
    with hold_lease(RUN):
        pass


def test_a_lease_is_renewed(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.01)
    renewed = threading.Event()
    write = FakeBlobfile.BlobFile

    def counting(fake: FakeBlobfile, address: str, mode: str) -> Any:
        if mode == "wb" and service.count("BlobFile") >= 3:
            renewed.set()
        return write(fake, address, mode)

    monkeypatch.setattr(FakeBlobfile, "BlobFile", counting)
    service.fails = lambda number, name, address: name == "exists" and service.count("exists") == 1
    with hold_lease(RUN):
        assert renewed.wait(30), "a failed renewal is tried again"
    assert leases(service) == []


def write(step: int) -> Path:
    state = {"model_state": small_network(0).state_dict(), "ema_states": {}, "training_state": {"n": step}}
    return save_checkpoint(run_folder(RUN), step, config=CHECKPOINT_CONFIG, **state)


def test_a_trainer_whose_lease_expired_uploads_only_if_nobody_took_over(service: FakeBlobfile) -> None:
    with hold_lease(RUN):
        RemoteRun(RUN).upload(write(1))
        own = service.bucket / "run" / "lock" / OWN_NAME
        own.unlink()  # by a trainer that found it expired
        taken = other(service)
        with pytest.raises(InputError, match="in use by process 7 on node7"):
            RemoteRun(RUN, keep_last=1).upload(write(2))
        assert RemoteRun(RUN).steps() == [1] and leases(service) == ["other.json"]
        taken.unlink()
        os.utime(other(service), (0, 0))  # it has ended as well
        RemoteRun(RUN, keep_last=1).upload(write(2))
        assert RemoteRun(RUN).steps() == [2] and leases(service) == [OWN_NAME]


def test_storage_trouble_is_an_error_of_one_line(service: FakeBlobfile) -> None:
    service.fails = lambda number, name, address: name == "BlobFile"
    with pytest.raises(DataError, match=rf"{RUN}/lock/.*cannot be written .503 service"), hold_lease(RUN):
        pass
    service.fails = lambda number, name, address: name == "scandir"
    with pytest.raises(DataError, match=rf"{RUN}/lock: cannot be listed"):
        take_lease(RUN)
    assert leases(service) == []
