"""Scores of any system on the questions of the evaluation: images, labels and interventions as files.

    python scripts/evaluate.py --export_questions DIR --dataset morphomnist --data_dir DATA --num_images 1000
    python scripts/evaluate.py --answers DIR --data_dir DATA --out results/NAME.json

    DIR/questions.json         the protocol, its settings, the graph and label statistics of the data set
    DIR/labels.csv             file, index in the test split and factual labels of each image
    DIR/factual/00012.png      the factual images
    DIR/questions.csv          file,variable,value,answer: one row for each question
    DIR/answers/...            the answers, written by the other system in its own environment

Answers are PNG files at the paths of the column `answer`. A row without variable asks for the reconstruction, which is
optional. Answers are scored as the counterfactuals of `protocol.TaskRunner`; what needs the model itself
(reversibility, long composition, own labels, DCI) has no figure. `score` does the same for a Python function.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, MODES
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.chunks import one_thread
from causaldiffae.evaluation.headers import describe
from causaldiffae.evaluation.protocol import PROTOCOL, VERSION, ProtocolSettings, Task, make_task, measured_outputs
from causaldiffae.evaluation.run import data_folder, known_results, write_results
from causaldiffae.evaluation.scores import Scorer
from causaldiffae.evaluation.scores import score as score_task
from causaldiffae.files.images import open_image
from causaldiffae.files.reading import file_stem, read_file, read_json
from causaldiffae.metrics.axioms import distance
from causaldiffae.predictors.predictor import (
    LoadedPredictor,
    check_fits,
    load_predictor,
    open_predictor,
    shipped_folder,
)
from causaldiffae.training.predictor import data_digest
from causaldiffae.visualization.image_grids import save_png

QUESTIONS: Final = "questions.json"
FORMAT: Final = "causaldiffae questions"
RECONSTRUCTION: Final = "reconstruction"

Answer = Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], np.ndarray]
"""(images (B, C, H, W) uint8, labels (B, n) in label units, do: variable -> (B,) values) -> images, shaped as given.

