"""ImageNet as a causal model of two variables: class -> image. Diff-SCM on published networks.

A score network is a DiT, conditional on the class, in the latent space of an autoencoder: its own implicit predictor.
Or it is guided-diffusion's unconditional U-Net in pixels, with the noised classifier as the explicit one. Both were
trained with 1,000 steps of the linear schedule and a learned variance. The weights are the user's to download; nothing
here downloads anything.
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
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import load_torch_state_dict, read_file
from causaldiffae.graphs import CausalGraph
from causaldiffae.noise_schedule import NoiseLevels
from causaldiffae.predictors.noised_predictor import load_noised_predictor
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space
from causaldiffae.published.dit import build_dit, load_dit
from causaldiffae.published.guided_diffusion import AdmSizes, build_adm_classifier, build_adm_unet
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import SOLVER, STEPS, create_gaussian_diffusion, create_solver

CLASS = "class"
NEAR_NAMES = 5


@cache
def class_names() -> tuple[str, ...]:
    """The 1,000 classes' names by index, as torchvision has them."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def find_class(text: str) -> int:
    """The index of a class given by its name, in any case, or by its index.

    Raises:
        InputError: if there is no such class; it lists names that are near.
    """
    names = class_names()
    wanted = " ".join(text.replace("_", " ").split()).casefold()
    by_name = {name.casefold(): index for index, name in enumerate(names)}
    if wanted in by_name:
        return by_name[wanted]
    if wanted.isascii() and wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    holding = sorted((name for name in by_name if wanted and wanted in name), key=len)
    found = list(dict.fromkeys([*holding, *difflib.get_close_matches(wanted, by_name, NEAR_NAMES)]))
    near = ", ".join(f"{names[by_name[name]]} ({by_name[name]})" for name in found[:NEAR_NAMES])
    hint = f"near it are {near}" if near else "a name like 'tiger' is needed"
    raise InputError(f"do: {text[:80]!r} is no ImageNet class; {hint}, or an index in 0..{len(names) - 1}")


def imagenet_spec(image_size: int = 256) -> DatasetSpec:
    """Pictures (3, S, S) and their class, which has no causes."""
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


def read_picture(path: str | Path, image_size: int) -> np.ndarray:
    """Any JPEG, PNG or WebP picture as (3, S, S) uint8: its short side resized to S pixels, the centre cropped.

    Raises:
        DataError: naming the file, if it is missing, too large, or cannot be decoded.
    """
    path = Path(path)
    content = read_file(path, MAX_FILE_BYTES)
    try:
        return ImageRule(image_size, 3, "crop").decode(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


@dataclass(frozen=True)
class ImagenetModel:
    """Published networks, put together.

    Attributes:
        model: the score network with its predictor.
        config: of the diffusion process that it was trained with.
        spec: sizes of the pictures, and the classes.
        latent_space: where the network works, None for pixels.
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
        """Asks it counterfactual questions; the arguments are those of `LoadedModel.engine`."""
        chosen = create_solver(self.config, solver, steps, grid)
        return CounterfactualEngine(self.model, chosen, self.spec, codec=self.latent_space, **options)

    def unknown_labels(self, count: int) -> torch.Tensor | None:
        """What stands for the factual class of `count` pictures where no predictor reads it; it has no effect.

        Encoding is unguided, and do() sets the only variable.
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
    """Opens published networks.

    Args:
        model_path: a DiT, as `.pt` state dict or diffusers folder; or a U-Net of guided-diffusion, `.pt`.
        vae_path: of a DiT: the autoencoder's folder; by default the one in the pipeline folder `model_path`.
        predictor_path: of a U-Net: guided-diffusion's noised classifier, `.pt`, or the folder of a noised predictor.
        num_heads: of a DiT's `.pt` of an unpublished width.
        sizes: of a U-Net and its classifier; by default those of 256 pixels.

    Raises:
        InputError: as `DataError` for a file that is not what it should be; if a part is missing or does not fit.
    """
    path = Path(model_path)
    if path.is_dir():
        network: DiT | None = load_dit(path)
    else:
        state = load_torch_state_dict(path)
        network = build_dit(state, num_heads, str(path)) if "x_embedder.proj.weight" in state else None
    if network is not None:
        if predictor_path:
            raise InputError("predictor_path: a DiT is its own predictor, and works where no classifier of pixels does")
        return _in_latent_space(network, model_path, vae_path, device)
    if vae_path:
        raise InputError(f"vae_path: {model_path} works on pixels, an autoencoder is for a DiT")
    if not predictor_path:
        raise InputError(f"predictor_path: not given, and {model_path} needs a noised classifier")
    unet = build_adm_unet(state, sizes or AdmSizes(), model_path)
    if unet.num_classes is not None:
        raise InputError(
            f"model_path: {model_path} needs the class of every picture; the unconditional U-Net is needed "
            "(256x256_diffusion_uncond.pt)"
        )
    spec, config = imagenet_spec(unet.image_size), _process(unet.out_channels == 2 * unet.in_channels)
    if Path(predictor_path).is_dir():
        predictor = load_noised_predictor(predictor_path, spec, config)
    else:
        classifier = load_torch_state_dict(predictor_path)
        predictor = build_adm_classifier(classifier, sizes or AdmSizes(), spec, predictor_path)
    model = DiffScm(LatentSCM(spec.graph, 1), unet, spec)
    model.set_predictor(predictor, NoiseLevels(create_gaussian_diffusion(config)))
    return ImagenetModel(model.to(device).eval().requires_grad_(False), config, spec, None)


def _in_latent_space(network: DiT, model_path: str, vae_path: str, device: torch.device | str) -> ImagenetModel:
    if network.num_classes != len(class_names()):
        raise InputError(
            f"model_path: {model_path} knows {network.num_classes} classes, ImageNet's {len(class_names())} are needed"
        )
    if not vae_path and not (Path(model_path) / "vae").is_dir():
        raise InputError(f"vae_path: not given, and {model_path} works in the latent space of an autoencoder")
    latent_space = load_latent_space(vae_path or model_path, device)
    if latent_space.channels != network.in_channels:
        given, needed = latent_space.channels, network.in_channels
        raise InputError(f"vae_path: codes of {given} channels, {model_path} needs {needed}")
    spec = imagenet_spec(network.image_size * latent_space.downsampling)
    model = DiffScm(LatentSCM(spec.graph, 1), network, spec).to(device).eval().requires_grad_(False)
    return ImagenetModel(model, _process(network.out_channels == 2 * network.in_channels), spec, latent_space)


def _process(learn_sigma: bool) -> DiffusionConfig:
    return DiffusionConfig(diffusion_steps=1000, noise_schedule="linear", learn_sigma=learn_sigma)
