"""Requests of other web pages and uploads beyond the total are refused before anything is stored."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import REPO

from causaldiffae.explorer import guard
from causaldiffae.explorer.guard import FORM_BYTES, MAX_TOTAL_BYTES, RequestGuard, is_foreign
from causaldiffae.explorer.page import DELETE_CACHE, Page
from causaldiffae.explorer.registry import ModelRegistry, find_models
from causaldiffae.explorer.server import make_app
from causaldiffae.explorer.uploads import MAX_BYTES

HOST = "127.0.0.1:7860"
OWN = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
UPLOAD = "/gradio_api/upload"


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),  # no browser
        (OWN, False),
        ({"Origin": f"http://{HOST}"}, False),
        ({"Origin": "https://elsewhere.example"}, True),
        ({"Origin": "null"}, True),  # a sandboxed frame, or a file
        ({"Origin": "http://127.0.0.1:8888"}, True),  # another server on this machine
        ({"Origin": "http://localhost:7860"}, True),  # by another name than the host's
        ({"Origin": f"https://{HOST}"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Origin": f"http://{HOST}", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "none"}, False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_of_other_pages(headers: dict[str, str], method: str, foreign: bool) -> None:
    found = {"host": HOST} | {name.lower(): value for name, value in headers.items()}
    assert is_foreign(method, UPLOAD, found) == foreign


def test_a_link_on_another_page_opens_this_one() -> None:
    link = {"host": HOST, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert not is_foreign("GET", "/", link)
    assert is_foreign("POST", "/", link), "a form on another page"
    assert is_foreign("GET", UPLOAD, link)
    assert is_foreign("GET", "/", link | {"sec-fetch-dest": "iframe"})
    assert is_foreign("GET", "/", link | {"sec-fetch-mode": "no-cors"})


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("gradio", reason="gradio is not installed (extra `app`)")
    from fastapi.testclient import TestClient

    registry = ModelRegistry(find_models(REPO / "weights" / "circuit_causaldae_mini")[:1])
    with TestClient(make_app(registry, tmp_path), base_url=f"http://{HOST}") as opened:
        yield opened


def upload(client: Any, size: int, **headers: str) -> Any:
    return client.post(UPLOAD, files={"files": ("a.png", bytes(size))}, headers=headers)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_other_pages_store_nothing(client: Any, tmp_path: Path) -> None:
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        response = upload(client, 1000, **headers)
        assert response.status_code == 403
        assert response.text == "expected a request of this page, got one of another page"
    assert stored(tmp_path) == 0
    assert upload(client, 1000, **OWN).status_code == 200
    assert stored(tmp_path) == 1000
    assert client.get("/", headers={"Sec-Fetch-Site": "none"}).status_code == 200


def test_the_total_of_uploads_is_bounded(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_TOTAL_BYTES", 3 << 20)
    assert MAX_TOTAL_BYTES > MAX_BYTES + FORM_BYTES
    codes = [client.post(UPLOAD, files={"files": (f"{i}.png", bytes([i]) * (1 << 20))}).status_code for i in range(5)]
    assert codes == [200, 200, 413, 413, 413]
    assert stored(tmp_path) == 2 << 20
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert upload(client, 1 << 20).status_code == 200, "deleted files make room"


def test_uploads_that_are_still_arriving_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_TOTAL_BYTES", 5 << 20)
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": [(b"content-length", b"%d" % (3 << 20))]}

    async def codes() -> list[int]:
        found: list[int] = []
        arrived = asyncio.Event()

        async def receive() -> dict[str, Any]:
            return {}

        async def send(message: Any) -> None:
            found.extend([message["status"]] if "status" in message else [])

        async def store(scope: Any, receive: Any, send: Any) -> None:
            await arrived.wait()
            await send({"type": "http.response.start", "status": 200})

        guarded = RequestGuard(store, tmp_path)
        both = [asyncio.ensure_future(guarded(scope, receive, send)) for _ in range(2)]
        await asyncio.sleep(0)  # both have begun
        arrived.set()
        await asyncio.gather(*both)
        await guarded(scope, receive, send)
        return found

    assert asyncio.run(codes()) == [413, 200, 200], "the second one does not fit beside the first, the third one does"


def test_uploads_without_a_size_or_of_many_files_are_refused(client: Any, tmp_path: Path) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post(UPLOAD, content=iter([b"--x"]), headers=form).status_code == 411
    many = [("files", (f"{i}.png", bytes(MAX_BYTES // 4))) for i in range(5)]
    response = client.post(UPLOAD, files=many)
    assert response.status_code == 413 and response.text == "upload: expected at most 32 MiB, got 40 MiB"
    assert stored(tmp_path) == 0


def test_uploads_are_deleted_after_an_hour() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (extra `app`)")
    registry = ModelRegistry(find_models(REPO / "weights" / "circuit_causaldae_mini")[:1])
    assert Page(registry).build().delete_cache == DELETE_CACHE == (600, 3600)
