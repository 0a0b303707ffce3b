"""Realism of counterfactual images: FID and KID of features, and counterfactual latent divergence (CLD).

    FID = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))                          (Heusel et al., 2017)
    KID = unbiased MMD^2 under the kernel (x.y / F + 1)^3                      (Binkowski et al., 2018)

on features of two sets of images. By definition both use Inception features. On features of our own predictor they are
called FID-own and KID-own, and only values with the same predictor can be compared. (torchmetrics computes both on
images and networks, not on features, and its KID subsamples.)

    CLD = log( exp P(S_CF <= div) + exp P(S_F >= div) ),   div = D(x_CF, x_F),   S_k = { D(x, x_F) : x of class k }

(Sanchez and Tsaftaris, 2022), with D(a, b) the KL divergence of VAE posteriors: best log 2 = 0.693, no change 1.313,
worst 1.693. A continuous variable has no classes; bins of its label with equally many training images replace them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from causaldiffae.errors import DataError, InputError

LABEL_BINS: Final = 5
INCEPTION_SHA256: Final = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""NVIDIA's inception-2015-12-05.pt: the network of the original FID as TorchScript, of the StyleGAN family."""


class Posteriors(NamedTuple):
    """Diagonal Gaussians of N images: mean and log-variance, (N, d) float64 each."""

    mean: np.ndarray
    logvar: np.ndarray


def posterior_kl(a: Posteriors, b: Posteriors) -> np.ndarray:
    """KL(a || b) in nats, summed over the last axis; the leading axes broadcast."""
    ratio = np.exp(a.logvar - b.logvar)
    terms = ratio + (a.mean - b.mean) ** 2 * np.exp(-b.logvar) - 1.0 + b.logvar - a.logvar
    return 0.5 * terms.sum(axis=-1)


def label_bins(labels: np.ndarray, bins: int = LABEL_BINS) -> np.ndarray:
    """(bins - 1,) inner edges that divide labels (N,) into bins of equally many images; NaN is a missing label.

    NaN if all labels are missing.
    """
    known = labels[~np.isnan(labels)]
    return np.quantile(known, np.arange(1, bins) / bins) if len(known) else np.full(bins - 1, np.nan)


def label_numbers(labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The number of the bin between `edges` (bins - 1,) of each label (N,), float64; NaN for a missing label."""
    return np.where(np.isnan(labels), np.nan, np.searchsorted(edges, labels, side="right"))


def cld(
    counterfactual: Posteriors,
    factual: Posteriors,
    reference: Posteriors,
    reference_classes: np.ndarray,
    target: np.ndarray,
    given: np.ndarray,
) -> np.ndarray:
    """Counterfactual latent divergence per image, (N,) in 0.693..1.693.

    NaN where the intervention does not change the class, or a class is NaN (not known) or has no references.

    Args:
        counterfactual, factual: posteriors of N images.
        reference: posteriors of M images of the data set, of classes (M,).
        target, given: (N,) classes after and before the intervention.
    """
    result = np.full(len(target), np.nan)
    div = posterior_kl(counterfactual, factual)
    for i in range(len(target)):
        of_target, of_given = reference_classes == target[i], reference_classes == given[i]
        if target[i] == given[i] or not of_target.any() or not of_given.any() or not np.isfinite(div[i]):
            continue
        distances = posterior_kl(reference, Posteriors(factual.mean[i], factual.logvar[i]))
        closer = (distances[of_target] <= div[i]).mean()
        further = (distances[of_given] >= div[i]).mean()
        result[i] = np.log(np.exp(closer) + np.exp(further))
    return result


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID of features (N, F) and (M, F), both floating; NaN for fewer than two rows."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    # tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second @ root)
    traces = np.trace(first) + np.trace(second) - 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
    distance = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + traces
    return float(np.maximum(distance, 0.0))  # rounding makes that of equal sets negative


class PairedKernelDistance:
    """KID of two sets of features (N, F) of N pairs of images, for subsets and resamples of the pairs.

    A row is compared with the partners of all others but not with its own (Gretton et al., 2012, lemma 6): otherwise
    counterfactuals that resemble their own truth would score below 0. Kernels are computed once.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        self.combined = _kernel(a) + _kernel(b) - 2.0 * _kernel(a, b)

    def __call__(self, rows: np.ndarray) -> float:
        """The distance of the pairs `rows` (M,), indices that may be repeated; NaN for fewer than two."""
        count = len(rows)
        if count < 2:
            return float("nan")
        weights = np.bincount(rows, minlength=len(self.combined)).astype(np.float64)
        total = weights @ self.combined @ weights - weights @ np.diagonal(self.combined)
        return float(total / (count * (count - 1)))


def _kernel(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    a, b = a.astype(np.float64), (a if b is None else b).astype(np.float64)
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def check_inception(weights: str | Path, trusted: bool = False) -> bytes:
    """The content of a TorchScript file that may be executed: the published Inception network, or any trusted file.

    Args:
        weights: the file.
        trusted: accept any file. Loading TorchScript executes the code in it.

    Raises:
        InputError: if there is no such file, or it is another one and not trusted.
    """
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"inception_weights: expected a TorchScript file, got {path}, which does not exist")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != INCEPTION_SHA256 and not trusted:
        raise InputError(
            f"inception_weights: expected inception-2015-12-05.pt (SHA-256 {INCEPTION_SHA256[:12]}...), got {path} "
            f"({digest[:12]}...); --trust_inception True executes the code in this file"
        )
    return content


@lru_cache(maxsize=1)
def _load_inception(weights: str, trusted: bool) -> torch.jit.ScriptModule:
    content = io.BytesIO(check_inception(weights, trusted))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load`", FutureWarning)  # the published file is TorchScript
        return torch.jit.load(content, map_location="cpu").eval()


def inception_features(
    images: np.ndarray, weights: str | Path, trusted: bool = False, batch_size: int = 32
) -> np.ndarray:
    """Features (N, 2048) of images (N, C, S, S) uint8 under the Inception network in a TorchScript file.

    The network takes uint8 RGB of any size, resizes as the original FID does, and returns features if called with
    `return_features=True`.

    Args:
        images: one or three channels.
        weights, trusted: as for `check_inception`.
        batch_size: images per call.

    Raises:
        InputError: as `check_inception`.
        DataError: if the file is not TorchScript, or the network returns something else.
    """
    features = []
    try:
        network = _load_inception(str(weights), trusted)
        for start in range(0, len(images), batch_size):
            block = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size, :3]))
            rgb = block.expand(-1, 3, -1, -1) if block.shape[1] == 1 else block
            with torch.inference_mode():
                features.append(network(rgb, return_features=True).float().numpy())
        found = np.concatenate(features)
    except InputError:
        raise
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{weights}: expected a network that returns features of uint8 images ({reason})") from None
    if found.ndim != 2 or len(found) != len(images):
        raise DataError(f"{weights}: expected features of shape ({len(images)}, F), got {found.shape}")
    return found
