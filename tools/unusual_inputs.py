"""How often the reference of a model calls images and labels unlike the training data.

    python tools/unusual_inputs.py --model_path weights/morphomnist_causaldae_mini --data_dir data/morphomnist

Real test images must hardly ever be named (false alarms), noise, negatives and foreign pictures always. Prints the
share that is named and the median distance, 1 being the largest ordinary one (docs/counterfactuals.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import skimage.data

from causaldiffae.datasets.images import resize_area
from causaldiffae.datasets.reference import reference_of_model
from causaldiffae.datasets.registry import DATASETS, dataset_spec, example_images, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.tables import text_table
from causaldiffae.script_util import load_model, run_cli

PHOTOS: Final = ("astronaut", "camera", "chelsea", "coffee", "coins", "brick", "grass", "rocket")
COUNT: Final = 300


def fitted(images: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Square images (N, C, S, S) uint8 with the channels and size of a data set."""
    if images.shape[1] != spec.channels:
        grey = images[:, :3].mean(axis=1, keepdims=True)
        images = np.repeat(grey, spec.channels, axis=1).astype(np.uint8) if spec.channels == 1 else images[:, :3]
        images = images.repeat(3, axis=1) if images.shape[1] == 1 and spec.channels > 1 else images
        opaque = np.full_like(images[:, :1], 255)
        images = np.concatenate([images, opaque], axis=1) if spec.channels == 4 else images
    return resize_area(np.ascontiguousarray(images), spec.image_size)


def photos(spec: DatasetSpec, rng: np.random.Generator) -> np.ndarray:
    """Random square parts of the photographs of scikit-image."""
    parts = []
    for i in range(COUNT):
        photo = getattr(skimage.data, PHOTOS[i % len(PHOTOS)])()
        photo = photo[:, :, None].repeat(3, axis=2) if photo.ndim == 2 else photo[:, :, :3]
        side = int(rng.integers(64, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        part = photo[top : top + side, left : left + side].transpose(2, 0, 1)[None]
        parts.append(fitted(part, spec))
    return np.concatenate(parts)


def unusual(images: np.ndarray, spec: DatasetSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images (N, C, S, S) unlike those of a data set, by name."""
    shape, pixels = images.shape, images.astype(np.float64)
    shuffled = rng.permuted(images.reshape(*shape[:2], -1), axis=2).reshape(shape)
    found = {
        "uniform noise": rng.integers(0, 256, shape, np.uint8),
        "normal noise": np.clip(rng.normal(127, 60, shape), 0, 255).astype(np.uint8),
        "negatives": 255 - images,
        "black, grey and white": np.array([0, 128, 255], np.uint8)[:, None, None, None] * np.ones_like(images[:1]),
        "photographs": photos(spec, rng),
        "noise of 40 grey levels added": np.clip(pixels + rng.normal(0, 40, shape), 0, 255).astype(np.uint8),
        "pixels shuffled": shuffled,
        "contrast reduced to 40 %": (0.4 * pixels).astype(np.uint8),
        "upside down": images[:, :, ::-1],
    }
    for name, entry in DATASETS.items():
        if name not in (spec.name, "mnist") and entry.examples is not None:
            size, channels = (None, None) if name == "morphomnist" else (32, 3)
            found[f"images of {name}"] = fitted(example_images(dataset_spec(name, size, channels), 12).images, spec)
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, required=True, help="model folder or run with a reference")
    parser.add_argument("--data_dir", required=True, help="its data set, for the test images")
    args = parser.parse_args(argv)
    loaded = load_model(str(args.model_path))
    spec, reference = loaded.spec, reference_of_model(loaded.path, loaded.spec)
    if reference is None:
        raise InputError(f"model_path: expected a model with a reference, got {args.model_path}")
    data, rng = read_split(spec.name, args.data_dir, "test", spec=spec), np.random.default_rng(0)
    some = data.images[np.sort(rng.permutation(len(data))[:COUNT])]
    rows = []
    for name, images in {"test images": data.images, **unusual(some, spec, rng)}.items():
        distances = reference.image_distances(images)
        assert distances is not None
        rows.append([name, f"{len(images)}", f"{(distances > 1).mean():.2%}", f"{np.median(distances):.3g}"])
    compared = reference.label_distances(data.labels, spec.graph.names)
    if compared is not None:
        named, middle = (compared.values > 1).mean(), np.median(compared.values)
        rows.append(["labels of test images", f"{len(data)}", f"{named:.2%}", f"{middle:.3g}"])
    print(text_table(["input", "number", "named", "median distance"], rows))


if __name__ == "__main__":
    run_cli(main)
