"""`scripts/gpu_check.sh` in its short form on the CPU: it passes here, and notices a device that computes otherwise."""

import json
from pathlib import Path

import pytest
import torch
from paths import REPO
from running import Outcome as Finished
from running import assert_refused, run

from causaldiffae.evaluation import gpu_check
from causaldiffae.evaluation.gpu_check import GpuChecks, Plan, compile_with, exact, relative, short_plan
from causaldiffae.script_util import LoadedModel, load_model

CPU = torch.device("cpu")


def script(*arguments: object) -> Finished:
    return run(REPO / "scripts" / "gpu_check.py", "--device=cpu", *arguments)


def test_the_short_form_passes_on_a_processor(tmp_path: Path) -> None:
    done = script("--no_compile", f"--json={tmp_path / 'check.json'}")
    assert done.returncode == 0, done.stdout
    found = {each["name"]: each for each in json.loads((tmp_path / "check.json").read_text())["checks"]}
    compared = ("loss", "gradient", "reconstruction", "do(thickness)", "label")
    assert [found[f"{name}, CPU and device"]["value"] for name in compared] == [0.0] * 5, "both sides are the CPU"
    name = "mini"
    assert found[f"training, {name}"]["value"] > 0 and found[f"sampling, {name}"]["value"] > 0
    assert found[f"training, {name}, FLOP utilisation"]["unit"] == "%"
    assert found[f"training, {name}, memory"]["verdict"] == "passed"
    assert "0 failed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiles three times
def test_compiled_gradients_and_modes() -> None:
    plan = short_plan(Plan(CPU, REPO))
    found = [outcome for check in GpuChecks(plan).checks() if "compile" in check.name for outcome in check.run()]
    assert {each.verdict for each in found} == {"passed", "measured"} and len(found) >= 3


def test_a_device_that_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def perturbed(path: str, device: torch.device | str) -> LoadedModel:
        loaded = load_model(path, device)
        opened.append(path)
        if len(opened) % 2 == 0:  # the second of each pair
            with torch.no_grad():
                for parameter in loaded.model.parameters():
                    parameter.mul_(1.02)
        return loaded

    monkeypatch.setattr(gpu_check, "load_model", perturbed)
    checks = GpuChecks(short_plan(Plan(CPU, REPO)))
    assert [each.verdict for each in checks.loss()] == ["failed", "failed"]
    reconstruction, other, _ = checks.counterfactuals()
    assert (reconstruction.verdict, other.verdict) == ("passed", "failed") or reconstruction.verdict == "failed"


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LOSS_BOUND", -1.0)
    monkeypatch.setattr(GpuChecks, "checks", lambda self: [gpu_check.Check("loss", self.loss)])
    done = script()
    assert done.returncode == 1 and "2 results, 1 failed: loss, CPU and device" in done.stdout


def test_a_budget_of_nothing_skips_all_checks() -> None:
    done = script("--minutes=0")
    assert done.returncode == 0 and "the budget of 0 minutes is spent" in done.stdout and "passed" not in done.stdout
    assert_refused(script("--minutes=-1"), "minutes: expected 0 or more")


def test_a_gpu_has_all_sizes_and_modes() -> None:
    names = [check.name for check in GpuChecks(Plan(torch.device("cuda"), REPO)).checks()]
    for name in ("mini", "fast", "paper"):
        assert {f"training, {name}", f"sampling, {name}"} <= set(names)
        assert {f"compile mode {mode}, {name}" for mode in gpu_check.COMPILE_MODES} <= set(names)
    slow = [i for i, each in enumerate(names) if "max-autotune" in each]
    assert slow == list(range(len(names) - 3, len(names))), "what takes longest comes last"
    assert names.index("gradient, compiled and eager") > names.index(f"sampling, {name}"), "compilation comes last"


def test_there_is_no_student_yet_or_it_is_compared() -> None:
    (outcome,) = GpuChecks(short_plan(Plan(CPU, REPO))).student()
    assert outcome.verdict in ("skipped", "passed")


def test_parts() -> None:
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    before = torch.backends.cudnn.allow_tf32
    with exact():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before
    with pytest.raises(ValueError, match="compile: expected a model with a score network, got Linear"):
        compile_with(torch.nn.Linear(1, 1), "default")
