"""The explorer's server and page: its address, what it refuses, and a browser that moves a slider."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from running import assert_refused, run
from tiny import randomise, small_config, squares, squares_spec

from causaldiffae.datasets.registry import example_images
from causaldiffae.errors import InputError
from causaldiffae.explorer.page import Page
from causaldiffae.explorer.registry import ModelRegistry, find_models
from causaldiffae.explorer.server import HOST, listen, make_app
from causaldiffae.explorer.session import Session, SourceImage, images_of
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, load_model

SCRIPT = REPO / "scripts" / "explore.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
needs_gradio = pytest.mark.skipif("gradio" in MISSING, reason="gradio is not installed (extra `app`)")
needs_browser = pytest.mark.skipif(
    bool(MISSING) or CHROMIUM is None,
    reason=f"not installed: {', '.join([*MISSING, *([] if CHROMIUM else ['chromium'])])}",
)
IMAGE = "#cd-pictures figure.answer img"
THUMBNAILS = "#cd-gallery .grid-container button"
TIMEOUT = 120_000  # milliseconds


def test_ports_in_use_and_out_of_range_are_refused() -> None:
    with listen(0) as taken:
        number = taken.getsockname()[1]
        assert taken.getsockname()[0] == HOST == "127.0.0.1"
        with pytest.raises(InputError, match=rf"port: expected a free port, got {number} \(Address already in use\)"):
            listen(number)
    with pytest.raises(InputError, match=r"port: expected 0\.\.65535 .*, got 70000"):
        listen(70000)


def test_the_default_is_the_next_free_port() -> None:
    with listen(None) as first, listen(None) as second:
        assert second.getsockname()[1] > first.getsockname()[1]


def test_the_script_refuses_bad_models_folders_and_ports(tmp_path: Path) -> None:
    assert_refused(run(SCRIPT, "--model_path", tmp_path), "model_path: expected", str(tmp_path))
    assert_refused(run(SCRIPT, "--model_path", "nothing"), "nothing", "morphomnist-mini")
    assert_refused(run(SCRIPT, "--model_path", REPO / "weights" / "pendulum_32_predictor"), "a predictor reads labels")
    assert_refused(run(SCRIPT, "--threads", 0), "threads: expected 1 or more, got 0")
    assert_refused(run(SCRIPT, "--data_dir", tmp_path / "none"), "data_dir: expected a folder")
    broken = tmp_path / "broken_model"
    shutil.copytree(REPO / "weights" / "circuit_causaldae_mini", broken)
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    assert_refused(run(SCRIPT, "--model_path", broken), "model.safetensors")
    with listen(0) as taken:
        outcome = run(SCRIPT, "--model_path", "circuit-mini", "--port", taken.getsockname()[1])
    assert_refused(outcome, "port: expected a free port", "--port")


@needs_gradio
@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 200), ("localhost", 200), ("elsewhere.example", 400)])
def test_only_this_machine_is_answered(host: str, code: int, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    app = make_app(ModelRegistry(find_models(REPO / "weights" / "circuit_causaldae_mini")[:1]), tmp_path)
    with TestClient(app, base_url=f"http://{host}") as client:
        response = client.get("/")
    assert response.status_code == code
    if code == 200:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


class OneModel:
    """A registry of one model."""

    def __init__(self, session: Session, images: list[SourceImage]) -> None:
        self.titles, self.max_variables = ["it"], len(session.spec.graph)
        self.session, self.images = lambda title: session, lambda title: (images, "")


@needs_gradio
def test_discrete_variables_and_the_class_have_radio_buttons_and_the_others_sliders() -> None:
    spec = replace(squares_spec(4), name="folder", kinds=("continuous", "binary"), low=(1, 0), high=(7, 1),
                   categories=((), ("no", "yes")))  # fmt: skip
    config = small_config(discrete=True, class_cond=True)
    torch.manual_seed(0)
    model = randomise(create_model_and_diffusion(config, spec)[0]).eval()
    session = Session(LoadedModel(model, config, spec, 7, "nowhere"))  # type: ignore[arg-type]
    images = [replace(image, digit=1, source=None) for image in images_of(replace(squares(2), spec=spec))]
    page = Page(OneModel(session, images))  # type: ignore[arg-type]
    page.build()

    def rows(outputs: list[Any], skipped: int) -> tuple[list[Any], list[Any], list[Any]]:
        """Boxes, sliders and radio buttons of size, grey and class."""
        controls = outputs[skipped:]
        assert len(controls) == 9
        return controls[:3], controls[3:6], controls[6:]

    boxes, sliders, radios = rows(page.opened("it", 4), 3 + 6)
    assert [box.value for box in boxes] == [True, False, False]
    assert [each.visible for each in sliders] == [True, False, False]
    assert [each.visible for each in radios] == [False, True, True]
    assert [value for _, value in radios[1].choices] == ["no", "yes"] and radios[1].value in ("no", "yes")
    assert all(re.fullmatch(r"(no|yes) \(\d\.\d\d\)", text) for text, _ in radios[1].choices), "it follows size"
    assert [value for _, value in radios[2].choices] == list("0123") and radios[2].value == "1"
    state = ["it", images[0], "1", 1.0, 4, False, False, False, 3.0, 0, 0, None, "yes", "2"]
    _, _, radios = rows(page.moved(1, *state), 6)
    assert radios[1].value == "yes" and [text for text, _ in radios[1].choices] == ["no", "yes"]
    boxes, _, radios = rows(page.moved(2, *state), 6)
    assert [box.value for box in boxes] == [False, False, True] and radios[2].value == "2"
    boxes, _, _ = rows(page.cleared(*state[:5], True, True, True, *state[8:]), 6)
    assert not any(box.value for box in boxes)


@needs_gradio
def test_an_upload_unmarks_the_thumbnail_and_failures_leave_no_stale_result(tmp_path: Path) -> None:
    session = Session(load_model(str(REPO / "weights" / "pendulum_causaldae_mini")))
    page = Page(OneModel(session, images_of(example_images(session.spec, 2))))  # type: ignore[arg-type]
    page.build()
    Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "mine.png")
    (tmp_path / "text.png").write_text("no image")
    image, gallery, pictures, *_ = page.uploaded("it", 1.0, 4, str(tmp_path / "mine.png"))
    assert image.name == "mine.png" and gallery.selected_index is None and "mine.png" in pictures
    _, _, pictures, message, *_ = page.uploaded("it", 1.0, 4, str(tmp_path / "text.png"))
    assert "text.png: expected a JPEG" in message and pictures != "", "the previous result remains"
    *_, pictures, message, graph, table, downloads = page.selected("it", 1.0, 3, 1)[:6]
    assert "steps: expected an integer in 4..50, got 3" in message
    assert (pictures, graph, table, downloads) == ("",) * 4, "it would be that of another image"
    empty = Page(OneModel(session, []))  # type: ignore[arg-type]
    empty.build()
    image, gallery, _, *shown = empty.opened("it", 4)
    assert image is None and gallery.selected_index is None
    assert all(not each["visible"] for each in shown[6:]) and not shown[5].visible


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server in its own process, which lives until the last test."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = re.match(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert found
    yield found[0]
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.wait(60)


class Browser:
    """A browser on the page, and what the tests read from it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.foreign_requests: list[str] = []

    @property
    def counterfactual(self) -> str:
        return self.page.get_attribute(IMAGE, "src")

    @property
    def graph(self) -> str:
        return self.page.get_attribute("#cd-graph svg", "aria-label")

    def value(self, i: int) -> float:
        return float(self.page.input_value(f"#cd-slider-{i} input[type=number]"))

    def type(self, i: int, value: str) -> None:
        number = self.page.locator(f"#cd-slider-{i} input[type=number]")
        number.fill(value)
        number.press("Tab")

    def choose_model(self, title: str) -> None:
        self.page.click("#cd-model input")
        self.page.click(f"[role=option]:has-text('{title}')")

    def wait_for_change(self, before: str) -> None:
        self.page.wait_for_function(f"old => document.querySelector('{IMAGE}').src !== old", arg=before)

    def wait_for_graph(self, text: str) -> None:
        label = "document.querySelector('#cd-graph svg').getAttribute('aria-label')"
        self.page.wait_for_function(f"text => {label}.includes(text)", arg=text)

    def wait_for_message(self, text: str) -> None:
        message = "document.querySelector('.cd-status.wrong')?.textContent"
        self.page.wait_for_function(f"text => {message}.includes(text)", arg=text)


