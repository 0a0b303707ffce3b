"""The explorer's logic apart from the page: questions, memory, uploads, registry, pictures, graph, table, downloads."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from tiny import randomise, small_config, squares, squares_spec

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.checkpoints.model_folders import FoundModel
from causaldiffae.datasets.registry import dataset_spec, example_images
from causaldiffae.errors import DataError, InputError
from causaldiffae.explorer import registry as shelves
from causaldiffae.explorer import uploads, views
from causaldiffae.explorer.graph_svg import before_and_after, graph_svg, roles
from causaldiffae.explorer.registry import ModelRegistry, find_models, titles_of
from causaldiffae.explorer.session import Picture, Question, Remembered, Session, opening_do, pictures_of
from causaldiffae.explorer.uploads import read_upload
from causaldiffae.graphs import CausalGraph
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, describe_checkpoint, load_model

WEIGHTS = REPO / "weights"


def tiny_loaded(**changes: Any) -> LoadedModel:
    torch.manual_seed(0)
    config, spec = (
        small_config(**changes),
        replace(squares_spec(4 if changes.get("class_cond") else None), name="folder"),
    )
    model, _ = create_model_and_diffusion(config, spec)
    randomise(model)
    return LoadedModel(model.eval(), config, spec, None, "nowhere")


def picture(i: int = 0, **changes: Any) -> Picture:
    data = squares(3)
    return Picture(**{"image": data.images[i], "name": f"square {i}", "labels": data.labels[i], **changes})


@pytest.fixture(scope="module")
def pendulum() -> Session:
    return Session(load_model(str(WEIGHTS / "pendulum_causaldae_mini")))


@pytest.fixture(scope="module")
def swung(pendulum: Session) -> Any:
    first = pictures_of(example_images(pendulum.spec, 2))[1]
    return pendulum.answer(Question(first, {"angle": 25.0}, steps=8))


# ---------------------------------------------------------------------- session


def test_a_slider_costs_one_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The abduction is made once for every picture, class and number of steps, and for nothing else."""
    session, calls = Session(tiny_loaded(class_cond=True)), []
    abduct = Session._abduct
    monkeypatch.setattr(Session, "_abduct", lambda *given: calls.append(1) or abduct(*given))
    first = Question(picture(digit=1), {"size": 5.0}, steps=4)
    answers = [session.answer(replace(first, do={"size": value})) for value in (2.0, 4.0, 6.0)]
    assert len(calls) == 1 and [float(a.predicted[0]) for a in answers] == pytest.approx([2.0, 4.0, 6.0])
    assert answers[0].abduction_seconds > answers[1].abduction_seconds
    for other in (replace(first, w=2.0), replace(first, digit=1), replace(first, do={"grey": 99.0})):
        session.answer(other)
    assert len(calls) == 1
    for other in (replace(first, steps=5), replace(first, digit=2), replace(first, picture=picture(1, digit=1))):
        session.answer(other)
    assert len(calls) == 4 == session.remembered


def test_guidance_and_steps_reach_the_answer() -> None:
    session, first = Session(tiny_loaded()), Question(picture(), {"size": 6.0}, steps=4)
    plain = session.answer(first).counterfactual
    for other in (replace(first, w=2.5), replace(first, steps=7)):
        assert (session.answer(other).counterfactual != plain).any()


