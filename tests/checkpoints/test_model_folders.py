"""Finding models: folders, shipped names, and a stubbed hub that is asked for JSON, safetensors and text only."""

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


def test_what_a_folder_says(tmp_path: Path) -> None:
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


def test_the_newest_step_of_a_run_counts(tmp_path: Path) -> None:
    config = json.loads((WEIGHTS / "circuit_causaldae_mini" / "config.json").read_text())
    for step, dataset in ((9, "old"), (10, "new")):
        folder = tmp_path / "run" / f"step_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**config, "dataset": {**config["dataset"], "name": dataset}}))
    (found,) = models_in(tmp_path)
    assert found.dataset == "new" and found.path == tmp_path / "run"


def test_nothing_of_this_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'pendulum-large': there is no such folder.*shipped are .*circuit-mini"):
        find_model("pendulum-large")
    monkeypatch.setattr(model_folders, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(InputError, match="no weights are shipped here.*come with a clone"):
        find_model("pendulum-mini")


class Hub(types.ModuleType):
    """A stand-in for huggingface_hub that remembers what it was asked."""

    def __init__(self, answer: Path | Exception) -> None:
        super().__init__("huggingface_hub")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer = answer

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.asked.append((name, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_the_hub_gives_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(WEIGHTS / "pendulum_causaldae_mini")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find_model("someone/pendulum-large", revision="v2") == WEIGHTS / "pendulum_causaldae_mini"
    ((name, options),) = hub.asked
    assert name == "someone/pendulum-large" and options["revision"] == "v2"
    endings = {Path(pattern).suffix for pattern in options["allow_patterns"]}
    assert endings == {".json", ".safetensors", ".csv", ".md"}
    assert not any("*" in pattern for pattern in options["allow_patterns"])


@pytest.mark.parametrize("name", ["../weights/none", "a/b/c", "/a/b", "a b/c", "a/", "./x"])
def test_paths_are_never_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hub = Hub(WEIGHTS)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(InputError, match="there is no such folder"):
        find_model(name)
    assert not hub.asked


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(OSError("404 Client Error:\n not found")))
    with pytest.raises(DataError, match=r"'a/b': the Hugging Face Hub did not give it \(404 Client Error: not found\)"):
        find_model("a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'causaldiffae\[hub\]' is needed"):
        find_model("a/b")


class Api:
    """A stand-in for HfApi that keeps what is uploaded."""

    made: tuple[str, dict[str, Any]]
    files: dict[str, bytes]
    refusal: Exception | None = None

    def __init__(self, token: str | None) -> None:
        Api.token = token

    def create_repo(self, name: str, **options: Any) -> None:
        if Api.refusal is not None:
            raise Api.refusal
        Api.made = (name, options)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, allow_patterns: list[str]) -> Any:
        root = Path(folder_path)
        Api.files = {pattern: (root / pattern).read_bytes() for pattern in allow_patterns if (root / pattern).is_file()}
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1 {commit_message}")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    hub = types.ModuleType("huggingface_hub")
    hub.HfApi = Api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    Api.refusal = None
    return Api


def test_a_model_is_pushed_with_its_card(api: type[Api]) -> None:
    model = CausalDiffAE.from_pretrained("morphomnist-mini")
    url = model.push_to_hub("me/digits", private=True, token="hf_x", message="First", metrics={"error": 0.25})
    assert url == "https://hub/me/digits/commit/1 First"
    assert api.token == "hf_x" and api.made == ("me/digits", {"private": True, "exist_ok": True})
    assert {"config.json", "model.safetensors", "README.md", "reader/model.safetensors"} <= set(api.files)
    card = api.files["README.md"].decode()
    assert 'CausalDiffAE.from_pretrained("me/digits")' in card and "| error | 0.25 |" in card
    assert str(WEIGHTS) not in "".join(content.decode("latin-1") for content in api.files.values())


def test_a_push_that_is_refused(api: type[Api], monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalDiffAE.from_pretrained("circuit-mini")
    with pytest.raises(InputError, match="hub name: 'digits' given, owner/repository is needed"):
        model.push_to_hub("digits")
    api.refusal = OSError("403 Forbidden:\n read token")
    with pytest.raises(
        DataError, match=r"me/x: the Hugging Face Hub did not take it \(403 Forbidden: read token\); it takes a token"
    ):
        model.push_to_hub("me/x")
    api.refusal = type("ConnectError", (Exception,), {"__module__": "httpx"})("no route")
    with pytest.raises(DataError, match="no route"):
        model.push_to_hub("me/x")
    api.refusal = KeyError("a defect of ours")
    with pytest.raises(KeyError):
        model.push_to_hub("me/x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        InputError, match=r"push_to_hub: huggingface_hub is not installed; pip install 'causaldiffae\[hub\]'"
    ):
        model.push_to_hub("me/x")
