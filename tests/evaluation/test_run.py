"""scripts/evaluate.py from end to end: every model type, processes, resuming, tables, the report, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits import write_digits
from paths import REPO
from running import Outcome, assert_refused, run
from tiny import randomise

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, DiffusionConfig, ModelConfig, TrainConfig
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError
from causaldiffae.evaluation import run as evaluation_run
from causaldiffae.evaluation.report import write_report
from causaldiffae.evaluation.run import Job, run_chunk
from causaldiffae.evaluation.tables import over_seeds, seed_groups, seeds_table, shown, tables
from causaldiffae.predictors.predictor import Predictor, save_predictor
from causaldiffae.script_util import MODELS, create_model_and_diffusion, describe_checkpoint

SCRIPT = REPO / "scripts" / "evaluate.py"
FAST = ["--steps=2", "--cycles=2", "--cycle_images=2", "--chunk=2", "--dci_resamples=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a predictor, and a small model of every type."""
    root = tmp_path_factory.mktemp("evaluation")
    write_digits(root)
    for kind in MODELS:
        write_model(root / "models" / kind, kind)
    return root


def write_model(folder: Path, kind: str, seed: int = 0, broken: bool = False) -> None:
    """Writes the model folder of an untrained model; a broken one overflows."""
    network = ModelConfig(
        model_type=kind, num_channels=32, num_res_blocks=1, channel_mult="1,1", attention_resolutions="", rep_dim=4,
        encoder_channels="8,8,8", encoder_norm="none", decoder_channels="8,8", label_cond=True,
    )  # fmt: skip
    train, spec = TrainConfig(dataset="morphomnist", seed=seed), dataset_spec("morphomnist")
    config = Config(model=network, diffusion=DiffusionConfig(diffusion_steps=50), train=train)
    torch.manual_seed(seed)
    model, _ = create_model_and_diffusion(config, spec)
    state = randomise(model, seed, 0.02).state_dict()
    if broken:
        name = [key for key in state if key.startswith(("unet.out", "network.out")) and key.endswith("bias")][-1]
        state[name] = torch.full_like(state[name], torch.finfo(torch.float32).max)
    export_weights(folder, state, describe_checkpoint(config, spec))


def evaluate(root: Path, model: str | Path, out: Path, *more: object) -> Outcome:
    """Runs the script on a model of the fixture or a folder."""
    path = root / "models" / model
    data = ["--data_dir", root, "--predictor", root / "predictor"]
    return run(SCRIPT, "--model_path", path, "--out", out, *data, *FAST, *more)


def results(root: Path, model: str | Path, out: Path, *more: object) -> dict[str, Any]:
    outcome = evaluate(root, model, out, *more)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(out.read_text())


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key not in ("model", "digest", "timing")}


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_type_is_evaluated(root: Path, tmp_path: Path, kind: str) -> None:
    outcome = evaluate(root, kind, tmp_path / "found.json")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["protocol"] == {"name": "causaldiffae benchmark", "version": 3}
    assert found["model"]["type"] == kind and found["data"]["images"] == 6
    thickness, intensity = (found["results"]["interventions"][name] for name in ("thickness", "intensity"))
    assert set(thickness["answers"]) == {"model", "truth", "do_nothing", "nearest"}
    assert thickness["answers"]["truth"]["truth"]["l1"]["mean"] == 0.0
    assert thickness["answers"]["model"]["truth"]["l1"]["images"] == 6
    assert thickness["reversibility"]["long"]["images"] == 1, "one image per variable"
    assert thickness["answers"]["model"]["effectiveness"]["measured"]["intensity"]["mean"] >= 0
    assert set(thickness["answers"]["model"]["effects"]) == {"intensity"}
    assert not thickness["answers"]["model"]["drift"] and set(intensity["answers"]["model"]["drift"]) == {"thickness"}
    assert found["results"]["composition"]["long"]["images"] == 2
    assert "do(thickness)" in outcome.stdout and "true image (floor)" in outcome.stdout
    assert not (tmp_path / "found.parts").exists()
    assert "100%" in outcome.stderr, "progress bar"
    with np.load(tmp_path / "found.pictures.npz") as images:
        assert len(np.unique(images["values/thickness"])) == 6, "every image has its own value"
        np.testing.assert_allclose(images["true_labels/thickness"][:, 0], images["values/thickness"], rtol=1e-6)
        np.testing.assert_allclose(images["true_labels/intensity"][:, 0], images["labels"][:, 0], rtol=1e-6)


