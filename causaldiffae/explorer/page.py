"""The page: a gradio layout whose every event asks one question, statelessly.

Values on the page are the whole state: the sliders with a ticked box are the intervention, all others show what the
structural model predicts. So whatever was done before, the answer is that to what can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.explorer import views
from causaldiffae.explorer.registry import ModelRegistry
from causaldiffae.explorer.session import STEP_RANGE, STEPS, Answer, Picture, Question, Session, opening_do
from causaldiffae.explorer.uploads import read_upload

STYLE: Final = Path(__file__).with_name("page.css")
TITLE: Final = "causaldiffae · counterfactual explorer"
_HEADING: Final = (
    '<header class="cd-head"><h1>What if?</h1><p>Pick a picture, move a slider: its variable is <b>set</b>, '
    "the effects <b>follow</b>, everything else <b>stays</b>.</p></header>"
)
_SIDE: Final = 112  # pixels of a thumbnail


class Page:
    """Builds the page and answers its events.

    Args:
        registry: the models on offer.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry = registry

    def build(self) -> Any:
        """The gradio Blocks."""
        import gradio as gr

        gr.Slider.preprocess = _as_it_came  # type: ignore[method-assign, assignment]
        count, first = self.registry.most_variables, self.registry.titles[0]
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(_HEADING)
            picture = gr.State(None)
            with gr.Row(elem_classes="cd-columns"):
                with gr.Column(scale=5, min_width=320, elem_classes="cd-controls"):
                    model = gr.Dropdown(self.registry.titles, value=first, label="Model", elem_id="cd-model")
                    gallery = gr.Gallery(
                        label="Pictures", show_label=False, columns=6, allow_preview=False, format="png", height="auto",
                        object_fit="contain", buttons=[], elem_id="cd-gallery", interactive=False,
                    )  # fmt: skip
                    with gr.Row(elem_classes="cd-row cd-source"):
                        upload = gr.UploadButton("Upload a picture", size="sm", type="filepath", elem_id="cd-upload")
                        reset = gr.Button("Set nothing", size="sm", elem_id="cd-reset")
                    digit = gr.Dropdown([], label="Class of the picture", visible=False, elem_id="cd-class")
                    boxes, sliders = self._sliders(count)
                    with gr.Row(elem_classes="cd-row"):
                        w = gr.Slider(
                            0.0, 3.0, value=1.0, step=0.05, label="Guidance", info="weight w",
                            elem_id="cd-guidance", buttons=[], min_width=140,
                        )  # fmt: skip
                        steps = gr.Slider(
                            *STEP_RANGE, value=STEPS, step=1, label="Steps", info="each way",
                            elem_id="cd-steps", buttons=[], min_width=140,
                        )  # fmt: skip
                with gr.Column(scale=7, min_width=320, elem_classes="cd-answer"):
                    pictures = gr.HTML(elem_id="cd-pictures")
                    status = gr.HTML(elem_id="cd-status")
                    graph = gr.HTML(elem_id="cd-graph")
                    table = gr.HTML(elem_id="cd-table")
                    downloads = gr.HTML(elem_id="cd-downloads")
            shown = [pictures, status, graph, table, downloads]
            asked = [model, picture, digit, w, steps, *boxes, *sliders]
            told = [*shown, digit, *boxes, *sliders]
            # Of events that come while one is worked on, only the last counts: the picture follows a slider that moves.
            # One at a time and in their order: an answer must not undo what was asked after it.
            quick: dict[str, Any] = {
                "trigger_mode": "always_last",
                "show_progress_on": status,
                "show_progress": "minimal",
                "concurrency_id": "questions",
                "concurrency_limit": 1,
            }
            for i, (box, slider) in enumerate(zip(boxes, sliders, strict=True)):
                slider.input(partial(self.moved, i), asked, told, **quick)
                box.input(partial(self.ticked, i), asked, told, **quick)
            for control in (w, steps):
                control.input(self.asked, asked, told, **quick)
            digit.input(self.asked, asked, told, **quick)
            reset.click(self.cleared, asked, told, **quick)
            whole = [picture, gallery, w, *told]

            def pick(chosen: Any, w: Any, steps: Any, event: Any) -> list[Any]:
                return self.picked(chosen, w, steps, event.index)

            pick.__annotations__["event"] = gr.SelectData  # by this gradio knows what to pass
            gallery.select(pick, [model, w, steps], [picture, *told], **quick)
            upload.upload(self.uploaded, [model, w, steps, upload], [picture, *told], **quick)
            model.input(self.opened, [model, steps], whole, **quick)
            blocks.load(self.opened, [model, steps], whole, **quick)
        return blocks

    def _sliders(self, count: int) -> tuple[list[Any], list[Any]]:
        import gradio as gr

        boxes, sliders = [], []
        with gr.Column(elem_classes="cd-variables"):
            for i in range(count):
                with gr.Row(elem_classes="cd-variable"):
                    boxes.append(
                        gr.Checkbox(label="do", elem_id=f"cd-do-{i}", visible=False, scale=0, min_width=64,
                                    container=False)
                    )  # fmt: skip
                    sliders.append(
                        gr.Slider(0, 1, value=0, step=0.01, label=f"variable {i}", visible=False, scale=1, buttons=[],
                                  elem_id=f"cd-slider-{i}", min_width=180, interactive=True)
                    )  # fmt: skip
        return boxes, sliders

    # ------------------------------------------------------------------ events; each returns what its outputs become

    def moved(self, place: int, *asked: Any) -> list[Any]:
        """A slider was moved: its variable is set."""
        return self._answer(asked, moved=place)

    def ticked(self, place: int, *asked: Any) -> list[Any]:
        """A do-box was ticked or cleared."""
        return self._answer(asked)

    def asked(self, *asked: Any) -> list[Any]:
        """Anything else was changed."""
        return self._answer(asked)

    def cleared(self, *asked: Any) -> list[Any]:
        """Nothing is set any more."""
        count = self.registry.most_variables
        return self._answer((*asked[:5], *[False] * count, *asked[5 + count :]))

    def opened(self, model: str, steps: int) -> list[Any]:
        """A model was chosen: its pictures, the first of them, its weight, an intervention that shows something."""
        import gradio as gr

        try:
            pictures, note = self.registry.pictures(model)
            session = self.registry.session(model)
        except InputError as error:
            return [gr.skip(), gr.skip(), gr.skip(), *self._message(str(error))]
        thumbnails = gr.Gallery(
            value=[(_thumbnail(each), each.name) for each in pictures], selected_index=0 if pictures else None
        )
        text = "scale s" if session.scales_guidance else "weight w"
        w = gr.Slider(maximum=session.most_w, value=session.first_w, info=text)
        if not pictures:
            return [None, thumbnails, w, *self._empty(session.spec, note)]
        answer = self._first(session, model, pictures[0], session.first_w, steps, note, opening=True)
        return [pictures[0], thumbnails, w, *answer]

    def picked(self, model: str, w: float, steps: int, place: Any) -> list[Any]:
        """A thumbnail was picked, by its place in the gallery."""
        import gradio as gr

        pictures, _ = self.registry.pictures(model)
        if not isinstance(place, int) or not 0 <= place < len(pictures):
            return [gr.skip(), *self._message("picture: there is no such thumbnail")]
        picture = pictures[place]
        return [picture, *self._first(self.registry.session(model), model, picture, w, steps)]

    def uploaded(self, model: str, w: float, steps: int, path: str | None) -> list[Any]:
        """A file was uploaded; one that is no picture changes nothing but the message."""
        import gradio as gr

        try:
            session = self.registry.session(model)
            picture = read_upload(path or "", session.spec)
        except InputError as error:
            return [gr.skip(), *self._message(str(error))]
        return [picture, *self._first(session, model, picture, w, steps)]

    # ------------------------------------------------------------------ answers

    def _first(
        self,
        session: Session,
        model: str,
        picture: Picture,
        w: float,
        steps: int,
        note: str = "",
        opening: bool = False,
    ) -> list[Any]:
        """The first answer about a picture: the reconstruction, or the opening intervention."""
        try:
            answer = session.answer(Question(picture, {}, w, steps))
            if opening:
                answer = session.answer(Question(picture, opening_do(session.spec, answer.encoded), w, steps))
        except InputError as error:
            return self._message(str(error))
        return self._show(answer, model, note)

    def _answer(self, asked: Sequence[Any], moved: int | None = None) -> list[Any]:
        model, picture, digit, w, steps, *controls = asked
        boxes, sliders = controls[: len(controls) // 2], controls[len(controls) // 2 :]
        try:
            if picture is None:
                raise InputError("picture: none is chosen yet; pick or upload one")
            session = self.registry.session(model)
            names = session.spec.graph.names
            do = {name: sliders[i] for i, name in enumerate(names) if boxes[i] or i == moved}
            chosen = int(digit) if digit is not None and session.loaded.model.class_cond else None
            answer = session.answer(Question(picture, do, w, steps, chosen))
        except InputError as error:
            return self._message(str(error))
        return self._show(answer, model, moved=moved)

    def _show(self, answer: Answer, model: str, note: str = "", moved: int | None = None) -> list[Any]:
        """Everything that an answer changes; the slider that is being moved is left alone."""
        import gradio as gr

        spec, do = answer.spec, answer.question.do
        html = [
            views.pictures_html(answer),
            views.status_html(answer, note),
            views.graph_html(answer),
            views.table_html(answer),
            views.downloads_html(answer, model),
        ]
        boxes, sliders = [], []
        for i in range(self.registry.most_variables):
            if i >= len(spec.graph):
                boxes.append(gr.Checkbox(value=False, visible=False))
                sliders.append(gr.Slider(visible=False, value=0, minimum=0, maximum=1))
                continue
            name = spec.graph.names[i]
            boxes.append(gr.Checkbox(value=name in do, visible=True, label="do"))
            if i == moved:
                sliders.append(gr.Slider(info=views.slider_info(spec, i, do)))
            else:
                sliders.append(_slider(spec, i, answer.predicted[i], do))
        return [*html, _digit_choice(spec, answer.digit), *boxes, *sliders]

    def _message(self, text: str) -> list[Any]:
        """Only the status line changes."""
        import gradio as gr

        rest = 1 + 2 * self.registry.most_variables
        return [gr.skip(), views.message_html(text), *[gr.skip()] * (3 + rest)]

    def _empty(self, spec: DatasetSpec, note: str) -> list[Any]:
        """A model without pictures: its sliders wait for an upload."""
        import gradio as gr

        hidden = [gr.skip()] * (1 + 2 * self.registry.most_variables)
        return ["", views.message_html(note), "", "", "", *hidden]


def _as_it_came(_: Any, payload: float) -> float:
    """In place of gradio's check of a slider's range, which says "Error"; `Session.check` says what is wrong."""
    return payload


def _slider(spec: DatasetSpec, i: int, value: float, do: Any) -> Any:
    import gradio as gr

    low, high = spec.low[i], spec.high[i]
    whole = bool(spec.kinds) and spec.kinds[i] != "continuous"
    step = 1.0 if whole else 10.0 ** -views.decimals_of(spec, i)
    shown = float(np.clip(value, low, high)) if np.isfinite(value) else low
    # the ends are the data's own and need not be multiples of the step
    shown = min(max(round(shown / step) * step, low), high)
    return gr.Slider(
        minimum=low, maximum=high, step=step, value=float(f"{shown:.6g}"), visible=True,
        label=views.slider_label(spec, i), info=views.slider_info(spec, i, do),
    )  # fmt: skip


def _digit_choice(spec: DatasetSpec, digit: int | None) -> Any:
    import gradio as gr

    if digit is None or spec.num_classes is None:
        return gr.Dropdown(visible=False, value=None)
    choices = [str(number) for number in range(spec.num_classes)]
    return gr.Dropdown(choices=choices, value=str(digit), visible=True)


def _thumbnail(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8, enlarged without smoothing."""
    image = picture.image[:3] if len(picture.image) >= 3 else picture.image[:1].repeat(3, axis=0)
    factor = max(1, _SIDE // image.shape[-1])
    return image.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
