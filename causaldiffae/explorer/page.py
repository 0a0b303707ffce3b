"""The page: a gradio layout whose events each run one request.

The values on the page are its whole state: sliders and radio buttons with a ticked box are the intervention, all others
show what the structural model predicts. A result depends on nothing but these values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.explorer import views
from causaldiffae.explorer.registry import ModelRegistry
from causaldiffae.explorer.session import STEP_RANGE, Request, Result, first_intervention, slider_range
from causaldiffae.explorer.uploads import read_upload
from causaldiffae.script_util import STEPS

STYLE: Final = Path(__file__).with_name("page.css")
TITLE: Final = "causaldiffae · counterfactual explorer"
_HEADING: Final = (
    '<header class="cd-head"><h1>What if?</h1><p>Choose an image and a value of a variable: the variable is '
    "<b>set</b>, its effects <b>follow</b>, all others <b>stay</b>.</p></header>"
)
_THUMBNAIL: Final = 112  # pixels
DELETE_CACHE: Final = (600, 3600)  # every ten minutes, uploads and thumbnails that are older than an hour


class Page:
    """Builds the page and handles its events. Every handler returns the new values of its event's outputs."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry = registry
        self.rows = registry.max_variables + 1
        """Rows of controls: one for each variable, and one for the class."""

    def build(self) -> Any:
        """Returns the gradio Blocks."""
        import gradio as gr

        # Out of range values reach Session.check, whose message says what is wrong; gradio's says "Error".
        gr.Slider.preprocess = lambda _, payload: payload  # type: ignore[method-assign, assignment]
        gr.Radio.preprocess = lambda _, payload: payload  # type: ignore[method-assign, assignment]
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=DELETE_CACHE) as blocks:
            gr.HTML(_HEADING)
            image = gr.State(None)
            with gr.Row(elem_classes="cd-columns"):
                with gr.Column(scale=5, min_width=320, elem_classes="cd-controls"):
                    titles = self.registry.titles
                    model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="cd-model")
                    gallery = gr.Gallery(
                        label="Images", show_label=False, columns=6, allow_preview=False, format="png", height="auto",
                        object_fit="contain", buttons=[], elem_id="cd-gallery", interactive=False,
                    )  # fmt: skip
                    with gr.Row(elem_classes="cd-row cd-source"):
                        upload = gr.UploadButton("Upload image", size="sm", type="filepath", elem_id="cd-upload")
                        reset = gr.Button("Clear interventions", size="sm", elem_id="cd-reset")
                    digit = gr.Dropdown([], label="Class of the image", visible=False, elem_id="cd-class")
                    boxes, sliders, radios = self._variables()
                    with gr.Row(elem_classes="cd-row"):
                        w = gr.Slider(0.0, 3.0, value=1.0, step=0.05, label="Guidance", info="w: 1 is unguided",
                                      elem_id="cd-guidance", buttons=[], min_width=140)  # fmt: skip
                        steps = gr.Slider(*STEP_RANGE, value=STEPS, step=1, label="Steps", info="in each direction",
                                          elem_id="cd-steps", buttons=[], min_width=140)  # fmt: skip
                with gr.Column(scale=7, min_width=320, elem_classes="cd-answer"):
                    shown = [
                        gr.HTML(elem_id=f"cd-{name}") for name in ("pictures", "status", "graph", "table", "downloads")
                    ]
                    gr.HTML(views.help_html(), elem_id="cd-help")
            inputs = [model, image, digit, w, steps, *boxes, *sliders, *radios]
            outputs = [*shown, digit, *boxes, *sliders, *radios]
            # Only the last of the events that arrive during a request is run, so the image follows a moving slider.
            # One request at a time, in order: an older result must not replace a newer one.
            options: dict[str, Any] = {
                "trigger_mode": "always_last",
                "show_progress_on": shown[1],
                "show_progress": "minimal",
                "concurrency_id": "requests",
                "concurrency_limit": 1,
            }
            for i, (box, *values) in enumerate(zip(boxes, sliders, radios, strict=True)):
                for value in values:
                    value.input(partial(self.moved, i), inputs, outputs, **options)
                box.input(self.changed, inputs, outputs, **options)
            for control in (w, steps, digit):
                control.input(self.changed, inputs, outputs, **options)
            reset.click(self.cleared, inputs, outputs, **options)

            def select(title: Any, w: Any, steps: Any, event: Any) -> list[Any]:
                return self.selected(title, w, steps, event.index)

            select.__annotations__["event"] = gr.SelectData  # gradio passes arguments by annotation
            gallery.select(select, [model, w, steps], [image, *outputs], **options)
            upload.upload(self.uploaded, [model, w, steps, upload], [image, gallery, *outputs], **options)
            for event in (model.input, blocks.load):
                event(self.opened, [model, steps], [image, gallery, w, *outputs], **options)
        return blocks

    def _variables(self) -> tuple[list[Any], list[Any], list[Any]]:
        """A box, a slider and radio buttons for each row, of which it shows either the slider or the buttons."""
        import gradio as gr

        boxes, sliders, radios = [], [], []
        with gr.Column(elem_classes="cd-variables"):
            for i in range(self.rows):
                with gr.Row(elem_classes="cd-variable"):
                    box = gr.Checkbox(label="set", elem_id=f"cd-do-{i}", visible=False, scale=0, min_width=64,
                                      container=False)  # fmt: skip
                    slider = gr.Slider(
                        0, 1, value=0, step=0.01, label=f"variable {i}", visible=False, scale=1, buttons=[],
                        elem_id=f"cd-slider-{i}", min_width=180, interactive=True,
                    )  # fmt: skip
                    radio = gr.Radio([], label=f"variable {i}", visible=False, scale=1, elem_id=f"cd-radio-{i}",
                                     min_width=180, interactive=True)  # fmt: skip
                    boxes.append(box)
                    sliders.append(slider)
                    radios.append(radio)
        return boxes, sliders, radios

    # ------------------------------------------------------------------ events

    def moved(self, index: int, *values: Any) -> list[Any]:
        """A slider was moved or a button pressed: its variable is set."""
        return self._run(values, moved=index)

    def changed(self, *values: Any) -> list[Any]:
        """A box, the class, the guidance weight or the number of steps was changed."""
        return self._run(values)

    def cleared(self, *values: Any) -> list[Any]:
        """All interventions were removed."""
        return self._run((*values[:5], *[False] * self.rows, *values[5 + self.rows :]))

    def opened(self, title: str, steps: int) -> list[Any]:
        """A model was chosen: shows its images, and a first intervention on the first of them."""
        import gradio as gr

        try:
            images, note = self.registry.images(title)
            session = self.registry.session(title)
        except InputError as error:
            return [None, gr.Gallery(value=[], selected_index=None), gr.skip(), *self._nothing(str(error))]
        thumbnails = [(_thumbnail(each.image), each.name) for each in images]
        gallery = gr.Gallery(value=thumbnails, selected_index=0 if images else None)
        info = "s: 0 is unguided" if session.is_diff_scm else "w: 1 is unguided"
        w = gr.Slider(maximum=session.max_w, value=session.first_w, info=info)
        if not images:
            return [None, gallery, w, *self._nothing(note, wrong=False)]

        def intervene() -> Result:
            factual = Request(images[0], {}, session.first_w, steps)
            return session.run(replace(factual, do=first_intervention(session.spec, session.run(factual).encoded)))

        return [images[0], gallery, w, *self._show_new(title, intervene, note)]

    def selected(self, title: str, w: float, steps: int, index: Any) -> list[Any]:
        """A thumbnail was selected: shows its reconstruction."""
        import gradio as gr

        images, _ = self.registry.images(title)
        if not isinstance(index, int) or not 0 <= index < len(images):
            return [gr.skip(), *self._message(f"image: expected one of {len(images)} thumbnails, got {index}")]
        request = Request(images[index], {}, w, steps)
        return [images[index], *self._show_new(title, lambda: self.registry.session(title).run(request))]

    def uploaded(self, title: str, w: float, steps: int, path: str | None) -> list[Any]:
        """A file was uploaded: shows its reconstruction and marks no thumbnail; or a message if it is not an image."""
        import gradio as gr

        try:
            session = self.registry.session(title)
            image = read_upload(path or "", session.spec)
        except InputError as error:
            return [gr.skip(), gr.skip(), *self._message(str(error))]
        shown = self._show_new(title, lambda: session.run(Request(image, {}, w, steps)))
        return [image, gr.Gallery(selected_index=None), *shown]

    # ------------------------------------------------------------------ results

    def _run(self, values: Sequence[Any], moved: int | None = None) -> list[Any]:
        title, image, digit, w, steps, *controls = values
        count = self.rows
        boxes, sliders, radios = controls[:count], controls[count : 2 * count], controls[2 * count :]

        def run() -> Result:
            if image is None:
                raise InputError("image: expected a selected or uploaded image, got none")
            session = self.registry.session(title)
            spec = session.spec
            names = [*spec.graph.names, *([spec.class_name] if session.loaded.model.class_cond else [])]
            chosen_rows = [i for i in range(len(names)) if boxes[i] or i == moved]
            do = {names[i]: views.chosen_value(spec, names[i], radios[i], sliders[i]) for i in chosen_rows}
            chosen = int(digit) if digit is not None and session.loaded.model.class_cond else None
            return session.run(Request(image, spec.do_labels(do), w, steps, chosen))

        return self._show(title, run, moved=moved)

    def _show_new(self, title: str, run: Callable[[], Result], note: str = "") -> list[Any]:
        """All outputs for the result of another image; if there is none, nothing of the previous image remains."""
        try:
            result = run()
        except InputError as error:
            model, spec = self.registry.session(title).loaded.model, self.registry.session(title).spec
            return self._nothing(str(error), spec.num_classes if model.class_cond else None)
        return self._show(title, lambda: result, note)

    def _show(self, title: str, run: Callable[[], Result], note: str = "", moved: int | None = None) -> list[Any]:
        """All outputs for a result, or a message; the slider that is being moved keeps its value."""
        import gradio as gr

        try:
            result = run()
        except InputError as error:
            return self._message(str(error))
        spec, do = result.spec, result.request.do
        values = dict(zip(spec.graph.names, map(float, result.predicted), strict=True))
        if result.target_digit is not None:
            values[spec.class_name] = float(result.target_digit)
        boxes, sliders, radios = [], [], []
        for i, name in enumerate([*values, *[None] * (self.rows - len(values))]):
            boxes.append(gr.Checkbox(value=name in do, visible=name is not None))
            if name is None:
                sliders.append(gr.Slider(visible=False, value=0, minimum=0, maximum=1))
                radios.append(gr.Radio(visible=False, choices=[], value=None))
            elif spec.values_of(name):
                sliders.append(gr.Slider(visible=False, value=0, minimum=0, maximum=1))
                radios.append(_radio(result, name, values[name]))
            else:
                info = views.control_info(spec, name, do) + views.prediction_info(spec, i, values[name])
                sliders.append(gr.Slider(info=info) if i == moved else _slider(spec, i, values[name], info))
                radios.append(gr.Radio(visible=False, choices=[], value=None))
        if result.digit is None or spec.num_classes is None:
            digit = gr.Dropdown(visible=False, value=None)
        else:
            digit = gr.Dropdown(
                choices=[str(i) for i in range(spec.num_classes)], value=str(result.digit), visible=True
            )
        return [
            views.images_html(result),
            views.status_html(result, note),
            views.graph_html(result),
            views.table_html(result),
            views.downloads_html(result, title),
            digit,
            *boxes,
            *sliders,
            *radios,
        ]

    def _nothing(self, text: str, classes: int | None = None, wrong: bool = True) -> list[Any]:
        """Only a message: no result and no controls but that of the image's class, which may be what is missing."""
        import gradio as gr

        choices = [str(i) for i in range(classes or 0)]
        digit = gr.Dropdown(choices=choices, value=None, visible=bool(choices))
        hidden = [gr.update(visible=False) for _ in range(3 * self.rows)]
        return ["", views.message_html(text, wrong), "", "", "", digit, *hidden]

    def _message(self, text: str) -> list[Any]:
        """Changes the status line only."""
        import gradio as gr

        return [gr.skip(), views.message_html(text), *[gr.skip()] * (4 + 3 * self.rows)]


def _radio(result: Result, name: str, value: float) -> Any:
    import gradio as gr

    spec, do = result.spec, result.request.do
    label = name if name == spec.class_name else views.slider_label(spec, spec.graph.index(name))
    return gr.Radio(
        choices=list(zip(views.choice_labels(result, name), views.choices(spec, name), strict=True)),
        value=views.nearest_choice(spec, name, value), visible=True,
        label=label, info=views.control_info(spec, name, do),
    )  # fmt: skip


def _slider(spec: DatasetSpec, i: int, value: float, info: str) -> Any:
    import gradio as gr

    low, high, step = slider_range(spec, i)
    inside = float(np.clip(value, low, high)) if np.isfinite(value) else low
    rounded = round(inside / step) * step
    return gr.Slider(
        minimum=low, maximum=high, step=step, value=float(f"{rounded:.6g}"), visible=True,
        label=views.slider_label(spec, i), info=info,
    )  # fmt: skip


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """(C, S, S) as (H, W, 3) uint8, enlarged without smoothing."""
    factor = max(1, _THUMBNAIL // image.shape[-1])
    return views.as_rgb(image).transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
