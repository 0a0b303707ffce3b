"""An answer as HTML and as files: pictures side by side, the difference map, the table of values, the downloads.

Everything is inline (PNG data URIs), so the page asks nobody else for anything, and no file is left on the server. All
text that comes from data, file names or checkpoints is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Final

import numpy as np
from PIL import Image

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.explorer.graph_svg import before_and_after, graph_svg, roles
from causaldiffae.explorer.session import Answer
from causaldiffae.visualization.image_grids import tile

DARKER, BRIGHTER = (33, 102, 172), (178, 24, 43)  # blue and red, told apart by colour-blind eyes too
_LEAST_SCALE: Final = 48.0  # grey levels that full colour stands for at least: noise must not look like a change
_ENLARGED: Final = 6


def difference_map(factual: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """Where `other` is brighter (red) or darker (blue) than `factual`: (3, S, S) uint8, and what full colour means.

    Args:
        factual, other: (C, S, S) uint8; the mean over channels counts.
    """
    change = (other.astype(np.float64) - factual.astype(np.float64))[:3].mean(axis=0)
    scale = max(_LEAST_SCALE, float(np.abs(change).max()))
    share = np.clip(np.abs(change) / scale, 0.0, 1.0)[None]
    colour = np.where(change[None] > 0, np.array(BRIGHTER)[:, None, None], np.array(DARKER)[:, None, None])
    return np.rint(255.0 + (colour - 255.0) * share).astype(np.uint8), scale


def png_bytes(image: np.ndarray) -> bytes:
    """(C, H, W) uint8 as a PNG file."""
    pixels = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def decimals_of(spec: DatasetSpec, i: int) -> int:
    """Places behind the point that show a hundredth of a variable's range."""
    return max(0, 2 - math.floor(math.log10(spec.high[i] - spec.low[i])))


def value_text(spec: DatasetSpec, i: int, value: float) -> str:
    """One value of variable i for people: rounded, or a category's name; "-" where it is not known."""
    return before_and_after(value, value, _categories(spec, i), decimals_of(spec, i))


def _categories(spec: DatasetSpec, i: int) -> dict[str, str] | None:
    if not (spec.kinds and spec.kinds[i] != "continuous" and spec.categories and spec.categories[i]):
        return None
    return {str(number): name for number, name in enumerate(spec.categories[i])}


def pictures_html(answer: Answer) -> str:
    """Factual, counterfactual, the truth where it is known, and the difference map, as figures."""
    question = answer.question
    heading = describe_do(question.do) if question.do else "nothing set: reconstruction"
    below = "decoded from the same noise"
    if answer.l1 is not None and answer.do_nothing_l1 is not None:
        below = f"off the truth by {answer.l1:.1f} grey levels; doing nothing: {answer.do_nothing_l1:.1f}"
    figures = [
        _figure("Factual", question.picture.name, question.picture.image),
        _figure("Counterfactual", heading, answer.counterfactual, below, "answer"),
    ]
    if answer.truth is not None:
        figures.append(_figure("The truth", "by the data's generator", answer.truth))
    difference, scale = difference_map(question.picture.image, answer.counterfactual)
    legend = f'<b class="less">darker</b>, <b class="more">brighter</b>; full colour at {scale:.0f} of 255'
    figures.append(_figure("Difference", "minus the factual", difference, legend, safe=True))
    return f'<div class="cd-pictures">{"".join(figures)}</div>'


def _figure(title: str, text: str, image: np.ndarray, below: str = "", kind: str = "", safe: bool = False) -> str:
    alt = escape(f"{title}: {text}", quote=True)
    small = below if safe else escape(below)
    return (
        f'<figure class="{kind}"><figcaption><b>{escape(title)}</b><span>{escape(text)}</span></figcaption>'
        f'<img src="{_uri("image/png", png_bytes(image))}" alt="{alt}"><small>{small}</small></figure>'
    )


def graph_html(answer: Answer) -> str:
    """The causal graph with every variable before and after."""
    values = {
        name: before_and_after(answer.encoded[i], answer.predicted[i], _categories(answer.spec, i),
                               decimals_of(answer.spec, i))
        for i, name in enumerate(answer.spec.graph.names)
    }  # fmt: skip
    return graph_svg(answer.spec.graph, answer.question.do, values)


