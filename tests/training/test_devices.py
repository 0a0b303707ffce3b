"""The device of a run: what --device refuses, GPUs that PyTorch cannot use, and what is printed at the start."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folders import make_folder
from paths import REPO
from running import assert_refused, run

from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.training import devices
from causaldiffae.training.devices import describe_device, free_memory, gpu_problem, use_device

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."

THREADS = "thread" if torch.get_num_threads() == 1 else "threads"


@pytest.fixture(autouse=True)
def own_device() -> Iterator[None]:
    """Leaves the default device behind."""
    yield
    dist_util.set_device("")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine without GPUs and nvidia-smi, and a build of PyTorch with CUDA."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpus(monkeypatch, 0)
    return monkeypatch


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def nvidia_smi(tmp_path: Path, text: str = "GPU 0: NVIDIA H100 (UUID: GPU-1)") -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


def old_driver() -> None:
    raise RuntimeError(f"{OLD_DRIVER}\nPlease update your GPU driver.")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "mps:1", "cuda:0 "])
def test_other_names_are_refused(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(InputError, match=rf"device: expected auto, cpu, mps, cuda or cuda:N, got '{name}'"):
        use_device(name)


def test_auto_is_cuda_or_else_mps_or_else_the_cpu(machine: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((1, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")):
        gpus(machine, cuda)
        machine.setattr(torch.backends.mps, "is_available", lambda found=mps: found)
        machine.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))  # the operation that a GPU must run
        for name in ("auto", ""):
            use_device(name)
            assert str(dist_util.dev()) == str(dist_util.find_device("auto")) == expected
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    machine.setenv("WORLD_SIZE", "2")
    machine.setenv("RANK", "0")
    assert str(dist_util.find_device("auto")) == "cpu", "gloo has no collective operations on MPS"


def test_mps_is_refused_where_there_is_none(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: expected cpu or cuda, got mps, and PyTorch finds no Apple GPU"):
        use_device("mps")
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    use_device("mps")
    assert describe_device() == "mps (Apple GPU)"


def test_a_device_that_is_not_there_is_refused(machine: pytest.MonkeyPatch) -> None:
    use_device("")
    assert dist_util.dev().type == "cpu"
    machine.setattr(torch.cuda, "init", old_driver)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(
            InputError, match=rf"device: expected cpu, got {name}: The NVIDIA driver .* \(found .*\)\.$"
        ):
            use_device(name)
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="got cuda: CUDA_VISIBLE_DEVICES hides all GPUs"):
        use_device("cuda")
    machine.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match=r"got cuda: PyTorch \S+ is built without CUDA"):
        use_device("cuda")
    gpus(machine, 2)
    with pytest.raises(InputError, match=r"device: expected cpu or cuda:0\.\.cuda:1, got cuda:2"):
        use_device("cuda:2")


def test_a_gpu_that_pytorch_cannot_use_is_an_error_unless_the_cpu_is_named(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path)
    machine.setattr(torch.cuda, "init", old_driver)
    assert gpu_problem() == OLD_DRIVER
    message = r"expected a GPU that PyTorch \S+ can use, got: The NVIDIA driver .*; install another build with CAUSALD"
    with pytest.raises(InputError, match=message):
        use_device("")
    use_device("cpu")
    assert dist_util.dev().type == "cpu"
    machine.setattr(torch.version, "cuda", None)
    with pytest.warns(UserWarning, match=r"there is a GPU, but PyTorch \S+ is built without CUDA; using the CPU"):
        use_device("")
    machine.setattr(torch.version, "cuda", "13.0")
    machine.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    use_device("")
    machine.delenv("CUDA_VISIBLE_DEVICES")
    nvidia_smi(tmp_path, "No devices were found")
    use_device("")


def test_a_gpu_that_runs_nothing_is_an_error(machine: pytest.MonkeyPatch) -> None:
    gpus(machine, 1)

    def no_kernel(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nSearch for ...")

    machine.setattr(torch, "ones", no_kernel)
    with pytest.raises(InputError, match=r"can use, got cuda:0: CUDA error: no kernel image .* device; install"):
        use_device("")


def test_a_device_is_described_by_name_and_memory(machine: pytest.MonkeyPatch) -> None:
    assert describe_device() == f"cpu ({torch.get_num_threads()} {THREADS})"
    gpus(machine, 1)
    found = SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30)
    machine.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert describe_device() == "cuda:0 (NVIDIA H100, 80 GiB)"


def test_training_prints_its_device_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = REPO / "configs" / "folder_causaldae_mini.yaml"
    arguments = [f"--config={config}", f"--data_dir={make_folder(tmp_path / 'mine')}", f"--run_dir={tmp_path / 'run'}"]
    arguments += ["--image_size=8", "--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8"]
    arguments += ["--batch_size=4", "--tensorboard=False", "--total_steps=1"]
    script = REPO / "scripts" / "image_train.py"
    assert_refused(
        run(script, *arguments, "--device", "tpu"), "device: expected auto, cpu, mps, cuda or cuda:N, got 'tpu'"
    )
    trained = run(script, *arguments, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    assert f"device: cpu ({torch.get_num_threads()} {THREADS})" in trained.stderr.splitlines()
    if not torch.cuda.is_available() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        assert_refused(run(script, *arguments, "--device", "cuda"), "device: expected cpu, got cuda: ")


def test_the_free_memory_of_a_container_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    whole = free_memory("cpu")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory("cpu") == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory("cpu") == (2_000_000 if whole else 0)
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 600000\nactive_file 100000\n")
    assert free_memory("cpu") == (2_600_000 if whole else 0)


TRAINED, TESTED = ("--data_dir=data", "--out=out"), ("--model_path=run", "--data_dir=data", "--out_dir=out")
IN_ONE_PROCESS: dict[str, tuple[str, ...]] = {
    "classifiers/class_autoencoders.py": TRAINED,
    "classifiers/folder_classifier.py": TRAINED,
    "classifiers/noised_classifier.py": ("--dataset=mnist", *TRAINED),
    "scripts/train_autoencoder.py": TRAINED,
    "scripts/image_causaldae_test.py": TESTED,
    "scripts/imagenet_diffscm_test.py": ("--model_path=model.pt", "--image=cat.jpg", "--do=tiger", "--out_dir=out"),
    "scripts/sweep_scale.py": TESTED,
    "scripts/sweep_steps.py": TESTED,
    "scripts/evaluate.py": ("--model_path=run", "--data_dir=data", "--out=out.json"),
    "scripts/demo.py": ("--out=out",),
    "scripts/plot_run.py": ("run",),
    "scripts/reproduce.py": ("--out=out",),
}


@pytest.mark.parametrize("script", IN_ONE_PROCESS)
def test_programs_that_do_not_share_their_work_run_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Every process would do all of it and write the same files."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.chdir(tmp_path)
    outcome = run(REPO / script, *IN_ONE_PROCESS[script])
    assert_refused(outcome, "processes: expected one, got 4 (mpi); run this program in one process")
    assert not list(tmp_path.iterdir())


def test_training_runs_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    use_device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    use_device("cpu", several_processes=True)
    with pytest.raises(InputError, match=r"processes: expected one, got 2 \(torchrun\)"):
        use_device("cpu")
