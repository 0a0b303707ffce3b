"""Renders a result as HTML and files: images, difference map, graph, table of values, downloads.

Everything is inline (data URIs), so the page loads nothing else and no file stays on the server. The templates escape
every text, as names may come from data, files or checkpoints.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from causaldiffae.datasets.captions import MARK, caption_text, notable_differences
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.checks import beyond_range
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.explorer.graph_drawing import draw, roles
from causaldiffae.explorer.session import Result, decimals_of
from causaldiffae.graphs import CausalGraph
from causaldiffae.training.responses import MEASURED
from causaldiffae.visualization.image_grids import tile

DARKER, BRIGHTER = (33, 102, 172), (178, 24, 43)  # blue and red, distinguishable by colour-blind people
_LEAST_SCALE: Final = 48.0  # grey levels of full colour at least, so that noise does not look like a change
_ENLARGED: Final = 6
_LONGEST_CATEGORY: Final = 14  # characters, in the graph
_FIGURES: Final = {
    "Factual": "the image before the intervention",
    "Counterfactual": "generated from the same noise (u and x_T); errors are mean pixel differences from the truth",
    "True counterfactual": "drawn by the data set's generator under the same intervention",
    "Difference": "counterfactual minus factual image",
}
_COLUMNS: Final = {
    "role": "set by the intervention, follows as a descendant of a set variable, or stays",
    "encoded": "z: read from the factual image by the model's encoder",
    "predicted": "z': predicted by the structural causal model under the intervention",
    "measured": "measured on the counterfactual image; ! marks a notable difference from the predicted or set value",
    "read": "read from the counterfactual image; ! marks a notable difference from the predicted or set value",
    "true": "label of the true counterfactual",
}


_HELP: Final = {
    "guidance": "weight of the intervention while the image is decoded. For models with latents, 1 is unguided, larger "
    "weights show the values more strongly, with more side effects, and 0 ignores them. For Diff-SCM it is the scale "
    "of the predictor's gradient, and 0 is unguided",
    "steps": "network evaluations that encode the image to noise, and as many that decode it; more are slower, "
    "and the image usually follows the values more closely",
    "abduction cached": "the noise of an image (u and x_T) does not depend on the intervention: it is computed once "
    "for an image and a number of steps, so further interventions are faster",
    "beyond the data": "a value outside the range of the training labels; the image for it is an extrapolation",
}


@cache
def _macros() -> Any:
    """The macros of templates/result.html."""
    loader = PackageLoader("causaldiffae.explorer")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template("result.html").module


def difference_map(factual: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """Shows where `other` is brighter (red) or darker (blue) than `factual`.

    Args:
        factual, other: (C, S, S) uint8; the mean over channels is compared.

    Returns:
        (3, S, S) uint8, and the change in grey levels that full colour stands for.
    """
    change = (other.astype(np.float64) - factual.astype(np.float64))[:3].mean(axis=0)
    scale = max(_LEAST_SCALE, float(np.abs(change).max()))
    strength = np.clip(np.abs(change) / scale, 0.0, 1.0)[None]
    colour = np.where(change[None] > 0, np.array(BRIGHTER)[:, None, None], np.array(DARKER)[:, None, None])
    return np.rint(255.0 + (colour - 255.0) * strength).astype(np.uint8), scale


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(C, H, W) with any number of channels as (3, H, W); transparency is dropped."""
    return image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)


def _png_uri(image: np.ndarray) -> str:
    """(C, H, W) uint8 as a PNG data URI."""
    pixels, buffer = image.transpose(1, 2, 0), io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# ---------------------------------------------------------------------- values


def value_text(spec: DatasetSpec, i: int, value: float) -> str:
    """One value of variable i: rounded, or a category's name; "-" where it is not known."""
    if not np.isfinite(value):
        return "-"
    number = f"{value:.{max(decimals_of(spec, i), 0)}f}"
    return _categories(spec, i).get(f"{value:.0f}", number)


def _shortened(text: str) -> str:
    """A category's name, cut to the width of a box."""
    return text if len(text) <= _LONGEST_CATEGORY else f"{text[: _LONGEST_CATEGORY - 1]}…"


def change_text(spec: DatasetSpec, i: int, before: float, after: float) -> str:
    """ "2.19 → 4.50", or one value if both read the same."""
    first, second = (_shortened(value_text(spec, i, value)) for value in (before, after))
    return first if first == second else f"{first} → {second}"


def _categories(spec: DatasetSpec, i: int) -> dict[str, str]:
    """Names of a discrete variable's categories by number; empty for others."""
    if not (spec.kinds and spec.kinds[i] != "continuous" and spec.categories):
        return {}
    return {str(number): name for number, name in enumerate(spec.categories[i])}


def slider_label(spec: DatasetSpec, i: int) -> str:
    """ "thickness (pixels)"."""
    name = spec.graph.names[i].replace("_", " ")
    return f"{name} ({spec.units[i]})" if spec.units and spec.units[i] else name


