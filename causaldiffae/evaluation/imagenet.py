"""ImageNet as a causal model of two variables, class -> image: Diff-SCM with published networks.

The score network is either a class-conditional DiT in the latent space of an autoencoder, which serves as its own
implicit predictor, or the unconditional pixel-space U-Net of guided-diffusion with its noised classifier as explicit
predictor. Both were trained with 1,000 steps of the linear schedule and a learned variance. No weights are downloaded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, ImageRule
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.files.reading import read_file
from causaldiffae.files.weights import Weights
from causaldiffae.graphs import CausalGraph
from causaldiffae.predictors.noised_predictor import load_noised_predictor
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space
from causaldiffae.published.dit import KEYS as DIT_KEYS
from causaldiffae.published.dit import load_dit
from causaldiffae.published.guided_diffusion import UNET_KEYS, AdmSizes, build_adm_classifier, build_adm_unet
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import create_gaussian_diffusion, create_solver

CLASS = "class"
SUGGESTIONS = 5
STEPS, SOLVER = 50, "dpmpp2m"
"""Exact DDIM keeps more of the image, including what belongs to the factual class."""


@cache
def class_names() -> tuple[str, ...]:
    """Names of the 1,000 classes in index order, from torchvision."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def find_class(text: str) -> int:
    """Index of a class, given by its case-insensitive name or its index.

    Raises:
        InputError: for an unknown class; the message lists similar names.
    """
    names = class_names()
    given = " ".join(text.replace("_", " ").split()).casefold()
    by_name = {name.casefold(): index for index, name in enumerate(names)}
    if given in by_name:
        return by_name[given]
    if given.isascii() and given.isdigit() and int(given) < len(names):
        return int(given)
    containing = sorted((name for name in by_name if given and given in name), key=len)
    similar = list(dict.fromkeys([*containing, *difflib.get_close_matches(given, by_name, SUGGESTIONS)]))[:SUGGESTIONS]
    hint = ", ".join(f"{names[by_name[name]]} ({by_name[name]})" for name in similar) or "tiger (292)"
    last = len(names) - 1
    raise InputError(f"do: expected an ImageNet class, like {hint}, or an index in 0..{last}, got {text[:80]!r}")


def imagenet_spec(image_size: int = 256) -> DatasetSpec:
    """Spec of RGB images with one variable, the class."""
    names = class_names()
    return DatasetSpec(
        name="imagenet",
        image_size=image_size,
        channels=3,
        graph=CausalGraph((CLASS,)),
        shift=(0.0,),
        scale=(1.0,),
        low=(0.0,),
        high=(float(len(names) - 1),),
        kinds=("categorical",),
        categories=(names,),
    )


def read_image(path: str | Path, image_size: int) -> np.ndarray:
    """Reads a JPEG, PNG or WebP image as (3, S, S) uint8: the short side resized to S pixels, the centre cropped.

    Raises:
        DataError: if the file is missing, too large or cannot be decoded.
    """
    return ImageRule(image_size, 3, "crop").decode(read_file(Path(path), MAX_FILE_BYTES), str(path))


@dataclass(frozen=True)
class ImagenetModel:
    """A Diff-SCM built from published networks.

    Attributes:
        model: the score network with its predictor.
        config: the diffusion process of the score network.
        spec: image size and classes.
        latent_space: the autoencoder of a latent score network; None for pixels.
    """

    model: DiffScm
    config: DiffusionConfig
    spec: DatasetSpec
    latent_space: LatentSpace | None

    @property
    def is_implicit(self) -> bool:
        """Whether the score network is its own predictor."""
        return self.model.predictor is None

    def engine(self, steps: int = STEPS, solver: str = SOLVER, grid: str = "", **options: Any) -> CounterfactualEngine:
        """Builds the counterfactual engine; arguments as in `LoadedModel.engine`."""
        chosen = create_solver(self.config, solver, steps, grid)
        return CounterfactualEngine(self.model, chosen, self.spec, codec=self.latent_space, **options)

    def unknown_labels(self, count: int) -> torch.Tensor | None:
        """Placeholder labels (count, 1) for a model without an explicit predictor, else None.

        Their values have no effect: encoding is unguided, and do() sets the only variable.
        """
        return torch.zeros(count, 1) if self.is_implicit else None


