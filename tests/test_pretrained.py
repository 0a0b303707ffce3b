"""The Python interface: counterfactuals, samples from the prior, saving and opening, and what is refused."""

import json
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from tiny import randomise, small_config
from tiny import squares as split_of_squares
from tiny_models import tiny_model

import causaldiffae
from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.images import KEEP_UNCHANGED, ImageData, model_inputs, to_uint8
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.counterfactuals import Counterfactuals
from causaldiffae.files.paths import WEIGHTS
from causaldiffae.files.reading import read_json
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.intervals import Figure
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.correction import find_correction_predictor
from causaldiffae.pretrained import CausalDiffAE, CounterfactualModel
from causaldiffae.scm import sample_noise
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, describe_checkpoint, load_model
from causaldiffae.training.responses import Response, write_responses


def squares(count: int) -> ImageData:
    """Squares as a folder of images, which has no generator."""
    data = split_of_squares(count)
    return replace(data, spec=replace(data.spec, name="folder"))


@pytest.mark.parametrize("documented", [causaldiffae, CounterfactualModel, Counterfactuals])
def test_documented_examples_run(documented: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.split(r"\n\s*\n(?=\s*[A-Z])", str(documented.__doc__))  # paragraphs begin with a capital letter
    code = textwrap.dedent(next(block for block in blocks if "from causaldiffae import" in block).split("\n", 1)[1])
    exec(compile(code, "docstring", "exec"), {})
    if documented is not causaldiffae:
        with Image.open(tmp_path / "grid.png") as grid:
            assert min(grid.size) > 200


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, causaldiffae; dir(causaldiffae); print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert result.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = causaldiffae.Nothing


def test_results_are_those_of_the_engine() -> None:
    loaded = tiny_model()
    model, data = CounterfactualModel(loaded, steps=4), squares(3)
    cf = model.counterfactual(data, do={"size": 6.0})
    engine = loaded.engine(4)
    expected = engine.predict(engine.abduct(model_inputs(data).x_start), [{"size": 6.0}])[0]
    np.testing.assert_array_equal(cf.images, to_uint8(expected.images).numpy())
    np.testing.assert_array_equal(cf.labels["grey"], expected.labels[:, 1].numpy())
    assert np.allclose(cf.labels["size"], 6.0)
    np.testing.assert_array_equal(cf.factual, data.images)
    assert cf.truth is None and len(cf) == 3
    again = model.predict(model.abduct(data), do={"size": 6.0})
    np.testing.assert_array_equal(again.images, cf.images)
    assert cf.factual_labels is not None
    np.testing.assert_allclose(cf.factual_labels["grey"], model.predict(model.abduct(data)).labels["grey"], rtol=1e-5)


@pytest.mark.parametrize("model_type", ["conditional", "diffae", "causalvae"])
def test_baselines_return_counterfactuals(model_type: str) -> None:
    cf = CounterfactualModel(tiny_model(model_type=model_type), steps=2).counterfactual(squares(2), do={"size": 6.0})
    assert np.allclose(cf.labels["size"], 6.0, atol=1e-3) and cf.images.shape == (2, 1, 8, 8)


def test_large_batches_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = CounterfactualModel(tiny_model(), steps=2), squares(5)
    values = np.linspace(2, 6, 5)
    whole = model.counterfactual(data, do={"size": values})
    monkeypatch.setattr("causaldiffae.pretrained._BATCH", 2)
    pieces = model.counterfactual(data, do={"size": values})
    np.testing.assert_allclose(pieces.labels["size"], values, rtol=1e-5)
    np.testing.assert_array_equal(pieces.images.shape, whole.images.shape)
    assert np.abs(pieces.images.astype(int) - whole.images.astype(int)).max() <= 1
    np.testing.assert_allclose(pieces.labels["grey"], whole.labels["grey"], rtol=1e-4)


@pytest.mark.parametrize(
    ("solver", "tolerance"), [("exact_ddim", 0.0), ("obelm", 0.0), ("dpmpp2m", 0.2), ("ddim", 4.0)]
)
def test_decoding_inverts_encoding(solver: str, tolerance: float) -> None:
    """Exact DDIM and O-BELM up to rounding to 8 bits; mean error in grey levels, twelve steps of a trained model."""
    model = CausalDiffAE.from_pretrained("pendulum-mini", steps=12, solver=solver)
    images = model.examples(3)
    encoded = model.encode(images)
    assert encoded.x_T is not None and encoded.x_T.shape == (3, 3, 32, 32) and encoded.z.shape[:2] == (3, 4)
    restored = model.decode(encoded)
    error = np.abs(restored.images.astype(float) - images.images).mean()
    assert error <= tolerance and (tolerance == 0 or error > 0)
    assert restored.do == {} and abs(restored.labels["angle"] - images.labels[:, 0]).max() < 3


def test_other_noise_and_other_latents_are_decoded() -> None:
    model = CounterfactualModel(tiny_model(), steps=3, solver="dpmpp2m")
    encoded = model.encode(squares(3))
    assert encoded.x_T is not None
    order = [2, 0, 1]
    swapped = model.decode(encoded, x_T=encoded.x_T[order], z=encoded.z[order])
    np.testing.assert_array_equal(swapped.images, model.decode(encoded).images[order])
    np.testing.assert_array_equal(swapped.labels["size"], model.decode(encoded).labels["size"][order])
    for changes in ({"x_T": encoded.x_T[order]}, {"z": encoded.z[order]}):
        assert (model.decode(encoded, **changes).images != model.decode(encoded).images).any()


def test_the_result_of_predict_has_the_factual_images() -> None:
    model, data = CounterfactualModel(tiny_model(), steps=2), squares(3)
    abducted = model.abduct(data)
    apart, at_once = model.predict(abducted, {"size": 6.0}), model.counterfactual(data, {"size": 6.0})
    assert apart.factual is not None and at_once.factual is not None and apart.verdict == at_once.verdict != ""
    np.testing.assert_array_equal(apart.factual, at_once.factual)
    assert apart.to_dataframe().equals(at_once.to_dataframe())
    assert model.decode(abducted).factual is None and model.sample(2).factual is None


def test_guidance_reaches_the_result() -> None:
    model, data = CounterfactualModel(tiny_model(), steps=3), squares(2)
    plain, strong = (model.counterfactual(data, do={"size": 6.0}, w=w).images for w in (1.0, 2.5))
    assert (plain != strong).any()


def test_the_truth_is_returned_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # `show` writes a file where there is no screen
    model = CausalDiffAE.from_pretrained("pendulum-mini", steps=10)
    data = model.examples(3)
    cf = model.counterfactual(data, do={"angle": 20.0})
    assert cf.truth is not None
    errors = [np.abs(cf.truth.astype(float) - images).mean() for images in (cf.images, data.images)]
    assert errors[0] < 0.4 * errors[1]
    assert model.counterfactual(data.images, do={"angle": 20.0}).truth is None
    monkeypatch.setattr("causaldiffae.visualization.display.has_screen", lambda: False)
    assert cf.show().mode == "RGB" and (tmp_path / "do_angle_20.png").is_file()


def test_the_truth_is_unknown_where_the_generator_cannot_draw_it() -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", steps=2)
    with pytest.warns(UserWarning, match="outside the range"):
        assert model.counterfactual(model.examples(2), {"thickness": -1.0}).truth is None


def test_a_class_that_is_set_is_read_and_named() -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", steps=2)
    cf = model.counterfactual(model.examples(3), {"digit": 1})
    assert cf.factual_classes is not None and cf.factual_classes.tolist() == [0, 1, 2]
    assert cf.read_classes is not None and f"do(digit): {(cf.read_classes[[0, 2]] == 1).mean():.0%} of" in cf.verdict
    table = cf.to_dataframe()
    assert table["counterfactual_digit"].tolist() == [1, 1, 1]
    assert table["read_digit"].tolist() == cf.read_classes.tolist()
    other = model.counterfactual(model.examples(2), {"thickness": 3.0})
    assert other.read_classes is None and not any("digit" in name for name in other.to_dataframe())


@pytest.mark.parametrize("name", ["mnist-diffscm-mini", "mnist-dit-mini"])
def test_a_diff_scm_is_guided_by_default_and_opens_again(name: str, tmp_path: Path) -> None:
    model = CounterfactualModel.from_pretrained(name, steps=2)
    explicit = getattr(model.network, "predictor", None) is not None
    assert model.engine().guidance.w == (4.5 if explicit else 1.5) and model.engine(2.0).guidance.w == 2.0
    assert explicit is (name == "mnist-diffscm-mini")
    again = CounterfactualModel.from_pretrained(model.save_pretrained(tmp_path / "saved"), steps=2)
    cf, same = (each.counterfactual(model.examples(3), {"digit": 3}) for each in (model, again))
    np.testing.assert_array_equal(cf.images, same.images)


def test_samples_of_a_diff_scm_show_the_labels_that_are_drawn() -> None:
    model = CounterfactualModel.from_pretrained("mnist-dit-mini")
    drawn = model.sample(12, seed=1)
    digits = drawn.labels["digit"]
    assert set(digits) <= set(range(10)) and len(set(digits)) > 3
    assert drawn.read_labels is not None and (drawn.read_labels["digit"] == digits).mean() >= 0.75
    assert set(model.sample(3, {"digit": 4}).labels["digit"]) == {4.0}


def test_classes_are_read_where_they_are_not_given() -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", steps=2)
    data = model.examples(8)
    np.testing.assert_array_equal(model.abduct(data.images).classes, data.classes)
    np.testing.assert_array_equal(model.read(data.images).classes, data.classes)
    given = [5] * 8
    np.testing.assert_array_equal(model.abduct(data.images, classes=given).classes, given)


@pytest.mark.parametrize("classes", [[1], [0, 4], [0.5, 1.0], [-1, 0]])
def test_bad_classes_are_refused(classes: list[float]) -> None:
    model = CounterfactualModel(tiny_model(class_cond=True))
    with pytest.raises(InputError, match=r"classes: expected 2 integers in 0\.\.3, got \["):
        model.abduct(squares(2).images, classes=classes)


REFUSED: list[tuple[dict[str, Any], Callable[[CounterfactualModel], object], str]] = [
    (
        {"class_cond": True},
        lambda model: model.abduct(squares(2).images),
        "classes: this model needs them, .*predictor",
    ),
    ({"model_type": "conditional"}, lambda model: model.abduct(squares(2).images), "labels: this model needs them"),
    (
        {"model_type": "conditional"},
        lambda model: model.abduct(squares(2).images, labels=[[1], [2]]),
        r"labels: expected shape \(2, 2\), got \(2, 1\)",
    ),
    (
        {"model_type": "conditional"},
        lambda model: CausalDiffAE(model.loaded),
        "expected a 'causaldae' model for CausalDiffAE, got a 'conditional' model",
    ),
    ({}, lambda model: CounterfactualModel(model.loaded, solver="euler"), "solver: .*'euler'"),
    (
        {},
        lambda model: CounterfactualModel(model.loaded, label_correction=0),
        "label_correction: expected an option of",
    ),
    ({}, lambda model: CounterfactualModel(model.loaded, guidance=Guidance(2.0)), "guidance: expected an option of"),
    ({}, lambda model: CounterfactualModel.from_pretrained("circuit-mini", device="gpu"), "device: .*, got 'gpu'"),
    (
        {},
        lambda model: model.abduct(squares(2).images, labels=[["a", 1], ["b", 2]]),
        r"labels: expected numbers \(N, 2\) in the order",
    ),
    ({}, lambda model: model.examples(), "examples: .* got 'folder'; a model does not hold images"),
    (
        {},
        lambda model: model.abduct(np.zeros((2, 8, 8, 1), np.uint8)),
        r"images: .*; channels come before rows: .*3, 1",
    ),
    ({}, lambda model: model.sample(0), "sample: expected a positive integer, got 0"),
    ({"model_type": "diffae"}, lambda model: model.sample(2), "sample: expected a model with a prior"),
    ({}, lambda model: model.counterfactual(squares(2).images, do={"colour": 1.0}), "expected one of .*, got 'colour'"),
    ({"class_cond": True}, lambda model: model.sample(3, classes=4), r"classes: expected 3 integers in 0\.\.3"),
    ({"model_type": "causalvae"}, lambda model: model.encode(squares(2)), "encode: expected a diffusion model"),
    (
        {},
        lambda model: model.decode(model.encode(squares(2)), z=torch.zeros(3, 2, 2)),
        r"z: expected shape \(2, 2, 2\), got \(3, 2, 2\)",
    ),
    (
        {"model_type": "diffscm", "label_cond": True},
        lambda model: model.decode(encoded := model.encode(squares(2)), z=encoded.z),
        "z: expected none for a model that is inverted without latents",
    ),
]


@pytest.mark.parametrize(("changes", "call", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_bad_input_is_refused(
    changes: dict[str, Any], call: Callable[[CounterfactualModel], object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        call(CounterfactualModel(tiny_model(**changes)))


@pytest.mark.parametrize("model_type", ["causaldae", "conditional", "causalvae"])
def test_samples_follow_the_graph(model_type: str) -> None:
    model = CounterfactualModel(tiny_model(model_type=model_type), steps=2)
    plain, done = model.sample(16, seed=3), model.sample(16, do={"size": 6.0}, seed=3)
    assert plain.images.shape == (16, 1, 8, 8) and plain.factual is None
    assert np.allclose(done.labels["size"], 6.0) and plain.labels["size"].std() > 0.3
    assert ((plain.labels["size"] >= 1) & (plain.labels["size"] <= 7)).all()
    effect = model.sample(16, do={"grey": 100.0}, seed=3)
    np.testing.assert_array_equal(effect.labels["size"], plain.labels["size"])  # a cause stays
    assert (model.sample(4, seed=3).images != model.sample(4, seed=4).images).any()
    assert model.sample(2).grid(1).shape[1] > 50


def test_the_prior_is_the_models() -> None:
    """Roots: N(0, 1) cut to the labels' range; children: the learned sigma; one number for a whole block."""
    loaded = tiny_model()
    scm = loaded.model.scm  # type: ignore[union-attr]
    low, high = (loaded.spec.normalise(torch.tensor(end)) for end in (loaded.spec.low, loaded.spec.high))
    u = sample_noise(scm, low, high, 20_000, torch.Generator().manual_seed(0))
    assert u.shape == (20_000, 2, 2) and torch.equal(u[:, :, 0], u[:, :, 1])
    assert u[:, 0].abs().max() <= 1.5 + 1e-6  # (7 - 4) / 2
    assert abs(float(u[:, 0].std()) - 0.744) < 0.01  # of N(0, 1) between -1.5 and 1.5
    sigma = float(scm.log_scale.detach().exp()[1])
    assert abs(float(u[:, 1].std()) / sigma - 1) < 0.03 and u[:, 1].abs().max() > 3 * sigma


def test_the_class_is_set_like_a_variable() -> None:
    model = CounterfactualModel(tiny_model(class_cond=True), steps=2)
    data = split_of_squares(3, num_classes=4)
    data = replace(data, spec=model.spec)
    cf = model.counterfactual(data, do={"class": 2, "size": 6.0})
    abduction, unguided = model.abduct(data), model.loaded.engine(2, guidance=Guidance(w_class=1.0))
    expected = unguided.predict(replace(abduction, classes=torch.tensor([2, 2, 2])), [{"size": 6.0}])[0]
    found = unguided.predict(abduction, [{"class": 2, "size": 6.0}])[0]
    torch.testing.assert_close(found.images, expected.images)
    assert cf.truth is None and (cf.images != model.predict(abduction, do={"size": 6.0}).images).any()
    each = model.predict(abduction, do={"class": np.array([2, 2, 2]), "size": 6.0})
    np.testing.assert_array_equal(each.images, cf.images)
    with pytest.raises(InputError, match="do: class: expected one of 0, 1, 2, 3, got 4"):
        model.counterfactual(data, do={"class": 4})


def test_discrete_variables_are_categories_in_samples_and_counterfactuals() -> None:
    kinds = {
        "kinds": ("binary", "continuous"),
        "categories": (("small", "large"), ()),
        "low": (0, 50),
        "high": (1, 250),
    }
    spec = replace(squares(1).spec, **kinds, shift=(0.37, 150.0), scale=(0.48, 50.0))  # type: ignore[arg-type]
    torch.manual_seed(0)
    config = small_config(discrete=True)
    loaded = LoadedModel(randomise(create_model_and_diffusion(config, spec)[0]).eval(), config, spec, 1, "nowhere")  # type: ignore[arg-type]
    model, data = CounterfactualModel(loaded, steps=2), replace(squares(6), spec=spec)
    drawn, cf = model.sample(30), model.counterfactual(data, do={"grey": 60.0})
    assert set(drawn.labels["size"].tolist()) == {0.0, 1.0} and set(cf.labels["size"].tolist()) <= {0.0, 1.0}
    np.testing.assert_array_equal(cf.labels["size"], cf.factual_labels["size"])  # type: ignore[index]
    for most_probable in (False, True):
        moved = model.counterfactual(data, do={"size": "large"}, most_probable=most_probable)
        assert moved.labels["size"].tolist() == [1.0] * 6
    assert moved.grid().shape[0] > 0


def test_samples_of_a_class() -> None:
    model = CounterfactualModel(tiny_model(class_cond=True), steps=2)
    assert len(model.sample(3, classes=2)) == len(model.sample(3)) == 3


def test_saved_and_opened_again(tmp_path: Path) -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", steps=2)
    folder = model.save_pretrained(tmp_path / "mine", metrics={"effectiveness | thickness": 0.1234})
    again = CausalDiffAE.from_pretrained(folder, steps=2)
    np.testing.assert_array_equal(again.sample(2).images, model.sample(2).images)
    assert "thickness -> intensity" in repr(again)
    card = (folder / "README.md").read_text()
    shipped = read_json(WEIGHTS / "morphomnist_causaldae_mini" / "config.json")
    steps, batch = shipped["trained_steps"], shipped["config"]["train"]["batch_size"]
    size = count_parameters(model.network)
    assert card.startswith("---\nlicense: mit\n")
    assert steps > 1000 and f"{steps} steps of {batch}" in card and f"{size:,} parameters" in card
    assert (
        "| intensity | grey levels | 66.6 .. 254.91 | thickness |" in card and "| effectiveness \\| thickness" in card
    )
    written = json.loads((folder / "config.json").read_text())
    assert written["config"]["train"]["data_dir"] == written["config"]["train"]["run_dir"] == ""
    assert written["trained_steps"] == steps
    assert (folder / "reader" / "model.safetensors").is_file()
    np.testing.assert_array_equal(again.read(again.examples(4).images).classes, [0, 1, 2, 3])
    half = model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert (half / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size


def test_a_saved_predictor_is_preferred_to_the_shipped_one(tmp_path: Path) -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", label_corrections=1)
    correction = model.engine().correction
    assert correction is not None and correction.count == 1
    folder = model.save_pretrained(tmp_path / "mine")
    found = find_correction_predictor(model.spec, str(folder))
    assert found is not None and found.path == str(folder / "correction_predictor")
    without = CausalDiffAE.from_pretrained(folder, label_corrections=0, keep_unchanged=0.25)
    assert without.engine().keep_fraction == 0.25 and model.engine().keep_fraction == KEEP_UNCHANGED
    assert without.engine().correction is None and without.loaded.engine(correction_predictor="none").correction is None
    (folder / "reader" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"reader/model\.safetensors"):
        CausalDiffAE.from_pretrained(folder).read(np.zeros((1, 1, 28, 28), np.uint8))


def test_only_safe_files_are_opened(tmp_path: Path) -> None:
    """A pickle in place of the weights is refused."""
    loaded = tiny_model()
    described = describe_checkpoint(loaded.config, loaded.spec)
    folder = export_weights(tmp_path / "model", loaded.model.state_dict(), described)
    torch.save({"weights": 1}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        CausalDiffAE.from_pretrained(folder)


def test_paths_of_this_machine_are_not_saved(tmp_path: Path) -> None:
    loaded = tiny_model()
    paths = ("data_dir", "run_dir", "graph", "init_weights", "label_predictor")
    train = replace(loaded.config.train, **{name: f"/home/me/{name}" for name in paths})
    model = CounterfactualModel(replace(loaded, config=replace(loaded.config, train=train)), steps=2)
    written = (model.save_pretrained(tmp_path / "mine") / "config.json").read_text()
    assert "/home/me" not in written


def test_published_weights_are_not_saved_as_a_folder(tmp_path: Path) -> None:
    loaded = tiny_model()
    published = replace(loaded, step=None, path="model.pt", pixel_range=(0.0, 1.0))
    with pytest.raises(InputError, match="published weights for pixels in 0..1"):
        CounterfactualModel(published).save_pretrained(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "do"), [("mnist_diffscm_mini", '{"digit": "9"}'), ("pendulum_causaldae_mini", '{"angle": 9.8}')]
)
def test_the_example_of_a_card_is_valid(name: str, do: str) -> None:
    from causaldiffae.checkpoints.model_card import CardFacts, card

    loaded = load_model(str(WEIGHTS / name))
    text = card(WEIGHTS / name, CardFacts(loaded.config, loaded.spec, 1000, None, ""))
    assert f"do={do}" in text
    loaded.spec.check_do(json.loads(do))


def test_names_of_a_checkpoint_cannot_break_the_card(tmp_path: Path) -> None:
    from causaldiffae.checkpoints.model_card import CardFacts, card
    from causaldiffae.graphs import CausalGraph

    loaded = tiny_model()
    graph = CausalGraph(("a|b<script>", "grey"), (("a|b<script>", "grey"),))
    facts = CardFacts(loaded.config, replace(loaded.spec, graph=graph), 1000, None, "squares")
    text = card(tmp_path, facts)
    assert "<script>" not in text.split("```")[2] and "a\\|b&lt;script>" in text
    assert "an unknown number of steps" in text and "## Figures" not in text


def test_load_model_opens_the_same_model() -> None:
    direct = load_model(str(REPO / "weights" / "circuit_causaldae_mini"))
    model = CausalDiffAE.from_pretrained("circuit-mini", device="cpu")
    assert model.graph == direct.spec.graph and str(model.device) == "cpu"
    assert type(model.network) is type(direct.model)


def test_images_that_are_not_finite_are_an_error() -> None:
    loaded = tiny_model()
    with torch.no_grad():
        list(loaded.model.parameters())[-1].fill_(torch.finfo(torch.float32).max)
    images = split_of_squares(3).images
    with pytest.raises(InputError, match=r"do\(size=3\): expected finite pixels, got NaN or infinity in 3 of 3 images"):
        CounterfactualModel(loaded, steps=2).counterfactual(images, {"size": 3})


def test_interventions_that_pictures_do_not_follow_are_a_warning(tmp_path: Path) -> None:
    folder = CausalDiffAE.from_pretrained("pendulum-mini").save_pretrained(tmp_path / "mine")
    weak = Response(Figure(0.12, 0.05, 0.2, 32), "measured")
    write_responses(folder, {"angle": weak, "light": replace(weak, share=Figure(0.95, 0.9, 1.0, 32))})
    model = CausalDiffAE.from_pretrained(folder, steps=2)
    images = model.examples(1)
    with pytest.warns(UserWarning, match=r"as measured in training, do\(angle\): 12% of the requested change"):
        model.counterfactual(images, do={"angle": 10.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.counterfactual(images, do={"light": 100.0})
    again = model.save_pretrained(tmp_path / "again")
    assert (again / "responses.json").read_text() == (folder / "responses.json").read_text()


@pytest.mark.parametrize("name", ["morphomnist-mini", "pendulum-mini"])
def test_noise_and_negatives_are_named_and_test_images_are_not(name: str) -> None:
    """By the reference of the shipped models, and in the result."""
    model = CounterfactualModel.from_pretrained(name, steps=2)
    images = model.examples(16).images
    do = {model.graph.roots[0]: model.spec.shift[0]}
    plain = model.counterfactual(images, do).checks
    assert plain is not None and plain.images is not None and (plain.images <= 1).all()
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    for unusual in (noise, 255 - images):
        with pytest.warns(UserWarning, match="images: 16 of 16 images are far from the training images"):
            checks = model.counterfactual(unusual, do).checks
        assert checks is not None and checks.images is not None and (checks.images > 1).all()


def test_thick_and_dark_is_named_and_thick_is_not() -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini", steps=2)
    images = model.examples(4)
    with pytest.warns(UserWarning, match=r"no training image is like thickness 5, intensity 70; the nearest has"):
        cf = model.counterfactual(images, {"thickness": 5.0, "intensity": 70.0})
    assert cf.checks is not None and cf.checks.labels is not None and (cf.checks.labels > 2).all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cf = model.counterfactual(images, {"thickness": 4.5})
    assert cf.checks is not None and cf.checks.labels is not None and (cf.checks.labels < 1).all()
    beyond = [str(each.message) for each in caught]
    assert all(text.startswith("intensity:") and "beyond the training data" in text for text in beyond), beyond
    assert bool(beyond) is ("intensity" in cf.checks.beyond)


def test_distances_are_columns_and_a_saved_model_keeps_its_reference(tmp_path: Path) -> None:
    model = CausalDiffAE.from_pretrained("pendulum-mini", steps=2)
    again = CausalDiffAE.from_pretrained(model.save_pretrained(tmp_path / "mine"), steps=2)
    assert model.reference is not None and again.reference is not None
    table = again.counterfactual(again.examples(2), {"angle": 10.0}).to_dataframe()
    assert (table[["image_distance", "label_distance"]] < 1).all(axis=None)
    sampled = again.sample(2)
    assert sampled.checks is not None and sampled.checks.images is None
    (tmp_path / "mine" / "reference.safetensors").unlink()
    unknown = CausalDiffAE.from_pretrained(tmp_path / "mine", steps=2)
    cf = unknown.counterfactual(np.zeros((1, 3, 32, 32), np.uint8), {"angle": 10.0})
    assert cf.checks is not None and cf.checks.images is None, "no claim without a reference"
    assert "image_distance" not in cf.to_dataframe()