def control_info(spec: DatasetSpec, name: str, do: Iterable[str]) -> str:
    """The text at a slider or radio buttons: the variable's role and its causes."""
    if name == spec.class_name:
        return "set · class of the counterfactual" if name in do else "class of the counterfactual"
    role, causes = roles(spec.graph, do)[name], spec.graph.parents[name]
    parts = [] if role == "stays" else [role]
    return " · ".join([*parts, f"caused by {', '.join(causes)}" if causes else "no causes"])


def prediction_info(spec: DatasetSpec, i: int, value: float) -> str:
    """What the text at a slider adds where the prediction is not on the slider; "" where it is."""
    return f" · predicted {value_text(spec, i, value)}, beyond the data" if beyond_range(spec, i, value) else ""


def choices(spec: DatasetSpec, name: str) -> list[str]:
    """Texts of a discrete variable's categories, or of the classes, in order; empty for a continuous variable."""
    return [spec.format_value(name, value) for value in spec.values_of(name)]


def chosen_value(spec: DatasetSpec, name: str, choice: str | None, number: float) -> float:
    """The label that the controls of a variable show: that of the chosen category, or the number of the slider.

    Raises:
        InputError: if no category is chosen, or for a number that `check_do` refuses.
    """
    texts = choices(spec, name)
    if not texts:
        return spec.check_do({name: number}, warn=False)[name]
    if choice not in texts:
        raise InputError(f"do: {name}: expected one of {', '.join(texts)}, got {choice!r}")
    return spec.values_of(name)[texts.index(choice)]


def choice_labels(result: Result, name: str) -> list[str]:
    """The texts of the radio buttons, with the probability of each category where the variable follows."""
    texts, probabilities = choices(result.spec, name), result.probabilities.get(name)
    if probabilities is None or roles(result.spec.graph, result.request.do).get(name) != "follows":
        return texts
    return [f"{text} ({probability:.2f})" for text, probability in zip(texts, probabilities, strict=True)]


def nearest_choice(spec: DatasetSpec, name: str, value: float) -> str | None:
    """Text of the category nearest to a value; None where it is not known."""
    if not np.isfinite(value):
        return None
    return choices(spec, name)[int(np.abs(np.array(spec.values_of(name)) - value).argmin())]


# ---------------------------------------------------------------------- parts of the page


def images_html(result: Result) -> str:
    """Factual image, counterfactual, the true counterfactual if it is known, and the difference map."""
    factual, do = result.request.image, result.request.do
    note = "decoded from the same noise"
    if result.l1 is not None and result.do_nothing_l1 is not None:
        note = f"error {result.l1:.1f} of 255; factual image {result.do_nothing_l1:.1f}"
    difference, scale = difference_map(factual.image, result.counterfactual)
    intervention = describe_do(do, result.spec) if do else "nothing set: reconstruction"
    if captions := set_captions(result):
        note = f"{note}. {result.reader.capitalize() or 'Not read'}: {', '.join(captions)}"
    shown = [
        ("Factual", factual.name, factual.image, ""),
        ("Counterfactual", intervention, result.counterfactual, note),
        ("True counterfactual", "by the generator", result.truth, ""),
        ("Difference", "minus factual", difference, ""),
    ]
    figures = [
        {"title": title, "help": _FIGURES[title], "text": text, "uri": _png_uri(image), "note": note}
        for title, text, image, note in shown
        if image is not None
    ]
    return str(_macros().images(figures, f"{scale:.0f}"))


def differences(result: Result) -> np.ndarray:
    """Which labels read from the counterfactual differ notably from the predicted or set ones, (n,) bool."""
    read = np.full(len(result.predicted), np.nan) if result.read is None else result.read
    return notable_differences(result.spec, *(each[None] for each in (read, result.predicted, result.encoded)))[0]


def set_captions(result: Result) -> list[str]:
    """For every variable that is set, what is read from the counterfactual and what was requested."""
    spec, differs = result.spec, differences(result)
    captions = []
    for name in spec.names_of(result.request.do):
        i = spec.graph.index(name)
        found = np.nan if result.read is None else float(result.read[i])
        read = value_text(spec, i, found) if np.isfinite(found) else ""
        requested = value_text(spec, i, float(result.predicted[i]))
        captions.append(f"{name} {caption_text(requested, read, bool(differs[i]))}")
    return captions


def graph_html(result: Result) -> str:
    """The causal graph with every variable before and after."""
    spec = result.spec
    values = {
        name: change_text(spec, i, result.encoded[i], result.predicted[i]) for i, name in enumerate(spec.graph.names)
    }
    longest = {name: max(map(_shortened, choices(spec, name)), key=len) for name in values if choices(spec, name)}
    widest = {name: f"{text} → {text}" for name, text in longest.items()}
    return graph_svg(spec.graph, result.request.do, values, widest)


def graph_svg(
    graph: CausalGraph, do: Iterable[str], values: Mapping[str, str], widest: Mapping[str, str] | None = None
) -> str:
    """The causal graph as inline SVG; `values` are the texts below the variables' names, for `widest` see `draw`."""
    parts = [f"{name} {role}: {values.get(name, '')}" for name, role in roles(graph, do).items()]
    return str(_macros().graph(draw(graph, do, values, widest or {}), "causal graph: " + "; ".join(parts)))


