"""Whether counterfactual images look like images (FID, KID), and whether they changed no more than needed (CLD).

    FID = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))                          (Heusel et al., 2017)
    KID = unbiased MMD^2 under the kernel (x.y / F + 1)^3                      (Binkowski et al., 2018)

on features of two sets of images. By definition both are on Inception features; on features of our own predictor they
are called FID-own and KID-own, and are comparable between models that have one judge, and with nothing else.

    CLD = log( exp P(S_CF <= div) + exp P(S_F >= div) ),   div = D(x_CF, x_F),   S_k = { D(x, x_F) : x of class k }

(Sanchez and Tsaftaris, 2022), D(a, b) = KL of VAE posteriors: best log 2 = 0.693, change nothing 1.313, worst 1.693. A
continuous variable has no classes; here they are bins of its label with equally many training images each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from causaldiffae.errors import DataError, InputError

LABEL_BINS: Final = 5


class Posteriors(NamedTuple):
    """Diagonal Gaussians of N images: mean and log-variance, (N, d) float64 each."""

    mean: np.ndarray
    logvar: np.ndarray

    def rows(self, places: np.ndarray) -> Posteriors:
        """Those at `places`."""
        return Posteriors(self.mean[places], self.logvar[places])


def posterior_kl(a: Posteriors, b: Posteriors) -> np.ndarray:
    """KL(a || b) in nats, summed over the last axis; the leading axes broadcast."""
    ratio = np.exp(a.logvar - b.logvar)
    terms = ratio + (a.mean - b.mean) ** 2 * np.exp(-b.logvar) - 1.0 + b.logvar - a.logvar
    return 0.5 * terms.sum(axis=-1)


def label_bins(labels: np.ndarray, bins: int = LABEL_BINS) -> np.ndarray:
    """(bins - 1,) inner edges that cut labels (N,) into bins of equally many images."""
    return np.quantile(labels, np.arange(1, bins) / bins)


def cld(
    counterfactual: Posteriors,
    factual: Posteriors,
    reference: Posteriors,
    reference_classes: np.ndarray,
    wanted: np.ndarray,
    given: np.ndarray,
) -> np.ndarray:
    """Counterfactual latent divergence per image, (N,) in 0.693..1.693; NaN where it is not defined.

    It is not defined for an image whose class the intervention does not change, or with a class without references.

    Args:
        counterfactual, factual: posteriors of N images.
        reference: posteriors of M images of the data set, of classes (M,).
        wanted, given: (N,) classes after and before the intervention.
    """
    result = np.full(len(wanted), np.nan)
    div = posterior_kl(counterfactual, factual)
    for i in range(len(wanted)):
        of_wanted, of_given = reference_classes == wanted[i], reference_classes == given[i]
        if wanted[i] == given[i] or not of_wanted.any() or not of_given.any() or not np.isfinite(div[i]):
            continue
        distances = posterior_kl(reference, factual.rows(np.array([i])))
        closer = (distances[of_wanted] <= div[i]).mean()
        further = (distances[of_given] >= div[i]).mean()
        result[i] = np.log(np.exp(closer) + np.exp(further))
    return result


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID of features (N, F) and (M, F), both float; NaN for fewer than two rows."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    # tr (S1 S2)^(1/2) = sum of roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second @ root)
    traces = np.trace(first) + np.trace(second) - 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + traces)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID of features (N, F) and (M, F): unbiased, so near 0, and also below, for sets of one distribution.

    Sets of one size are pairs, image by image, so a row is compared with all others' partners but not with its own
    (Gretton et al., 2012, lemma 6): otherwise counterfactuals would score below 0 for resembling their own truth.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in (_k(a, a), _k(b, b))]
    between = _k(a, b)
    if len(a) == len(b):
        across = (between.sum() - np.trace(between)) / (len(a) * (len(a) - 1))
    else:
        across = between.mean()
    return float(within[0] + within[1] - 2.0 * across)


def _k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1.0) ** 3


def inception_features(images: np.ndarray, weights: str | Path, batch: int = 32) -> np.ndarray:
    """Features (N, 2048) of images (N, C, S, S) uint8 under the Inception network in a TorchScript file.

    The file is that of the NVIDIA StyleGAN family (`inception-2015-12-05.pt`): uint8 RGB of any size in, features out
    with `return_features=True`; it holds the weights of the original FID and resizes as that does.

    Raises:
        DataError: if the file is no TorchScript, or answers otherwise.
    """
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"inception_weights: {path} is missing; a TorchScript file is needed")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
        features = []
        for start in range(0, len(images), batch):
            block = torch.from_numpy(np.ascontiguousarray(images[start : start + batch, :3]))
            rgb = block.expand(-1, 3, -1, -1) if block.shape[1] == 1 else block
            with torch.inference_mode():
                features.append(network(rgb, return_features=True).float().numpy())
        found = np.concatenate(features)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: it is no Inception network that gives features of uint8 images ({reason})") from None
    if found.ndim != 2 or len(found) != len(images):
        raise DataError(f"{path}: its features have shape {found.shape}, ({len(images)}, F) is needed")
    return found