def load_imagenet_model(
    model_path: str,
    vae_path: str = "",
    predictor_path: str = "",
    num_heads: int = 0,
    sizes: AdmSizes | None = None,
    device: torch.device | str = "cpu",
) -> ImagenetModel:
    """Loads published networks.

    Args:
        model_path: a DiT as state dict (`.pt`, safetensors) or diffusers folder, or a U-Net of guided-diffusion.
        vae_path: for a DiT: folder of the autoencoder; by default the folder `vae` in `model_path`.
        predictor_path: for a U-Net: guided-diffusion's noised classifier as `.pt`, or the folder of a noised predictor.
        num_heads: attention heads, for a DiT `.pt` of unpublished width.
        sizes: of a U-Net and its classifier; by default those for 256 pixels.

    Raises:
        InputError: if a file is damaged, or a part is missing or does not fit.
    """
    path = Path(model_path)
    weights = None if path.is_dir() else Weights(path)
    if weights is None or weights.has(DIT_KEYS):
        network = load_dit(path, num_heads)
        if predictor_path:
            raise InputError(f"predictor_path: expected none for a DiT, got {predictor_path}; it is its own predictor")
        return _in_latent_space(network, model_path, vae_path, device)
    if vae_path:
        raise InputError(f"vae_path: expected none for the pixel-space model {model_path}, got {vae_path}")
    if not predictor_path:
        raise InputError(f"predictor_path: expected a noised classifier for {model_path}, got none")
    unet = build_adm_unet(weights.state(UNET_KEYS, "guided-diffusion's U-Net"), sizes or AdmSizes(), model_path)
    if unet.num_classes is not None:
        raise InputError(
            f"model_path: expected the unconditional U-Net (256x256_diffusion_uncond.pt), got {model_path}, which "
            "needs classes"
        )
    spec, config = imagenet_spec(unet.image_size), _process(unet.out_channels == 2 * unet.in_channels)
    if Path(predictor_path).is_dir():
        predictor = load_noised_predictor(predictor_path, spec, config)
    else:
        classifier = Weights(predictor_path).state(UNET_KEYS[:2], "guided-diffusion's classifier")
        predictor = build_adm_classifier(classifier, sizes or AdmSizes(), spec, predictor_path)
    model = DiffScm(LatentSCM(spec.graph, 1), unet, spec)
    model.set_predictor(predictor, create_gaussian_diffusion(config).noise_schedule)
    return ImagenetModel(model.to(device).eval().requires_grad_(False), config, spec, None)


def _in_latent_space(network: DiT, model_path: str, vae_path: str, device: torch.device | str) -> ImagenetModel:
    classes = len(class_names())
    if network.num_classes != classes:
        raise InputError(f"model_path: expected {classes} classes, got {network.num_classes} in {model_path}")
    if not vae_path and not (Path(model_path) / "vae").is_dir():
        raise InputError(f"vae_path: expected the folder of the autoencoder of {model_path}, got none")
    latent_space = load_latent_space(vae_path or model_path, device)
    if latent_space.channels != network.in_channels:
        raise InputError(f"vae_path: expected latents of {network.in_channels} channels, got {latent_space.channels}")
    spec = imagenet_spec(network.image_size * latent_space.downsampling)
    model = DiffScm(LatentSCM(spec.graph, 1), network, spec).to(device).eval().requires_grad_(False)
    return ImagenetModel(model, _process(network.out_channels == 2 * network.in_channels), spec, latent_space)


def _process(learn_sigma: bool) -> DiffusionConfig:
    return DiffusionConfig(diffusion_steps=1000, noise_schedule="linear", learn_sigma=learn_sigma)
