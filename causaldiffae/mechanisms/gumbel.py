"""Gumbel-max mechanisms of discrete variables (Oberst and Sontag, 2019, arXiv 1905.05824).

    k = argmax_j l_j + g_j,   g_j ~ Gumbel(0, 1) independently,   so that P(k) = softmax(l)_k

The logits l depend on the parents, the Gumbels g are the exogenous noise. Given the factual category, the posterior of
the Gumbels is sampled top-down (Maddison et al., 2014, arXiv 1411.0030): the maximum of l + g is Gumbel distributed
whichever category attains it, and the other values are Gumbels truncated at it.

Under other logits l' the same noise gives the counterfactual category. It differs from the factual one k only if the
odds of another category against k have risen (counterfactual stability). Its distribution has a closed form, see
`counterfactual_probabilities`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from causaldiffae.nn import float_for_tables

MARGIN: Final = 1e-4
"""Least lead of the factual category in a posterior sample, so that rounding of the logits does not change it."""
_LEAST_LOG: Final = -200.0  # keeps the squares of exponentials above the smallest float64


def sample_gumbels(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draws from Gumbel(0, 1) on the device of the generator."""
    return -_exponential(shape, generator, dtype).log()


def posterior_gumbels(logits: Tensor, category: Tensor, generator: torch.Generator) -> Tensor:
    """Draws Gumbels (B, K) given that logits + Gumbels (B, K) is largest at `category` (B,) int64.

    Args:
        generator: on the device of the logits.
    """
    logits = torch.log_softmax(logits, dim=1)
    exponentials = _exponential(tuple(logits.shape), generator, logits.dtype)
    chosen = category[:, None]
    top = -exponentials.gather(1, chosen).log()  # the maximum is Gumbel(logsumexp(logits)) = Gumbel(0)
    others = -torch.log(torch.exp(logits - top) + exponentials)  # Gumbels, truncated where logits + Gumbel = top
    others = torch.minimum(others, top - MARGIN - logits)
    return others.scatter(1, chosen, top - logits.gather(1, chosen))


def counterfactual_probabilities(factual_logits: Tensor, logits: Tensor, category: Tensor) -> Tensor:
    """Returns P(category j under `logits` | `category` under `factual_logits`), (B, K), for the same Gumbels.

    Let k be the factual category, p = softmax(factual_logits), e_j = exp(logits_j - factual_logits_j), and
    D(c) = c + sum_{i != k} p_i max(e_i - c, 0). Integrating over the maximum of the factual values, which is
    independent of k, gives

        P(k) = e_k / D(e_k),    P(j) = p_j e_j F(e_j) where e_j > e_k, else 0,    F(x) = int_{e_k}^x dc / D(c)^2.

    D is linear between consecutive e_i, where the integral from a to b is (b - a) / (D(a) D(b)).

    Args:
        factual_logits, logits: (B, K).
        category: (B,) int64.
    """
    dtype = float_for_tables(logits.device)
    p = torch.softmax(factual_logits.to(dtype), dim=1)
    change = logits.to(dtype) - factual_logits.to(dtype)
    e = torch.exp((change - change.amax(dim=1, keepdim=True)).clamp(min=_LEAST_LOG))
    chosen = category[:, None]
    e_k = e.gather(1, chosen)
    p = p.scatter(1, chosen, 0.0)
    knots, order = torch.maximum(e, e_k).sort(dim=1)
    excess = (e[:, None, :] - knots[:, :, None]).clamp(min=0.0)  # (B, knot, i)
    d = knots + (p[:, None, :] * excess).sum(dim=2)
    steps = (knots[:, 1:] - knots[:, :-1]) / (d[:, 1:] * d[:, :-1])
    integral = torch.zeros_like(e).scatter(1, order, torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0)))
    moved = p * e * integral
    stays = 1.0 / (1.0 + (p * (e / e_k - 1.0).clamp(min=0.0)).sum(dim=1, keepdim=True))
    return moved.scatter(1, chosen, stays).to(logits.dtype)


def most_probable(factual_logits: Tensor, logits: Tensor, category: Tensor) -> Tensor:
    """Returns the most probable counterfactual category (B,); the factual one in case of a tie."""
    probabilities = counterfactual_probabilities(factual_logits, logits, category)
    best = probabilities.amax(dim=1)
    stays = probabilities.gather(1, category[:, None])[:, 0] >= best
    return torch.where(stays, category, probabilities.argmax(dim=1))


def _exponential(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    drawn = torch.empty(shape, dtype=dtype, device=generator.device).exponential_(generator=generator)
    return drawn.clamp(min=torch.finfo(dtype).tiny)
