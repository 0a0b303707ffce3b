"""The structural causal model over latents: z_i = f_i(z_pa(i), u_i), in topological order.

u and z are (B, n, d): one block of d numbers per variable. `predict` maps exogenous noise to causal variables under an
intervention: blocks in `do` are set to the given value instead of evaluating their mechanism, and descendants are
computed from it (Pearl's action and prediction). `abduct` is the inverse. Roots have no mechanism: z_i = u_i.

The input of a mechanism is its parents' z, concatenated in the order of the graph:
    additive   z_i = f_i(z_pa) + u_i                                (CausalDiffAE, eq. 5)
    affine     z_i = exp(s_i(z_pa)) u_i + f_i(z_pa)                 (a causal flow with log-determinant sum s_i)
    one_hop    z_i = f_i(sum_j A_ji u_j) + u_i for every i          (published code: sum of the parents' noise)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.nn import mlp, zero_module

MECHANISMS = ("additive", "affine", "one_hop")
MAX_LOG_STRETCH = 4.0

Do = Mapping[str, Tensor | float]


class Prediction(NamedTuple):
    """Causal variables (B, n, d) and log |dz_i / du_i| (B, n, d), which is zero for blocks that are set."""

    z: Tensor
    log_stretch: Tensor


class LatentSCM(nn.Module):
    """A structural causal model over blocks of d latents with a given graph.

    Args:
        graph: the causal graph.
        block_size: d.
        mechanism: one of `MECHANISMS`.
        width, depth: hidden width and number of hidden layers of every f_i.
        min_scale: lower bound of the residual scale sigma_i of a child, in normalised label units; otherwise sigma_i
            vanishes for a child that is a deterministic function of its parents.
    """

    def __init__(
        self,
        graph: CausalGraph,
        block_size: int,
        mechanism: str = "additive",
        width: int = 64,
        depth: int = 2,
        min_scale: float = 0.02,
    ) -> None:
        super().__init__()
        if mechanism not in MECHANISMS:
            raise InputError(f"mechanism: expected one of {', '.join(MECHANISMS)}, got {mechanism!r}")
        self.graph, self.block_size, self.mechanism, self.min_scale = graph, block_size, mechanism, min_scale
        self.parent_index = [[graph.index(p) for p in graph.parents[name]] for name in graph.names]
        networks: list[nn.Module] = []
        for parents in self.parent_index:
            fan_in = block_size if mechanism == "one_hop" else len(parents) * block_size
            fan_out = 2 * block_size if mechanism == "affine" else block_size
            if mechanism == "one_hop":
                networks.append(_leaky_mlp(block_size, width, block_size))
            elif parents:
                network = mlp([fan_in, *[width] * depth, fan_out])
                zero_module(network[-1])
                networks.append(network)
            else:
                networks.append(nn.Identity())
        self.networks = nn.ModuleList(networks)
        self.has_scale: Tensor
        has_scale = [bool(parents) and mechanism == "additive" for parents in self.parent_index]
        self.register_buffer("has_scale", torch.tensor(has_scale), persistent=False)
        self.raw_log_scale = nn.Parameter(torch.zeros(len(graph))) if any(has_scale) else None

    @property
    def log_scale(self) -> Tensor:
        """(n,) log of the prior scale of u_i: learned, with a lower bound, for additive children; 0 elsewhere."""
        if self.raw_log_scale is None:
            return torch.zeros(len(self.graph), device=self.has_scale.device)
        floor = math.log(self.min_scale)
        learned = floor + nn.functional.softplus(self.raw_log_scale - floor)
        return torch.where(self.has_scale, learned, torch.zeros_like(learned))

    def location_and_stretch(self, i: int, z: list[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns f_i(z_pa) and s_i(z_pa) of variable i, (B, d) each; z is indexed by variable, (B, d) each."""
        parents = torch.cat([z[j] for j in self.parent_index[i]], dim=-1)
        output = self.networks[i](parents)
        if self.mechanism == "affine":
            location, stretch = output.chunk(2, dim=-1)
            return location, MAX_LOG_STRETCH * torch.tanh(stretch / MAX_LOG_STRETCH)
        return output, torch.zeros_like(output)

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        """Maps exogenous noise to causal variables, (B, n, d) -> (B, n, d).

        Args:
            u: exogenous noise.
            do: variable name -> value in normalised label units, a number or (B,), for all d entries, or a block
                (B, d); empty for no intervention.
        """
        return self.predict_with_stretch(u, do).z

    def predict_with_stretch(self, u: Tensor, do: Do | None = None) -> Prediction:
        """As `predict`, with the logarithm of the diagonal of the Jacobian."""
        if u.dim() != 3 or u.shape[1:] != (len(self.graph), self.block_size):
            raise InputError(f"u: expected shape (B, {len(self.graph)}, {self.block_size}), got {tuple(u.shape)}")
        values = {self.graph.index(name): self._as_block(value, u) for name, value in (do or {}).items()}
        blocks = list(u.unbind(dim=1))
        stretches = [torch.zeros_like(block) for block in blocks]
        if self.mechanism == "one_hop":
            noise = [values.get(i, block) for i, block in enumerate(blocks)]
            for i in range(len(blocks)):
                blocks[i] = values[i] if i in values else self._one_hop(i, noise) + noise[i]
            return Prediction(torch.stack(blocks, dim=1), torch.stack(stretches, dim=1))
        for name in self.graph.topological_order:
            i = self.graph.index(name)
            if i in values:
                blocks[i] = values[i]
            elif self.parent_index[i]:
                location, stretches[i] = self.location_and_stretch(i, blocks)
                blocks[i] = torch.exp(stretches[i]) * blocks[i] + location
        return Prediction(torch.stack(blocks, dim=1), torch.stack(stretches, dim=1))

    def abduct(self, z: Tensor) -> Tensor:
        """Maps causal variables to exogenous noise, (B, n, d) -> (B, n, d): the inverse of `predict` without `do`."""
        z_blocks = list(z.unbind(dim=1))
        noise = list(z_blocks)
        for name in self.graph.topological_order:
            i = self.graph.index(name)
            if self.mechanism == "one_hop":
                noise[i] = z_blocks[i] - self._one_hop(i, noise)
            elif self.parent_index[i]:
                location, stretch = self.location_and_stretch(i, z_blocks)
                noise[i] = (z_blocks[i] - location) * torch.exp(-stretch)
        return torch.stack(noise, dim=1)

    def _one_hop(self, i: int, noise: list[Tensor]) -> Tensor:
        summed = sum((noise[j] for j in self.parent_index[i]), torch.zeros_like(noise[i]))
        return self.networks[i](summed)

    def _as_block(self, value: Tensor | float, u: Tensor) -> Tensor:
        block = torch.as_tensor(value, dtype=u.dtype, device=u.device)
        block = block[:, None] if block.dim() == 1 else block
        try:
            return block.expand(u.shape[0], self.block_size)
        except RuntimeError:
            expected = f"a number, ({u.shape[0]},) or {(u.shape[0], self.block_size)}"
            raise InputError(f"do: expected {expected}, got a value of shape {tuple(block.shape)}") from None


