"""A resumed run equals an uninterrupted one: at any step, across epochs, and with another number of processes."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import STOCHASTIC, assert_same, loop
from processes import run_group

from causaldiffae import train_util
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.errors import InputError
from causaldiffae.resample import LossSecondMomentResampler
from causaldiffae.script_util import load_model
from causaldiffae.training import acceleration

# Seven of ten images per step: most epochs end within a batch, every seventh at its end.
OPTIONS = STOCHASTIC | {"images": 10, "batch_size": 7, "encoder_norm": "batch"}


def test_an_interrupted_run_continues_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        train_util,
        "create_named_schedule_sampler",
        lambda _, steps: LossSecondMomentResampler(steps, history_per_term=2),
    )
    options = STOCHASTIC | {"total_steps": 8, "save_interval": 5, "lr_anneal_steps": 6, "ema_rate": "0.5,0.9"}
    whole, interrupted = (loop(tmp_path / name, **options, encoder_norm="batch") for name in ("whole", "parts"))
    whole.run()
    step = interrupted.run_step

    def run_step() -> dict[str, float]:
        if interrupted.step == 7:  # two steps after the checkpoint
            raise KeyboardInterrupt
        return step()

    interrupted.run_step = run_step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = loop(tmp_path / "parts", **options, encoder_norm="batch")
    assert resumed.step == 5
    resumed.run()
    assert (whole.sampler.weights() != 1).all(), "the sampler has left its uniform start"
    assert_same(whole, resumed)
    for rate in ("0.5", "0.9"):
        ours, theirs = (load_checkpoint(tmp_path / name, ema=rate).model_state for name in ("whole", "parts"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("options", [{}, {"microbatch": 3, "save_interval": 2, "grad_clip": 1.0}])
def test_resuming_after_every_single_step(tmp_path: Path, options: dict[str, Any]) -> None:
    options = OPTIONS | options | {"total_steps": 14}
    whole = loop(tmp_path / "whole", **options)
    expected = [whole.run_step() for _ in range(14)]
    found = []
    for step in range(14):
        part = loop(tmp_path / "parts", **options)
        assert part.step == step
        found.append(part.run_step())
        part.save()
        part.writer.finish()
    assert found == expected
    assert (whole.sampler.state_dict()["count"] == 10).all(), "the sampler has left its uniform start"
    assert_same(whole, loop(tmp_path / "parts", **options))


def test_the_global_random_state_does_not_matter(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trained = loop(tmp_path / str(seed), **OPTIONS)
        torch.manual_seed(seed)
        found.append([trained.run_step() for _ in range(2)])
    assert found[0] == found[1]


def test_resuming_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop(tmp_path, total_steps=3).run()
    assert "resuming" not in capsys.readouterr().err
    finished = loop(tmp_path, total_steps=3)
    assert capsys.readouterr().err == "resuming from step 3 of 3\n"
    finished.run()
    assert finished.step == 3


def test_resuming_from_a_named_step(tmp_path: Path) -> None:
    loop(tmp_path / "a").run()
    resumed = loop(tmp_path / "b", resume_checkpoint=str(tmp_path / "a" / "step_0000003"))
    assert resumed.step == 3
    resumed.run()
    assert_same(resumed, loop(tmp_path / "a"))


def test_a_restarted_run_prefers_its_own_later_steps_to_a_named_one(tmp_path: Path) -> None:
    """A job that is queued again has the same command line."""
    loop(tmp_path / "a", total_steps=2).run()
    options = {"resume_checkpoint": str(tmp_path / "a" / "step_0000002")}
    loop(tmp_path / "b", total_steps=3, **options).run()
    assert loop(tmp_path / "b", **options).step == 3
    assert loop(tmp_path / "c", **options).step == 2
    within = {"resume_checkpoint": str(tmp_path / "b" / "step_0000003")}
    loop(tmp_path / "b", total_steps=4).run()
    with pytest.warns(
        UserWarning, match="is used every time this command is started, although the run has step_0000004"
    ):
        assert loop(tmp_path / "b", **within).step == 3, "a step of the run itself is what was asked for"


def test_a_named_step_is_used_where_those_of_the_run_are_damaged(tmp_path: Path) -> None:
    loop(tmp_path / "a", total_steps=2).run()
    loop(tmp_path / "b", total_steps=3).run()
    for file in (tmp_path / "b").glob("step_*/model.*"):
        file.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert loop(tmp_path / "b", resume_checkpoint=str(tmp_path / "a" / "step_0000002")).step == 2


def test_a_run_resumes_with_another_sampler_and_less_memory(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=2).run()
    resumed = loop(tmp_path, schedule_sampler="loss-second-moment", use_checkpoint=True)
    assert resumed.step == 2
    resumed.run()
    assert resumed.step == 6


def test_another_network_is_refused(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=1).run()
    message = "mechanism_width: expected 16 as in .*step_0000001, got 8; restore it or choose another run_dir"
    with pytest.raises(InputError, match=message):
        loop(tmp_path, mechanism_width=8)


def test_changed_options_take_effect_and_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the optimizer are stored in its groups as well; what they were there is what they were."""
    loop(tmp_path, total_steps=3).run()
    capsys.readouterr()
    resumed = loop(tmp_path, lr=0.5, weight_decay=0.25, keep_last=3)
    assert capsys.readouterr().err == (
        "resuming from step 3 of 6\n"
        "options changed since step 3: total_steps: 3 -> 6, lr: 0.001 -> 0.5, weight_decay: 0.0 -> 0.25, "
        "keep_last: 2 -> 3\n"
    )
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.25
    weight = resumed.model.unet.input_blocks[0][0].weight
    before, moment = weight.detach().clone(), resumed.optimizer.state[weight]["exp_avg"]
    resumed.run_step()
    assert resumed.optimizer.param_groups[0]["lr"] == 0.5
    without = loop(tmp_path, lr=0.5)
    without.run_step()
    unregularised = without.model.unet.input_blocks[0][0].weight
    assert torch.equal(moment, without.optimizer.state[unregularised]["exp_avg"])
    torch.testing.assert_close(weight, unregularised - 0.5 * 0.25 * before)


