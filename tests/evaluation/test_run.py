"""scripts/evaluate.py as a user runs it: every type of model, shards, interruption, the page, and bad input."""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from paths import REPO
from tiny import randomise

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, DiffusionConfig, ModelConfig, TrainConfig
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError
from causaldiffae.evaluation import run as benchmark_run
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.report import page, write_report
from causaldiffae.evaluation.tables import over_seeds, seeds_table, shown, tables
from causaldiffae.generators import morphomnist
from causaldiffae.predictors.predictor import Predictor, save_predictor
from causaldiffae.script_util import MODELS, create_model_and_diffusion, describe_checkpoint, run_cli

FAST = ["--steps=2", "--cycles=2", "--cycle_images=2", "--chunk=2", "--dci_resamples=2"]


class Outcome(NamedTuple):
    """What the script left behind."""

    returncode: int
    stdout: str
    stderr: str


def evaluate(*arguments: object) -> Outcome:
    """Runs the script's main in this process; exit codes as the shell would see them."""
    script = REPO / "scripts" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("evaluate", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            run_cli(module.main, [str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, *words: str) -> None:
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.returncode == 2, outcome.stderr
    assert len(lines) == 1 and "Traceback" not in outcome.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a judge, and a small model of every type."""
    root = tmp_path_factory.mktemp("bench")
    share = REPO / "assets" / "mnist_share"
    morphomnist.write_dataset(share, root / "digits", num_train=30, num_test=6, workers=1, progress=False)
    torch.manual_seed(0)
    save_predictor(root / "judge", Predictor(dataset_spec("morphomnist")), {"observational": {"thickness": 0.5}})
    for kind in MODELS:
        write_model(root / "models" / kind, kind)
    return root


def write_model(folder: Path, kind: str, seed: int = 0, broken: bool = False) -> None:
    """An untrained model folder."""
    model_config = ModelConfig(
        model_type=kind, num_channels=32, num_res_blocks=1, channel_mult="1,1", attention_resolutions="", rep_dim=4,
        encoder_channels="8,8,8", encoder_norm="none", decoder_channels="8,8", label_cond=True,
    )  # fmt: skip
    config = Config(
        model=model_config,
        diffusion=DiffusionConfig(diffusion_steps=50),
        train=TrainConfig(dataset="morphomnist", seed=seed),
    )
    spec = dataset_spec("morphomnist")
    torch.manual_seed(seed)
    model, _ = create_model_and_diffusion(config, spec)
    randomise(model, seed, 0.02)
    state = model.state_dict()
    if broken:
        name = [key for key in state if key.startswith(("unet.out", "network.out")) and key.endswith("bias")][-1]
        state[name] = torch.full_like(state[name], torch.inf)
    export_weights(folder, state, describe_checkpoint(config, spec))


def asked(place: Path, kind: str, out: Path, *more: object) -> Outcome:
    where = ["--data_dir", place / "digits", "--predictor", place / "judge"]
    return evaluate("--model_path", place / "models" / kind, "--out", out, *where, *FAST, *more)


def without_clock(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    del found["timing"]
    return {key: value for key, value in found.items() if key not in ("model", "digest")}


@pytest.mark.parametrize("kind", MODELS)
def test_every_type_of_model_is_evaluated(place: Path, tmp_path: Path, kind: str) -> None:
    outcome = asked(place, kind, tmp_path / "found.json")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["protocol"] == {"name": "causaldiffae benchmark", "version": 2}
    assert found["model"]["type"] == kind and found["data"]["images"] == 6
    assert set(found["results"]["interventions"]) == {"thickness", "intensity"}
    row = found["results"]["interventions"]["thickness"]
    assert set(row["answers"]) == {"model", "truth", "do_nothing", "nearest"}
    assert row["answers"]["truth"]["truth"]["l1"]["mean"] == 0.0
    assert row["answers"]["model"]["truth"]["l1"]["images"] == 6
    assert row["reversibility"]["long"]["images"] == 1, "two images in turn: one for each variable"
    assert row["answers"]["model"]["effectiveness"]["measured"]["intensity"]["mean"] >= 0
    assert set(row["answers"]["model"]["effects"]) == {"intensity"}
    assert set(row["answers"]["model"]["drift"]) == set()
    assert set(found["results"]["interventions"]["intensity"]["answers"]["model"]["drift"]) == {"thickness"}
    assert found["results"]["composition"]["long"]["images"] == 2
    assert "do(thickness)" in outcome.stdout and "the truth (floor)" in outcome.stdout
    assert not (tmp_path / "found.parts").exists() and (tmp_path / "found.pictures.npz").is_file()
    assert "100%" in outcome.stderr, "a progress bar"


def test_two_processes_find_what_one_finds(place: Path, tmp_path: Path) -> None:
    assert asked(place, "causaldae", tmp_path / "one.json").returncode == 0
    two = asked(place, "causaldae", tmp_path / "two.json", "--workers=2")
    assert two.returncode == 0, two.stderr
    assert without_clock(tmp_path / "one.json") == without_clock(tmp_path / "two.json")


def test_it_goes_on_where_it_stopped(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(place, "causaldae", tmp_path / "whole.json").returncode == 0
    real, done = benchmark_run.answer_chunk, []

    def stops(job: benchmark_run.Job, number: int) -> int:
        if number == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return real(job, number)

    monkeypatch.setattr(benchmark_run, "answer_chunk", stops)
    assert asked(place, "causaldae", tmp_path / "found.json").returncode == 130
    parts = tmp_path / "found.parts"
    assert not (tmp_path / "found.json").exists() and len(list(parts.glob("chunk_*.npz"))) == 2
    assert_refused(asked(place, "causaldae", tmp_path / "found.json", "--seed=1"), "found.parts", "other settings"[6:])
    (parts / "chunk_00001.npz").write_bytes(b"cut off")
    done.append(-1)
    assert asked(place, "causaldae", tmp_path / "found.json").returncode == 0
    assert done == [0, 1, -1, 1, 2], "the whole chunk is kept, the damaged one is done again"
    assert without_clock(tmp_path / "found.json") == without_clock(tmp_path / "whole.json")
    monkeypatch.setattr(benchmark_run, "answer_chunk", lambda *_: pytest.fail("it was finished"))
    assert asked(place, "causaldae", tmp_path / "found.json").returncode == 0


def test_a_folder_of_models_one_table_and_a_page(place: Path, tmp_path: Path) -> None:
    models, results = tmp_path / "models", tmp_path / "results"
    write_model(models / "first", "causalvae", 1)
    write_model(models / "second", "causalvae", 2)
    write_model(models / "third", "causalvae", 3)
    (models / "third" / "model.safetensors").write_bytes(b"damaged")
    save_predictor(models / "morphomnist_28_predictor", Predictor(dataset_spec("morphomnist")), {})
    where = ["--data_dir", place, "--predictor", place / "judge", "--out", results, "--report", tmp_path / "page.html"]
    (place / "morphomnist").symlink_to(place / "digits")
    outcome = evaluate("--all", models, *where, *FAST, "--num_images=4")
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(path.name for path in results.glob("*.json")) == ["first.json", "second.json"]
    assert outcome.stderr.count("skipped: ") == 1 and "third" in outcome.stderr
    assert outcome.stdout.count("do(thickness)") >= 2 and "over 2 training seeds (first, second)" in outcome.stdout
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 2 and "<svg" in text
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    for name in ("one", "two"):
        shutil.copytree(models / "third", tmp_path / "bad" / name)
    refused = evaluate("--all", tmp_path / "bad", *where, *FAST, "--num_images=4")
    assert_refused(refused, "none of 2 models can be evaluated")
    again = evaluate("--out", results, "--report", tmp_path / "again.html")
    assert again.returncode == 0 and (tmp_path / "again.html").read_text() == text


def test_variables_may_be_chosen(place: Path, tmp_path: Path) -> None:
    outcome = asked(place, "causalvae", tmp_path / "found.json", "--variables=intensity", "--cycles=1")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert list(found["interventions"]) == ["intensity"]
    assert found["composition"]["long"]["mean"] is None


def test_pixels_that_are_no_numbers_are_told(place: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "broken", "causaldae", broken=True)
    where = ["--data_dir", place / "digits", "--predictor", place / "judge"]
    outcome = evaluate("--model_path", tmp_path / "broken", "--out", tmp_path / "found.json", *where, *FAST)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["broken"]["thickness"] == {"images": 6, "pixels": 6 * 28 * 28}
    figure = found["interventions"]["thickness"]["answers"]["model"]["truth"]["l1"]
    assert figure == {"mean": None, "low": None, "high": None, "images": 0, "left_out": 6}
    assert "6 images under do(thickness) hold 4704 pixels that are NaN or infinite" in outcome.stdout
    assert evaluate("--out", tmp_path, "--report", tmp_path / "page.html").returncode == 0


def test_bad_input_is_one_line(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert_refused(asked(place, "causalvae", out, "--num_images=7"), "num_images: 7 given, the test split has 6")
    assert_refused(asked(place, "causalvae", out, "--variables=colour"), "'colour'", "thickness, intensity")
    assert_refused(asked(place, "causalvae", out, "--solver=euler"), "solver", "dpmpp2m")
    assert_refused(asked(place, "causalvae", out, "--predictor", tmp_path), "no checkpoint")
    assert_refused(asked(place, "causalvae", out, "--inception_weights", tmp_path / "none.pt"), "none.pt is missing")
    assert_refused(asked(place, "causalvae", tmp_path / "found"), "NAME.json")
    assert_refused(asked(place, "causalvae", out, "--workers=0"), "workers: expected 1 or more, got 0")
    assert_refused(evaluate("--out", out), "model_path")
    assert_refused(evaluate("--model_path", "x"), "out: expected")
    assert_refused(evaluate("--out", out, "--model_path", "x"), "data_dir: expected")
    assert_refused(evaluate("--out", tmp_path, "--all", tmp_path, "--data_dir", place), "holds no checkpoints")
    assert_refused(evaluate("--out", tmp_path, "--report", tmp_path / "x.html"), "holds no results")
    assert_refused(evaluate("--out", tmp_path, "--speed=1"), "speed")
    other = tmp_path / "pendulums"
    other.mkdir()
    (other / "recipe.json").write_text('{"dataset": "pendulum"}')
    assert_refused(asked(place, "causalvae", out, "--data_dir", other), "'pendulum'", "trained on 'morphomnist'")
    save_predictor(tmp_path / "judge", Predictor(dataset_spec("pendulum", 32, 3)), {})
    assert_refused(asked(place, "causalvae", out, "--predictor", tmp_path / "judge"), "'pendulum', 'morphomnist'")
    assert not out.exists()


def test_results_of_something_else_are_refused(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert asked(place, "causalvae", out, "--num_images=2").returncode == 0
    found = json.loads(out.read_text())
    assert_refused(asked(place, "causalvae", out, "--num_images=3"), "results of another model, data or settings")
    assert_refused(asked(place, "diffae", out, "--num_images=2"), "results of another model, data or settings")
    for change, word in (
        ({"protocol": {"name": "causaldiffae benchmark", "version": 0}}, "protocol version 0, this is version 2"),
        ({"protocol": {}}, "no results file"),
        ({"results": 3}, "results is 3, a mapping is needed"),
    ):
        out.write_text(json.dumps({**found, **change}))
        assert_refused(asked(place, "causalvae", out, "--num_images=2"), word)
        assert_refused(evaluate("--out", tmp_path, "--report", tmp_path / "x.html"), word)
    out.write_text("{")
    assert_refused(evaluate("--out", tmp_path, "--report", tmp_path / "x.html"), "found.json")


def test_the_page_escapes_what_it_shows(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert asked(place, "causalvae", out, "--num_images=2").returncode == 0
    found = json.loads(out.read_text())
    found["model"]["name"] = "<script>alert(1)</script>"
    text = page([(out, found)])
    assert "<script" not in text and "&lt;script&gt;" in text
    (tmp_path / "found.pictures.npz").write_bytes(b"no pictures")
    with pytest.raises(DataError, match="found.pictures.npz"):
        write_report(tmp_path / "page.html", [(out, found)])


def test_seeds_and_numbers() -> None:
    assert shown(None) == "-" and shown({"mean": 1.23456, "low": 1.0, "high": 2.0}, 2, True) == "1.23 [1.00, 2.00]"
    three = over_seeds([1.0, 2.0, 3.0])
    assert three["mean"] == 2.0 and three["high"] - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert over_seeds([1.0])["seeds"] == 1
    assert tables([]) == "" and seeds_table([]) == ""
    assert ProtocolSettings().seed == 0


def test_every_image_has_its_own_value(place: Path, tmp_path: Path) -> None:
    assert asked(place, "causalvae", tmp_path / "found.json").returncode == 0
    with np.load(tmp_path / "found.pictures.npz") as kept:
        assert len(np.unique(kept["values/thickness"])) == 6
        np.testing.assert_allclose(kept["true_labels/thickness"][:, 0], kept["values/thickness"], rtol=1e-6)
        np.testing.assert_allclose(kept["true_labels/intensity"][:, 0], kept["labels"][:, 0], rtol=1e-6)


def test_other_ways_to_abduct_and_grade_give_other_figures(place: Path, tmp_path: Path) -> None:
    found = {}
    for name, more in {"plain": (), "noise": ("--abduction=noise",), "w": ("--w=0",), "stop": ("--stop=0.5",)}.items():
        outcome = asked(place, "causaldae", tmp_path / f"{name}.json", *more)
        assert outcome.returncode == 0, outcome.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    l1 = {name: one["results"]["composition"]["1"]["mean"] for name, one in found.items()}
    assert len(set(l1.values())) == 4, l1
    again = asked(place, "causaldae", tmp_path / "again.json", "--abduction=noise", "--workers=2")
    assert again.returncode == 0, again.stderr
    assert without_clock(tmp_path / "again.json") == without_clock(tmp_path / "noise.json"), "drawn noise has its seed"
    assert_refused(asked(place, "causaldae", tmp_path / "x.json", "--abduction=magic"), "abduction: 'magic' given")
