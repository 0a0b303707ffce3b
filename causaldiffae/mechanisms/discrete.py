"""The mechanism of a discrete variable: codes of its categories, logits from the parents, Gumbel noise.

A category is never an index or a number in z, so its effects need not be monotone in the order of the categories. The
code of category k repeats the one-hot vector of k over the block, standardised to mean 0 and variance 1 over uniformly
distributed categories; for two categories its entries are +1 and -1. The noise of the variable is held in the first K
entries of its block of u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.mechanisms.gumbel import counterfactual_probabilities, most_probable, posterior_gumbels
from causaldiffae.nn import mlp, zero_module


class DiscreteMechanism(nn.Module):
    """A Gumbel-max mechanism over K categories.

    Args:
        values: of the categories, in normalised label units.
        block_size: d, at least K.
        parents: number of parents; without any, the logits are a learned prior.
        width, depth: hidden width and number of hidden layers of the network of the logits.
    """

    values: Tensor
    codes: Tensor

    def __init__(self, values: Sequence[float], block_size: int, parents: int, width: int, depth: int) -> None:
        super().__init__()
        self.block_size, count = block_size, len(values)
        one_hot = torch.eye(count)[:, torch.arange(block_size) % count]
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("codes", (one_hot - 1 / count) * count / math.sqrt(count - 1), persistent=False)
        self.prior = nn.Parameter(torch.zeros(count)) if not parents else None
        self.network = mlp([parents * block_size, *[width] * depth, count]) if parents else None
        if self.network is not None:
            zero_module(self.network[-1])

    def __len__(self) -> int:
        return len(self.values)

    # ------------------------------------------------------------------ codes

    def nearest_code(self, blocks: Tensor) -> Tensor:
        """The category (B,) int64 whose code is nearest to each block (B, d)."""
        return ((blocks[:, None] - self.codes.to(blocks.dtype)) ** 2).sum(dim=2).argmin(dim=1)

    def nearest_value(self, labels: Tensor) -> Tensor:
        """The category (B,) int64 whose value is nearest to each normalised label (B,)."""
        return (labels[:, None] - self.values.to(labels.dtype)).abs().argmin(dim=1)

    def block(self, category: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes (B, d) of categories (B,)."""
        return self.codes.to(dtype)[category]

    def value(self, category: Tensor, dtype: torch.dtype) -> Tensor:
        """Values (B,) of categories (B,)."""
        return self.values.to(dtype)[category]

    # ------------------------------------------------------------------ the mechanism

    def logits(self, parents: Tensor) -> Tensor:
        """Logits (B, K) given the concatenated blocks of the parents (B, any width); at least float32."""
        if self.network is None:
            assert self.prior is not None
            return self.prior.to(torch.promote_types(parents.dtype, torch.float32)).expand(len(parents), -1)
        logits = self.network(parents)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def predict(self, parents: Tensor, noise: Tensor) -> Tensor:
        """The code (B, d) of the category that the noise (B, d) gives."""
        return self.block((self.logits(parents) + noise[:, : len(self)]).argmax(dim=1), noise.dtype)

    def abduct(self, parents: Tensor, block: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws noise (B, d) from its posterior given the category nearest to a block (B, d); also returns its code."""
        category = self.nearest_code(block)
        gumbels = posterior_gumbels(self.logits(parents), category, generator).to(block.dtype)
        return F.pad(gumbels, (0, self.block_size - len(self))), self.block(category, block.dtype)

    def most_probable(self, factual_parents: Tensor, factual: Tensor, parents: Tensor) -> Tensor:
        """The code (B, d) of the most probable counterfactual category, given the factual block (B, d)."""
        before, after = self.logits(factual_parents), self.logits(parents)
        return self.block(most_probable(before, after, self.nearest_code(factual)), factual.dtype)

    def counterfactual_probabilities(self, factual_parents: Tensor, factual: Tensor, parents: Tensor) -> Tensor:
        """Probabilities (B, K) of the counterfactual categories, given the factual block (B, d)."""
        before, after = self.logits(factual_parents), self.logits(parents)
        return counterfactual_probabilities(before, after, self.nearest_code(factual))

    def nll(self, parents: Tensor, block: Tensor) -> Tensor:
        """-log P(category | parents) (B,) of the category nearest to each block (B, d), in nats."""
        return F.cross_entropy(self.logits(parents), self.nearest_code(block), reduction="none")