def table_html(answer: Answer) -> str:
    """Every variable: encoded from the factual picture, predicted, read back off the counterfactual, true."""
    spec = answer.spec
    role_of = roles(spec.graph, answer.question.do)
    columns: list[tuple[str, str, Callable[[int], float]]] = [
        ("encoded", "z, read off the factual picture by the model", lambda i: answer.encoded[i]),
        ("predicted", "z', by the structural model under the intervention", lambda i: answer.predicted[i]),
    ]
    if np.isfinite(answer.measured).any():
        columns.append(("measured", "on the counterfactual picture, by geometry", lambda i: answer.measured[i]))
    true_labels = answer.true_labels
    if true_labels is not None:
        columns.append(("true", "of the true counterfactual", lambda i: float(true_labels[i])))
    head = "".join(f'<th scope="col" title="{escape(what, quote=True)}">{name}</th>' for name, what, _ in columns)
    rows = []
    for i, name in enumerate(spec.graph.names):
        unit = f" <small>{escape(spec.units[i])}</small>" if spec.units else ""
        cells = "".join(f"<td>{escape(value_text(spec, i, find(i)))}</td>" for _, _, find in columns)
        role = role_of[name]
        head_cell = f'<th scope="row">{escape(name)}{unit}</th>'
        rows.append(f'<tr class="{role}">{head_cell}<td>{role}</td>{cells}</tr>')
    return (
        f'<div class="cd-scroll"><table class="cd-table"><thead><tr><th scope="col">variable</th><th scope="col"></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def downloads_html(answer: Answer, model: str) -> str:
    """Links that save the counterfactual, all pictures in a row, and everything that is known as JSON."""
    values = json.dumps(report(answer, model), indent=2).encode()
    links = [
        ("counterfactual.png", "Counterfactual (PNG)", "image/png", png_bytes(answer.counterfactual)),
        ("all_pictures.png", "All pictures (PNG)", "image/png", png_bytes(contact_sheet(answer))),
        ("counterfactual.json", "Values (JSON)", "application/json", values),
    ]
    texts = [f'<a download="{name}" href="{_uri(kind, content)}">{text}</a>' for name, text, kind, content in links]
    return f'<div class="cd-downloads">{"".join(texts)}</div>'


def contact_sheet(answer: Answer) -> np.ndarray:
    """Factual, counterfactual, truth where known, difference in a row, enlarged without smoothing: (3, H, W) uint8."""
    images = [answer.question.picture.image, answer.counterfactual]
    images += [] if answer.truth is None else [answer.truth]
    coloured = [image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0) for image in images]
    coloured.append(difference_map(answer.question.picture.image, answer.counterfactual)[0])
    enlarged = np.stack(coloured).repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3)
    return tile(enlarged[None]).transpose(2, 0, 1)


def report(answer: Answer, model: str) -> dict[str, Any]:
    """Everything about an answer but the pixels, as plain types; what is not known is null."""
    names = answer.spec.graph.names
    question = answer.question

    def named(labels: np.ndarray | None) -> dict[str, float | None] | None:
        if labels is None:
            return None
        return {name: float(v) if np.isfinite(v) else None for name, v in zip(names, labels, strict=True)}

    return {
        "model": model,
        "dataset": answer.spec.name,
        "picture": question.picture.name,
        "do": dict(question.do),
        "guidance": question.w,
        "steps": question.steps,
        "class": answer.digit,
        "graph": answer.spec.graph.to_dict(),
        "units": dict(zip(names, answer.spec.units, strict=False)),
        "roles": roles(answer.spec.graph, question.do),
        "encoded": named(answer.encoded),
        "predicted": named(answer.predicted),
        "measured": named(answer.measured),
        "true": named(answer.true_labels),
        "l1_to_truth": answer.l1,
        "l1_of_doing_nothing": answer.do_nothing_l1,
        "seconds": round(answer.seconds, 3),
    }


def status_html(answer: Answer, note: str = "") -> str:
    """One line: how long it took, and what was done to the picture."""
    remembered = " (abduction remembered)" if answer.abduction_seconds < 0.02 * answer.seconds else ""
    digit = "" if answer.digit is None else f", as class {answer.digit}"
    said = f"{answer.seconds:.2f} s{remembered}{digit}. {note or answer.question.picture.note}"
    return f'<p class="cd-status" role="status">{escape(said.strip())}</p>'


def message_html(text: str) -> str:
    """One line that says what is wrong; the page above it stays as it was."""
    return f'<p class="cd-status wrong" role="alert">{escape(" ".join(text.split()))}</p>'


def slider_label(spec: DatasetSpec, i: int) -> str:
    """ "thickness (pixels)"."""
    name = spec.graph.names[i].replace("_", " ")
    return f"{name} ({spec.units[i]})" if spec.units and spec.units[i] else name


def slider_info(spec: DatasetSpec, i: int, do: Mapping[str, float]) -> str:
    """What a slider does now: who causes it, and whether it moves by itself."""
    name = spec.graph.names[i]
    causes = spec.graph.parents[name]
    role = roles(spec.graph, do)[name]
    said = f"caused by {', '.join(causes)}" if causes else "a root"
    categories = _categories(spec, i)
    if categories and any(number != text for number, text in categories.items()):
        said += " · " + ", ".join(f"{number} = {text}" for number, text in categories.items())
    return {"set": f"set · {said}", "follows": f"follows · {said}", "stays": said}[role]
