"""The explorer's server and page: its address, what it refuses, and a real browser that moves a slider."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import REPO
from PIL import Image
from running import assert_refused, run

from causaldiffae.errors import InputError
from causaldiffae.explorer.server import HOST, listen

SCRIPT = REPO / "scripts" / "explore.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
needs_gradio = pytest.mark.skipif("gradio" in MISSING, reason="gradio is not installed (extra `app`)")
needs_browser = pytest.mark.skipif(
    bool(MISSING) or CHROMIUM is None,
    reason=f"not installed: {', '.join([*MISSING, *([] if CHROMIUM else ['chromium'])])}",
)
UPLOAD = "input[type=file]"
PATIENCE = 120_000  # milliseconds: cores may be shared


def test_a_port_in_use_and_a_port_that_is_none() -> None:
    with listen(0) as taken:
        number = taken.getsockname()[1]
        assert taken.getsockname()[0] == HOST == "127.0.0.1"
        with pytest.raises(InputError, match=rf"port: {number} is not to be had \(Address already in use\)"):
            listen(number)
    with pytest.raises(InputError, match=r"port: 70000 given, 0\.\.65535 are allowed"):
        listen(70000)


def test_the_next_free_port_is_taken() -> None:
    with listen(None) as first, listen(None) as second:
        assert second.getsockname()[1] > first.getsockname()[1]


def test_what_the_script_refuses(tmp_path: Path) -> None:
    assert_refused(run(SCRIPT, "--model_path", tmp_path), str(tmp_path), "it holds no model")
    assert_refused(run(SCRIPT, "--model_path", "nothing"), "there is no such folder", "shipped are")
    assert_refused(run(SCRIPT, "--model_path", REPO / "weights" / "pendulum_32_predictor"), "a predictor reads labels")
    assert_refused(run(SCRIPT, "--threads", 0), "threads: expected 1 or more, got 0")
    assert_refused(run(SCRIPT, "--data_dir", tmp_path / "none"), "data_dir: expected a folder")
    broken = tmp_path / "broken_model"
    shutil.copytree(REPO / "weights" / "circuit_causaldae_mini", broken)
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    assert_refused(run(SCRIPT, "--model_path", broken), "model.safetensors")
    with listen(0) as taken:
        outcome = run(SCRIPT, "--model_path", "circuit-mini", "--port", taken.getsockname()[1])
    assert_refused(outcome, "port:", "is not to be had", "--port")


@needs_gradio
@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 200), ("localhost", 200), ("elsewhere.example", 400)])
def test_only_this_machine_is_answered(host: str, code: int) -> None:
    from fastapi.testclient import TestClient

    from causaldiffae.explorer.registry import ModelRegistry, find_models
    from causaldiffae.explorer.server import make_app

    app = make_app(ModelRegistry(find_models(REPO / "weights" / "circuit_causaldae_mini")[:1]))
    with TestClient(app, base_url=f"http://{host}") as client:
        response = client.get("/")
    assert response.status_code == code
    if code == 200:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of its own process, as a user starts it."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line
    yield found[0]
    assert process.poll() is None, "the server did not live to the end"
    process.send_signal(signal.SIGINT)
    process.wait(60)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.elsewhere = []
        page.on(
            "request",
            lambda r: page.elsewhere.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else 0,
        )
        page.goto(address)
        page.wait_for_selector("#cd-pictures figure.answer img")
        page.wait_for_selector("#cd-gallery .grid-container button")
        yield page
        browser.close()


def answer_of(page: Any) -> str:
    return page.get_attribute("#cd-pictures figure.answer img", "src")


def graph_of(page: Any) -> str:
    return page.get_attribute("#cd-graph svg", "aria-label")


def number_of(page: Any, place: int) -> float:
    return float(page.input_value(f"#cd-slider-{place} input[type=number]"))


def wait_for_change(page: Any, before: str) -> None:
    page.wait_for_function("old => document.querySelector('#cd-pictures figure.answer img').src !== old", arg=before)


def wait_for_graph(page: Any, words: str) -> None:
    said = "w => document.querySelector('#cd-graph svg').getAttribute('aria-label').includes(w)"
    page.wait_for_function(said, arg=words)


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.timeout(600)
class TestInTheBrowser:
    def test_a_slider_moves_the_picture_its_effect_and_nothing_else(self, page: Any) -> None:
        page.click("#cd-reset")
        page.wait_for_function(
            "() => document.querySelector('#cd-graph svg').getAttribute('aria-label').includes('thickness stays')"
        )
        picture, intensity = answer_of(page), number_of(page, 1)
        slider = page.locator("#cd-slider-0 input[type=range]")
        slider.focus()
        started = time.perf_counter()
        for _ in range(3):
            slider.press("PageUp")  # by keyboard alone
        wait_for_change(page, picture)
        print(f"from the slider to the picture: {time.perf_counter() - started:.2f} s")
        page.wait_for_function("() => document.querySelector('#cd-do-0 input').checked")
        assert "thickness set" in graph_of(page) and "intensity follows" in graph_of(page)
        page.wait_for_function(
            f"() => document.querySelector('#cd-slider-1 input[type=number]').value != '{intensity:g}'"
        )
        # the effect's own slider: its cause stays
        page.locator("#cd-do-0 input").uncheck()
        wait_for_graph(page, "thickness stays")
        thickness, picture = number_of(page, 0), answer_of(page)
        page.locator("#cd-slider-1 input[type=number]").fill("100")
        page.locator("#cd-slider-1 input[type=number]").press("Tab")
        wait_for_graph(page, "intensity set")
        assert answer_of(page) != picture
        assert "thickness stays" in graph_of(page) and number_of(page, 0) == thickness

    def test_nothing_is_loaded_from_elsewhere(self, page: Any) -> None:
        assert page.elsewhere == []

    def test_bad_uploads_get_a_message_and_good_ones_an_answer(self, page: Any, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("no picture")
        Image.new("1", (10_000, 5_000)).save(tmp_path / "huge.png")
        before = answer_of(page)
        for name, words in (("text.png", "cannot be read"), ("huge.png", "50 megapixels")):
            page.set_input_files(UPLOAD, str(tmp_path / name))
            page.wait_for_function(
                "w => document.querySelector('.cd-status.wrong')?.textContent.includes(w)", arg=words
            )
            assert answer_of(page) == before
        image = np.zeros((200, 200), np.uint8)
        image[40:160, 90:110] = 230
        Image.fromarray(image).save(tmp_path / "one.png")
        page.set_input_files(UPLOAD, str(tmp_path / "one.png"))
        wait_for_change(page, before)
        assert "200x200 pixels became 28x28" in page.inner_text("#cd-status")
        assert "The truth" not in page.inner_text("#cd-pictures")

    def test_a_value_out_of_range_gets_a_message(self, page: Any) -> None:
        before, number = answer_of(page), page.locator("#cd-slider-0 input[type=number]")
        number.fill("9999")
        number.press("Tab")
        words = "thickness: 9999 given, the model has seen 0.875..6.256"
        page.wait_for_function("w => document.querySelector('.cd-status.wrong')?.textContent.includes(w)", arg=words)
        assert answer_of(page) == before
        number.fill("3")
        number.press("Tab")
        wait_for_graph(page, "thickness set")
        wait_for_change(page, before)

    def test_one_thumbnail_is_marked(self, page: Any) -> None:
        """The chosen one; the one under the pointer looks like the rest."""
        buttons = page.locator("#cd-gallery .grid-container button")
        buttons.nth(3).hover()
        page.wait_for_timeout(500)
        rims = [buttons.nth(i).evaluate("b => getComputedStyle(b).borderTopColor") for i in range(buttons.count())]
        assert rims[0] not in rims[1:] and len(set(rims[1:])) == 1

    def test_another_model_brings_its_own_sliders(self, page: Any) -> None:
        page.click("#cd-model input")
        page.click("[role=option]:has-text('pendulum')")
        page.wait_for_function(
            "() => document.querySelector('#cd-graph svg').getAttribute('aria-label').includes('shadow')"
        )
        page.wait_for_selector("#cd-slider-3 input[type=range]")
        assert "light stays" in graph_of(page) and "shadow_length follows" in graph_of(page)
        picture = answer_of(page)
        page.locator("#cd-gallery .grid-container button").nth(2).press("Enter")
        wait_for_change(page, picture)
        assert "nothing set" in page.inner_text("#cd-pictures")
        with page.expect_download() as download:
            page.click("#cd-downloads a[download='counterfactual.json']")
        said = json.loads(Path(download.value.path()).read_text())
        assert said["dataset"] == "pendulum" and said["do"] == {}
        assert page.get_attribute("#cd-guidance input[type=range]", "max") == "3"
        page.click("#cd-model input")
        page.click("[role=option]:has-text('mnist · Diff-SCM · mini')")
        wait_for_graph(page, "digit")
        page.wait_for_function("() => document.querySelector('#cd-guidance input[type=range]').max === '10'")
        assert page.input_value("#cd-guidance input[type=number]") == "4.5"

    @pytest.mark.parametrize("width", [1280, 420])
    def test_the_page_fits_its_window(self, page: Any, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        top = page.locator("#cd-pictures figure.answer").bounding_box()["y"]
        assert page.locator("#cd-slider-0").bounding_box()["y"] - top < 700  # the slider and what it moves in one view


def test_a_port_is_free_again_after_the_server(tmp_path: Path) -> None:
    with listen(0) as found:
        number = found.getsockname()[1]
    with listen(number) as again:
        assert isinstance(again, socket.socket)
