"""scripts/export_weights.py --average: the average of two models of the same networks."""

from pathlib import Path

import pytest
import torch
from paths import REPO
from running import assert_refused, run
from safetensors.torch import load_file

from causaldiffae.checkpoints.checkpoint import export_weights, save_checkpoint
from causaldiffae.config import Config, ModelConfig
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.files.reading import read_json
from causaldiffae.predictors.predictor import Predictor, config_for, save_predictor
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint

SMALL = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "attention_resolutions": "", "rep_dim": 4}
SPEC = dataset_spec("morphomnist")
SCRIPT = REPO / "scripts" / "export_weights.py"


def write_model(folder: Path, value: float, **options: object) -> Path:
    """A model folder whose floating-point weights all have one value."""
    config = Config(model=ModelConfig(**{**SMALL, **options}))  # type: ignore[arg-type]
    model, _ = create_model_and_diffusion(config, SPEC)
    state = {
        name: torch.full_like(each, value) if each.is_floating_point() else each
        for name, each in model.state_dict().items()
    }
    return export_weights(folder, state, {**describe_checkpoint(config, SPEC), "trained_steps": 7})


def test_weights_are_averaged_by_share(tmp_path: Path) -> None:
    tuned, start = write_model(tmp_path / "tuned", 1.0), write_model(tmp_path / "start", 3.0)
    (tuned / "responses.json").write_text("{}")
    (tuned / "progress.csv").write_text("step\n")
    save_predictor(tuned / "reader", Predictor(SPEC, config_for(SPEC)), {})
    options = ["--model_path", str(tuned), "--average", str(start), "--share", "0.75", "--out", str(tmp_path / "out")]
    assert run(SCRIPT, *options).returncode == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == load_file(tuned / "model.safetensors").keys()
    assert all((each == 1.5).all() for each in written.values() if each.is_floating_point())
    described = read_json(tmp_path / "out" / "config.json")
    assert (tmp_path / "out" / "progress.csv").is_file() and (tmp_path / "out" / "reader" / "config.json").is_file()
    assert not (tmp_path / "out" / "responses.json").exists(), "measured on other weights"
    assert (described["trained_steps"], described["averaged_share"]) == (7, 0.75)


@pytest.mark.parametrize(
    ("share", "options", "word"),
    [
        ("1.5", {}, "share"),
        ("0.5", {"num_channels": 64}, "average"),
        ("0.5", {"mechanism": "affine"}, "average"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, share: str, options: dict[str, object], word: str) -> None:
    tuned, start = write_model(tmp_path / "tuned", 1.0), write_model(tmp_path / "start", 0.0, **options)
    command = ["--model_path", str(tuned), "--average", str(start), "--share", share, "--out", str(tmp_path / "out")]
    assert_refused(run(SCRIPT, *command), f"{word}: expected")
    assert not (tmp_path / "out").exists()


def test_the_model_itself_is_not_overwritten(tmp_path: Path) -> None:
    tuned = write_model(tmp_path / "tuned", 1.0)
    before = (tuned / "model.safetensors").read_bytes()
    done = run(SCRIPT, "--model_path", tuned, "--average", tuned, "--out", tuned)
    assert_refused(done, "out: expected another folder than that of the model")
    assert (tuned / "model.safetensors").read_bytes() == before


def test_the_predictor_of_label_corrections_is_exported_with_a_run(tmp_path: Path) -> None:
    config, run_dir = Config(model=ModelConfig(**SMALL)), tmp_path / "run"  # type: ignore[arg-type]
    state = create_model_and_diffusion(config, SPEC)[0].state_dict()
    described = describe_checkpoint(config, SPEC)
    save_checkpoint(run_dir, 3, model_state=state, ema_states={"0.9999": state}, training_state={}, config=described)
    own = save_predictor(run_dir / "correction_predictor", Predictor(SPEC, config_for(SPEC)), {"seed": 1})
    done = run(SCRIPT, "--model_path", run_dir, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "out" / "correction_predictor"
    assert {name.name for name in copied.iterdir()} == {name.name for name in own.iterdir()}
    assert (copied / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
