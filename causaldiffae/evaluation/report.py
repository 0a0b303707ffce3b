"""The benchmark as one HTML page that needs nothing else: tables, bars with their intervals, and pictures.

Styles are inline, bars are inline SVG, pictures are PNG data URIs; there are no scripts and no addresses. Whatever
comes from a results file is escaped: results may come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.images import evenly_spread
from causaldiffae.errors import DataError
from causaldiffae.evaluation.run import pictures_file
from causaldiffae.evaluation.tables import (
    ANSWER_NAMES,
    EXPLANATION,
    Column,
    Results,
    broken_note,
    by_dataset,
    columns_of,
    dig,
    effects_table,
    filled,
    general_table,
    kinds_of,
    seeds_table,
    shown,
)
from causaldiffae.files.npz import NpzFile
from causaldiffae.visualization.image_grids import data_uri, labelled_grid

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#1c2430}
h1{font-size:1.6em}h2{margin-top:2.2em;border-bottom:2px solid #d5dbe3;padding-bottom:.2em}h3{margin-top:1.6em}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;margin:.6em 0}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid #e6eaef;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{background:#f2f5f8}tr.other td{color:#66717f}
td.best{font-weight:700}small{color:#8a94a1}pre{background:#f6f8fa;padding:.8em;overflow-x:auto;font-size:12px}
.bars{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0}figcaption{font-size:13px;color:#44505e}
img{max-width:100%;height:auto;border:1px solid #e6eaef}.warn{color:#a02020}
"""
_COLOURS: Final = ("#2f6db3", "#d1782b", "#3f9160", "#8a5fb0", "#b34a5e", "#5a8f9c")
_GREY: Final = "#b9c2cc"
_MAX_PICTURES: Final = 1 << 28
_MAX_SIDE: Final = 1024
_SHOWN: Final = 4


