"""README.md of a model folder: the facts that the checkpoint itself knows, in the form of a Hugging Face model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.logger import PROGRESS, STEP, read_progress

_TYPES: Final = {
    "causaldae": "CausalDiffAE (Komanduri et al., ECAI 2024, arXiv 2404.17735): causal encoder, structural causal "
    "model over its latents, diffusion decoder.",
    "diffscm": "Diff-SCM (Sanchez and Tsaftaris, CLeaR 2022, arXiv 2202.10166): a score network under an anti-causal "
    "predictor.",
    "conditional": "A label-conditional diffusion model with a structural causal model of the labels.",
    "diffae": "A diffusion autoencoder without a graph (Preechakul et al., CVPR 2022).",
    "causalvae": "A CausalVAE-style model: causal encoder, structural causal model, convolutional decoder.",
}
_LAST: Final = ("mse", "label_mse", "prior_kl", "mechanism_nll", "grad_norm")


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a model.

    Attributes:
        config, spec: of the model.
        parameters: how many it has.
        steps: how many it was trained for, None where that is not known.
        source: where the data come from.
        name: under which the model can be opened.
    """

    config: Config
    spec: DatasetSpec
    parameters: int
    steps: int | None
    source: str
    name: str = ""


def write_card(folder: Path, facts: CardFacts, metrics: Mapping[str, float] | None = None) -> Path:
    """Writes `folder/README.md`; the training log beside it, where there is one, gives the last losses."""
    path = folder / "README.md"
    path.write_text(card(folder, facts, metrics), encoding="utf-8")
    return path


def card(folder: Path, facts: CardFacts, metrics: Mapping[str, float] | None = None) -> str:
    """The text: what it is, its data, graph, training, figures, use and licence."""
    spec, config = facts.spec, facts.config
    kind = config.model.model_type
    lines = ["---", "license: mit", "library_name: causaldiffae", "tags:", "- counterfactual", "- causal"]
    lines += [f"- {kind}", f"- {spec.name}", "---", "", f"# {kind} on {spec.name}", "", _TYPES.get(kind, kind), ""]
    lines += [
        "## Use",
        "",
        "```python",
        *_usage(spec.graph.names[0], spec.low[0], spec.high[0], kind, facts.name),
        "```",
        "",
    ]
    lines += ["## Data", "", f"`{spec.name}`: {facts.source}"]
    lines += [f"Images: {spec.channels} x {spec.image_size} x {spec.image_size} pixels."]
    if config.model.class_cond:
        lines.append(
            f"Conditioned on {spec.num_classes} classes beside; a predictor that reads them is in `predictor/`."
        )
    lines += ["", "| variable | unit | training labels | direct causes |", "|---|---|---|---|"]
    for i, name in enumerate(spec.graph.names):
        unit = spec.units[i] if spec.units else ""
        causes = ", ".join(spec.graph.parents[name]) or "none"
        lines.append(f"| {_cell(name)} | {_cell(unit)} | {spec.low[i]:g} .. {spec.high[i]:g} | {_cell(causes)} |")
    lines += ["", "## Training", ""]
    lines.append(
        f"{facts.parameters:,} parameters; {facts.steps or 'an unknown number of'} steps of {config.train.batch_size} "
        f"images at learning rate {config.train.lr:g}; T = {config.diffusion.diffusion_steps}, "
        f"{config.diffusion.noise_schedule} schedule."
    )
    if config.loss.masking:
        lines.append(f"Labels were used on a share of {config.loss.label_fraction:g} of the images.")
    figures = {**_last_losses(folder), **(metrics or {})}
    if figures:
        lines += ["", "## Figures", "", "| figure | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {value:.4g} |" for name, value in figures.items()]
    lines += ["", "## Limits", ""]
    lines.append(
        "Counterfactuals are as good as the graph that was given and the labels that were learned from; values "
        "outside the training labels' ranges are extrapolated."
    )
    lines += ["", "## Licence", "", "MIT, as the package. The data have their own licences, see above.", ""]
    return "\n".join(lines)


def _usage(variable: str, low: float, high: float, kind: str, name: str) -> list[str]:
    public = "CausalDiffAE" if kind == "causaldae" else "CounterfactualModel"
    value = float(f"{low + 0.6 * (high - low):.3g}")
    return [
        f"from causaldiffae import {public}",
        "",
        f'model = {public}.from_pretrained("{name or "PATH OR NAME OF THIS REPOSITORY"}")',
        f'cf = model.counterfactual("picture.png", do={{"{variable}": {value:g}}})',
        "cf.show()",
    ]


def _cell(text: str) -> str:
    """Names come from the checkpoint: nothing in them may end a cell or begin markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _last_losses(folder: Path) -> dict[str, float]:
    try:
        rows = read_progress(folder / PROGRESS)[1]
    except (DataError, OSError):
        return {}
    if not rows:
        return {}
    last = rows[-1]
    named = {}
    for key in _LAST:
        try:
            named[f"training {key}, last log (step {last[STEP]})"] = float(last[key])
        except (KeyError, ValueError):
            continue
    return named