def table_html(result: Result) -> str:
    """Every variable's role and values, see `_COLUMNS`."""
    spec = result.spec
    values, differs = {"encoded": result.encoded, "predicted": result.predicted}, differences(result)
    column = "measured" if result.reader == MEASURED else "read"
    if result.read is not None and np.isfinite(result.read).any():
        values[column] = result.read
    if result.true_labels is not None:
        values["true"] = result.true_labels
    rows = [
        {
            "name": name,
            "role": role,
            "unit": spec.units[i] if spec.units else "",
            "cells": [
                value_text(spec, i, float(labels[i])) + (f" {MARK}" if key == column and differs[i] else "")
                for key, labels in values.items()
            ],
        }
        for i, (name, role) in enumerate(roles(spec.graph, result.request.do).items())
    ]
    if result.digit is not None:
        cells = [str(result.digit), str(result.target_digit), *["-"] * (len(values) - 2)]
        role = "set" if spec.class_name in result.request.do else "stays"
        rows.append({"name": spec.class_name, "role": role, "unit": "", "cells": cells})
    columns = [{"name": name, "help": _COLUMNS[name]} for name in ("role", *values)]
    return str(_macros().table(columns, rows))


def downloads_html(result: Result, model: str) -> str:
    """Links to the counterfactual, all images in a row, and all values as JSON."""
    values = base64.b64encode(json.dumps(report(result, model), indent=2).encode()).decode("ascii")
    links = [
        ("counterfactual.png", "Counterfactual (PNG)", _png_uri(result.counterfactual)),
        ("all_pictures.png", "All images (PNG)", _png_uri(contact_sheet(result))),
        ("counterfactual.json", "Values (JSON)", f"data:application/json;base64,{values}"),
    ]
    return str(_macros().downloads(links))


def contact_sheet(result: Result) -> np.ndarray:
    """Factual, counterfactual, truth if known, and difference in a row, enlarged without smoothing: (3, H, W) uint8."""
    factual = result.request.image.image
    images = [as_rgb(image) for image in (factual, result.counterfactual, result.truth) if image is not None]
    images.append(difference_map(factual, result.counterfactual)[0])
    enlarged = np.stack(images).repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3)
    return tile(enlarged[None]).transpose(2, 0, 1)


def report(result: Result, model: str) -> dict[str, Any]:
    """All values of a result as plain types; null where a value is not known."""
    request, graph = result.request, result.spec.graph

    def named(labels: np.ndarray | None) -> dict[str, float | None] | None:
        if labels is None:
            return None
        return {name: float(v) if np.isfinite(v) else None for name, v in zip(graph.names, labels, strict=True)}

    return {
        "model": model,
        "dataset": result.spec.name,
        "picture": request.image.name,
        "do": dict(request.do),
        "guidance": request.w,
        "steps": request.steps,
        "class": result.digit,
        "counterfactual_class": result.target_digit,
        "graph": graph.to_dict(),
        "units": dict(zip(graph.names, result.spec.units, strict=False)),
        "roles": roles(graph, request.do),
        "encoded": named(result.encoded),
        "predicted": named(result.predicted),
        "probabilities": {
            name: dict(zip(choices(result.spec, name), map(float, values), strict=True))
            for name, values in result.probabilities.items()
        },
        "measured": named(result.measured),
        "read": named(result.read),
        "reader": result.reader,
        "notable_differences": [graph.names[i] for i in np.flatnonzero(differences(result))],
        "true": named(result.true_labels),
        "l1_to_truth": result.l1,
        "l1_of_doing_nothing": result.do_nothing_l1,
        "notes": [] if result.checks is None else list(result.checks.notes),
        "seconds": round(result.seconds, 3),
    }


def status_html(result: Result, note: str = "") -> str:
    """One line: the time it took, the class, what to doubt, and how the image was converted."""
    spec = result.spec
    digit = "" if result.digit is None else f", {spec.class_name} {result.digit}"
    digit += f" → {result.target_digit}" if result.target_digit != result.digit else ""
    sentences = [f"{digit}.", note or result.request.image.note]
    notes = () if result.checks is None else result.checks.notes
    sentences += [f"{note[:1].upper()}{note[1:]}." for note in notes]
    if result.verdict:
        sentences.append(f"{result.verdict[:1].upper()}{result.verdict[1:]}.")
    rest = " ".join(sentence for sentence in sentences if sentence)
    return str(_macros().result_status(f"{result.seconds:.2f} s", result.abduction_cached, rest))


def help_html() -> str:
    """Explanations of the controls and values, folded up."""
    return str(_macros().help({**_HELP, **_COLUMNS}))


def message_html(text: str, wrong: bool = True) -> str:
    """One line about what is wrong, or about what to do next."""
    return str(_macros().status(" ".join(text.split()), wrong=wrong))