def write_report(path: str | Path, files: Sequence[tuple[Path, Results]]) -> Path:
    """Writes the page.

    Args:
        files: results with the paths they were read from; pictures lie beside them.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(files), encoding="utf-8")
    return target


def page(files: Sequence[tuple[Path, Results]]) -> str:
    """The whole page."""
    where = {id(found): source for source, found in files}
    parts = ["<h1>Counterfactual images against the truth</h1>", f"<p>{escape(EXPLANATION)}</p>"]
    parts.append(
        "<p>In brackets: 95 % bootstrap intervals over images. Grey rows need no model: the truth itself shows what "
        "the judges cannot see (the floor), doing nothing and the nearest training image are what a model has to "
        "beat.</p>"
    )
    for title, group in by_dataset([found for _, found in files]).items():
        parts.append(f"<h2>{escape(title)}</h2>")
        note = broken_note(group)
        if note:
            parts.append(f'<p class="warn">{escape(note)}</p>')
        for do in _interventions(group):
            parts.append(_intervention(group, do))
        parts.append(f"<h3>Null intervention and disentanglement</h3><pre>{escape(general_table(group))}</pre>")
        for heading, text in (("Effects of do()", effects_table(group)), ("Over training seeds", seeds_table(group))):
            if text:
                parts.append(f"<h3>{heading}</h3><pre>{escape(text)}</pre>")
        parts.append(_judge(group[0]))
        parts += [_pictures(where[id(found)], found) for found in group]
        parts.append("<h3>Settings</h3>" + "".join(_settings(found) for found in group))
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Counterfactual benchmark</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _interventions(group: Sequence[Results]) -> list[str]:
    names: dict[str, None] = {}
    for found in group:
        names.update(dict.fromkeys(found["results"]["interventions"]))
    return list(names)


def _rows(group: Sequence[Results], do: str) -> list[tuple[str, Results, str]]:
    rows = [(str(found["model"]["name"]), found, "model") for found in group]
    return rows + [(ANSWER_NAMES[kind], group[0], kind) for kind in kinds_of(group[0], do) if kind != "model"]


def _intervention(group: Sequence[Results], do: str) -> str:
    columns = filled(columns_of(group[0]), group)
    rows = _rows(group, do)
    heads = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    lines = []
    for name, found, kind in rows:
        cells = "".join(_cell(column, found, do, kind, group) for column in columns)
        lines.append(f'<tr class="{"model" if kind == "model" else "other"}"><td>{escape(name)}</td>{cells}</tr>')
    bounds = dig(group[0], "results", "interventions", do, "range") or [float("nan")] * 2
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    table = f'<div class="scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'
    plotted = [column for column in columns if column.heading == "L1" or column.heading.endswith((" err", " meas"))]
    bars = "".join(bar_plot(column, rows, do) for column in plotted)
    heading = f"do({escape(do)}), uniform over {float(bounds[0]):g} .. {float(bounds[1]):g}"
    return f'<h3>{heading}</h3>{table}<div class="bars">{bars}</div>'


def _cell(column: Column, found: Results, do: str, kind: str, group: Sequence[Results]) -> str:
    figure = column.find(found, do, kind)
    text = shown(figure, column.decimals)
    if figure is None or text == "-":
        return "<td>-</td>"
    low, high = f"{figure['low']:.{column.decimals}f}", f"{figure['high']:.{column.decimals}f}"
    others = [column.find(each, do, "model") for each in group]
    means = [each["mean"] for each in others if each is not None and each["mean"] is not None]
    best = len(means) > 1 and kind == "model" and figure["mean"] == (min if column.less_is_better else max)(means)
    return f"<td{' class=best' if best else ''}>{text} <small>[{low}, {high}]</small></td>"


def bar_plot(column: Column, rows: Sequence[tuple[str, Results, str]], do: str) -> str:
    """One figure of all answers as bars with whiskers, an inline SVG; models in colour, the others grey."""
    found = [(name, column.find(results, do, kind), kind) for name, results, kind in rows]
    known = [(name, figure, kind) for name, figure, kind in found if figure is not None and figure["mean"] is not None]
    if not known:
        return ""
    top = max(max(figure["high"], figure["mean"]) for _, figure, _ in known) or 1.0
    left, width, step = 150, 190, 20
    height = step * len(known) + 8
    parts = []
    for i, (name, figure, kind) in enumerate(known):
        y, scale = step * i + 4, width / top
        colour = _COLOURS[i % len(_COLOURS)] if kind == "model" else _GREY
        low, high, mean = (max(figure[key], 0.0) * scale for key in ("low", "high", "mean"))
        label = name if len(name) < 24 else f"{name[:22]}…"
        end, text = left + max(high, mean) + 5, shown(figure, column.decimals)
        parts.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end" font-size="11">{escape(label)}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{mean:.1f}" height="13" fill="{colour}"/>'
            f'<path d="M{left + low:.1f} {y + 8.5}H{left + high:.1f}" stroke="#1c2430" stroke-width="1.2"/>'
            f'<text x="{end:.1f}" y="{y + 12}" font-size="11">{text}</text>'
        )
    size = f'width="{left + width + 50}" height="{height}"'
    caption = f"<figcaption>{escape(column.heading)}</figcaption>"
    return f'<figure>{caption}<svg {size} role="img">{"".join(parts)}</svg></figure>'


def _judge(found: Results) -> str:
    """What the predictor gets wrong on true images."""
    figures = found["predictor"].get("figures") or {}
    kinds = [kind for kind in ("observational", "interventional") if isinstance(figures.get(kind), dict)]
    if not kinds:
        return ""
    names = list(figures[kinds[0]])
    heads = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    lines = []
    for kind in kinds:
        cells = "".join(f"<td>{float(figures[kind].get(name, float('nan'))):.4g}</td>" for name in names)
        lines.append(f"<tr><td>{kind}</td>{cells}</tr>")
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<h3>The predictor's own error on true test images</h3>{table}"


def _settings(found: Results) -> str:
    named = {
        **{f"model {key}": found["model"].get(key) for key in ("type", "step", "digest", "parameters", "path")},
        **{f"data {key}": found["data"].get(key) for key in ("dataset", "digest", "folder")},
        **dict(found["settings"]),
        **{f"version of {key}": value for key, value in dict(found.get("versions") or {}).items()},
        **dict(found.get("timing") or {}),
    }
    text = ", ".join(f"{key}: {value}" for key, value in named.items())
    return f"<p><b>{escape(str(found['model']['name']))}</b> <small>{escape(text)}</small></p>"


# ---------------------------------------------------------------------- pictures


def _pictures(source: Path, found: Results) -> str:
    kept = read_pictures(pictures_file(str(source)))
    if kept is None:
        return ""
    name = escape(str(found["model"]["name"]))
    return f'<h3>Pictures: {name}</h3><img alt="{name}" src="{data_uri(picture_grid(kept))}">'


def read_pictures(path: Path) -> dict[str, np.ndarray] | None:
    """The images beside a results file; None if there are none.

    Raises:
        DataError: if the file is damaged or far too large.
    """
    if not path.is_file():
        return None
    try:
        with NpzFile(path) as kept:
            return _checked_pictures(kept.arrays("uf", _MAX_PICTURES), path)
    except DataError as error:
        raise DataError(f"{error}; delete it or evaluate anew") from None


def _checked_pictures(kept: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """As `benchmark_run.pictures` makes them: every array has a row for each image."""
    asked = [key.removeprefix("values/") for key in kept if key.startswith("values/")]
    needed = ["factual", "reconstruction", *(f"images/{name}" for name in asked)]
    pictures = [kept.get(key) for key in (*needed, *(f"true_images/{name}" for name in asked))]
    shape = kept["factual"].shape if "factual" in kept else ()
    sound = len(shape) == 4 and shape[0] > 0 and shape[1] in (1, 3, 4) and 0 < max(shape[2:]) <= _MAX_SIDE
    sound = sound and min(shape[2:]) > 0 and all(key in kept for key in needed)
    sound = sound and all(p is None or (p.shape == shape and p.dtype == np.uint8) for p in pictures)
    if not sound or not all(kept[f"values/{name}"].shape == shape[:1] for name in asked):
        raise DataError(f"{path}: it does not hold what was asked and drawn")
    return kept


def picture_grid(kept: dict[str, np.ndarray]) -> np.ndarray:
    """Factual image, reconstruction, and for every intervention the counterfactual beside the truth."""
    count = min(_SHOWN, len(kept["factual"]))
    rows = evenly_spread(count, len(kept["factual"]))  # the split may be sorted
    columns = [("factual", kept["factual"][rows]), ("null", kept["reconstruction"][rows])]
    captions = [[""] * count, [""] * count]
    for key in kept:
        if key.startswith("values/"):
            name = key.removeprefix("values/")
            columns.append((f"do({name})", kept[f"images/{name}"][rows]))
            captions.append([f"= {value:.3g}" for value in kept[key][rows]])
            if f"true_images/{name}" in kept:
                columns.append(("the truth", kept[f"true_images/{name}"][rows]))
                captions.append([""] * count)
    return labelled_grid([(head, images[:, :3]) for head, images in columns], cell_captions=captions)
