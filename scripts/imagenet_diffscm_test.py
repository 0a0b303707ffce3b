"""Counterfactuals of any picture by Diff-SCM, with published networks: what would it show, were its class another one?

    python scripts/imagenet_diffscm_test.py --model_path DiT-XL-2-256x256.pt --vae_path sd-vae-ft-mse \\
        --image cat.jpg --do tiger --out_dir OUT
    python scripts/imagenet_diffscm_test.py --model_path facebook-DiT-XL-2-256 --image cat.jpg --image dog.png ...
    python scripts/imagenet_diffscm_test.py --model_path 256x256_diffusion_uncond.pt \\
        --predictor_path 256x256_classifier.pt --image cat.jpg --do tiger --do 207 --out_dir OUT

A class is given by its name or its index. Pictures may have any size: the short side is resized, the centre cropped.
docs/imagenet.md says where the weights are. Writes counterfactuals.png (a row for each picture: factual,
reconstruction, counterfactuals), every image of it as a file of its own, and summary.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from causaldiffae import dist_util
from causaldiffae.datasets.images import to_model_range, to_uint8
from causaldiffae.errors import InputError, check_given, check_least
from causaldiffae.evaluation.imagenet import (
    CLASS,
    ImagenetModel,
    class_names,
    find_class,
    load_imagenet_model,
    read_picture,
)
from causaldiffae.guidance import Guidance
from causaldiffae.logger import progress_bar
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.published.guided_diffusion import AdmSizes
from causaldiffae.script_util import SOLVER, argument_parser, parse_flat, run_cli
from causaldiffae.training.acceleration import activation_dtype
from causaldiffae.visualization.image_grids import save_png, tile


@dataclass(frozen=True)
class ImagenetTestConfig:
    """How to ask.

    Attributes:
        model_path: a DiT (.pt, or a diffusers folder), or a U-Net of guided-diffusion (.pt).
        vae_path: of a DiT: the autoencoder's folder; by default the one in the pipeline folder model_path.
        predictor_path: of a U-Net: the noised classifier (.pt), or the folder of a noised predictor.
        image: pictures to ask about; may be given several times.
        do: classes to set, by name or index; may be given several times, one abduction serves them all.
        out_dir: folder to write to.
        w: the scale s of the guidance. The networks were published with 4 (DiT) and 10 (U-Net and classifier).
        stop: encode and decode only up to this share of T; less keeps more of the picture.
        solver: "dpmpp2m", "obelm", or "ddim".
        steps: evaluations of the network each way.
        grid: of the noise levels: "centred", "logsnr", "rho" or "uniform"; by default the solver's own.
        residual: what decoding misses of the encoded picture is added to every answer.
        batch_size: pictures at a time.
        use_bf16: activations in bfloat16.
        num_heads: of a DiT's .pt of an unpublished width.
        image_size, num_res_blocks, channel_mult, attention_resolutions, num_head_channels: of a U-Net and its
            classifier, as guided-diffusion's flags of these names; by default of its 256-pixel networks.
    """

    model_path: str = ""
    vae_path: str = ""
    predictor_path: str = ""
    image: list[str] = field(default_factory=list)
    do: list[str] = field(default_factory=list)
    out_dir: str = ""
    w: float = 4.0
    stop: float = 0.75
    solver: str = SOLVER
    steps: int = 50
    grid: str = ""
    residual: bool = False
    batch_size: int = 8
    use_bf16: bool = False
    num_heads: int = 0
    image_size: int = AdmSizes.image_size
    num_res_blocks: int = AdmSizes.num_res_blocks
    channel_mult: str = AdmSizes.channel_mult
    attention_resolutions: str = AdmSizes.attention_resolutions
    num_head_channels: int = AdmSizes.num_head_channels

    def __post_init__(self) -> None:
        check_given(self, "model_path", "image", "do", "out_dir")
        check_least(self, batch_size=1, steps=2, num_heads=0, image_size=1, num_res_blocks=1, num_head_channels=1)
        Guidance(w=self.w)

    def sizes(self) -> AdmSizes:
        """Those of a U-Net and its classifier."""
        return AdmSizes(**{f.name: getattr(self, f.name) for f in fields(AdmSizes)})


def parse(argv: Sequence[str]) -> ImagenetTestConfig:
    """The settings from `--config FILE` and flags."""
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(ImagenetTestConfig, nested_key=None, skip={"do", "image"}, instantiate=False)
    parser.add_argument("--image", action="append", default=[], help="a picture; may be given several times")
    parser.add_argument("--do", action="append", default=[], help="a class, name or index; may be given several times")
    values = parse_flat(parser, argv)
    return ImagenetTestConfig(**{f.name: values[f.name] for f in fields(ImagenetTestConfig)})


@dataclass(frozen=True)
class Answers:
    """Factual pictures, reconstructions, and the counterfactuals of every class asked: each (N, 3, S, S) uint8."""

    factual: np.ndarray
    reconstruction: np.ndarray
    counterfactuals: list[np.ndarray]


def ask(loaded: ImagenetModel, pictures: np.ndarray, classes: Sequence[int], config: ImagenetTestConfig) -> Answers:
    """All classes about all pictures, each of which is abducted once."""
    device = next(loaded.model.parameters()).device
    engine = loaded.engine(
        config.steps,
        config.solver,
        config.grid,
        guidance=Guidance(w=config.w),
        stop=config.stop,
        residual=config.residual,
        autocast=activation_dtype(config.use_bf16, device),
    )
    questions: list[dict[str, float]] = [{}, *({CLASS: float(index)} for index in classes)]
    found: list[list[np.ndarray]] = [[] for _ in questions]
    with progress_bar(total=len(pictures), desc="counterfactuals", unit="picture") as bar:
        for start in range(0, len(pictures), config.batch_size):
            batch = to_model_range(pictures[start : start + config.batch_size]).to(device)
            labels = loaded.unknown_labels(len(batch))
            abducted = engine.abduct(batch, labels=None if labels is None else labels.to(device))
            for i, answer in enumerate(engine.predict(abducted, questions)):
                found[i].append(answer.images.cpu().numpy())
            bar.update(len(batch))
    images = [np.concatenate(parts) for parts in found]
    if not all(np.isfinite(some).all() for some in images):
        raise InputError(f"w: with a scale of {config.w:g} the solver leaves all numbers; a smaller one is needed")
    reconstruction, *counterfactuals = map(to_uint8, images)
    return Answers(pictures, reconstruction, counterfactuals)


def write(out: Path, answers: Answers, config: ImagenetTestConfig, classes: Sequence[int]) -> list[dict[str, Any]]:
    """The grid and every image; returns the figures of each picture, L1 on 0..255."""
    out.mkdir(parents=True, exist_ok=True)
    columns = {"factual": answers.factual, "reconstruction": answers.reconstruction}
    for index, images in zip(classes, answers.counterfactuals, strict=True):
        columns[f"do_{index}_{slug(class_names()[index])}"] = images
    save_png(out / "counterfactuals.png", tile(np.stack(list(columns.values()), axis=1)))
    figures = []
    for i, path in enumerate(config.image):
        files = {column: f"{i}_{slug(Path(path).stem)}_{column}.png" for column in columns}
        for column, images in columns.items():
            save_png(out / files[column], images[i].transpose(1, 2, 0))
        change = {column: float(l1_errors(images, answers.factual)[i]) for column, images in columns.items()}
        figures.append({"picture": path, "files": files, "l1_to_factual": change})
    return figures


def slug(text: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60] or "x"


def main(argv: list[str]) -> None:
    config = parse(argv)
    classes = list(dict.fromkeys(find_class(text) for text in config.do))
    loaded = load_imagenet_model(
        config.model_path,
        config.vae_path,
        config.predictor_path,
        config.num_heads,
        config.sizes(),
        dist_util.dev(),
    )
    pictures = np.stack([read_picture(path, loaded.spec.image_size) for path in config.image])
    answers = ask(loaded, pictures, classes, config)
    out = Path(config.out_dir)
    figures = write(out, answers, config, classes)
    report = {
        "settings": asdict(config),
        "predictor": "implicit" if loaded.is_implicit else "explicit",
        "classes": {str(index): class_names()[index] for index in classes},
        "pictures": figures,
    }
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for row in figures:
        changes = ", ".join(f"{column} {value:.1f}" for column, value in row["l1_to_factual"].items())
        print(f"{row['picture']}: L1 to the factual picture (0..255): {changes}")
    print(f"written to {out}")


if __name__ == "__main__":
    run_cli(main)
