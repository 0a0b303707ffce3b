"""Questions as files and answers as images: export, refusals, and the same figures as a model's."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import write_digits
from folders import make_folder
from paths import REPO
from PIL import Image
from running import assert_refused, run

from causaldiffae.datasets.registry import dataset_spec, true_counterfactual
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.protocol import ProtocolSettings, Task
from causaldiffae.evaluation.questions import (
    answers_of,
    export_questions,
    open_task,
    questions_of,
    read_answers,
    read_questions,
    score,
    score_answers,
    spec_and_predictor,
)
from causaldiffae.evaluation.report import image_grid, read_images
from causaldiffae.evaluation.run import images_file, read_results
from causaldiffae.predictors import predictor

SCRIPT = REPO / "scripts" / "evaluate.py"
SETTINGS = ProtocolSettings(num_images=4, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("questions")
    write_digits(root)
    export_questions(root / "asked", task_of(root), SETTINGS)
    return root


def task_of(root: Path) -> Task:
    return open_task(dataset_spec("morphomnist"), str(root / "morphomnist"), SETTINGS)


@pytest.fixture
def asked(root: Path, tmp_path: Path) -> Path:
    """Exported questions, answered with the factual images."""
    folder = Path(shutil.copytree(root / "asked", tmp_path / "asked"))
    for row in rows(folder / "questions.csv"):
        shutil.copy2(folder / row["file"], folder / row["answer"])
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(nested: Any, path: str = "") -> dict[str, float]:
    """The numbers of nested mappings by path; readings depend on memory layout in the last digits."""
    if isinstance(nested, Mapping):
        return {k: v for key, each in nested.items() for k, v in numbers(each, f"{path}/{key}").items()}
    return {path: nested} if isinstance(nested, int | float) else {}


def nothing(images: np.ndarray, labels: np.ndarray, do: Mapping[str, np.ndarray]) -> np.ndarray:
    return images


def test_questions_are_those_of_the_protocol(root: Path) -> None:
    task = task_of(root)
    labels, questions = rows(root / "asked" / "labels.csv"), rows(root / "asked" / "questions.csv")
    assert [int(row["index"]) for row in labels] == task.indices.tolist()
    assert list(labels[0]) == ["file", "index", "thickness", "intensity", "digit"]
    assert task.data.classes is not None
    for row, label, image, digit in zip(labels, task.labels, task.data.images, task.data.classes, strict=True):
        assert (float(row["thickness"]), float(row["intensity"])) == tuple(map(float, label))
        assert int(row["digit"]) == digit
        np.testing.assert_array_equal(np.asarray(Image.open(root / "asked" / row["file"])), image[0])
    assert len(questions) == 3 * 4 and len({row["answer"] for row in questions}) == 12
    for name in ("thickness", "intensity"):
        values = [float(row["value"]) for row in questions if row["variable"] == name]
        np.testing.assert_array_equal(values, task.values[name], "all digits are written")
    assert [row["value"] for row in questions if not row["variable"]] == [""] * 4
    again, settings = read_questions(root / "asked", str(root))
    assert settings == SETTINGS and [q.answer for q in questions_of(again)] == [q.answer for q in questions_of(task)]


def test_the_factual_image_as_answer_scores_as_doing_nothing(root: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "nothing.json"
    outcome = run(SCRIPT, "--answers", asked, "--data_dir", root, "--predictor", root / "predictor", "--out", out)
    assert outcome.returncode == 0, outcome.stderr
    assert "nothing" in outcome.stdout
    found = read_results(out)
    for row in found["results"]["interventions"].values():
        model, reference = row["answers"]["model"], row["answers"]["do_nothing"]
        assert model["effectiveness"].pop("own_labels")["thickness"]["mean"] is None, "only a model can tell"
        assert numbers(model) == pytest.approx(numbers(reference), rel=1e-5, abs=1e-5)
        assert row["reversibility"]["1"]["mean"] is None
    assert found["results"]["composition"]["1"]["mean"] == 0.0
    by_function = score(
        nothing, "morphomnist", root / "morphomnist", SETTINGS, name="nothing", predictor=str(root / "predictor")
    )
    assert by_function["digest"] == found["digest"], "the same answers"
    assert by_function["results"]["composition"] == found["results"]["composition"]


def test_the_true_image_as_answer_scores_as_the_truth(root: Path) -> None:
    task = task_of(root)

    def truth(images: np.ndarray, labels: np.ndarray, do: Mapping[str, np.ndarray]) -> np.ndarray:
        part = task.data.subset(
            [int(np.flatnonzero((task.data.images == image).all((1, 2, 3)))[0]) for image in images]
        )
        return true_counterfactual(part, task.data.spec.check_do(dict(do), len(images)))[1] if do else images

    answers = answers_of(truth, task, chunk=3)
    found = score_answers(answers, task, SETTINGS, str(root), predictor=str(root / "predictor"))
    for row in found["results"]["interventions"].values():
        assert row["answers"]["model"]["truth"]["l1"]["mean"] == 0.0
        assert row["answers"]["do_nothing"]["truth"]["l1"]["mean"] > 1


def test_reconstructions_are_optional(root: Path, asked: Path) -> None:
    shutil.rmtree(asked / "answers" / "reconstruction")
    task = task_of(root)
    answers = read_answers(asked, task)
    assert set(answers) == {"thickness", "intensity"}
    out = root / "without.json"
    found = score_answers(answers, task, SETTINGS, str(root), predictor=str(root / "predictor"), out=out)
    assert found["results"]["composition"]["1"]["mean"] is None
    arrays = read_images(images_file(out))
    assert arrays is not None and "reconstruction" not in arrays
    with_another_column = image_grid({**arrays, "reconstruction": arrays["factual"]}, found)
    assert image_grid(arrays, found).shape[1] < with_another_column.shape[1]


def test_inception_weights_are_those_of_the_answers_too(root: Path, asked: Path) -> None:
    outcome = run(
        SCRIPT, "--answers", asked, "--data_dir", root, "--predictor", root / "predictor",
        "--out", root / "inception.json", "--inception_weights", root / "none.pt",
    )  # fmt: skip
    assert_refused(outcome, "inception_weights: expected a TorchScript file", "none.pt")


def test_results_of_other_answers_are_not_overwritten(root: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "r.json", {"predictor": str(root / "predictor"), "out": tmp_path / "r.json"}
    first = score(nothing, "morphomnist", root / "morphomnist", SETTINGS, **options)  # type: ignore[arg-type]
    assert score(nothing, "morphomnist", root / "morphomnist", SETTINGS, **options) == json.loads(out.read_text())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected results of this model, data and settings, got others"):
        score(lambda x, labels, do: 255 - x, "morphomnist", root / "morphomnist", SETTINGS, **options)  # type: ignore[arg-type]
    assert json.loads(out.read_text())["digest"] == first["digest"]


def test_faulty_answers_are_refused(root: Path, asked: Path) -> None:
    task, last = task_of(root), rows(asked / "questions.csv")[-1]["answer"]
    Image.new("L", (32, 28)).save(asked / last)
    with pytest.raises(DataError, match=f"{last}: expected 28 x 28 pixels, got 32 x 28"):
        read_answers(asked, task)
    (asked / last).write_bytes(b"no image")
    with pytest.raises(DataError, match=last):
        read_answers(asked, task)
    (asked / last).unlink()
    with pytest.raises(DataError, match=last):
        read_answers(asked, task)
    for wrong in (lambda x, labels, do: x / 255.0, lambda x, labels, do: x[:, 0]):
        with pytest.raises(InputError, match=r"answer: expected uint8 images of shape \(4, 1, 28, 28\), got"):
            answers_of(wrong, task)


def test_faulty_questions_are_refused(root: Path, asked: Path, tmp_path: Path) -> None:
    described = json.loads((asked / "questions.json").read_text())
    for change, message in (
        ({"format": "x"}, "expected questions of evaluate.py --export_questions"),
        ({"protocol": {"name": "x"}}, "expected version"),
        ({"settings": {"stride": 3}}, "settings: expected the keys"),
        ({"settings": described["settings"] | {"num_images": "4"}}, "num_images: expected a value such as 0, got '4'"),
        ({"settings": described["settings"] | {"variables": 5}}, "variables: expected a value such as"),
        ({"settings": described["settings"] | {"variables": [["x"]]}}, "variables: "),
        ({"settings": described["settings"] | {"seed": -1}}, "settings: seed: expected 0 or more, got -1"),
        ({"settings": described["settings"] | {"num_images": 10**9}}, "num_images: expected at most 6"),
    ):
        (asked / "questions.json").write_text(json.dumps(described | change))
        with pytest.raises(InputError, match=message):
            read_questions(asked, str(root))
    (asked / "questions.json").write_text(json.dumps(described | {"data": "0" * 16}))
    with pytest.raises(InputError, match="data_dir: expected the images and labels of the questions"):
        read_questions(asked, str(root))
    with pytest.raises(InputError, match="expected a new folder"):
        export_questions(asked, task_of(root), SETTINGS)


def test_the_lack_of_a_predictor_is_a_warning(root: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "morphomnist", "--data_dir", root, "--num_images", 2, "--export_questions"]
    outcome = run(SCRIPT, *flags, tmp_path / "28")
    assert outcome.returncode == 0 and "predictor: " not in outcome.stderr and "6 questions" in outcome.stdout
    outcome = run(SCRIPT, *flags, tmp_path / "14", "--image_size", 14)
    assert outcome.returncode == 0 and "predictor: found no shipped one for morphomnist at 14 px" in outcome.stderr
    assert "export the questions with --image_size 28" in outcome.stderr


def test_questions_have_the_channels_of_the_predictor(tmp_path: Path) -> None:
    """Published images of Pendulum have four channels, the shipped predictor reads three."""
    assert dataset_spec("pendulum", 32).channels == 4
    assert spec_and_predictor("pendulum", 32, tmp_path)[0].channels == 3
    spec, missing = spec_and_predictor("pendulum", 96, tmp_path)
    assert spec.channels == 4 and missing is None, "no predictor of this size"
    given = str(REPO / "weights" / "pendulum_32_predictor")
    assert spec_and_predictor("pendulum", 96, tmp_path, given)[0].channels == 3


def test_a_predictor_that_is_missing_is_reported_before_questions_are_asked(root: Path) -> None:
    def answer(*_: object) -> np.ndarray:
        raise AssertionError("no question may be asked")

    with pytest.raises(InputError, match="predictor: expected a folder, got none"):
        score(answer, "morphomnist", root / "morphomnist", SETTINGS, image_size=14)


def test_the_predictor_is_read_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, open_folder = [], predictor.open_folder
    monkeypatch.setattr(predictor, "open_folder", lambda path, *rest: read.append(path) or open_folder(path, *rest))
    score(nothing, "morphomnist", root / "morphomnist", SETTINGS, predictor=str(root / "predictor"))
    assert read == [str(root / "predictor")]
    flags = ["--dataset", "morphomnist", "--data_dir", root, "--num_images", 2, "--export_questions", tmp_path / "x"]
    assert run(SCRIPT, *flags).returncode == 0 and len(read) == 2


def test_a_predictor_of_other_images_is_reported_before_questions_are_asked(root: Path) -> None:
    other = str(REPO / "weights" / "mnist_28_predictor")
    with pytest.raises(InputError, match="expected name 'morphomnist', as the model, got 'mnist'"):
        score(lambda *_: pytest.fail("asked"), "morphomnist", root / "morphomnist", SETTINGS, predictor=other)


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export = ["--export_questions", tmp_path / "x"]
    assert_refused(run(SCRIPT, *export, "--data_dir", tmp_path), "dataset: expected a value, got none; set --dataset")
    assert_refused(run(SCRIPT, *export, "--dataset", "mnist"), "data_dir: expected a value, got none; set --data_dir")
    assert_refused(run(SCRIPT, *export, "--answers", tmp_path), "export_questions, answers: expected one of them")
    both = ["--answers", tmp_path, "--data_dir", tmp_path]
    assert_refused(run(SCRIPT, *both, "--out", tmp_path), "out: expected a file NAME.json")


def test_colours_and_orientation_survive_the_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    settings = ProtocolSettings()
    task = open_task(dataset_spec("folder", data_dir=folder), str(folder), settings)
    export_questions(tmp_path / "asked", task, settings)
    for row in rows(tmp_path / "asked" / "questions.csv"):
        shutil.copy2(tmp_path / "asked" / row["file"], tmp_path / "asked" / row["answer"])
    assert task.data.images.shape[1] == 3 and (task.data.images != task.data.images.swapaxes(2, 3)).any()
    for images in read_answers(tmp_path / "asked", task).values():
        np.testing.assert_array_equal(images, task.data.images)
    hats = {row["value"] for row in rows(tmp_path / "asked" / "questions.csv") if row["variable"] == "hat"}
    assert hats <= {"none", "cap", "straw"}, "categories by name"
