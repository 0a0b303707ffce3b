"""Hugging Face model cards: README.md of a model folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from causaldiffae.checkpoints.folder_layout import PREDICTOR_FOLDER, README
from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.logger import PROGRESS, STEP, read_progress

_DESCRIPTIONS: Final = {
    "causaldae": "CausalDiffAE (Komanduri et al., ECAI 2024, arXiv 2404.17735): a causal encoder, a structural causal "
    "model of its latents, and a diffusion decoder.",
    "diffscm": "Diff-SCM (Sanchez and Tsaftaris, CLeaR 2022, arXiv 2202.10166): a score network guided by an "
    "anti-causal predictor.",
    "conditional": "A diffusion model conditioned on labels, with a structural causal model of the labels.",
    "diffae": "A diffusion autoencoder without a graph (Preechakul et al., CVPR 2022).",
    "causalvae": "A model in the style of CausalVAE: a causal encoder, a structural causal model and a convolutional "
    "decoder.",
}
_MAX_CATEGORIES: Final = 20  # of a variable in the table
_LOSSES: Final = ("mse", "label_mse", "prior_kl", "mechanism_nll", "grad_norm")
_CARD: Final = """\
---
license: mit
library_name: causaldiffae
tags:
- counterfactual
- causal
- {kind}
- {spec.name}
---

# {kind} on {spec.name}

{description}

## Use

```python
from causaldiffae import {public}

model = {public}.from_pretrained("{name}")
cf = model.counterfactual("image.png", do={{"{variable}": {value}}})
cf.show()
```

## Data

`{spec.name}`: {facts.source}
Images: {spec.channels} x {spec.image_size} x {spec.image_size} pixels.
{classes}
| variable | unit | training labels | direct causes |
|---|---|---|---|
{variables}

## Training

{facts.parameters:,} parameters; {steps} steps of {train.batch_size} images at learning rate {train.lr:g};
T = {diffusion.diffusion_steps}, {diffusion.noise_schedule} schedule.{labelled}
{figures}
## Limits

The accuracy of counterfactuals depends on the graph and the training labels. Values outside the ranges of the
training labels are extrapolated.

## Licence

MIT, like the package. The data have their own licences.
"""


@dataclass(frozen=True)
class CardFacts:
    """Contents of a model card; `source` is the origin of the data, `name` the name for `from_pretrained`."""

    config: Config
    spec: DatasetSpec
    parameters: int
    steps: int | None  # None if unknown
    source: str
    name: str = ""


def write_card(folder: Path, facts: CardFacts, metrics: Mapping[str, float] | None = None) -> Path:
    """Writes `folder/README.md`, with the last losses of the training log if the folder contains one.

    Raises:
        InputError: for metrics that are not numbers.

    Warns:
        UserWarning: if there is another README.md than a model card, which is kept.
    """
    path, text = folder / README, card(folder, facts, metrics)
    if path.exists() and not _is_card(path):
        warnings.warn(f"{path}: kept, as it is no model card of this package; remove it to get one", stacklevel=4)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def _is_card(path: Path) -> bool:
    """Whether a file has the front matter of `card`."""
    head = path.read_text(encoding="utf-8", errors="replace")[:10_000].split("---\n")
    return len(head) > 2 and not head[0] and "library_name: causaldiffae\n" in head[1]


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raises `InputError` for values that are not numbers."""
    for name, value in metrics.items():
        try:
            f"{value:.4g}"
        except (TypeError, ValueError):
            raise InputError(f"metrics: {name}: expected a number, got {value!r:.80}") from None


def card(folder: Path, facts: CardFacts, metrics: Mapping[str, float] | None = None) -> str:
    """Returns the text of the card."""
    spec, config = facts.spec, facts.config
    kind, graph, units = config.model.model_type, spec.graph, spec.units or [""] * len(spec.graph)
    check_metrics(metrics or {})
    variables = [
        f"| {_cell(name)} | {_cell(units[i])} | {_cell(_labels(spec, i))} | "
        f"{_cell(', '.join(graph.parents[name]) or 'none')} |"
        for i, name in enumerate(graph.names)
    ]
    figures = [f"| {_cell(key)} | {value:.4g} |" for key, value in {**_last_losses(folder), **(metrics or {})}.items()]
    if figures:
        figures = ["", "## Figures", "", "| figure | value |", "|---|---|", *figures, ""]
    classes = f"The model is also conditioned on {spec.num_classes} classes, predicted by `{PREDICTOR_FOLDER}/`.\n"
    each = ", chosen for each variable by itself" if config.loss.mask_by == "variable" else ""
    labelled = f"\nLabels were used for a share of {config.loss.label_fraction:g} of the images{each}."
    return _CARD.format(
        kind=kind,
        spec=spec,
        facts=facts,
        train=config.train,
        diffusion=config.diffusion,
        description=_DESCRIPTIONS.get(kind, kind),
        public="CausalDiffAE" if kind == "causaldae" else "CounterfactualModel",
        name=facts.name or "PATH OR NAME OF THIS REPOSITORY",
        variable=graph.names[0],
        value=_example_value(spec),
        classes=classes if config.model.class_cond else "",
        variables="\n".join(variables),
        steps=facts.steps or "an unknown number of",
        labelled=labelled if config.loss.masking else "",
        figures="\n".join(figures),
    )


def _labels(spec: DatasetSpec, i: int) -> str:
    """The range of a variable, or its categories."""
    names = spec.category_names(i) or [f"{value:g}" for value in spec.category_values(i)]
    more = f" and {len(names) - _MAX_CATEGORIES} more" if len(names) > _MAX_CATEGORIES else ""
    return ", ".join(names[:_MAX_CATEGORIES]) + more if names else f"{spec.low[i]:g} .. {spec.high[i]:g}"


def _example_value(spec: DatasetSpec) -> str:
    """A value of the first variable as Python text: a number in its range, or its last category."""
    if names := spec.category_names(0):
        return json.dumps(names[-1])
    value = spec.high[0] if spec.values_of(spec.graph.names[0]) else spec.low[0] + 0.6 * (spec.high[0] - spec.low[0])
    return f"{value:.3g}"


def _cell(text: str) -> str:
    """Escapes untrusted text for a table cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _last_losses(folder: Path) -> dict[str, float]:
    try:
        rows = read_progress(folder / PROGRESS)[1]
    except (DataError, OSError):
        return {}
    found = {}
    for key in _LOSSES if rows else ():
        try:
            found[f"training {key}, last log (step {rows[-1][STEP]})"] = float(rows[-1][key])
        except (KeyError, ValueError):
            continue
    return found
