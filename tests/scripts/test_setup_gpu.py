"""The set-up runs one operation on a GPU that nvidia-smi shows, and otherwise names a build of torch that can."""

from pathlib import Path

import pytest
from launchers import dry_run, launch, record

SCRIPT = "train_pendulum_causaldae.sh"
NVIDIA_SMI = """\
#!/bin/sh
case "$*" in
*compute_cap*) echo {capability} ;;
*) echo "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: {driver}  |" ;;
esac
"""


def add_gpu(clone: Path, driver: str = "13.0", capability: str = "9.0") -> None:
    path = clone.parent / "bin" / "nvidia-smi"
    path.write_text(NVIDIA_SMI.format(driver=driver, capability=capability))
    path.chmod(0o755)


def test_a_working_gpu_is_checked_once(clone: Path) -> None:
    add_gpu(clone)
    assert dry_run(clone, SCRIPT)
    assert record(clone)[-1] == "GPU"
    assert dry_run(clone, SCRIPT) and record(clone) == []


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        ("12.4", "8.0", "torch>=2.11,<2.15 torchvision --index-url https://download.pytorch.org/whl/cu126"),
        ("13.0", "7.0", "torch>=2.11,<2.15 torchvision --index-url https://download.pytorch.org/whl/cu126"),
        ("12.8", "12.0", "torch==2.11.* torchvision --index-url https://download.pytorch.org/whl/cu128"),
        ("13.1", "10.0", "torch>=2.11 torchvision --index-url https://download.pytorch.org/whl/cu130"),
        ("11.8", "8.0", ""),
        ("12.4", "10.0", ""),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_that_names_a_build(
    clone: Path, driver: str, capability: str, build: str
) -> None:
    add_gpu(clone, driver, capability)
    failed = launch(clone, SCRIPT, DRY_RUN="1", GPU_CODE="1")
    assert (failed.returncode, failed.stdout) == (1, "")
    advice = f'Set CAUSALDIFFAE_TORCH="{build}"' if build else "Install a newer driver"
    assert f"torch cannot use the GPU (log: {clone}/.venv/setup.log). {advice}" in failed.stderr
    record(clone)
    again = launch(clone, SCRIPT, DRY_RUN="1", GPU_CODE="1")  # nothing was changed
    assert again.returncode == 1 and "uninstall" not in "".join(record(clone))
    given = build or "torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    assert dry_run(clone, SCRIPT, CAUSALDIFFAE_TORCH=given)
    removed, other = record(clone)[:2]
    assert removed.endswith("uninstall -y torch torchvision") and other.endswith(f"install {given}")


def test_the_cpu_and_hidden_gpus_are_not_checked(clone: Path) -> None:
    add_gpu(clone, "11.0")
    cpu = "torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    assert dry_run(clone, SCRIPT, CAUSALDIFFAE_TORCH=cpu, GPU_CODE="1")
    (clone / "setup.py").write_text((clone / "setup.py").read_text() + "# changed\n")
    assert dry_run(clone, SCRIPT, CUDA_VISIBLE_DEVICES="", GPU_CODE="1")
    assert "GPU" not in record(clone)


def test_a_driver_without_gpus_is_not_checked(clone: Path) -> None:
    path = clone.parent / "bin" / "nvidia-smi"
    path.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    path.chmod(0o755)
    assert dry_run(clone, SCRIPT, GPU_CODE="1")
