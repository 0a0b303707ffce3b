"""Counterfactuals of any image by Diff-SCM with published networks: what would it show if its class were another one?

    python scripts/imagenet_diffscm_test.py --model_path DiT-XL-2-256x256.pt --vae_path sd-vae-ft-mse \\
        --image cat.jpg --do tiger --out_dir OUT
    python scripts/imagenet_diffscm_test.py --model_path facebook-DiT-XL-2-256 --image cat.jpg --image dog.png ...
    python scripts/imagenet_diffscm_test.py --model_path 256x256_diffusion_uncond.pt \\
        --predictor_path 256x256_classifier.pt --image cat.jpg --do tiger --do 207 --out_dir OUT

A class is given by its name or its index. Images may have any size: the short side is resized, the centre cropped.
docs/imagenet.md says where to get the weights. Writes counterfactuals.png (one row per image: factual, reconstruction,
counterfactuals), each of these images as a file, and summary.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from causaldiffae import dist_util
from causaldiffae.config import DEVICE_HELP, flag, with_help
from causaldiffae.datasets.images import to_model_range, to_uint8
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.evaluation.imagenet import (
    CLASS,
    SOLVER,
    STEPS,
    ImagenetModel,
    class_names,
    find_class,
    load_imagenet_model,
    read_image,
)
from causaldiffae.files.reading import without_nan, write_json
from causaldiffae.guidance import Guidance
from causaldiffae.logger import progress_bar
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.published.guided_diffusion import AdmSizes
from causaldiffae.script_util import parse_flags, run_cli
from causaldiffae.training.acceleration import activation_dtype
from causaldiffae.training.devices import use_device
from causaldiffae.visualization.image_grids import save_png, tile


@with_help
@dataclass(frozen=True)
class ImagenetTestConfig:
    """Options of the test."""

    model_path: str = flag("", "DiT (.pt or diffusers folder), or U-Net of guided-diffusion (.pt)")
    vae_path: str = flag("", "DiT: folder of the autoencoder; default: that in the pipeline folder model_path")
    predictor_path: str = flag("", "U-Net: noised classifier (.pt) or folder of a noised predictor")
    image: list[str] = flag([], "image to edit; repeatable")
    do: list[str] = flag([], "class to set, by name or index; repeatable")
    out_dir: str = flag("", "output folder")
    w: float = flag(4.0, "guidance scale s; published: 4 (DiT), 10 (U-Net with classifier)")
    stop: float = flag(0.75, "encode and decode only up to this fraction of T; less keeps more of the image")
    solver: str = flag(SOLVER, "exact_ddim, dpmpp2m, obelm or ddim")
    steps: int = flag(STEPS, "network evaluations in each direction")
    grid: str = flag("", "spacing of noise levels: centred, logsnr, rho or uniform; default: that of the solver")
    residual: bool = flag(False, "add the reconstruction error of the factual image to every counterfactual")
    batch_size: int = flag(8, "images per batch")
    use_bf16: bool = flag(False, "use bfloat16 activations")
    device: str = flag("auto", DEVICE_HELP)
    num_heads: int = flag(0, "DiT: attention heads of a .pt of unpublished width")
    image_size: int = flag(AdmSizes.image_size, "U-Net: image size")
    num_res_blocks: int = flag(AdmSizes.num_res_blocks, "U-Net: residual blocks per resolution")
    channel_mult: str = flag(AdmSizes.channel_mult, "U-Net: width multipliers per resolution")
    attention_resolutions: str = flag(AdmSizes.attention_resolutions, "U-Net: resolutions with attention")
    num_head_channels: int = flag(AdmSizes.num_head_channels, "U-Net: channels per attention head")

    def __post_init__(self) -> None:
        check_given(self, "model_path", "image", "do", "out_dir")
        check_local(out_dir=self.out_dir)
        check_least(self, batch_size=1, steps=2, num_heads=0, image_size=1, num_res_blocks=1, num_head_channels=1)
        Guidance(w=self.w)


def predict(
    loaded: ImagenetModel, factual: np.ndarray, classes: Sequence[int], config: ImagenetTestConfig
) -> list[np.ndarray]:
    """The reconstructions, then the counterfactuals under each class: (N, 3, S, S) uint8 each."""
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
    interventions: list[dict[str, float]] = [{}, *({CLASS: float(index)} for index in classes)]
    parts: list[list[np.ndarray]] = [[] for _ in interventions]
    with progress_bar(total=len(factual), desc="counterfactuals", unit="image") as bar:
        for start in range(0, len(factual), config.batch_size):
            batch = to_model_range(factual[start : start + config.batch_size]).to(device)
            labels = loaded.unknown_labels(len(batch))
            abducted = engine.abduct(batch, labels=None if labels is None else labels.to(device))
            for part, result in zip(parts, engine.predict(abducted, interventions), strict=True):
                part.append(result.images.cpu().numpy())
            bar.update(len(batch))
    images = [np.concatenate(part) for part in parts]
    if not all(np.isfinite(each).all() for each in images):
        raise InputError(f"w: expected a scale at which the solver stays finite, got {config.w:g}; use a smaller one")
    return [to_uint8(each) for each in images]


def slug(text: str) -> str:
    """Makes a name usable as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60] or "x"


def main(argv: list[str]) -> None:
    config = parse_flags(ImagenetTestConfig, argv, __doc__ or "")
    use_device(config.device)
    classes = list(dict.fromkeys(find_class(text) for text in config.do))
    sizes = AdmSizes(**{each.name: getattr(config, each.name) for each in fields(AdmSizes)})
    loaded = load_imagenet_model(
        config.model_path, config.vae_path, config.predictor_path, config.num_heads, sizes, dist_util.dev()
    )
    factual = np.stack([read_image(path, loaded.spec.image_size) for path in config.image])
    names = ["factual", "reconstruction", *(f"do_{index}_{slug(class_names()[index])}" for index in classes)]
    columns = dict(zip(names, [factual, *predict(loaded, factual, classes, config)], strict=True))
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "counterfactuals.png", tile(np.stack(list(columns.values()), axis=1)))
    rows = []
    for i, path in enumerate(config.image):
        files = {name: f"{i}_{slug(Path(path).stem)}_{name}.png" for name in columns}
        for name, images in columns.items():
            save_png(out / files[name], images[i].transpose(1, 2, 0))
        errors = {name: float(l1_errors(images[i : i + 1], factual[i : i + 1])[0]) for name, images in columns.items()}
        rows.append({"picture": path, "files": files, "l1_to_factual": errors})
        print(f"{path}: L1 to the factual image (0..255): " + ", ".join(f"{k} {v:.1f}" for k, v in errors.items()))
    report = {
        "settings": asdict(config),
        "predictor": "implicit" if loaded.is_implicit else "explicit",
        "classes": {str(index): class_names()[index] for index in classes},
        "pictures": rows,
    }
    write_json(out / "summary.json", without_nan(report))
    print(f"written to {out}")


if __name__ == "__main__":
    run_cli(main)
