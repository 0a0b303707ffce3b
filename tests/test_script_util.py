"""Command line, exit codes, models and diffusion processes from configurations, and loading of checkpoints."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from paths import REPO
from tiny import randomise, small_config, squares_spec
from tiny_models import tiny_model

from causaldiffae.checkpoints.checkpoint import save_checkpoint
from causaldiffae.config import RECIPES, Config, DiffusionConfig
from causaldiffae.counterfactual import AbductionKind
from causaldiffae.datasets.images import KEEP_UNCHANGED
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.diff_scm import DiffScm
from causaldiffae.errors import DataError, InputError
from causaldiffae.gaussian_diffusion import LossType, ModelMeanType, ModelVarType
from causaldiffae.guidance import Guidance
from causaldiffae.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
    create_solver,
    describe_checkpoint,
    load_model,
    parse_config,
    run_cli,
)
from causaldiffae.solvers import CLEANEST, CLEANEST_OF_FOLDERS, ExactDdim, Grid, OdeSolver, Solver

CONFIGS = sorted(path for path in (REPO / "configs").glob("*.yaml") if not path.name.startswith("noised_"))


# ---------------------------------------------------------------------- command line


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_later_values_override_earlier_ones(tmp_path: Path) -> None:
    assert parse_config([]) == Config()
    path = yaml_file(tmp_path, "lr: 0.01\nbatch_size: 4\nchannel_mult: '1,3'\nclass_cond: true\n")
    config = parse_config(["--config", path, "--lr", "0.5"])
    assert (config.train.lr, config.train.batch_size, config.model.channel_mult) == (0.5, 4, "1,3")
    assert config.model.class_cond is True
    assert parse_config(["--lr", "0.5", "--config", path]).train.lr == 0.01
    assert parse_config([f"--config={path}", "--class_cond", "false"]).model.class_cond is False


def test_a_recipe_stands_for_its_flags() -> None:
    values = parse_config(["--lr=1", "--recipe", "reference", "--kl_weight=0.5"]).to_dict()
    flat = {key: value for part in values.values() for key, value in part.items()}
    assert {key: flat[key] for key in RECIPES["reference"]} == RECIPES["reference"] | {"kl_weight": 0.5}
    with pytest.raises(InputError, match="recipe: expected reference, got 'other'"):
        parse_config(["--recipe=other"])


def test_a_recipe_in_a_file_or_under_a_part_of_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("recipe: reference\n")
    for given in (["--config", str(tmp_path / "c.yaml")], ["--rec", "reference"]):
        with pytest.raises(InputError, match="recipe: expected it on the command line, as --recipe reference"):
            parse_config(given)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rate", "1"], "learning_rate"),
        (["--lr", "fast"], "lr"),
        (["--batch_size", "1.5"], "batch_size"),
        (["--class_cond", "perhaps"], "class_cond"),
        (["--lr", ".inf"], "lr: expected a finite number, got inf"),
        (["--ema_rate", "2"], "ema_rate: .* got '2'"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
        (["--lr"], "lr"),
        ("learning_rate: 1\n", "learning_rate"),
        ("lr: fast\n", "lr"),
        ("lr: null\n", "lr: expected a value such as 0.0001, got null"),
        ("lr: .nan\n", "lr: expected a finite number, got nan"),
        ("batch_size: 2.5\n", "batch_size"),
        ("class_cond: 3\n", "class_cond"),
        ("model: {num_channels: 32}\n", "model"),
        ("- lr\n- batch_size\n", "config"),
        ("lr: [1\n", "config"),
    ],
)
def test_refused_flags_and_files(tmp_path: Path, argv: list[str] | str, message: str) -> None:
    arguments = ["--config", yaml_file(tmp_path, argv)] if isinstance(argv, str) else argv
    with pytest.raises(InputError, match=message) as caught:
        parse_config(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_file_builds_its_model(path: Path) -> None:
    config = parse_config(["--config", str(path)])
    train = config.train
    if train.dataset == "folder":  # its spec can only be read from the data
        spec = replace(squares_spec(), image_size=train.image_size, channels=3)
    else:
        spec = dataset_spec(train.dataset, train.image_size or None, train.channels or None)
    with torch.device("meta"):  # shapes only: the published sizes take no memory
        model, diffusion = create_model_and_diffusion(config, spec)
    if isinstance(model, DiffScm):
        assert model.has_labels is config.model.label_cond and model.network.in_channels == spec.channels
    else:
        assert model.unet.cond_dim == len(spec.graph) * config.model.block_size_for(len(spec.graph))
    assert diffusion.num_timesteps == config.diffusion.diffusion_steps
    assert len(model.scm.graph) == len(spec.graph)


@pytest.fixture(autouse=True)
def _restored_warnings() -> Iterator[None]:
    before = warnings.showwarning
    yield
    warnings.showwarning = before


def exit_code(main: Callable[[list[str]], None]) -> int:
    try:
        run_cli(main, [])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def main(argv: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("lr: no\n  good"), 2, "error: lr: no good\n"),
        (DataError("a.csv: empty"), 2, "error: a.csv: empty\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str) -> None:
    assert exit_code(raising(error)) == code
    assert capsys.readouterr().err == message


def test_bugs_keep_their_traceback() -> None:
    assert exit_code(lambda argv: None) == 0
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


def test_a_closed_pipe_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    redirected: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda source, target: redirected.append(target))
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115, PTH123
    assert exit_code(raising(BrokenPipeError())) == 141
    assert redirected == [sys.stdout.fileno()]


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        warnings.showwarning(UserWarning("do: far out"), UserWarning, "file", 1)
        warnings.showwarning(DeprecationWarning("old"), DeprecationWarning, "file", 1)

    exit_code(main)
    assert capsys.readouterr().err == "warning: do: far out\n"


# ---------------------------------------------------------------------- diffusion process and model


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({}, "model_mean_type", ModelMeanType.EPSILON),
        ({"predict_xstart": True}, "model_mean_type", ModelMeanType.START_X),
        ({"predict_v": True}, "model_mean_type", ModelMeanType.VELOCITY),
        ({}, "model_var_type", ModelVarType.FIXED_LARGE),
        ({"sigma_small": True}, "model_var_type", ModelVarType.FIXED_SMALL),
        ({"learn_sigma": True}, "model_var_type", ModelVarType.LEARNED_RANGE),
        ({}, "loss_type", LossType.MSE),
        ({"use_kl": True}, "loss_type", LossType.RESCALED_KL),
        ({"rescale_learned_sigmas": True}, "loss_type", LossType.RESCALED_MSE),
        ({"rescale_timesteps": True}, "rescale_timesteps", True),
    ],
)
def test_options_of_the_diffusion_process(changes: dict[str, bool], attribute: str, value: Any) -> None:
    assert getattr(create_gaussian_diffusion(small_config(**changes).diffusion), attribute) == value


def test_respacing() -> None:
    config = small_config().diffusion
    assert [create_gaussian_diffusion(config, text).num_timesteps for text in ("", "25", "ddim20")] == [100, 25, 20]
    assert create_gaussian_diffusion(config, "ddim20").timestep_map[1] == 5
    with pytest.raises(InputError, match="timestep_respacing: .*101"):
        create_gaussian_diffusion(config, "101")


def test_contradictory_options_are_refused() -> None:
    with pytest.raises(InputError, match="predict_xstart, predict_v: expected at most one of them"):
        create_gaussian_diffusion(small_config(predict_v=True, predict_xstart=True).diffusion)
    with pytest.raises(InputError, match="class_cond: expected a data set with classes, got squares"):
        create_model_and_diffusion(small_config(class_cond=True), squares_spec())


# ---------------------------------------------------------------------- loading


def save(folder: Path, **described: object) -> dict[str, torch.Tensor]:
    """Saves a random model, whose moving average is larger by 1, and returns its state."""
    model, _ = create_model_and_diffusion(small_config(), squares_spec())
    state = randomise(model).state_dict()
    save_checkpoint(
        folder,
        7,
        model_state=state,
        ema_states={"0.9": {key: value + 1 for key, value in state.items()}},
        training_state={"step": 7},
        config=describe_checkpoint(small_config(), squares_spec()) | described,
        keep_last=2,
    )
    return state


def test_load_model_takes_the_names_of_shipped_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model("circuit-mini").path == load_model("circuit_causaldae_mini").path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circuit-mini").mkdir()
    with pytest.raises(InputError, match="circuit-mini: "):
        load_model("circuit-mini")  # a folder of this name is preferred


def test_load_model_uses_the_moving_average(tmp_path: Path) -> None:
    state = save(tmp_path)
    loaded = load_model(str(tmp_path))
    assert (loaded.step, loaded.config, loaded.spec) == (7, small_config(), squares_spec())
    assert not loaded.model.training
    assert all(torch.equal(value, state[key] + 1) for key, value in loaded.model.state_dict().items())
    plain = load_model(str(tmp_path), ema="none").model.state_dict()
    assert all(torch.equal(plain[key], state[key]) for key in state)
    assert loaded.diffusion("10").num_timesteps == 10
    with pytest.raises(DataError, match=r"0\.5"):
        load_model(str(tmp_path), ema="0.5")


@pytest.mark.parametrize(
    ("described", "error", "message"),
    [
        ({"model_type": "vae"}, DataError, "expected a model of type causaldae, diffscm, cond.*, got 'vae'"),
        ({"config": small_config(mechanism_width=8).to_dict()}, InputError, r"scm.networks.1"),
        ({"dataset": {"name": "squares"}}, DataError, "image_size"),
    ],
)
def test_inconsistent_checkpoints_are_refused(
    tmp_path: Path, described: dict[str, Any], error: type[InputError], message: str
) -> None:
    save(tmp_path, **described)
    with pytest.raises(error, match=message):
        load_model(str(tmp_path))


def test_missing_checkpoints_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            load_model(str(path))


def test_solvers_by_name_and_that_of_a_distilled_model() -> None:
    config = DiffusionConfig(predict_v=True)
    default = create_solver(config)
    assert isinstance(default, ExactDdim) and (default.steps, default.grid) == (8, Grid.LOGSNR)
    assert create_solver(config, grid="rho").grid is Grid.RHO  # type: ignore[union-attr]
    second = create_solver(config, "dpmpp2m", 7)
    assert not isinstance(second, ExactDdim) and (second.kind, second.steps) == (Solver.DPMPP2M, 7)  # type: ignore[union-attr]
    for name in ("exact_ddim", "few_step"):
        few = create_solver(DiffusionConfig(predict_v=True, few_steps=3), name, 25)
        assert isinstance(few, ExactDdim) and (few.steps, few.kind, few.cleanest) == (3, Solver.DDIM, CLEANEST)
        later = create_solver(DiffusionConfig(predict_v=True, few_steps=3, few_step_start=0.5), name)
        assert isinstance(later, ExactDdim) and later.cleanest == 0.5


def test_pixels_that_hardly_change_are_kept_by_default_but_for_diff_scm() -> None:
    for name, expected in (("pendulum_causaldae_mini", KEEP_UNCHANGED), ("mnist_diffscm_mini", 0.0)):
        loaded = load_model(str(REPO / "weights" / name))
        assert loaded.engine().keep_fraction == expected and KEEP_UNCHANGED > 0
        assert loaded.engine(keep_unchanged=0.0).keep_fraction == 0.0
        assert loaded.engine(keep_unchanged=0.3).keep_fraction == 0.3


def test_a_diff_scm_is_guided_by_its_scale_by_default() -> None:
    path = str(REPO / "weights" / "mnist_diffscm_mini")
    for predictor, scale in (("", 4.5), ("none", 1.5)):
        loaded = load_model(path, predictor=predictor)
        assert loaded.engine().guidance.w == scale
        assert loaded.engine(guidance=Guidance(2.0)).guidance.w == 2.0
    assert load_model("pendulum-mini").engine().guidance == Guidance()
    assert load_model("morphomnist_causaldae_mini_4step").engine().guidance == Guidance(w_class=1.0)


def test_images_of_a_folder_are_encoded_from_a_cleaner_level() -> None:
    loaded = load_model(str(REPO / "weights" / "pendulum_causaldae_mini"))
    own = replace(loaded, spec=replace(loaded.spec, name="folder"))
    student = replace(own.config, diffusion=replace(own.config.diffusion, few_steps=4, few_step_start=1.0))
    cases = ((loaded, CLEANEST), (own, CLEANEST_OF_FOLDERS), (replace(own, config=student), 1.0))
    for opened, expected in (*cases, (replace(own, codec=cast(Any, object())), CLEANEST)):
        solver = opened.engine(label_corrections=0).solver
        assert isinstance(solver, ExactDdim) and solver.cleanest == expected
    assert isinstance(own.engine(solver="dpmpp2m").solver, OdeSolver)


def test_effects_that_their_causes_determine_keep_them_by_default() -> None:
    loaded = load_model(str(REPO / "weights" / "pendulum_causaldae_mini"))
    shadows = {"shadow_length", "shadow_position"}
    assert loaded.engine().keep_causes == shadows
    assert loaded.engine(keep_causes=False).keep_causes == set()
    assert loaded.engine(keep_causes=True).keep_causes == {"angle", "light"} | shadows
    for kind in (AbductionKind.NOISE, AbductionKind.NONE):
        assert loaded.engine(abduction=kind).keep_causes == set()
    untrained = replace(loaded.config, loss=replace(loaded.config.loss, block_drop_prob=0.0))
    distilled = replace(loaded.config, diffusion=replace(loaded.config.diffusion, few_steps=4))
    for config in (untrained, distilled):
        assert replace(loaded, config=config).engine().keep_causes == set()
    for name in ("circuit", "morphomnist"):  # effects with noise of their own
        assert load_model(str(REPO / "weights" / f"{name}_causaldae_mini")).engine().keep_causes == set()


def test_the_engine_corrects_labels_where_a_predictor_is_found() -> None:
    loaded = load_model(str(REPO / "weights" / "morphomnist_causaldae_mini"))
    correction = loaded.engine().correction
    assert correction is not None and correction.count == 2 and not correction.predictor.training
    assert loaded.engine(label_corrections=5).correction.count == 5  # type: ignore[union-attr]
    for none in ({"label_corrections": 0}, {"correction_predictor": "none"}):
        assert loaded.engine(**none).correction is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match="label_corrections: expected 0 or more, got -1"):
        loaded.engine(label_corrections=-1)
    with pytest.raises(InputError, match="name"):
        loaded.engine(correction_predictor=str(REPO / "weights" / "pendulum_32_predictor"))
    colour = replace(loaded, spec=replace(loaded.spec, channels=3))
    assert colour.engine().correction is None  # the shipped predictor is for grey images


def test_latents_that_are_not_those_of_the_labels_are_not_corrected(tmp_path: Path) -> None:
    loaded = tiny_model(model_type="diffae", aligned=False)
    assert loaded.engine().correction is None
    with pytest.raises(InputError, match="correction_predictor: expected a model whose latents are those of the"):
        loaded.engine(correction_predictor=str(tmp_path))


def test_a_distilled_model_is_not_guided() -> None:
    loaded = load_model(str(REPO / "weights" / "morphomnist_causaldae_mini_4step"))
    assert loaded.engine().guidance == loaded.engine(guidance=Guidance(w_class=2.0)).guidance == Guidance(w_class=1.0)
    with pytest.raises(InputError, match="w: expected 1 for a distilled model"):
        loaded.engine(guidance=Guidance(2.0))


def test_guidance_needs_a_null_token_that_was_trained() -> None:
    loaded = tiny_model(learned_null=True)
    unet = cast(Any, loaded.model).unet
    trained = unet.null_emb.detach().clone()
    unet.null_emb.data.zero_()  # as in training with drop_prob 0, where every image has its latents
    for unguided in (Guidance(), Guidance(w_class=3.0, low=0.5)):
        assert loaded.engine(guidance=unguided).guidance == unguided
    for guidance in (Guidance(2.0), Guidance(0.0), Guidance(w_affected=1.5), Guidance(w_invariant=0.5)):
        with pytest.raises(InputError, match="w: expected 1 for a model whose null token was not trained"):
            loaded.engine(guidance=guidance)
    unet.null_emb.data.copy_(trained)
    assert loaded.engine(guidance=Guidance(2.0)).guidance == Guidance(2.0)
    assert tiny_model().engine(guidance=Guidance(2.0)).guidance == Guidance(2.0), "z = 0 is the published null token"


def test_guidance_by_groups_and_keep_causes_need_null_blocks_that_were_trained() -> None:
    loaded = tiny_model(block_null=True, drop_prob=0.1)
    for options, got in (
        ({"guidance": Guidance(w_affected=1.5)}, "1.5 and 1, False"),
        ({"guidance": Guidance(2.0, w_invariant=1.0)}, "2 and 1, False"),
        ({"keep_causes": True}, "1 and 1, True"),
    ):
        with pytest.raises(InputError, match=rf"keep_causes: expected .* trained with block_drop_prob 0, got {got}$"):
            loaded.engine(**options)  # type: ignore[arg-type]
    for guidance in (Guidance(2.0), Guidance(w_affected=2.0, w_invariant=2.0)):
        assert loaded.engine(guidance=guidance).guidance == guidance
    trained = tiny_model(block_null=True, drop_prob=0.1, block_drop_prob=0.1)
    assert trained.engine(guidance=Guidance(w_affected=1.5), keep_causes=True).keep_causes == {"size", "grey"}