def test_another_order_of_the_batches_is_a_warning(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=1, **OPTIONS).run()
    with pytest.warns(UserWarning) as caught:
        assert loop(tmp_path, **(OPTIONS | {"seed": 3, "batch_size": 5})).step == 1
    texts = [str(warning.message) for warning in caught]
    assert texts[0].endswith("step_0000001: seed: was 0, now 3; the batches will differ")
    assert texts[1].endswith("step_0000001: images of a step: was 7, now 5; the batches will differ")


def test_a_damaged_checkpoint_is_an_error_only_if_named(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=2, save_interval=1).run()
    (tmp_path / "step_0000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="step_0000002"):
        assert loop(tmp_path).step == 1
    for wrong, message in (("step_0000002", "manifest.json"), ("none", "none")):
        with pytest.raises(InputError, match=message):
            loop(tmp_path / "fresh", resume_checkpoint=str(tmp_path / wrong))


def test_every_nth_checkpoint_is_kept(tmp_path: Path) -> None:
    loop(tmp_path, total_steps=7, save_interval=1, keep_last=1, keep_every=3).run()
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_0000003", "step_0000006", "step_0000007"]
    assert load_model(str(tmp_path)).step == 7


WORKER = """
import json, sys, warnings
from pathlib import Path
from causaldiffae import dist_util
from loops import loop

warnings.simplefilter("error", UserWarning)
dist_util.setup_dist("gloo", timeout_minutes=3.0)
loop(Path(sys.argv[1]), **json.loads(sys.argv[2])).run()
dist_util.cleanup()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_number_of_processes_may_change(tmp_path: Path) -> None:
    """Three steps each in two processes, one and two equal nine steps in one, up to the order of sums."""
    options = OPTIONS | {"encoder_norm": "none", "dropout": 0.0, "lr": 1e-5, "ema_rate": "0.5"}
    for folder, total, world in (("changing", 3, 2), ("changing", 6, 1), ("changing", 9, 2), ("one", 9, 1)):
        run = options | {"total_steps": total, "batch_size": 4 // world}
        run_group(WORKER, tmp_path / folder, json.dumps(run), world=world)
    ours, theirs = (load_model(str(tmp_path / name), ema="none").model.state_dict() for name in ("changing", "one"))
    for key, value in theirs.items():
        # Nine steps of Adam move a weight by at most 9e-5; a step whose sign is flipped by rounding shows as 2e-5.
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=4e-6)


# ---------------------------------------------------------------------- acceleration

DIT = {"network": "dit", "num_channels": 32, "depth": 1, "patch_size": 2}
KINDS: dict[str, dict[str, Any]] = {
    "causaldae": {"channel_mult": "1,2", "attention_resolutions": "4", "encoder_norm": "batch"},
    "conditional": {"model_type": "conditional"},
    "diffae": {"model_type": "diffae", "mechanism": "affine"},
    "aligned diffae": {"model_type": "diffae", "aligned": True},
    "causalvae": {"model_type": "causalvae", "learn_sigma": False},
    "diffscm": {"model_type": "diffscm", "label_cond": True, "drop_prob": 0.3},
    "diffscm with dit": {"model_type": "diffscm"} | DIT,
}
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "use_bf16": {"use_bf16": True},
    "use_checkpoint": {"use_checkpoint": True},
    "all": {"channels_last": True, "use_bf16": True, "use_checkpoint": True},
}


def assert_resumes_bit_for_bit(folder: Path, options: dict[str, Any]) -> None:
    """Two and two steps equal four, in every weight, moment of the optimizer and moving average."""
    options = {"save_interval": 100, "total_steps": 4} | options
    whole = loop(folder / "whole", **options)
    whole.run()
    loop(folder / "parts", **options | {"total_steps": 2}).run()
    resumed = loop(folder / "parts", **options)
    assert resumed.step == 2
    moments = [(p, state[name]) for p, state in resumed.optimizer.state.items() for name in ("exp_avg", "exp_avg_sq")]
    assert moments and all(parameter.stride() == moment.stride() for parameter, moment in moments)
    weights = resumed.model.state_dict()
    averages = [(weights[name], average) for ema in resumed.emas.values() for name, average in ema.items()]
    assert averages and all(weight.stride() == average.stride() for weight, average in averages)
    resumed.run()
    assert_same(whole, resumed)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore:compile, channels_last. no effect, CausalVAE:UserWarning")
def test_accelerated_runs_resume_bit_for_bit(
    kind: dict[str, Any], flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    assert_resumes_bit_for_bit(tmp_path, kind | flags)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "causalvae"])
def test_traced_runs_resume_bit_for_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation without its last stage, which takes minutes: every model type, with all flags."""

    def trace(network: torch.nn.Module, device: object) -> None:
        network.compile(dynamic=False, backend="aot_eager")

    torch.compiler.reset()  # the compiler gives up on a class of networks after several instances
    monkeypatch.setattr(acceleration, "compile_network", trace)
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    assert_resumes_bit_for_bit(tmp_path, KINDS[kind] | FLAGS["all"] | {"compile": True})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [{}, KINDS["diffscm with dit"]], ids=["unet", "dit"])
def test_compiled_runs_resume_bit_for_bit(
    kind: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, acceleration.COMPILERS)):
        pytest.skip("no C++ compiler on this machine")
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    assert_resumes_bit_for_bit(tmp_path, kind | FLAGS["all"] | {"compile": True})
