"""Models are found as folders, shipped names, and on a stubbed hub, which serves JSON, safetensors and text only."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from paths import REPO

from causaldiffae import CausalDiffAE
from causaldiffae.checkpoints import model_folders
from causaldiffae.checkpoints.model_folders import describe_folder, find_model, models_in, shipped_models, short_name
from causaldiffae.errors import DataError, InputError

WEIGHTS = REPO / "weights"


def test_shipped_names() -> None:
    shipped = shipped_models()
    assert {"morphomnist-mini", "pendulum-mini", "circuit-mini"} <= set(shipped)
    assert find_model("pendulum-mini") == WEIGHTS / "pendulum_causaldae_mini"
    assert find_model("pendulum_causaldae_mini") == WEIGHTS / "pendulum_causaldae_mini"
    assert not any("predictor" in name for name in shipped)
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
    with pytest.raises(DataError, match=r"'a/b': download .* failed .404 Client Error:  not found"):
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