`do` is empty for the reconstruction. Labels and values of categories are their numbers in the order of the data set."""


class Question(NamedTuple):
    """A question about the image in row `row` of the task; without `variable` its reconstruction."""

    row: int
    variable: str
    value: float
    answer: str


def questions_of(task: Task) -> Iterator[Question]:
    """All questions of a task, with the path of each answer."""
    for row, index in enumerate(task.indices):
        yield Question(row, "", float("nan"), f"answers/{RECONSTRUCTION}/{index:05d}.png")
    for k, name in enumerate(task.variables):
        for row, index in enumerate(task.indices):
            path = f"answers/{k}_{file_stem(name)}/{index:05d}.png"
            yield Question(row, name, float(task.values[name][row]), path)


def export_questions(folder: Path, task: Task, settings: ProtocolSettings) -> int:
    """Writes the questions of a task into a new folder and returns their number.

    Raises:
        InputError: if the folder exists, or if PNG files cannot hold the images.
    """
    data, spec = task.data, task.data.spec
    if spec.channels not in MODES:
        raise InputError(f"export_questions: expected images of 1, 3 or 4 channels, got {spec.channels}")
    if folder.exists():
        raise InputError(f"export_questions: expected a new folder, got {folder}, which exists")
    (folder / "factual").mkdir(parents=True)
    files = [f"factual/{index:05d}.png" for index in task.indices]
    class_name = [spec.class_name] if data.classes is not None else []
    rows = [["file", "index", *spec.graph.names, *class_name]]
    for row, name in enumerate(files):
        save_png(folder / name, data.images[row].transpose(1, 2, 0))
        labels = [_cell(spec, each, value) for each, value in zip(spec.graph.names, data.labels[row], strict=True)]
        given = [] if data.classes is None else [str(data.classes[row])]
        rows.append([name, str(task.indices[row]), *labels, *given])
    _write_csv(folder / "labels.csv", rows)
    questions = list(questions_of(task))
    rows = [["file", "variable", "value", "answer"]]
    for row, name, value, path in questions:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        rows.append([files[row], name, _cell(spec, name, value) if name else "", path])
    _write_csv(folder / "questions.csv", rows)
    described = {"format": FORMAT, "protocol": {"name": PROTOCOL, "version": VERSION}, "settings": settings.to_dict()}
    described |= {"dataset": spec.to_dict(), "data": data_digest(data)}
    (folder / QUESTIONS).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return len(questions)


def _cell(spec: DatasetSpec, name: str, value: float) -> str:
    """A label in a table: the name of a category, all digits of a number, nothing for a missing label."""
    if np.isnan(value):
        return ""
    return spec.format_value(name, float(value), 17)


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_questions(folder: Path, data_dir: str) -> tuple[Task, ProtocolSettings]:
    """Rebuilds the task of exported questions from the data set.

    Raises:
        DataError: if `questions.json` is missing or not valid.
        InputError: if `data_dir` holds other images or labels.
    """
    described = read_json(folder / QUESTIONS)
    settings, version = described.get("settings"), described.get("protocol")
    if described.get("format") != FORMAT or not isinstance(settings, dict):
        raise DataError(f"{folder / QUESTIONS}: expected questions of evaluate.py --export_questions, got another file")
    if version != {"name": PROTOCOL, "version": VERSION}:
        raise DataError(f"{folder / QUESTIONS}: expected version {VERSION} of the protocol; export the questions again")
    restored = _settings(settings, f"{folder / QUESTIONS}: settings")
    spec = DatasetSpec.from_dict(described.get("dataset"))
    task = open_task(spec, data_dir, restored)
    if data_digest(task.data) != described.get("data"):
        raise InputError(f"data_dir: expected the images and labels of the questions in {folder}, got others")
    return task, restored


def _settings(given: dict[str, Any], where: str) -> ProtocolSettings:
    """The settings in a file of questions, which may be from anyone."""
    defaults = asdict(ProtocolSettings())
    if not set(given) <= set(defaults):
        raise DataError(f"{where}: expected the keys {', '.join(sorted(defaults))}")
    given = defaults | given  # later versions have further options of the model, which answers do not depend on
    for name, default in defaults.items():
        kinds = {tuple: (list,), float: (float, int), type(None): (type(None), bool, float, int)}.get(
            type(default), (type(default),)
        )
        if type(given[name]) not in kinds:
            raise DataError(f"{where}: {name}: expected a value such as {default!r}, got {str(given[name])!r:.80}")
    try:
        return ProtocolSettings(**(given | {"variables": tuple(map(str, given["variables"]))}))
    except InputError as error:
        raise DataError(f"{where}: {error}") from None


def spec_and_predictor(
    dataset: str, image_size: int | None, data_dir: str | Path, predictor: str = ""
) -> tuple[DatasetSpec, LoadedPredictor | None]:
    """The data set of questions, and the given or shipped predictor of its labels; None if there is neither.

    The images have the channels that the predictor reads.
    """
    spec = dataset_spec(dataset, image_size, data_dir=data_dir)
    folder = predictor or shipped_folder(spec, "predictor")
    if folder is None:
        return spec, None
    opened = load_predictor(folder)
    return dataset_spec(dataset, image_size, opened.predictor.spec.channels, data_dir=data_dir), opened


def open_task(spec: DatasetSpec, data_dir: str, settings: ProtocolSettings) -> Task:
    """Reads the test split of a data set and draws the questions."""
    return make_task(read_split(spec.name, data_folder(data_dir, spec), "test", spec=spec), settings)


def read_answers(folder: Path, task: Task) -> dict[str, np.ndarray]:
    """Reads the answers: variable -> images (N, C, H, W) uint8, and those of "" if there are reconstructions.

    Raises:
        DataError: for the first missing answer or one of another size.
    """
    data = task.data
    found: dict[str, list[np.ndarray]] = {}
    reconstructed = (folder / "answers" / RECONSTRUCTION).is_dir() and any(
        (folder / "answers" / RECONSTRUCTION).iterdir()
    )
    for _, name, _, path in questions_of(task):
        if name or reconstructed:
            found.setdefault(name, []).append(_read_answer(folder / path, data.images.shape[1:]))
    return {name: np.stack(images) for name, images in found.items()}


def _read_answer(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with open_image(read_file(path, MAX_FILE_BYTES), ("PNG",), str(path)) as image:
        if image.size != (shape[2], shape[1]):
            raise DataError(f"{path}: expected {shape[2]} x {shape[1]} pixels, got {image.size[0]} x {image.size[1]}")
        pixels = np.asarray(image.convert(MODES[shape[0]]))
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)


def answers_of(answer: Answer, task: Task, chunk: int = 50) -> dict[str, np.ndarray]:
    """Answers of a function to all questions, as `read_answers`."""
    data = task.data
    names, parts = ("", *task.variables), [np.arange(len(task))[k : k + chunk] for k in range(0, len(task), chunk)]
    found: dict[str, np.ndarray] = {}
    for name in names:
        images = []
        for rows in parts:
            do = {name: task.values[name][rows]} if name else {}
            given = np.asarray(answer(data.images[rows], data.labels[rows], do))
            if given.dtype != np.uint8 or given.shape != data.images[rows].shape:
                expected = f"uint8 images of shape {data.images[rows].shape}"
                raise InputError(f"answer: expected {expected}, got {given.dtype} of shape {given.shape}")
            images.append(given)
        found[name] = np.concatenate(images)
    return found


def outputs_of(answers: Mapping[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    """The outputs that `scores.score` reads, with NaN for what only a model can tell."""
    count, labels = len(task), np.full(task.labels.shape, np.nan)
    unknown, factual = np.full(count, np.nan), to_model_range(torch.from_numpy(task.data.images))
    null = answers.get("")
    outputs = {
        "images": task.data.images if null is None else null,
        "broken": np.zeros(count, np.int64),
        "composition": unknown if null is None else distance(to_model_range(torch.from_numpy(null)), factual).numpy(),
        "composition_long": unknown,
    }
    for name in task.variables:
        outputs |= {f"images/{name}": answers[name], f"labels/{name}": labels, f"broken/{name}": outputs["broken"]}
        outputs |= {f"reverse/{name}": unknown, f"reverse_long/{name}": unknown}
    return outputs | measured_outputs(task, np.arange(count), outputs)


def score_answers(
    answers: Mapping[str, np.ndarray],
    task: Task,
    settings: ProtocolSettings,
    data_dir: str,
    *,
    name: str = "answers",
    predictor: str | LoadedPredictor = "",
    out: Path | None = None,
    inception_weights: str = "",
    trust_inception: bool = False,
) -> dict[str, Any]:
    """Scores answers and returns the content of a results file, which is written to `out` if it is given.

    Args:
        answers: of `read_answers` or `answers_of`.
        data_dir: the data set, whose training images are references.
        name: of the system, in tables.
        predictor: reads labels; its folder, or an opened one that fits; by default the shipped one.
        inception_weights, trust_inception: for the FID, as in `run.Job`.

    Raises:
        InputError: if `out` holds other results, or the predictor does not fit the data set.
    """
    spec, folder = task.data.spec, data_folder(data_dir, task.data.spec)
    opened = open_predictor(spec, predictor) if isinstance(predictor, str) else predictor
    digest = hashlib.sha256(b"".join(hashlib.sha256(answers[key].tobytes()).digest() for key in sorted(answers)))
    model = {"type": "external", "digest": digest.hexdigest()[:16], "seed": 0, "recipe": digest.hexdigest()[:16]}
    inception = (inception_weights, trust_inception)
    header = describe(model, task, settings, opened, *inception)
    header["model"]["name"] = name
    header["data"]["folder"] = folder
    if out is not None and (known := known_results(out, header)) is not None:
        return known
    outputs = outputs_of(answers, task)
    train = read_split(spec.name, folder, "train", spec=spec)
    with one_thread():
        results = score_task(task, outputs, Scorer(opened.predictor, train, *inception, settings.seed))
    found = {**header, "results": results}
    if out is not None:
        write_results(out, found, task, outputs)
    return found


def score(
    answer: Answer,
    dataset: str,
    data_dir: str | Path,
    settings: ProtocolSettings | None = None,
    *,
    image_size: int | None = None,
    name: str = "answers",
    predictor: str = "",
    out: str | Path = "",
) -> dict[str, Any]:
    """Scores a function from images, labels and interventions to images, see `Answer`.

    Args:
        dataset: name of a data set, or "folder".
        settings: number of images, variables and seed; other fields concern models only.
        image_size: by default as published.
        name, out: as in `score_answers`.
        predictor: folder of the predictor that reads labels; by default the shipped one.
    """
    settings = settings or ProtocolSettings()
    spec, found = spec_and_predictor(dataset, image_size, data_dir, predictor)
    opened = found or open_predictor(spec)  # one that is missing is reported before all questions are asked
    check_fits(opened.predictor, spec, opened.path)
    task = open_task(spec, str(data_dir), settings)
    answers = answers_of(answer, task, settings.chunk)
    path = Path(out) if out else None
    return score_answers(answers, task, settings, str(data_dir), name=name, predictor=opened, out=path)