def _leaky_mlp(fan_in: int, width: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, width), nn.LeakyReLU(), nn.Linear(width, fan_out))


def sample_noise(scm: LatentSCM, low: Tensor, high: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws exogenous noise u (count, n, d) from its prior, on the CPU.

    u_i is N(0, 1) for roots, truncated to the range of the training labels, and N(0, sigma_i^2) for children. Each
    number is repeated d times, because the label loss ties all d entries of a block to one label; blocks of independent
    entries do not occur in training.

    Args:
        low, high: (n,) range of the normalised labels.
        generator: generator on the CPU.
    """
    names = scm.graph.names
    noise = torch.randn(count, len(names), generator=generator) * scm.log_scale.detach().exp().cpu()
    is_root = torch.tensor([not scm.graph.parents[name] for name in names])
    noise = torch.where(is_root, _truncated_normal(count, low[None], high[None], generator), noise)
    return noise[:, :, None].expand(-1, -1, scm.block_size)


def _truncated_normal(count: int, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Samples (count, n) from N(0, 1) truncated to [low, high], each (1, n), by inverse transform sampling."""
    normal = torch.distributions.Normal(0.0, 1.0)
    low_cdf, high_cdf = normal.cdf(low), normal.cdf(high)
    uniform = torch.rand(count, low.shape[1], generator=generator)
    return normal.icdf(low_cdf + (high_cdf - low_cdf) * uniform)
