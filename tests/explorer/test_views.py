"""What the page shows of a result: graph, images, table, downloads, texts of sliders."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import squares_spec

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.checks import check
from causaldiffae.explorer import views
from causaldiffae.explorer.graph_drawing import roles
from causaldiffae.explorer.session import Result, slider_range
from causaldiffae.graphs import CausalGraph

PENDULUM = dataset_spec("pendulum", 32, 3)
HATS = replace(squares_spec(), kinds=("categorical", "continuous"), low=(0.0, 50.0), high=(2.0, 250.0),
               categories=(("none", "straw", "felt"), ()))  # fmt: skip

DIGITS = dataset_spec("morphomnist")


def png(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
        return np.asarray(image)


def test_a_choice_is_the_label_of_its_text() -> None:
    thirds = replace(squares_spec(), kinds=("binary", "continuous"), low=(-1 / 3, 50.0), high=(1 / 3, 250.0))
    name = thirds.graph.names[0]
    for i in range(2):
        chosen = views.chosen_value(thirds, name, views.choices(thirds, name)[i], 7.0)
        assert chosen == thirds.values_of(name)[i]
        assert thirds.check_do(thirds.do_labels({name: chosen})) == {name: chosen}
    assert views.chosen_value(HATS, HATS.graph.names[0], "felt", 7.0) == 2.0
    assert views.chosen_value(HATS, HATS.graph.names[1], None, 7.0) == 7.0
    with pytest.raises(InputError, match="expected one of none, straw, felt, got None"):
        views.chosen_value(HATS, HATS.graph.names[0], None, 7.0)
    with pytest.raises(InputError, match="expected a finite number, got 'x'"):
        views.chosen_value(HATS, HATS.graph.names[1], None, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        (["b"], {"a": "stays", "b": "set", "c": "follows", "d": "stays"}),
        (["a", "b"], {"a": "set", "b": "set", "c": "follows", "d": "stays"}),
        ([], dict.fromkeys("abcd", "stays")),
    ],
)
def test_descendants_follow(do: list[str], expected: dict[str, str]) -> None:
    assert roles(CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c"))), do) == expected


def test_the_graph_shows_cut_edges_inside_its_frame() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c"), ("a", "c")))
    drawn = views.graph_svg(graph, ["b"], {"a": "1.0", "b": "2.0 → 3.0", "c": "<4>"})
    assert re.findall(r'<path class="edge (\w+)"', drawn) == ["cut", "idle", "live"]  # a -> b, a -> c, b -> c
    assert re.findall(r'<g class="node (\w+)"', drawn) == ["stays", "set", "follows"]
    assert 'aria-label="causal graph: a stays: 1.0; b set: 2.0 → 3.0; c follows: &lt;4&gt;"' in drawn
    assert "<4>" not in drawn
    number = r'="([\d.-]+)"'
    boxes = re.findall(rf"<rect x{number} y{number} width{number} height{number}", drawn)
    frame = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn)
    assert frame is not None and len(boxes) == 3
    for x, y, width, height in (map(float, box) for box in boxes):
        assert x >= 0 and y >= 0 and x + width <= int(frame[1]) and y + height <= int(frame[2])


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


def test_images_and_table_show_all_that_is_known(pendulum_result: Result) -> None:
    images, table = views.images_html(pendulum_result), views.table_html(pendulum_result)
    titles = ["Factual", "Counterfactual", "True counterfactual", "Difference"]
    assert re.findall(r"<figcaption><b>([^<]+)</b>", images) == titles
    assert "do(angle=25)" in images and images.count('alt="') == 4
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", table)
    assert heads == ["variable", "role", "encoded", "predicted", "measured", "true"]
    assert re.findall(r'<tr class="(\w+)"', table) == ["set", "stays", "follows", "follows"]
    cells = re.findall(r"<td>([^<]*)</td>", table)[:5]
    assert cells[:3] == ["set", views.value_text(PENDULUM, 0, pendulum_result.encoded[0]), "25.0"]
    assert cells[4] == "25.0"
    assert 'aria-label="causal graph: angle set: ' in views.graph_html(pendulum_result)
    first = re.search(r'src="data:image/png;base64,([^"]+)"', images)
    assert first is not None
    np.testing.assert_array_equal(png(first[1]).transpose(2, 0, 1), pendulum_result.request.image.image)


def test_what_is_read_stands_beside_what_was_requested(pendulum_result: Result) -> None:
    read = pendulum_result.predicted.copy()
    read[0] -= 20.0
    off = replace(pendulum_result, read=read, reader="read by a predictor")
    table = views.table_html(off)
    assert "Read by a predictor: angle 5.0 (25.0) !" in views.images_html(off)
    assert ">read</th>" in table and "<td>5.0 !</td>" in table and table.count("!</td>") == 1
    assert views.report(off, "m")["notable_differences"] == ["angle"] and views.report(off, "m")["reader"] == off.reader
    exact = replace(off, read=pendulum_result.predicted)
    assert "angle 25.0 (25.0)" in views.images_html(exact) and "!</td>" not in views.table_html(exact)
    unread = replace(pendulum_result, read=None, reader="")
    assert "Not read: angle 25.0 requested" in views.images_html(unread) and ">read<" not in views.table_html(unread)


def test_downloads_hold_the_result(pendulum_result: Result) -> None:
    html = views.downloads_html(pendulum_result, "a model")
    links = dict(re.findall(r'<a download="([^"]+)" href="data:[^,]+,([^"]+)"', html))
    assert set(links) == {"counterfactual.png", "all_pictures.png", "counterfactual.json"}
    np.testing.assert_array_equal(png(links["counterfactual.png"]).transpose(2, 0, 1), pendulum_result.counterfactual)
    height, width, _ = png(links["all_pictures.png"]).shape
    assert width > 4 * 6 * 32 > height
    values = json.loads(base64.b64decode(links["counterfactual.json"]))
    assert values["do"] == {"angle": 25.0} and values["steps"] == 8 and values["model"] == "a model"
    assert values["roles"] == dict(zip(PENDULUM.graph.names, ("set", "stays", "follows", "follows"), strict=True))
    assert values["predicted"]["angle"] == pytest.approx(25.0, abs=1e-4) and values["true"]["angle"] == 25.0
    assert values["l1_to_truth"] == pendulum_result.l1


def test_text_of_users_is_escaped(pendulum_result: Result) -> None:
    nasty = '<img src=x onerror="alert(1)">'
    request = pendulum_result.request
    request = replace(request, image=replace(request.image, name=nasty, note=nasty))
    result = replace(pendulum_result, request=request, truth=None, true_labels=None, l1=None)
    for text in (views.images_html(result), views.status_html(result), views.message_html(nasty)):
        assert "<img src=x" not in text and "onerror=&#34;" in text
    assert "True counterfactual" not in views.images_html(result) and ">true<" not in views.table_html(result)


def test_values_have_the_decimals_of_their_range_and_names_of_their_categories() -> None:
    assert [views.value_text(PENDULUM, i, 3.14159) for i in range(4)] == ["3.1", "3.1", "3.14", "3.1"]
    assert views.value_text(PENDULUM, 0, float("nan")) == "-"
    assert views.value_text(HATS, 0, 1.2) == "straw"
    assert views.change_text(PENDULUM, 2, 1.999, 2.001) == "2.00"
    assert views.change_text(PENDULUM, 0, float("nan"), 1.0) == "- → 1.0"
    assert views.change_text(HATS, 0, 0.2, 0.8) == "none → straw"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.15960000455379486, 0.6243438, (0.159, 0.625, 0.001)),
        (0.8752, 6.2559, (0.87, 6.26, 0.01)),
        (66.6, 254.91, (66, 255, 1)),
        (-40.0, 44.0, (-40, 44, 0.1)),
        (0.0, 1.0, (0, 1, 0.01)),
        (1200.5, 987654.0, (1000, 988000, 1000)),
        (-3.2e-5, 4.713e-5, (-3.2e-5, 4.72e-5, 1e-7)),
    ],
)
def test_sliders_end_outside_the_data_at_a_round_value(low: float, high: float, expected: tuple[float, ...]) -> None:
    ends = slider_range(replace(PENDULUM, low=(low,) * 4, high=(high,) * 4), 0)
    assert ends == expected and all(len(f"{value:g}") <= 8 for value in ends)


def test_predictions_beyond_the_slider_are_named(pendulum_result: Result) -> None:
    i, low, high = 0, PENDULUM.low[0], PENDULUM.high[0]
    assert views.prediction_info(PENDULUM, i, high + 3) == f" · predicted {high + 3:.1f}, beyond the data"
    assert views.prediction_info(PENDULUM, i, high + 1e-6) == "", "a rounding error"
    assert views.prediction_info(PENDULUM, i, float("nan")) == views.prediction_info(HATS, 0, 99.0) == ""
    predicted = pendulum_result.predicted.copy()
    predicted[0] = high + 3
    beyond = check(None, PENDULUM, ["light"], predicted[None])
    status = views.status_html(replace(pendulum_result, checks=beyond, abduction_cached=True))
    assert f"Angle: the prediction {high + 3:g} is beyond the training data, {low:g} to {high:g}" in status
    assert views.report(replace(pendulum_result, checks=beyond), "m")["notes"] == list(beyond.notes)
    assert "<abbr title=" in status and ">abduction cached</abbr>" in status
    doubt = views.status_html(replace(pendulum_result, verdict="as measured in training, do(angle): 12%"))
    assert "As measured in training, do(angle): 12%." in doubt
    plain = views.status_html(replace(pendulum_result, abduction_cached=False))
    assert "beyond" not in plain and "cached" not in plain


def test_the_terms_of_the_page_are_explained() -> None:
    text = views.help_html()
    for term in ("guidance", "steps", "abduction cached", "beyond the data", "role", "encoded", "predicted"):
        assert f"<dt>{term}</dt><dd>" in text


def test_boxes_have_room_for_the_longest_category(pendulum_result: Result) -> None:
    """And keep their width when the category changes."""
    hats = ("none", "a hat of straw", "a hat of felt with a feather")
    spec = replace(HATS, categories=(hats, ()))
    widths = []
    for value in range(3):
        labels = np.array([float(value), 100.0])
        request = replace(pendulum_result.request, do={})
        result = replace(pendulum_result, spec=spec, request=request, encoded=np.array([2.0, 100.0]), predicted=labels)
        drawn = views.graph_html(result)
        widths.append(re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)[0])
        assert "feather" not in drawn
    assert len(set(widths)) == 1 and float(widths[0]) > 200
    assert "a hat of felt…" in drawn or "a hat of fel…" in drawn


def test_controls_name_role_and_causes() -> None:
    assert views.slider_label(PENDULUM, 2) == "shadow length (axes units)"
    assert views.control_info(PENDULUM, "shadow_length", {"angle": 1.0}) == "follows · caused by angle, light"
    assert views.control_info(PENDULUM, "angle", {"angle": 1.0}) == "set · no causes"
    assert views.control_info(HATS, "size", {}) == "no causes"
    assert views.control_info(DIGITS, "digit", {"digit": 7}) == "set · class of the counterfactual"


def test_categories_are_chosen_by_name_and_show_their_probability_where_they_follow(pendulum_result: Result) -> None:
    assert views.choices(HATS, "size") == ["none", "straw", "felt"] and views.choices(HATS, "grey") == []
    assert views.choices(DIGITS, "digit") == list("0123456789")
    assert views.nearest_choice(HATS, "size", 1.2) == "straw" and views.nearest_choice(HATS, "size", np.nan) is None
    hat = replace(HATS, graph=CausalGraph(("size", "grey"), (("grey", "size"),)))
    chances = {"size": np.array([0.1, 0.65, 0.25])}
    for do, labels in (
        ({"grey": 60.0}, ["none (0.10)", "straw (0.65)", "felt (0.25)"]),
        ({}, ["none", "straw", "felt"]),
    ):
        request = replace(pendulum_result.request, do=do)
        result = replace(pendulum_result, spec=hat, request=request, probabilities=chances)
        assert views.choice_labels(result, "size") == labels


def test_the_class_before_and_after_is_shown(pendulum_result: Result) -> None:
    spec = replace(PENDULUM, num_classes=10, class_name="digit")
    request = replace(pendulum_result.request, do={"digit": "7", "angle": 25.0})
    result = replace(pendulum_result, spec=spec, request=request, digit=4, target_digit=7)
    assert "digit 4 → 7" in views.status_html(result) and "do(digit=7, angle=25)" in views.images_html(result)
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", views.table_html(result), re.DOTALL)
    assert [cell for cell in cells if cell.strip() in ("digit", "4", "7")] == ["digit", "4", "7"]
    assert views.report(result, "m")["counterfactual_class"] == 7
    assert "digit" not in views.table_html(pendulum_result)