@pytest.fixture
def browser(address: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(TIMEOUT)
        opened = Browser(page)
        own = (address, "data:", "blob:")
        page.on("request", lambda r: r.url.startswith(own) or opened.foreign_requests.append(r.url))
        page.goto(address)
        page.wait_for_selector(IMAGE)
        page.wait_for_selector(THUMBNAILS)
        yield opened
        chromium.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.timeout(600)
class TestInTheBrowser:
    def test_a_slider_changes_the_image_and_the_effects_only(self, browser: Browser) -> None:
        page = browser.page
        page.click("#cd-reset")
        browser.wait_for_graph("thickness stays")
        image, intensity = browser.counterfactual, browser.value(1)
        slider = page.locator("#cd-slider-0 input[type=range]")
        slider.focus()
        for _ in range(3):
            slider.press("PageUp")  # by keyboard alone
        browser.wait_for_change(image)
        page.wait_for_function("() => document.querySelector('#cd-do-0 input').checked")
        assert "thickness set" in browser.graph and "intensity follows" in browser.graph
        number = "document.querySelector('#cd-slider-1 input[type=number]').value"
        page.wait_for_function(f"() => {number} != '{intensity:g}'")
        # the effect's own slider: its cause stays
        page.locator("#cd-do-0 input").uncheck()
        browser.wait_for_graph("thickness stays")
        thickness, image = browser.value(0), browser.counterfactual
        browser.type(1, "100")
        browser.wait_for_graph("intensity set")
        assert browser.counterfactual != image
        assert "thickness stays" in browser.graph and browser.value(0) == thickness

    def test_nothing_is_loaded_from_elsewhere(self, browser: Browser) -> None:
        assert browser.foreign_requests == []

    def test_bad_uploads_get_a_message_and_good_ones_a_result(self, browser: Browser, tmp_path: Path) -> None:
        page, before = browser.page, browser.counterfactual
        (tmp_path / "text.png").write_text("no image")
        Image.new("1", (10_000, 5_000)).save(tmp_path / "huge.png")
        for name in ("text.png", "huge.png"):
            page.set_input_files("input[type=file]", str(tmp_path / name))
            browser.wait_for_message(name)
            assert browser.counterfactual == before
        image = np.zeros((200, 200), np.uint8)
        image[40:160, 90:110] = 230
        Image.fromarray(image).save(tmp_path / "one.png")
        page.set_input_files("input[type=file]", str(tmp_path / "one.png"))
        browser.wait_for_change(before)
        assert "200x200 pixels became 28x28" in page.inner_text("#cd-status")
        assert "True counterfactual" not in page.inner_text("#cd-pictures")
        page.wait_for_function(f"() => !document.querySelector('{THUMBNAILS}.selected')")

    def test_a_value_out_of_range_gets_a_message(self, browser: Browser) -> None:
        before = browser.counterfactual
        browser.type(0, "9999")
        browser.wait_for_message("thickness: expected a value in 0.87..6.26")
        assert browser.counterfactual == before
        browser.type(0, "3")
        browser.wait_for_graph("thickness set")
        browser.wait_for_change(before)

    def test_only_the_selected_thumbnail_is_marked(self, browser: Browser) -> None:
        buttons = browser.page.locator(THUMBNAILS)
        buttons.nth(3).hover()
        browser.page.wait_for_timeout(500)
        colours = [buttons.nth(i).evaluate("b => getComputedStyle(b).borderTopColor") for i in range(buttons.count())]
        assert colours[0] not in colours[1:] and len(set(colours[1:])) == 1

    def test_another_model_has_its_own_sliders(self, browser: Browser) -> None:
        page = browser.page
        browser.choose_model("pendulum")
        browser.wait_for_graph("shadow")
        page.wait_for_selector("#cd-slider-3 input[type=range]")
        assert "light stays" in browser.graph and "shadow_length follows" in browser.graph
        image = browser.counterfactual
        page.locator(THUMBNAILS).nth(2).press("Enter")
        browser.wait_for_change(image)
        assert "nothing set" in page.inner_text("#cd-pictures")
        with page.expect_download() as download:
            page.click("#cd-downloads a[download='counterfactual.json']")
        values = json.loads(Path(download.value.path()).read_text())
        assert values["dataset"] == "pendulum" and values["do"] == {}
        assert page.get_attribute("#cd-guidance input[type=range]", "max") == "3"
        browser.choose_model("mnist · Diff-SCM · mini")
        browser.wait_for_graph("digit")
        page.wait_for_function("() => document.querySelector('#cd-guidance input[type=range]').max === '10'")
        assert page.input_value("#cd-guidance input[type=number]") == "4.5"

    @pytest.mark.parametrize("width", [1280, 420])
    def test_the_page_fits_its_window(self, browser: Browser, width: int) -> None:
        page = browser.page
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        top = page.locator("#cd-pictures figure.answer").bounding_box()["y"]
        assert page.locator("#cd-slider-0").bounding_box()["y"] - top < 700  # slider and image are visible together
