"""Models are found as folders, shipped names, and on the hub, which serves JSON, safetensors and text only.

The hub is a stub that records calls, or a local server from which huggingface_hub downloads into its own cache.
"""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_storage import install_service
from hub_server import hub_of
from paths import REPO
from processes import plain_environment
from support import CHECKPOINT_CONFIG, small_network
from tiny_models import write_diffscm

from causaldiffae import CausalDiffAE, CounterfactualModel
from causaldiffae.checkpoints import model_folders
from causaldiffae.checkpoints.checkpoint import save_checkpoint
from causaldiffae.checkpoints.model_folders import describe_folder, find_model, models_in, shipped_models, short_name
from causaldiffae.checkpoints.remote import run_folder
from causaldiffae.errors import DataError, InputError

WEIGHTS = REPO / "weights"


def test_a_run_in_object_storage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = install_service(tmp_path, monkeypatch).bucket
    state = {"model_state": small_network().state_dict(), "ema_states": {}, "training_state": None}
    save_checkpoint(bucket / "run", 3, config=CHECKPOINT_CONFIG, **state)
    assert find_model("gs://bucket/run") == run_folder("gs://bucket/run") / "step_0000003"
    with pytest.raises(DataError, match="gs://bucket/none: expected a checkpoint, found none"):
        find_model("gs://bucket/none")


def test_shipped_names() -> None:
    shipped = shipped_models()
    assert {"morphomnist-mini", "pendulum-mini", "circuit-mini"} <= set(shipped)
    assert find_model("pendulum-mini") == WEIGHTS / "pendulum_causaldae_mini"
    assert find_model("pendulum_causaldae_mini") == WEIGHTS / "pendulum_causaldae_mini"
    assert not any("predictor" in name for name in shipped)
    with pytest.raises(InputError, match="one of circuit-mini, mnist-diffscm-mini") as error:
        find_model("missing")
    assert "autoencoders" not in str(error.value), "no models of images"
    assert short_name("pendulum_diffae_mini") == "pendulum-diffae-mini"


def test_a_folder_is_described(tmp_path: Path) -> None:
    found = describe_folder(WEIGHTS / "pendulum_causaldae_mini")
    assert found is not None
    assert (found.model_type, found.dataset) == ("causaldae", "pendulum")
    assert found.variables == ("angle", "light", "shadow_length", "shadow_position")
    assert describe_folder(tmp_path) is None
    assert describe_folder(tmp_path / "missing") is None
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "[]", '{"dataset": 3}', '{"dataset": {"name": "a"}, "model_type": "x"}'):
        (tmp_path / "config.json").write_text(text)
        assert describe_folder(tmp_path) is None
    assert models_in(tmp_path / "missing") == []


def test_the_newest_step_describes_a_run(tmp_path: Path) -> None:
    config = json.loads((WEIGHTS / "circuit_causaldae_mini" / "config.json").read_text())
    for step, dataset in ((9, "old"), (10, "new")):
        folder = tmp_path / "run" / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**config, "dataset": {**config["dataset"], "name": dataset}}))
    (found,) = models_in(tmp_path)
    assert found.dataset == "new" and found.path == tmp_path / "run"