def test_figures_do_not_depend_on_the_number_of_processes(root: Path, tmp_path: Path) -> None:
    one, two = (
        results(root, "causaldae", tmp_path / f"{n}.json", "--abduction=noise", f"--workers={n}") for n in (1, 2)
    )
    assert comparable(one) == comparable(two)


def test_an_interrupted_evaluation_resumes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out, done = results(root, "causaldae", tmp_path / "whole.json"), tmp_path / "found.json", []

    def interrupted(job: Job, number: int) -> dict[str, np.ndarray]:
        if number == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return run_chunk(job, number)

    monkeypatch.setattr(evaluation_run, "run_chunk", interrupted)
    assert evaluate(root, "causaldae", out).returncode == 130
    parts = tmp_path / "found.parts"
    assert not out.exists() and len(list(parts.glob("chunk_*.npz"))) == 2
    assert_refused(evaluate(root, "causaldae", out, "--seed=1"), "found.parts: expected parts of this model")
    (parts / "chunk_00001.npz").write_bytes(b"cut off")
    done.append(-1)
    assert comparable(results(root, "causaldae", out)) == comparable(whole)
    assert done == [0, 1, -1, 1, 2], "the finished chunk is kept, the damaged one is computed again"
    monkeypatch.setattr(evaluation_run, "run_chunk", lambda *_: pytest.fail("nothing is left to compute"))
    assert comparable(results(root, "causaldae", out)) == comparable(whole)