def test_remembered_forgets_the_oldest() -> None:
    kept: Remembered[str, int] = Remembered(2)
    made: list[str] = []
    for key in ("a", "b", "a", "c", "a", "b"):
        kept.get(key, lambda key=key: made.append(key) or 1)
    assert made == ["a", "b", "c", "b"] and len(kept) == 2


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    question = Question(picture(), {"size": 5.0}, w=1.5, steps=4)
    fresh = Session(tiny_loaded()).answer(question)
    used = Session(tiny_loaded())
    for do in ({}, {"grey": 70.0}, {"size": 2.0}):
        used.answer(replace(question, do=do))
    np.testing.assert_array_equal(used.answer(question).counterfactual, fresh.counterfactual)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do": {"size": 7.5}}, r"size: 7\.5 given, the model has seen 1\.\.7"),
        ({"do": {"size": float("nan")}}, "size is nan, a finite number is needed"),
        ({"do": {"colour": 1.0}}, "unknown variable 'colour'"),
        ({"w": 9.0}, r"guidance: 9 given, 0\.\.3 is allowed"),
        ({"w": float("nan")}, "guidance: nan given"),
        ({"steps": 3}, r"steps: 3 given, 4\.\.50 are allowed"),
        ({"steps": 4.5}, "steps: 4.5 given"),
        ({"digit": 3}, "class: 3 given"),
        ({"picture": Picture(np.zeros((3, 8, 8), np.uint8), "x")}, r"picture: \(3, 8, 8\) given, this model needs"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Session(tiny_loaded()).answer(replace(Question(picture()), **changes))


def test_what_nobody_knows_is_said() -> None:
    with pytest.raises(InputError, match="class: this model needs it and it is not known; to read it off, predictor"):
        Session(tiny_loaded(class_cond=True)).answer(Question(picture(), steps=4))
    with pytest.raises(InputError, match="labels: this model needs it"):
        Session(tiny_loaded(model_type="conditional")).answer(Question(picture(labels=None), steps=4))


@pytest.mark.parametrize("model_type", ["causaldae", "conditional", "diffae", "causalvae"])
def test_every_model_answers(model_type: str) -> None:
    answer = Session(tiny_loaded(model_type=model_type)).answer(Question(picture(), {"size": 5.0}, steps=4))
    assert answer.counterfactual.shape == (1, 8, 8) and answer.predicted[0] == pytest.approx(5.0, abs=1e-3)
    assert answer.truth is None and answer.l1 is None and np.isnan(answer.measured).all()


def test_a_diff_scm_is_told_the_labels_that_are_known() -> None:
    """Without an explicit predictor it cannot read them off the image."""
    torch.manual_seed(0)
    config, spec = small_config(model_type="diffscm", label_cond=True), dataset_spec("mnist")
    model, _ = create_model_and_diffusion(config, spec)
    session = Session(LoadedModel(model.eval(), config, spec, None, "nowhere"))
    three = pictures_of(example_images(spec, 4))[3]
    answer = session.answer(Question(three, {"digit": 5.0}, steps=4))
    assert answer.encoded == [3.0] and answer.predicted == [5.0] and answer.truth is None
    assert ">3 → 5<" in views.graph_html(answer)
    with pytest.raises(InputError, match="without an explicit predictor this model needs the images' labels"):
        session.answer(Question(replace(three, labels=None), {"digit": 5.0}, steps=4))


def test_the_truth_beside_it(swung: Any) -> None:
    assert swung.l1 < 0.5 * swung.do_nothing_l1
    assert swung.true_labels[0] == swung.predicted[0] == pytest.approx(25.0, abs=1e-4)
    assert swung.predicted[1] == pytest.approx(swung.encoded[1], abs=1e-4)  # the light stays
    assert abs(swung.predicted[3] - swung.encoded[3]) > 0.5  # the shadow follows


def test_an_upload_has_no_truth_and_its_digit_is_read() -> None:
    session = Session(load_model(str(WEIGHTS / "morphomnist_causaldae_mini")))
    data = example_images(session.spec, 8)
    answer = session.answer(Question(Picture(data.images[7], "mine.png"), {"thickness": 3.0}, steps=4))
    assert answer.digit == 7 and answer.truth is None
    assert np.isfinite(answer.measured).all()


def test_the_opening_shows_something() -> None:
    spec = dataset_spec("morphomnist")
    assert opening_do(spec, np.array([1.5, 100.0])) == {"thickness": 3.46}
    assert opening_do(spec, np.array([4.0, 200.0])) == {"thickness": 2.38}
    hats = replace(squares_spec(), kinds=("binary", "continuous"), low=(0.0, 50.0), high=(1.0, 250.0))
    assert opening_do(hats, np.array([0.1, 100.0])) == {"size": 1.0}


# ---------------------------------------------------------------------- uploads


def save(tmp_path: Path, name: str, image: Image.Image) -> Path:
    image.save(tmp_path / name)
    return tmp_path / name


def test_uploads_become_the_data_sets_kind(tmp_path: Path) -> None:
    photo = save(tmp_path, "photo.jpg", Image.new("RGB", (300, 200), (250, 250, 250)))
    digit = read_upload(photo, dataset_spec("morphomnist"))
    assert digit.image.shape == (1, 28, 28) and digit.image.max() < 10
    assert digit.note == "300x200 pixels became 28x28, grey, inverted to light on dark."
    scene = read_upload(photo, dataset_spec("pendulum", 32, 3))
    assert scene.image.shape == (3, 32, 32) and scene.image.min() > 245 and scene.note.endswith("in colour.")
    dark = read_upload(save(tmp_path, "dark.png", Image.new("L", (28, 28), 3)), dataset_spec("morphomnist"))
    assert (dark.image == 3).all() and "inverted" not in dark.note
    assert dark.labels is None and dark.source is None and dark.digit is None


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataset_spec("morphomnist")
    (tmp_path / "text.png").write_text("this is no picture")
    with pytest.raises(DataError, match=r"^text\.png: it cannot be read as a JPEG, PNG or WebP image$"):
        read_upload(tmp_path / "text.png", spec)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"^empty\.png: it cannot be read"):
        read_upload(tmp_path / "empty.png", spec)
    whole = save(tmp_path, "whole.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"^half\.png: it cannot be read"):
        read_upload(tmp_path / "half.png", spec)
    with pytest.raises(DataError, match=r"^gone\.png: it cannot be opened \(No such file"):
        read_upload(tmp_path / "gone.png", spec)
    with pytest.raises(DataError, match=r"it cannot be opened \(embedded null byte"):
        read_upload(f"{tmp_path}/a\0.png", spec)
    monkeypatch.setattr(uploads, "MAX_BYTES", 1 << 20)
    (tmp_path / "long.png").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(DataError, match=r"^long\.png: it is larger than 1 MB; shrink it first$"):
        read_upload(tmp_path / "long.png", spec)


def test_fifty_megapixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "huge.png", Image.new("1", (10_000, 5_000)))
    monkeypatch.setattr(uploads, "decode_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"huge\.png: it has 10000x5000 pixels \(50 megapixels\), at most 32"):
        read_upload(path, dataset_spec("morphomnist"))


# ---------------------------------------------------------------------- registry


def model_folder(path: Path, **changes: Any) -> Path:
    loaded = tiny_loaded(**changes)
    return export_weights(path, loaded.model.state_dict(), describe_checkpoint(loaded.config, loaded.spec))


def test_all_models_beside_the_named_one_are_offered(tmp_path: Path) -> None:
    for model_type in ("causaldae", "conditional", "diffae"):
        model_folder(tmp_path / f"folder_{model_type}_mini", model_type=model_type)
    shutil.copytree(WEIGHTS / "pendulum_32_predictor", tmp_path / "pendulum_32_predictor")
    (tmp_path / "notes").mkdir()
    found = find_models(tmp_path / "folder_diffae_mini")
    assert list(titles_of(found)) == ["folder · DiffAE · mini", "folder · CausalDiffAE · mini",
                                      "folder · label-conditional · mini"]  # fmt: skip
    registry = ModelRegistry(found)
    assert registry.most_variables == 2
    assert registry.session("folder · DiffAE · mini") is registry.session("folder · DiffAE · mini")
    pictures, note = registry.pictures("folder · DiffAE · mini")
    assert pictures == [] and note == "There are no examples of 'folder': upload a picture, or give --data_dir."
    with pytest.raises(InputError, match="model: 'none' is not on offer"):
        registry.session("none")


def test_titles_are_told_apart() -> None:
    twins = [FoundModel(Path(place) / "pendulum_mini", "causaldae", "pendulum", ("a",)) for place in ("/a", "/b")]
    assert list(titles_of(twins)) == [f"pendulum · CausalDiffAE · mini ({p}/pendulum_mini)" for p in ("/a", "/b")]


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it holds no model; a run directory or a model folder is needed"):
        find_models(tmp_path)
    with pytest.raises(DataError, match="'predictor' model, one of .* is needed; a predictor reads labels"):
        find_models(WEIGHTS / "pendulum_32_predictor")
    with pytest.raises(InputError, match="there is no model to show"):
        ModelRegistry([])


def test_pictures_of_another_data_set_are_replaced_by_examples(tmp_path: Path) -> None:
    registry = ModelRegistry(find_models(WEIGHTS / "pendulum_causaldae_mini"), str(tmp_path))
    pictures, note = registry.pictures("pendulum · CausalDiffAE · mini")
    assert len(pictures) == shelves.SHOWN
    assert note.startswith("The data folder does not fit this model") and note.endswith("these are examples.")


# ---------------------------------------------------------------------- views


def test_roles_follow_the_graph() -> None:
    graph = CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c")))
    assert roles(graph, ["b"]) == {"a": "stays", "b": "set", "c": "follows", "d": "stays"}
    assert roles(graph, ["a", "b"]) == {"a": "set", "b": "set", "c": "follows", "d": "stays"}
    assert set(roles(graph, []).values()) == {"stays"}


def test_the_graph_shows_what_was_cut() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c"), ("a", "c")))
    drawn = graph_svg(graph, ["b"], {"a": "1.0", "b": "2.0 → 3.0", "c": "<4>"})
    states = re.findall(r'<path class="edge (\w+)"', drawn)
    assert states == ["cut", "idle", "live"]  # a -> b, a -> c, b -> c
    assert re.findall(r'<g class="node (\w+)"', drawn) == ["stays", "set", "follows"]
    assert "&lt;4&gt;" in drawn and "<4>" not in drawn and "2.0 → 3.0" in drawn
    number = r'="([\d.-]+)"'
    boxes = re.findall(rf"<rect x{number} y{number} width{number} height{number}", drawn)
    _, _, width, height = (float(v) for v in re.search(r'viewBox="([^"]+)"', drawn)[1].split())  # type: ignore[index]
    assert len(boxes) == 3
    for x, y, wide, high in (map(float, box) for box in boxes):
        assert x >= 0 and y >= 0 and x + wide <= width and y + high <= height


def test_before_and_after() -> None:
    assert before_and_after(1.999, 2.001) == "2.00"
    assert before_and_after(1.0, 2.0, decimals=0) == "1 → 2"
    assert before_and_after(0.2, 0.8, {"0": "none", "1": "straw"}) == "none → straw"
    assert before_and_after(float("nan"), 1.0) == "- → 1.00"


def test_the_difference_map_has_a_sign_and_a_scale() -> None:
    factual = np.full((3, 2, 2), 100, np.uint8)
    other = factual.copy()
    other[:, 0, 0], other[:, 1, 1] = 200, 50
    drawn, scale = views.difference_map(factual, other)
    assert scale == 100.0
    assert tuple(drawn[:, 0, 0]) == views.BRIGHTER and tuple(drawn[:, 0, 1]) == (255, 255, 255)
    assert drawn[2, 1, 1] > drawn[0, 1, 1]  # blue, half as strong
    faint, scale = views.difference_map(factual, factual + np.uint8(2))
    assert scale == 48.0 and faint.min() > 240  # noise does not look like a change
    np.testing.assert_array_equal(views.difference_map(factual[:1], factual[:1])[0], 255)


def test_the_page_says_all_that_is_known(swung: Any) -> None:
    pictures, table = views.pictures_html(swung), views.table_html(swung)
    assert re.findall(r"<figcaption><b>([^<]+)</b>", pictures) == [
        "Factual",
        "Counterfactual",
        "The truth",
        "Difference",
    ]
    assert "do(angle=25)" in pictures and pictures.count('alt="') == 4
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", table)
    assert heads == ["variable", "", "encoded", "predicted", "measured", "true"]
    assert re.findall(r'<tr class="(\w+)"', table) == ["set", "stays", "follows", "follows"]
    cells = re.findall(r"<td>([^<]*)</td>", table)[:5]
    assert cells[:3] == ["set", views.value_text(swung.spec, 0, swung.encoded[0]), "25.0"] and cells[4] == "25.0"
    assert 'aria-label="causal graph: angle set: ' in views.graph_html(swung)
    first = re.search(r'src="data:image/png;base64,([^"]+)"', pictures)
    assert first is not None
    with Image.open(io.BytesIO(base64.b64decode(first[1]))) as picture:
        np.testing.assert_array_equal(np.asarray(picture).transpose(2, 0, 1), swung.question.picture.image)


def test_downloads_hold_the_answer(swung: Any) -> None:
    links = dict(re.findall(r'<a download="([^"]+)" href="data:[^,]+,([^"]+)"', views.downloads_html(swung, "a model")))
    assert set(links) == {"counterfactual.png", "all_pictures.png", "counterfactual.json"}
    with Image.open(io.BytesIO(base64.b64decode(links["counterfactual.png"]))) as picture:
        np.testing.assert_array_equal(np.asarray(picture).transpose(2, 0, 1), swung.counterfactual)
    with Image.open(io.BytesIO(base64.b64decode(links["all_pictures.png"]))) as picture:
        assert picture.width > 4 * 6 * 32 > picture.height
    said = json.loads(base64.b64decode(links["counterfactual.json"]))
    assert said["do"] == {"angle": 25.0} and said["steps"] == 8 and said["model"] == "a model"
    assert said["roles"] == {"angle": "set", "light": "stays", "shadow_length": "follows", "shadow_position": "follows"}
    assert said["predicted"]["angle"] == pytest.approx(25.0, abs=1e-4) and said["true"]["angle"] == 25.0
    assert said["l1_to_truth"] == swung.l1


def test_nothing_from_outside_becomes_markup(swung: Any) -> None:
    nasty = '<img src=x onerror="alert(1)">'
    question = replace(swung.question, picture=replace(swung.question.picture, name=nasty, note=nasty))
    answer = replace(swung, question=question, truth=None, true_labels=None, l1=None)
    for text in (views.pictures_html(answer), views.status_html(answer), views.message_html(nasty)):
        assert "<img src=x" not in text and "onerror=&quot;" in text
    assert "The truth" not in views.pictures_html(answer) and ">true<" not in views.table_html(answer)


def test_numbers_fit_their_range() -> None:
    spec = dataset_spec("pendulum", 32, 3)
    assert [views.value_text(spec, i, 3.14159) for i in range(4)] == ["3.1", "3.1", "3.14", "3.1"]
    assert views.value_text(spec, 0, float("nan")) == "-"
    assert views.slider_label(spec, 2) == "shadow length (axes units)"
    assert views.slider_info(spec, 2, {"angle": 1.0}) == "follows · caused by angle, light"
    assert views.slider_info(spec, 0, {"angle": 1.0}) == "set · a root"
    hats = replace(squares_spec(), kinds=("categorical", "continuous"), low=(0.0, 50.0), high=(2.0, 250.0),
                   categories=(("none", "straw", "felt"), ()))  # fmt: skip
    assert views.value_text(hats, 0, 1.2) == "straw"
    assert views.slider_info(hats, 0, {}) == "a root · 0 = none, 1 = straw, 2 = felt"