def test_unknown_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'pendulum-large': folder not found; .* one of .*circuit-mini"):
        find_model("pendulum-large")
    monkeypatch.setattr(model_folders, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(InputError, match="none: .*weights not found; clone the repository"):
        find_model("pendulum-mini")


class Hub(types.ModuleType):
    """A stand-in for huggingface_hub that records calls; `failure` is raised by each."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.failure: Exception | None = None
        self.HfApi = self._api

    def _api(self, token: str | None) -> "Hub":
        self.token = token
        return self

    def _record(self, name: str, options: dict[str, Any]) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append((name, options))

    def snapshot_download(self, name: str, **options: Any) -> str:
        self._record(name, options)
        return str(WEIGHTS / "pendulum_causaldae_mini")

    def create_repo(self, name: str, **options: Any) -> None:
        self._record(name, options)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, allow_patterns: list[str]) -> Any:
        root = Path(folder_path)
        self.files = {name: (root / name).read_bytes() for name in allow_patterns if (root / name).is_file()}
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1 {commit_message}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_model_is_downloaded_from_the_hub(hub: Hub) -> None:
    assert find_model("someone/pendulum-large", revision="v2") == WEIGHTS / "pendulum_causaldae_mini"
    ((name, options),) = hub.calls
    assert name == "someone/pendulum-large" and options["revision"] == "v2"
    assert {Path(pattern).suffix for pattern in options["allow_patterns"]} == {".json", ".safetensors", ".csv", ".md"}
    assert not any("*" in pattern for pattern in options["allow_patterns"])


@pytest.mark.parametrize("name", ["../weights/none", "a/b/c", "/a/b", "a b/c", "a/", "./x"])
def test_paths_are_not_hub_names(hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match="folder not found"):
        find_model(name)
    assert not hub.calls


def test_a_failed_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failure = OSError("404 Client Error:\n not found")
    with pytest.raises(
        DataError, match=r"'a/b': folder not found, and the download .* failed .404 Client Error:  not found"
    ):
        find_model("a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"huggingface_hub is not installed; run pip install 'causaldiffae\[hub\]'"):
        find_model("a/b")


def test_a_model_is_pushed_with_its_card(hub: Hub) -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini")
    url = model.push_to_hub("me/digits", private=True, token="hf_x", message="First", metrics={"error": 0.25})
    assert url == "https://hub/me/digits/commit/1 First"
    assert hub.token == "hf_x" and hub.calls == [("me/digits", {"private": True, "exist_ok": True})]
    assert {"config.json", "model.safetensors", "README.md", "reader/model.safetensors"} <= set(hub.files)
    card = hub.files["README.md"].decode()
    assert 'CausalDiffAE.from_pretrained("me/digits")' in card and "| error | 0.25 |" in card
    assert str(WEIGHTS) not in "".join(content.decode("latin-1") for content in hub.files.values())


def test_the_card_of_a_guided_model_names_its_repository(hub: Hub, tmp_path: Path) -> None:
    """The noised predictor of an explicit Diff-SCM is uploaded too, and does not change the name in the example."""
    CounterfactualModel.from_pretrained(write_diffscm(tmp_path / "model")).push_to_hub("me/digits")
    assert {"predictor/config.json", "predictor/model.safetensors"} <= set(hub.files)
    card = hub.files["README.md"].decode()
    assert re.findall(r'from_pretrained\("(.*)"\)', card) == ["me/digits"]
    saved = CausalDiffAE.from_pretrained("morphomnist-mini").save_pretrained(tmp_path / "digits")
    assert "10 classes, predicted by `reader/`" in (saved / "README.md").read_text()


def test_a_failed_push(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalDiffAE.from_pretrained("circuit-mini")
    with pytest.raises(InputError, match="hub name: expected owner/repository, got 'digits'"):
        model.push_to_hub("digits")
    hub.failure = OSError("403 Forbidden:\n read token")
    with pytest.raises(DataError, match=r"upload .* failed .403 Forbidden:  read token.; use a write token"):
        model.push_to_hub("me/x")
    hub.failure = type("ConnectError", (Exception,), {"__module__": "httpx"})("no route")
    with pytest.raises(DataError, match="no route"):
        model.push_to_hub("me/x")
    hub.failure = KeyError("a bug")
    with pytest.raises(KeyError):
        model.push_to_hub("me/x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"push_to_hub: huggingface_hub is not installed"):
        model.push_to_hub("me/x")


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that huggingface_hub has made of a model with a predictor, "someone/digits"."""
    pytest.importorskip("huggingface_hub")
    root = tmp_path_factory.mktemp("hub")
    folder = CausalDiffAE.from_pretrained("morphomnist-mini").save_pretrained(root / "mine")
    code = "from causaldiffae.checkpoints.model_folders import find_model; find_model('someone/digits')"
    with hub_of(folder) as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-c", code], env=plain_environment(**online), check=True)
    return root / "cache"


@pytest.fixture
def cached(downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot in a copy of that cache, without a network."""
    shutil.copytree(downloaded, tmp_path / "cache", symlinks=True)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return find_model("someone/digits")


def test_a_model_is_opened_from_the_cache_of_the_hub(cached: Path) -> None:
    links = sorted(path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_symlink())
    assert {"config.json", "model.safetensors", "reader/config.json", "reader/model.safetensors"} <= set(links)
    model, original = (CausalDiffAE.from_pretrained(name, steps=2) for name in ("someone/digits", "morphomnist-mini"))
    data = original.examples(4)
    np.testing.assert_array_equal(model.sample(2).images, original.sample(2).images)
    np.testing.assert_array_equal(model.read(data.images).classes, data.classes)
    described = describe_folder(cached)
    assert described is not None and described.dataset == "morphomnist"
    again = CausalDiffAE.from_pretrained(model.save_pretrained(cached.parents[3] / "saved"), steps=2)
    np.testing.assert_array_equal(again.sample(2).images, original.sample(2).images)


def test_a_link_to_the_cache_is_opened(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "digits").symlink_to(cached)
    assert CausalDiffAE.from_pretrained(tmp_path / "digits").spec.name == "morphomnist"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "reader/config.json"])
def test_a_link_out_of_its_repository_is_refused(cached: Path, tmp_path: Path, name: str) -> None:
    """Also into another repository of the cache, and through blobs that are a link themselves."""
    other = cached.parents[2] / "models--other--model" / "blobs"
    other.mkdir(parents=True)
    blob = (cached / name).resolve()
    for target in (tmp_path / "elsewhere", other / blob.name):
        target.write_bytes(blob.read_bytes())
        (cached / name).unlink()
        (cached / name).symlink_to(target)
        with pytest.raises(DataError, match=f"{name}: expected a regular file, got a link"):
            CausalDiffAE.from_pretrained("someone/digits").read(np.zeros((1, 1, 28, 28), np.uint8))
    blob.parent.rename(tmp_path / "blobs")
    blob.parent.symlink_to(tmp_path / "blobs")
    with pytest.raises(DataError, match=": expected a regular file, got a link"):
        CausalDiffAE.from_pretrained("someone/digits")


def test_a_link_out_of_its_repository_is_not_published(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (cached / "progress.csv").unlink(missing_ok=True)
    (cached / "progress.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"progress\.csv: expected a regular file, got a link"):
        CausalDiffAE.from_pretrained("someone/digits").save_pretrained(tmp_path / "saved")
