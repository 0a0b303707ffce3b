"""The models on offer and their images."""

import shutil
from pathlib import Path

import pytest
from paths import REPO
from tiny_models import tiny_model

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.checkpoints.model_folders import FoundModel
from causaldiffae.errors import DataError, InputError
from causaldiffae.explorer.registry import IMAGES, ModelRegistry, find_models, titles_of
from causaldiffae.script_util import describe_checkpoint

WEIGHTS = REPO / "weights"


def test_all_models_beside_the_named_one_are_offered(tmp_path: Path) -> None:
    for model_type in ("causaldae", "conditional", "diffae"):
        loaded = tiny_model(model_type=model_type)
        described = describe_checkpoint(loaded.config, loaded.spec)
        export_weights(tmp_path / f"folder_{model_type}_mini", loaded.model.state_dict(), described)
    shutil.copytree(WEIGHTS / "pendulum_32_predictor", tmp_path / "pendulum_32_predictor")
    (tmp_path / "notes").mkdir()
    registry = ModelRegistry(find_models(tmp_path / "folder_diffae_mini"))
    first = "folder · DiffAE · mini"
    assert registry.titles == [first, "folder · CausalDiffAE · mini", "folder · label-conditional · mini"]
    assert registry.max_variables == 2
    assert registry.session(first) is registry.session(first)
    assert registry.images(first) == (
        [],
        "There are no example images of 'folder': upload an image, or use --data_dir.",
    )
    with pytest.raises(InputError, match="model: expected one of folder .*, got 'none'"):
        registry.session("none")


def test_equal_titles_get_the_folder_added() -> None:
    twins = [FoundModel(Path(place) / "pendulum_mini", "causaldae", "pendulum", ("a",)) for place in ("/a", "/b")]
    assert list(titles_of(twins)) == [f"pendulum · CausalDiffAE · mini ({p}/pendulum_mini)" for p in ("/a", "/b")]


def test_folders_without_a_generative_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="model_path: expected a run directory or a model folder"):
        find_models(tmp_path)
    with pytest.raises(DataError, match="expected one of causaldae.*, got a 'predictor' model; a predictor reads"):
        find_models(WEIGHTS / "pendulum_32_predictor")
    with pytest.raises(InputError, match="models: expected at least one"):
        ModelRegistry([])


def test_examples_replace_a_data_folder_of_another_data_set(tmp_path: Path) -> None:
    registry = ModelRegistry(find_models(WEIGHTS / "pendulum_causaldae_mini"), str(tmp_path))
    images, note = registry.images("pendulum · CausalDiffAE · mini")
    assert len(images) == IMAGES
    assert note.startswith("The data folder does not fit this model") and note.endswith("these are example images.")