def test_a_folder_of_models_gives_one_table_and_report(root: Path, tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "results"
    for name, seed in (("first", 1), ("second", 2), ("third", 3)):
        write_model(models / name, "causalvae", seed)
    (models / "third" / "model.safetensors").write_bytes(b"damaged")
    save_predictor(models / "morphomnist_28_predictor", Predictor(dataset_spec("morphomnist")), {})
    data = ["--data_dir", root, "--predictor", root / "predictor", "--out", out, "--report", tmp_path / "page.html"]
    outcome = run(SCRIPT, "--all", models, *data, *FAST, "--num_images=4")
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(path.name for path in out.glob("*.json")) == ["first.json", "second.json"]
    assert outcome.stderr.count("skipped: ") == 1 and "third" in outcome.stderr
    assert outcome.stdout.count("do(thickness)") >= 2 and "over 2 training seeds (first, second)" in outcome.stdout
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 2 and "<svg" in text
    assert "http" not in text and "<script" not in text
    for name in ("one", "two"):
        shutil.copytree(models / "third", tmp_path / "bad" / name)
    refused = run(SCRIPT, "--all", tmp_path / "bad", *data, *FAST, "--num_images=4")
    assert_refused(refused, "expected a model that can be evaluated, got none of 2")
    again = run(SCRIPT, "--out", out, "--report", tmp_path / "again.html")
    assert again.returncode == 0 and (tmp_path / "again.html").read_text() == text


def test_variables_can_be_chosen(root: Path, tmp_path: Path) -> None:
    found = results(root, "causalvae", tmp_path / "found.json", "--variables=intensity", "--cycles=1")["results"]
    assert list(found["interventions"]) == ["intensity"]
    assert found["composition"]["long"]["mean"] is None


def test_non_finite_pixels_are_reported(root: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "broken", "causaldae", broken=True)
    outcome = evaluate(root, tmp_path / "broken", tmp_path / "found.json")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["broken"]["thickness"] == {"images": 6, "pixels": 6 * 28 * 28}
    figure = found["interventions"]["thickness"]["answers"]["model"]["truth"]["l1"]
    assert figure == {"mean": None, "low": None, "high": None, "images": 0, "left_out": 6}
    assert "6 images under do(thickness) with 4704 non-finite pixels" in outcome.stdout
    assert "- : not available" in outcome.stdout
    assert run(SCRIPT, "--out", tmp_path, "--report", tmp_path / "page.html").returncode == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_images=7",), ("num_images: expected at most 6",)),
        (("--variables=colour",), ("'colour'", "thickness, intensity")),
        (("--solver=euler",), ("solver", "euler", "dpmpp2m")),
        (("--abduction=magic",), ("abduction: expected one of ddim, noise, none, got 'magic'",)),
        (("--predictor=/nowhere",), ("/nowhere",)),
        (("--inception_weights=none.pt",), ("inception_weights: expected", "none.pt")),
        ((f"--inception_weights={SCRIPT}",), ("expected inception-2015-12-05.pt", "--trust_inception")),
        (("--out=found",), ("NAME.json",)),
        (("--workers=0",), ("workers: expected 1 or more, got 0",)),
        (("--data_dir=/nowhere",), ("data_dir", "/nowhere")),
        (("--speed=1",), ("speed",)),
    ],
)
def test_invalid_flags_are_refused(root: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(evaluate(root, "causalvae", tmp_path / "found.json", *flags), *words)
    assert not list(tmp_path.iterdir())


def test_incomplete_requests_and_foreign_data_are_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    for flags, words in (
        (["--out", out], "model_path: expected"),
        (["--model_path", "x"], "out: expected"),
        (["--out", out, "--model_path", "x"], "data_dir: expected"),
        (["--out", tmp_path, "--all", tmp_path, "--data_dir", root], "all: expected checkpoints"),
        (["--out", tmp_path, "--report", tmp_path / "x.html"], "report"),
    ):
        assert_refused(run(SCRIPT, *flags), words)
    other = tmp_path / "pendulums"
    other.mkdir()
    (other / "recipe.json").write_text('{"dataset": "pendulum"}')
    refused = evaluate(root, "causalvae", out, "--data_dir", other)
    assert_refused(refused, "data_dir: expected data set 'morphomnist' of the model, got 'pendulum'")
    save_predictor(tmp_path / "other", Predictor(dataset_spec("pendulum", 32, 3)), {})
    refused = evaluate(root, "causalvae", out, "--predictor", tmp_path / "other")
    assert_refused(refused, "predictor", "'pendulum'", "'morphomnist'")
    assert not out.exists()


def test_results_of_another_evaluation_are_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    found = results(root, "causalvae", out, "--num_images=2")
    for model, images in (("causalvae", 3), ("diffae", 2)):
        refused = evaluate(root, model, out, f"--num_images={images}")
        assert_refused(refused, "expected results of this model, data and settings, got others")
    for change, words in (
        ({"protocol": {"name": "causaldiffae benchmark", "version": 0}}, "expected protocol version 3, got 0"),
        ({"protocol": {}}, "expected a results file"),
        ({"results": 3}, "results: expected a mapping, got 3"),
    ):
        out.write_text(json.dumps({**found, **change}))
        assert_refused(evaluate(root, "causalvae", out, "--num_images=2"), words)
        assert_refused(run(SCRIPT, "--out", tmp_path, "--report", tmp_path / "x.html"), words)
    out.write_text("{")
    assert_refused(run(SCRIPT, "--out", tmp_path, "--report", tmp_path / "x.html"), "found.json")


def test_the_report_escapes_untrusted_results(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    found = results(root, "causalvae", out, "--num_images=2")
    found["model"]["name"] = "<script>alert(1)</script>"
    text = write_report(tmp_path / "page.html", [(out, found)]).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "response to interventions, " in text
    (tmp_path / "found.pictures.npz").write_bytes(b"no images")
    with pytest.raises(DataError, match="found.pictures.npz"):
        write_report(tmp_path / "page.html", [(out, found)])


def test_tables() -> None:
    assert shown(None) == "-" and shown({"mean": 1.23456, "low": 1.0, "high": 2.0}, 2, True) == "1.23 [1.00, 2.00]"
    three = over_seeds([1.0, 2.0, 3.0])
    assert three["mean"] == 2.0 and three["high"] - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert over_seeds([1.0]) == {"mean": 1.0, "low": None, "high": None, "seeds": 1}
    assert tables([]) == "" and seeds_table([]) == ""


def test_seeds_are_grouped_by_recipe_step_guide_and_settings() -> None:
    def file(seed: int, **changes: object) -> dict[str, Any]:
        model = {"recipe": "r", "seed": seed, "step": 5, "parameters": 7, "name": f"{seed}{changes}", **changes}
        return {"model": model, "settings": {"w": changes.pop("w", 1.0)}}

    def sizes(*files: dict[str, Any]) -> list[int]:
        return sorted(len(group) for group in seed_groups(files))

    assert sizes(file(0), file(1)) == [2] and sizes(file(0), file(0)) == []
    for changes in ({"w": 0.5}, {"step": 6}, {"parameters": 9}, {"recipe": "s"}):
        assert sizes(file(0), file(1, **changes)) == []
        assert sizes(file(0), file(1), file(0, **changes), file(1, **changes)) == [2, 2]


def test_abduction_guidance_and_stop_change_the_figures(root: Path, tmp_path: Path) -> None:
    l1 = set()
    for i, flags in enumerate([(), ("--abduction=noise",), ("--w=0",), ("--stop=0.5",), ("--use_labels=True",)]):
        found = results(root, "causaldae", tmp_path / f"{i}.json", *flags)
        l1.add(found["results"]["interventions"]["thickness"]["answers"]["model"]["truth"]["l1"]["mean"])
        assert ("use_labels" in found["settings"]) == ("--use_labels=True" in flags), "earlier digests stay valid"
    assert len(l1) == 5


def test_the_predictor_of_label_corrections_is_part_of_the_digest(root: Path, tmp_path: Path) -> None:
    found = {
        name: results(root, "causaldae", tmp_path / f"{name}.json", "--num_images=2", *flags)
        for name, flags in {
            "shipped": (),
            "none": ("--label_corrections", 0),
            "given": ("--correction_predictor", root / "predictor"),
        }.items()
    }
    used = {name: each["settings"]["correction_predictor"] for name, each in found.items()}
    assert used["none"] == "none" and used["given"] == found["given"]["predictor"]["digest"] != used["shipped"]
    assert len({each["asked"] for each in found.values()}) == 3
    same = evaluate(
        root, "causaldae", tmp_path / "again.json", "--num_images=2", "--correction_predictor", root / "predictor"
    )
    assert "also corrects the labels that it reads" in same.stderr
    assert "also corrects" not in evaluate(root, "causaldae", tmp_path / "other.json", "--num_images=2").stderr


def test_the_threshold_of_kept_pixels_is_recorded_and_used(root: Path, tmp_path: Path) -> None:
    found = {
        flags: results(root, "causaldae", tmp_path / f"{i}.json", "--num_images=2", "--label_corrections=0", *flags)
        for i, flags in enumerate([(), ("--keep_unchanged=0.1",), ("--keep_unchanged=1",)])
    }
    default, same, other = found.values()
    assert default["settings"]["keep_unchanged"] == 0.1 and default["digest"] == same["digest"] != other["digest"]
    first, second = (
        each["results"]["interventions"]["thickness"]["answers"]["model"]["truth"]["l1"]["mean"]
        for each in (default, other)
    )
    assert first != second
