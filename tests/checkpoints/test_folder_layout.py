"""A model that is saved to the folder of another one: nothing of the other remains."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import tiny_model

from causaldiffae import CausalDiffAE
from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.checkpoints.folder_layout import HUB_FILES, KEPT_FILES, files_of_other_model
from causaldiffae.checkpoints.model_folders import copy_files
from causaldiffae.errors import InputError
from causaldiffae.script_util import describe_checkpoint


def test_nothing_of_another_model_remains(tmp_path: Path) -> None:
    """Its predictors and logs would be opened with the new one; files of the user are kept."""
    folder = CausalDiffAE.from_pretrained("morphomnist-mini").save_pretrained(tmp_path / "mine")
    (folder / "notes.txt").write_text("mine")
    before = {path.name for path in folder.iterdir()}
    assert {"reader", "correction_predictor"} <= before
    again = CausalDiffAE.from_pretrained(folder).save_pretrained(folder)
    assert {path.name for path in again.iterdir()} == before, "the same model"
    loaded = tiny_model()
    folder = export_weights(folder, loaded.model.state_dict(), describe_checkpoint(loaded.config, loaded.spec))
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert left == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    assert CausalDiffAE.from_pretrained(folder).spec == loaded.spec


def test_a_model_folder_is_copied_whole(tmp_path: Path) -> None:
    """From the step of a run, whose files lie in the run; what is copied is also uploaded."""
    for name in KEPT_FILES:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(name)
    (tmp_path / "run" / "step_0000001").mkdir()
    for target, without in ((tmp_path / "all", ()), (tmp_path / "some", ("reader", "responses.json"))):
        target.mkdir()
        copy_files(tmp_path / "run" / "step_0000001", target, without)
        copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert copied == {name for name in KEPT_FILES if not name.startswith(without)}
    assert {"reference.safetensors", "responses.json", "progress.csv", "predictor/config.json"} < set(KEPT_FILES)
    assert set(KEPT_FILES) < set(HUB_FILES)


def test_a_model_of_another_type_or_of_other_labels_is_another_model(tmp_path: Path) -> None:
    loaded = tiny_model()
    described = describe_checkpoint(loaded.config, loaded.spec)
    export_weights(tmp_path, loaded.model.state_dict(), described)
    (tmp_path / "progress.csv").write_text("step\n")
    assert files_of_other_model(tmp_path, described) == files_of_other_model(tmp_path / "none", described) == []
    labels = replace(loaded.spec, low=(0.0, 0.0)).to_dict()
    for other in ({**described, "dataset": labels}, {"model_type": "predictor", "dataset": described["dataset"]}):
        assert files_of_other_model(tmp_path, other) == [tmp_path / "progress.csv"]
    (tmp_path / "config.json").write_text("damaged")
    assert files_of_other_model(tmp_path, described) == [tmp_path / "progress.csv"]


def test_a_model_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(InputError, match="expected no model of another program; choose another output folder"):
        CausalDiffAE.from_pretrained("pendulum-mini").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
