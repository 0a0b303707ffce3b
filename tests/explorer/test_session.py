"""Requests to a model: caching, what reaches the result, what is refused, and the true counterfactual beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from tiny import randomise, small_config, squares, squares_spec
from tiny_models import tiny_model

from causaldiffae.datasets.registry import dataset_spec, example_images
from causaldiffae.errors import InputError
from causaldiffae.explorer.session import Request, Result, Session, SourceImage, first_intervention, images_of
from causaldiffae.explorer.views import status_html
from causaldiffae.metrics.intervals import Figure
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, load_model
from causaldiffae.training.responses import Response, write_responses


def square(i: int = 0, **changes: Any) -> SourceImage:
    data = squares(3)
    return SourceImage(**{"image": data.images[i], "name": f"square {i}", "labels": data.labels[i], **changes})


def test_the_abduction_is_cached_per_image_class_and_number_of_steps() -> None:
    session = Session(tiny_model(class_cond=True))
    first = Request(square(digit=1), {"size": 5.0}, steps=4)
    results = [session.run(replace(first, do={"size": value})) for value in (2.0, 4.0, 6.0)]
    assert [result.abduction_cached for result in results] == [False, True, True]
    assert [float(result.predicted[0]) for result in results] == pytest.approx([2.0, 4.0, 6.0])
    for same in (replace(first, w=2.0), replace(first, digit=1), replace(first, do={"grey": 99.0})):
        assert session.run(same).abduction_cached
    for other in (replace(first, steps=5), replace(first, digit=2), replace(first, image=square(1, digit=1))):
        assert not session.run(other).abduction_cached


def test_guidance_and_steps_reach_the_result() -> None:
    session, first = Session(tiny_model()), Request(square(), {"size": 6.0}, steps=4)
    plain = session.run(first).counterfactual
    for other in (replace(first, w=2.5), replace(first, steps=7)):
        assert (session.run(other).counterfactual != plain).any()


def test_a_distilled_model_has_no_guidance_weight() -> None:
    session = Session(load_model(str(REPO / "weights" / "morphomnist_causaldae_mini_4step")))
    assert session.first_w == session.max_w == 1.0
    image = images_of(example_images(session.spec, 1))[0]
    assert session.run(Request(image, {"intensity": 120.0}, 1.0, 4)).counterfactual.shape == (1, 28, 28)
    with pytest.raises(InputError, match=r"guidance: expected a weight in 0\.\.1"):
        session.run(Request(image, {"intensity": 120.0}, 2.0, 4))


def test_every_variable_that_is_set_has_a_verdict(tmp_path: Path) -> None:
    good, none = (Response(Figure(mean, None, None, 32), "measured") for mean in (0.95, 0.0))
    write_responses(tmp_path, {"size": good, "grey": none})
    session = Session(replace(tiny_model(), path=str(tmp_path)))
    request = Request(square(), {"size": 5.0}, steps=4)
    alone = "As measured in training, do(size): 95% of the requested change, followed"
    assert f"{alone}." in status_html(session.run(request))
    both = f"{alone}; do(grey): 0% of the requested change, no better than doing nothing; train the model longer."
    assert both in status_html(session.run(replace(request, do={"size": 5.0, "grey": 90.0})))
    assert "As measured" not in status_html(session.run(replace(request, do={})))


def test_results_do_not_depend_on_earlier_requests() -> None:
    request = Request(square(), {"size": 5.0}, w=1.5, steps=4)
    fresh = Session(tiny_model()).run(request)
    used = Session(tiny_model())
    for do in ({}, {"grey": 70.0}, {"size": 2.0}):
        used.run(replace(request, do=do))
    np.testing.assert_array_equal(used.run(request).counterfactual, fresh.counterfactual)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do": {"size": 7.5}}, r"size: expected a value in 1\.\.7 .*, got 7\.5"),
        ({"do": {"size": float("nan")}}, "size.*finite number"),
        ({"do": {"colour": 1.0}}, "expected one of .*, got 'colour'"),
        ({"w": 9.0}, r"guidance: expected a weight in 0\.\.3, got 9"),
        ({"w": float("nan")}, "guidance: .* got nan"),
        ({"steps": 3}, r"steps: expected an integer in 4\.\.50, got 3"),
        ({"steps": 4.5}, "steps: .* got 4.5"),
        ({"digit": 3}, "class: .* got 3"),
        ({"image": SourceImage(np.zeros((3, 8, 8), np.uint8), "x")}, r"image: expected uint8 of shape \(1, 8, 8\)"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Session(tiny_model()).run(replace(Request(square()), **changes))


@pytest.mark.parametrize(
    ("model", "image", "words"),
    [
        ({"class_cond": True}, {}, "class: this model needs it and it cannot be read from the image: .*predictor"),
        ({"model_type": "conditional"}, {"labels": None}, "labels: this model needs it"),
    ],
)
def test_unknown_classes_and_labels_are_refused(model: dict[str, Any], image: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Session(tiny_model(**model)).run(Request(square(**image), steps=4))


@pytest.mark.parametrize("model_type", ["causaldae", "conditional", "diffae", "causalvae"])
def test_every_type_of_model_runs(model_type: str) -> None:
    result = Session(tiny_model(model_type=model_type)).run(Request(square(), {"size": 5.0}, steps=4))
    assert result.counterfactual.shape == (1, 8, 8) and result.predicted[0] == pytest.approx(5.0, abs=1e-3)
    assert result.truth is None and result.l1 is None and np.isnan(result.measured).all()


def test_an_implicit_diff_scm_uses_the_known_labels() -> None:
    torch.manual_seed(0)
    config, spec = small_config(model_type="diffscm", label_cond=True), dataset_spec("mnist")
    model, _ = create_model_and_diffusion(config, spec)
    session = Session(LoadedModel(model.eval(), config, spec, None, "nowhere"))
    three = images_of(example_images(spec, 4))[3]
    result = session.run(Request(three, {"digit": 5.0}, steps=4))
    assert result.encoded == [3.0] and result.predicted == [5.0] and result.truth is None
    with pytest.raises(InputError, match="without an explicit predictor"):
        session.run(Request(replace(three, labels=None), {"digit": 5.0}, steps=4))


def test_the_counterfactual_is_near_the_true_one(pendulum_result: Result) -> None:
    result = pendulum_result
    assert result.l1 is not None and result.do_nothing_l1 is not None and result.true_labels is not None
    assert result.l1 < 0.5 * result.do_nothing_l1
    assert result.true_labels[0] == result.predicted[0] == pytest.approx(25.0, abs=1e-4)
    assert result.predicted[1] == pytest.approx(result.encoded[1], abs=1e-4)  # the light stays
    assert abs(result.predicted[3] - result.encoded[3]) > 0.5  # the shadow follows


def test_the_digit_of_an_upload_is_read() -> None:
    session = Session(load_model(str(REPO / "weights" / "morphomnist_causaldae_mini")))
    image = SourceImage(example_images(session.spec, 8).images[7], "mine.png")
    result = session.run(Request(image, {"thickness": 3.0}, steps=4))
    assert result.digit == 7 and result.truth is None and np.isfinite(result.measured).all()


def test_the_status_names_what_is_unlike_the_training_data() -> None:
    """With the sentences of the Python interface."""
    session = Session(load_model(str(REPO / "weights" / "morphomnist_causaldae_mini")))
    image = images_of(example_images(session.spec, 1))[0]
    plain = session.run(Request(image, {"thickness": 2.5}, steps=4))
    assert plain.checks is not None and plain.checks.notes == ()
    dark = session.run(Request(image, {"thickness": 5.0, "intensity": 70.0}, steps=4))
    assert "Labels: no training image is like thickness 5, intensity 70; the nearest has" in status_html(dark)
    noise = np.random.default_rng(0).integers(0, 256, image.image.shape, np.uint8)
    for unusual in (noise, 255 - image.image):
        result = session.run(Request(SourceImage(unusual, "mine.png"), {}, steps=4, digit=3))
        assert "Images: the image is far from the training images" in status_html(result)


def test_the_class_of_the_counterfactual_is_set_like_a_variable() -> None:
    session, image = Session(tiny_model(class_cond=True)), square(digit=1)
    plain, changed = (session.run(Request(image, do, steps=4)) for do in ({}, {"class": "3"}))
    assert changed.abduction_cached and (changed.counterfactual != plain.counterfactual).any()
    assert (plain.digit, plain.target_digit, changed.digit, changed.target_digit) == (1, 1, 1, 3)
    np.testing.assert_array_equal(changed.predicted, plain.predicted)
    both = session.run(Request(image, {"class": "3", "size": 5.0}, steps=4))
    assert both.predicted[0] == 5.0
    with pytest.raises(InputError, match="do: class: expected one of 0, 1, 2, 3, got '9'"):
        session.run(Request(image, {"class": "9"}, steps=4))


def test_discrete_effects_are_categories_with_probabilities() -> None:
    spec = replace(squares_spec(), name="folder", kinds=("continuous", "binary"), low=(1, 0), high=(7, 1),
                   categories=((), ("no", "yes")))  # fmt: skip
    config = small_config(discrete=True)
    torch.manual_seed(0)
    model = randomise(create_model_and_diffusion(config, spec)[0]).eval()
    session = Session(LoadedModel(model, config, spec, 7, "nowhere"))  # type: ignore[arg-type]
    result = session.run(Request(square(labels=None), {"size": 6.0}, steps=4))
    assert result.predicted[1] in (0.0, 1.0) and result.encoded[1] in (0.0, 1.0)
    chances = result.probabilities["grey"]
    assert chances.sum() == pytest.approx(1) and 0 < chances[int(result.encoded[1])] <= 1
    assert session.run(Request(square(labels=None), {"grey": "yes"}, steps=4)).predicted[1] == 1.0
    assert Session(tiny_model()).run(Request(square(), {"size": 6.0}, steps=4)).probabilities == {}


def test_the_first_intervention_is_visible() -> None:
    spec = dataset_spec("morphomnist")
    assert first_intervention(spec, np.array([1.5, 100.0])) == {"thickness": 3.46}
    assert first_intervention(spec, np.array([4.0, 200.0])) == {"thickness": 2.38}
    hats = replace(squares_spec(), kinds=("binary", "continuous"), low=(0.0, 50.0), high=(1.0, 250.0))
    assert first_intervention(hats, np.array([0.1, 100.0])) == {"size": 1.0}
