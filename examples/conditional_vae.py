"""Example of another system in the evaluation: a small conditional VAE that answers exported questions.

    python scripts/evaluate.py --export_questions asked --dataset morphomnist --data_dir DATA --num_images 1000
    python examples/conditional_vae.py --questions asked --data_dir DATA
    python scripts/evaluate.py --answers asked --data_dir DATA --out results/conditional_vae.json

Only images and tables are exchanged, so a system of any kind can take the place of this one. Abduction: the posterior
mean of the image, and the residual of a linear regression of each effect on its causes. Action and prediction: the
regressions with the new value, and the decoder with the new labels.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.script_util import run_cli


class ConditionalVae(nn.Module):
    """q(h | x, y) and p(x | h, y) for images (B, P) in [0, 1] and normalised labels (B, n)."""

    def __init__(self, pixels: int, labels: int, latents: int = 16, width: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels + labels, width), nn.ReLU(), nn.Linear(width, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents + labels, width), nn.ReLU(), nn.Linear(width, pixels))

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(torch.cat([x, y], dim=1)).chunk(2, dim=1)
        return mean, logvar

    def decode(self, h: Tensor, y: Tensor) -> Tensor:
        return self.decoder(torch.cat([h, y], dim=1))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        mean, logvar = self.encode(x, y)
        logits = self.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp(), y)
        error = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (error - 0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()) / len(x)


def train(x: Tensor, y: Tensor, steps: int) -> ConditionalVae:
    torch.manual_seed(0)
    model = ConditionalVae(x.shape[1], y.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        model.loss(x[rows], y[rows]).backward()
        optimizer.step()
    return model.eval()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="folder of the exported questions")
    parser.add_argument("--data_dir", required=True, help="folder of the data set")
    parser.add_argument("--steps", type=int, default=5000, help="training steps; default %(default)s")
    args = parser.parse_args(argv)
    described = json.loads((args.questions / "questions.json").read_text(encoding="utf-8"))["dataset"]
    names, edges = described["graph"]["names"], described["graph"]["edges"]
    if any(described.get("categories") or []):
        raise InputError("questions: expected continuous variables, got categories")
    shift, scale = np.array(described["shift"]), np.array(described["scale"])
    data = read_split(described["name"], args.data_dir, "train", described["image_size"], described["channels"])
    y = ((data.labels - shift) / scale).astype(np.float32)
    parents = {name: [names.index(a) for a, b in edges if b == name] for name in names}
    slopes = {name: np.linalg.lstsq(y[:, of], y[:, names.index(name)], rcond=None)[0] for name, of in parents.items()}
    shape = data.images.shape[1:]
    model = train(torch.from_numpy(data.images.reshape(len(y), -1) / np.float32(255)), torch.from_numpy(y), args.steps)

    with (args.questions / "labels.csv").open(encoding="utf-8") as file:
        labels = {row["file"]: np.array([float(row[name]) for name in names]) for row in csv.DictReader(file)}
    with (args.questions / "questions.csv").open(encoding="utf-8") as file:
        for question in csv.DictReader(file):
            factual = ((labels[question["file"]] - shift) / scale).astype(np.float32)
            changed = factual.copy()
            for i, name in enumerate(names):  # names are in causal order
                if name == question["variable"]:
                    changed[i] = (float(question["value"]) - shift[i]) / scale[i]
                else:
                    changed[i] += slopes[name] @ (changed - factual)[parents[name]]
            pixels = np.asarray(Image.open(args.questions / question["file"]), np.float32).reshape(*shape[1:], shape[0])
            x = torch.from_numpy(pixels.transpose(2, 0, 1).reshape(1, -1) / np.float32(255))
            with torch.inference_mode():
                h = model.encode(x, torch.from_numpy(factual)[None])[0]
                answer = model.decode(h, torch.from_numpy(changed)[None]).sigmoid()
            image = (255 * answer).round().byte().numpy().reshape(shape)
            path = args.questions / question["answer"]
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
    print(f"answers written to {args.questions / 'answers'}")


if __name__ == "__main__":
    run_cli(main)
