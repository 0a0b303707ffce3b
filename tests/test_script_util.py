"""The command line, exit codes, building models, and opening checkpoints."""

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import REPO
from tiny import randomise, small_config, squares_spec

from causaldiffae.checkpoints.checkpoint import save_checkpoint
from causaldiffae.config import Config
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.diff_scm import DiffScm
from causaldiffae.errors import DataError, InputError
from causaldiffae.gaussian_diffusion import LossType, ModelMeanType, ModelVarType
from causaldiffae.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
    describe_checkpoint,
    load_model,
    parse_config,
    run_cli,
)

FOLDER = REPO / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("noised_"))  # predictors' own


# ---------------------------------------------------------------------- the command line


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults() -> None:
    assert parse_config([]) == Config()


def test_flags_and_files_later_ones_win(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "lr: 0.01\nbatch_size: 4\nchannel_mult: '1,3'\nclass_cond: true\n")
    config = parse_config(["--config", path, "--lr", "0.5"])
    assert (config.train.lr, config.train.batch_size, config.model.channel_mult) == (0.5, 4, "1,3")
    assert config.model.class_cond is True
    assert parse_config(["--lr", "0.5", "--config", path]).train.lr == 0.01
    assert parse_config([f"--config={path}", "--class_cond", "false"]).model.class_cond is False


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--learning_rate", "1"], "learning_rate"),
        (["--lr", "fast"], "lr"),
        (["--batch_size", "1.5"], "batch_size"),
        (["--batch_size", "many"], "batch_size"),
        (["--class_cond", "perhaps"], "class_cond"),
        (["--lr", "nan"], "lr"),
        (["--lr", ".inf"], "lr: expected a finite number, got inf"),
        (["--lr=-1"], "lr: expected a positive number, got -1.0"),
        (["--ema_rate", "2"], "ema_rate: .* got '2'"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
        (["--lr"], "lr"),
    ],
)
def test_refused_flags(argv: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        parse_config(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rate: 1\n", "learning_rate"),
        ("lr: fast\n", "lr"),
        ("lr: .nan\n", "lr: expected a finite number, got nan"),
        ("batch_size: 2.5\n", "batch_size"),
        ("class_cond: 3\n", "class_cond"),
        ("model: {num_channels: 32}\n", "model"),
        ("- lr\n- batch_size\n", "config"),
        ("lr: [1\n", "config"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        parse_config(["--config", yaml_file(tmp_path, text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_file_builds_its_model(path: Path) -> None:
    config = parse_config(["--config", str(path)])
    train = config.train
    if train.dataset == "folder":  # what it holds can only be read there
        spec = replace(squares_spec(), image_size=train.image_size, channels=3)
    else:
        spec = dataset_spec(train.dataset, train.image_size or None, train.channels or None)
    with torch.device("meta"):  # shapes only: the published sizes need no memory here
        model, diffusion = create_model_and_diffusion(config, spec)
    if isinstance(model, DiffScm):
        assert model.has_labels is config.model.label_cond and model.network.in_channels == spec.channels
    else:
        assert model.unet.cond_dim == len(spec.graph) * config.model.block_size_for(len(spec.graph))
    assert diffusion.num_timesteps == config.diffusion.diffusion_steps
    assert len(model.scm.graph) == len(spec.graph)


def test_there_are_configuration_files() -> None:
    assert CONFIGS


def exit_code(main: object) -> int:
    before = warnings.showwarning
    try:
        run_cli(main, [])  # type: ignore[arg-type]
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        warnings.showwarning = before
    return 0


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> object:
        def main(argv: list[str]) -> None:
            raise error

        return main

    assert exit_code(lambda argv: None) == 0
    assert capsys.readouterr().err == ""
    assert exit_code(fails(InputError("lr: no\n  good"))) == 2
    assert capsys.readouterr().err == "error: lr: no good\n"
    assert exit_code(fails(DataError("a.csv: empty"))) == 2
    assert capsys.readouterr().err == "error: a.csv: empty\n"
    assert exit_code(fails(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):  # a defect of ours keeps its traceback
        exit_code(fails(ZeroDivisionError()))


def test_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "dup2", lambda a, b: moved.append((a, b)))
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115, PTH123

    def main(argv: list[str]) -> None:
        raise BrokenPipeError

    assert exit_code(main) == 141
    assert len(moved) == 1


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        warnings.showwarning(UserWarning("do: far out"), UserWarning, "file", 1)
        warnings.showwarning(DeprecationWarning("old"), DeprecationWarning, "file", 1)

    exit_code(main)
    assert capsys.readouterr().err == "warning: do: far out\n"


# ---------------------------------------------------------------------- building


def test_diffusion_of_a_configuration() -> None:
    def build(respacing: str = "", **changes: object):
        return create_gaussian_diffusion(small_config(**changes).diffusion, respacing)

    assert build().num_timesteps == 100
    assert build("25").num_timesteps == 25
    assert build("ddim20").timestep_map[1] == 5
    assert build().model_mean_type is ModelMeanType.EPSILON
    assert build().model_var_type is ModelVarType.FIXED_LARGE
    assert build().loss_type is LossType.MSE
    assert build(predict_xstart=True).model_mean_type is ModelMeanType.START_X
    assert build(predict_v=True).model_mean_type is ModelMeanType.VELOCITY
    with pytest.raises(InputError, match="predict_xstart, predict_v: the network can predict one of them only"):
        build(predict_v=True, predict_xstart=True)
    assert build(sigma_small=True).model_var_type is ModelVarType.FIXED_SMALL
    assert build(learn_sigma=True).model_var_type is ModelVarType.LEARNED_RANGE
    assert build(use_kl=True).loss_type is LossType.RESCALED_KL
    assert build(rescale_learned_sigmas=True).loss_type is LossType.RESCALED_MSE
    assert build(rescale_timesteps=True).rescale_timesteps
    with pytest.raises(InputError, match="timestep_respacing: 101 steps asked of a section of 100"):
        build("101")


def test_class_conditioning_needs_classes() -> None:
    with pytest.raises(InputError, match="class_cond: data set squares has no classes"):
        create_model_and_diffusion(small_config(class_cond=True), squares_spec())


# ---------------------------------------------------------------------- opening


def write(folder: Path, config: Config | None = None, **described: object) -> dict[str, torch.Tensor]:
    config = config or small_config()
    model, _ = create_model_and_diffusion(config, squares_spec())
    state = randomise(model).state_dict()
    average = {key: value + 1 for key, value in state.items()}
    save_checkpoint(
        folder,
        7,
        model_state=state,
        ema_states={"0.9": average},
        training_state={"step": 7},
        config=describe_checkpoint(config, squares_spec()) | described,
        keep_last=2,
    )
    return state


def test_load_model_takes_the_moving_average(tmp_path: Path) -> None:
    state = write(tmp_path)
    loaded = load_model(str(tmp_path))
    assert (loaded.step, loaded.config, loaded.spec) == (7, small_config(), squares_spec())
    assert not loaded.model.training
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[key] + 1)
    plain = load_model(str(tmp_path), ema="none").model.state_dict()
    assert all(torch.equal(plain[key], state[key]) for key in state)
    assert loaded.diffusion("10").num_timesteps == 10
    with pytest.raises(DataError, match="no moving average of rate '0.5', there are: 0.9"):
        load_model(str(tmp_path), ema="0.5")


def test_load_model_of_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder not found"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="it holds no checkpoint"):
        load_model(str(tmp_path))


def test_load_model_of_another_model(tmp_path: Path) -> None:
    write(tmp_path / "a", model_type="vae")
    with pytest.raises(DataError, match="a checkpoint of a 'vae' model, one of causaldae, diffscm, cond"):
        load_model(str(tmp_path / "a"))
    config = small_config()
    described = describe_checkpoint(config, squares_spec()) | {"config": small_config(mechanism_width=8).to_dict()}
    model, _ = create_model_and_diffusion(config, squares_spec())
    save_checkpoint(
        tmp_path / "c",
        1,
        model_state=model.state_dict(),
        ema_states={"0.9": model.state_dict()},
        training_state={},
        config=described,
    )
    with pytest.raises(InputError, match=r"checkpoint of another model, .*scm.networks.1"):
        load_model(str(tmp_path / "c"))
    write(tmp_path / "d", dataset={"name": "squares"})
    with pytest.raises(DataError, match="data set: key 'image_size' is missing"):
        load_model(str(tmp_path / "d"))
