"""The structural causal model over latents: z_i = f_i(z_pa(i), u_i), in topological order.

u and z are (B, n, d): one block of d numbers per variable. `predict` maps exogenous noise to causal variables under an
intervention: blocks in `do` are set to the given value instead of evaluating their mechanism, and descendants are
computed from it (Pearl's action and prediction). `abduct` is the inverse. Continuous roots have no mechanism:
z_i = u_i.

The input of a mechanism is its parents' z, concatenated in the order of the graph:
    additive   z_i = f_i(z_pa) + u_i                                (CausalDiffAE, eq. 5)
    affine     z_i = exp(s_i(z_pa)) u_i + f_i(z_pa)                 (a causal flow with log-determinant sum s_i)
    spline     z_i = exp(s_i(z_pa)) R_i(u_i; z_pa) + f_i(z_pa)      (a monotonic spline R_i, mechanisms/elementwise.py)
    one_hop    z_i = f_i(sum_j A_ji u_j) + u_i for every i          (published code: sum of the parents' noise)

The block of a discrete variable is the code of its category, argmax_k l_k(z_pa) + u_ik with Gumbel noise u_i, under
every mechanism but one_hop (mechanisms/discrete.py, mechanisms/gumbel.py). The logits l of a root are a learned prior.
z determines the noise only up to its posterior, from which `abduct` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import gaussian_nll
from causaldiffae.mechanisms.discrete import DiscreteMechanism
from causaldiffae.mechanisms.elementwise import FAMILIES, Elementwise
from causaldiffae.mechanisms.elementwise import MAX_LOG_STRETCH as MAX_LOG_STRETCH
from causaldiffae.mechanisms.gumbel import sample_gumbels
from causaldiffae.nn import mlp, zero_module

MAX_CATEGORIES = 1000
MECHANISMS = (*FAMILIES, "one_hop")

Do = Mapping[str, Tensor | float]


class Prediction(NamedTuple):
    """Causal variables (B, n, d) and log |dz_i / du_i| (B, n, d), which is zero for blocks that are set."""

    z: Tensor
    log_stretch: Tensor


class Relaxed(NamedTuple):
    """A sample z (B, n, d) of q(z | x0), and mean and log |dz_i / du_i| of every block given its sampled parents."""

    z: Tensor
    z_mean: Tensor
    log_stretch: Tensor


class LatentSCM(nn.Module):
    """A structural causal model over blocks of d latents with a given graph.

    Args:
        graph: the causal graph.
        block_size: d.
        mechanism: one of `MECHANISMS`.
        width, depth: hidden width and number of hidden layers of every f_i.
        min_scale: lower bound of the residual scale sigma_i of an additive child, in normalised label units; otherwise
            sigma_i vanishes for a child that is a deterministic function of its parents.
        categories: discrete variable -> the values of its categories in normalised label units.
    """

    def __init__(
        self,
        graph: CausalGraph,
        block_size: int,
        mechanism: str = "additive",
        width: int = 64,
        depth: int = 2,
        min_scale: float = 0.02,
        categories: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if mechanism not in MECHANISMS:
            raise InputError(f"mechanism: expected one of {', '.join(MECHANISMS)}, got {mechanism!r}")
        self.graph, self.block_size, self.mechanism, self.min_scale = graph, block_size, mechanism, min_scale
        self.parent_index = [[graph.index(p) for p in graph.parents[name]] for name in graph.names]
        self.order = [graph.index(name) for name in graph.topological_order]
        self.networks = nn.ModuleList()
        for i, name in enumerate(graph.names):
            values = None if categories is None else categories.get(name)
            self.networks.append(
                self._network(i, width, depth) if values is None else self._discrete(i, values, width, depth)
            )
        is_discrete = [isinstance(network, DiscreteMechanism) for network in self.networks]
        is_child = [bool(parents) and mechanism == "additive" for parents in self.parent_index]
        has_scale = [child and not discrete for child, discrete in zip(is_child, is_discrete, strict=True)]
        self.is_discrete: Tensor
        self.has_scale: Tensor
        self.register_buffer("is_discrete", torch.tensor(is_discrete), persistent=False)
        self.register_buffer("has_scale", torch.tensor(has_scale), persistent=False)
        causes = [graph.ancestors(name) if mechanism == "one_hop" else graph.parents[name] for name in graph.names]
        needed = [[j == i or name in causes[i] for j, name in enumerate(graph.names)] for i in range(len(graph))]
        self.needed: Tensor
        self.register_buffer("needed", torch.tensor(needed), persistent=False)
        self.raw_log_scale = nn.Parameter(torch.zeros(len(graph))) if any(has_scale) else None

    def _network(self, i: int, width: int, depth: int) -> nn.Module:
        """The network of continuous variable i; a fresh one returns zeros."""
        d, parents = self.block_size, self.parent_index[i]
        if self.mechanism == "one_hop":
            return _leaky_mlp(d, width, d)
        if not parents:
            return nn.Identity()
        network = mlp([len(parents) * d, *[width] * depth, d * FAMILIES[self.mechanism].parameters])
        zero_module(network[-1])
        return network

    def _discrete(self, i: int, values: Sequence[float], width: int, depth: int) -> DiscreteMechanism:
        if self.mechanism == "one_hop":
            raise InputError("mechanism: expected additive, affine or spline with discrete variables, got one_hop")
        if len(values) > MAX_CATEGORIES:
            name = self.graph.names[i]
            raise InputError(
                f"{name}: expected at most {MAX_CATEGORIES} categories, got {len(values)}; add --discrete False"
            )
        if len(values) > self.block_size:
            needed = f"at least {len(values)} latents per variable, one for each category of {self.graph.names[i]}"
            raise InputError(f"rep_dim: expected {needed}, got {self.block_size}; set --block_size {len(values)}")
        return DiscreteMechanism(values, self.block_size, len(self.parent_index[i]), width, depth)

    # ------------------------------------------------------------------ discrete variables

    @property
    def discrete(self) -> dict[int, DiscreteMechanism]:
        """The mechanisms of discrete variables by index."""
        return {i: module for i, module in enumerate(self.networks) if isinstance(module, DiscreteMechanism)}

    def label_blocks(self, labels: Tensor) -> Tensor:
        """Blocks (B, n, d) of normalised labels (B, n): a number repeated d times, or the code of a category."""
        blocks = labels[:, :, None].expand(-1, -1, self.block_size)
        discrete = self.discrete
        if discrete:
            blocks = blocks.clone()
        for i, mechanism in discrete.items():
            blocks[:, i] = mechanism.block(mechanism.nearest_value(labels[:, i]), blocks.dtype)
        return blocks

    def read_labels(self, z: Tensor) -> Tensor:
        """Normalised labels (B, n) of blocks z (B, n, d): their mean, or the value of the category of nearest code."""
        labels = z.mean(dim=-1)
        for i, mechanism in self.discrete.items():
            labels[:, i] = mechanism.value(mechanism.nearest_code(z[:, i]), labels.dtype)
        return labels

    def probabilities(self, z: Tensor) -> dict[str, Tensor]:
        """P(category | parents) (B, K) of every discrete variable, given causal variables z (B, n, d)."""
        blocks = z.unbind(dim=1)
        return {
            self.graph.names[i]: each.logits(self._parents(i, blocks)).softmax(1) for i, each in self.discrete.items()
        }

    def counterfactual_probabilities(self, z_factual: Tensor, z: Tensor) -> dict[str, Tensor]:
        """P(category) (B, K) of every discrete variable in the counterfactual world, given its parents in z.

        Exact for the Gumbel-max mechanism: the posterior given the category in `z_factual`, not a draw from it. The
        probabilities of a variable that is set are those it had without being set.
        """
        before, after = z_factual.unbind(dim=1), z.unbind(dim=1)
        return {
            self.graph.names[i]: each.counterfactual_probabilities(
                self._parents(i, before), before[i], self._parents(i, after)
            )
            for i, each in self.discrete.items()
        }

    def _parents(self, i: int, z: Sequence[Tensor]) -> Tensor:
        """Input of the mechanism of variable i, (B, parents * d); (B, 0) for a root."""
        parents = self.parent_index[i]
        return torch.cat([z[j] for j in parents], dim=-1) if parents else z[i][:, :0]

    # ------------------------------------------------------------------ continuous variables

    @property
    def log_scale(self) -> Tensor:
        """(n,) log of the prior scale of u_i: learned, with a lower bound, for additive children; 0 elsewhere."""
        if self.raw_log_scale is None:
            return torch.zeros(len(self.graph), device=self.has_scale.device)
        floor = math.log(self.min_scale)
        learned = floor + F.softplus(self.raw_log_scale - floor)
        return torch.where(self.has_scale, learned, torch.zeros_like(learned))

    def mechanism_of(self, i: int, z: Sequence[Tensor]) -> Elementwise:
        """The map u_i -> z_i of continuous child i, given z by variable, (B, d) each."""
        parents = self._parents(i, z)
        with torch.autocast(parents.device.type, enabled=False):  # a small residual scale amplifies rounding
            return FAMILIES[self.mechanism].build(self.networks[i](parents))

    # ------------------------------------------------------------------ likelihood

    def label_nll(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(y_i | y_pa(i)) of normalised labels (B, n), in nats.

        Returns:
            (B, n, d) for the entries of continuous children, 0 elsewhere; (B, n) for discrete variables, 0 elsewhere.
        """
        blocks = self.label_blocks(labels)
        z, log_scale = blocks.unbind(dim=1), self.log_scale
        density, cross_entropy = list(torch.zeros_like(blocks).unbind(1)), list(torch.zeros_like(labels).unbind(1))
        for i in self.order:
            network = self.networks[i]
            if isinstance(network, DiscreteMechanism):
                cross_entropy[i] = network.nll(self._parents(i, z), z[i])
            elif self.parent_index[i]:
                mechanism = self.mechanism_of(i, z)
                u = mechanism.inverse(z[i])
                density[i] = gaussian_nll(u, log_scale[i]) + mechanism.forward(u).log_stretch
        return torch.stack(density, dim=1), torch.stack(cross_entropy, dim=1)

    def known_terms(self, observed: Tensor) -> Tensor:
        """Which terms of `label_nll` are known, (B, n) bool, given observed labels (B, n) bool.

        The likelihood of a label needs that of its variable and those of all parents; with `one_hop`, of all ancestors.
        """
        return (observed[:, None, :] | ~self.needed).all(dim=2)

    # ------------------------------------------------------------------ prediction

    def predict(self, u: Tensor, do: Do | None = None, most_probable: bool = False) -> Tensor:
        """Maps exogenous noise to causal variables, (B, n, d) -> (B, n, d).

        Args:
            u: exogenous noise.
            do: variable name -> value in normalised label units, a number or (B,), for all d entries, or a block
                (B, d); empty for no intervention. A discrete variable takes the category nearest to the value.
            most_probable: give a discrete descendant its most probable category given its factual one and its
                predicted parents, instead of the category that the noise in u gives.
        """
        factual = self.predict(u) if most_probable and do and self.discrete else None
        return self.predict_with_stretch(u, do, factual).z

    def predict_with_stretch(self, u: Tensor, do: Do | None = None, factual: Tensor | None = None) -> Prediction:
        """As `predict`, with the logarithm of the diagonal of the Jacobian.

        Args:
            factual: z without intervention, to predict the most probable categories; None to use the noise.
        """
        if u.dim() != 3 or u.shape[1:] != (len(self.graph), self.block_size):
            raise InputError(f"u: expected shape (B, {len(self.graph)}, {self.block_size}), got {tuple(u.shape)}")
        values = {self.graph.index(name): self._as_block(name, value, u) for name, value in (do or {}).items()}
        blocks = list(u.unbind(dim=1))
        stretches = [torch.zeros_like(block) for block in blocks]
        if self.mechanism == "one_hop":
            noise = [values.get(i, block) for i, block in enumerate(blocks)]
            for i in range(len(blocks)):
                blocks[i] = values[i] if i in values else self._one_hop(i, noise) + noise[i]
            return Prediction(torch.stack(blocks, dim=1), torch.stack(stretches, dim=1))
        before = None if factual is None else factual.unbind(dim=1)
        for i in self.order:
            network = self.networks[i]
            if i in values:
                blocks[i] = values[i]
            elif isinstance(network, DiscreteMechanism):
                parents = self._parents(i, blocks)
                if before is None:
                    blocks[i] = network.predict(parents, blocks[i])
                else:
                    blocks[i] = network.most_probable(self._parents(i, before), before[i], parents)
            elif self.parent_index[i]:
                blocks[i], stretches[i] = self.mechanism_of(i, blocks).forward(blocks[i])
        return Prediction(torch.stack(blocks, dim=1), torch.stack(stretches, dim=1))

    def relaxed(self, mean: Tensor, u: Tensor) -> Relaxed:
        """z for a sample u (B, n, d) of a Gaussian posterior with this mean, for training.

        Blocks of discrete variables are used as they are, as if they were roots: the label term ties them to codes, and
        gradients reach the encoder through them. Given its parents, block i is Gaussian with the returned mean and the
        posterior's log-variance + 2 log |dz_i / du_i|: exactly for an affine map, to first order at the mean for a
        spline.
        """
        if self.mechanism != "spline" and not self.discrete:
            z, stretch = self.predict_with_stretch(u)
            return Relaxed(z, z - torch.exp(stretch) * (u - mean), stretch)
        blocks, means = list(u.unbind(dim=1)), list(mean.unbind(dim=1))
        stretches = [torch.zeros_like(block) for block in blocks]
        for i in self.order:
            if self.parent_index[i] and not isinstance(self.networks[i], DiscreteMechanism):
                mechanism = self.mechanism_of(i, blocks)
                blocks[i] = mechanism.forward(blocks[i]).z
                means[i], stretches[i] = mechanism.forward(means[i])
        return Relaxed(*(torch.stack(each, dim=1) for each in (blocks, means, stretches)))

    # ------------------------------------------------------------------ abduction

    def abduct(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Maps causal variables to exogenous noise, (B, n, d) -> (B, n, d): the inverse of `predict` without `do`.

        Args:
            z: for discrete variables, the category of the nearest code is used.
            generator: for the noise of discrete variables, on the device of z; by default seeded with 0.
        """
        z_blocks = list(z.unbind(dim=1))
        noise = list(z_blocks)
        if self.mechanism == "one_hop":
            for i in self.order:
                noise[i] = z_blocks[i] - self._one_hop(i, noise)
            return torch.stack(noise, dim=1)
        generator = generator or torch.Generator(z.device).manual_seed(0)
        for i in self.order:
            if isinstance(network := self.networks[i], DiscreteMechanism):
                noise[i], z_blocks[i] = network.abduct(self._parents(i, z_blocks), z_blocks[i], generator)
            elif self.parent_index[i]:
                noise[i] = self.mechanism_of(i, z_blocks).inverse(z_blocks[i])
        return torch.stack(noise, dim=1)

    def infer(self, blocks: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Exogenous noise (B, n, d) for the blocks (B, n, d) that an encoder returns.

        These hold u for continuous variables and a point near a code for discrete ones, whose noise is drawn as in
        `abduct`, given the parents that the noise of the others implies.
        """
        if not self.discrete:
            return blocks
        generator = generator or torch.Generator(blocks.device).manual_seed(0)
        z_blocks = list(blocks.unbind(dim=1))
        noise = list(z_blocks)
        for i in self.order:
            if isinstance(network := self.networks[i], DiscreteMechanism):
                noise[i], z_blocks[i] = network.abduct(self._parents(i, z_blocks), z_blocks[i], generator)
            elif self.parent_index[i]:
                z_blocks[i] = self.mechanism_of(i, z_blocks).forward(z_blocks[i]).z
        return torch.stack(noise, dim=1)

    def _one_hop(self, i: int, noise: list[Tensor]) -> Tensor:
        return self.networks[i](sum((noise[j] for j in self.parent_index[i]), torch.zeros_like(noise[i])))

    def _as_block(self, name: str, value: Tensor | float, u: Tensor) -> Tensor:
        given = torch.as_tensor(value, dtype=u.dtype, device=u.device)
        block = given[:, None] if given.dim() == 1 else given
        try:
            block = block.expand(u.shape[0], self.block_size)
        except RuntimeError:
            expected = f"a number, ({u.shape[0]},) or {(u.shape[0], self.block_size)}"
            raise InputError(f"do: expected {expected}, got a value of shape {tuple(block.shape)}") from None
        network = self.networks[self.graph.index(name)]
        if not isinstance(network, DiscreteMechanism):
            return block
        is_code = given.dim() == 2 and given.shape[1] == self.block_size
        nearest = network.nearest_code(block) if is_code else network.nearest_value(block[:, 0])
        return network.block(nearest, u.dtype)


def _leaky_mlp(fan_in: int, width: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, width), nn.LeakyReLU(), nn.Linear(width, fan_out))


def sample_noise(scm: LatentSCM, low: Tensor, high: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws exogenous noise u (count, n, d) from its prior, on the CPU.

    u_i is N(0, 1) for continuous roots, truncated to the range of the training labels, and N(0, sigma_i^2) for
    continuous children. Each number is repeated d times, because the label loss ties all d entries of a block to one
    label; blocks of independent entries do not occur in training. Discrete variables get Gumbels.

    Args:
        low, high: (n,) range of the normalised labels.
        generator: generator on the CPU.
    """
    names = scm.graph.names
    noise = torch.randn(count, len(names), generator=generator) * scm.log_scale.detach().exp().cpu()
    is_root = torch.tensor([not scm.graph.parents[name] for name in names])
    noise = torch.where(is_root, _truncated_normal(count, low[None], high[None], generator), noise)
    blocks = noise[:, :, None].expand(-1, -1, scm.block_size)
    if not scm.discrete:
        return blocks
    gumbels = sample_gumbels(tuple(blocks.shape), generator, blocks.dtype)
    return torch.where(scm.is_discrete.cpu()[:, None], gumbels, blocks)


@torch.inference_mode()
def determined_effects(scm: LatentSCM, low: Tensor, high: Tensor) -> frozenset[str]:
    """Variables that two or more causes determine: their own noise makes up less than 1 % of their variance.

    Arguments as in `sample_noise`. A single cause does not count: it explains all pixels of its effect.
    """
    if not (candidates := [i for i, parents in enumerate(scm.parent_index) if len(parents) > 1]):
        return frozenset()
    generator, found = torch.Generator().manual_seed(0), set()
    u, other = (sample_noise(scm, low, high, 2000, generator).to(scm.needed.device) for _ in range(2))
    labels = scm.read_labels(scm.predict(u))
    for i in candidates:
        redrawn = torch.cat([u[:, :i], other[:, i : i + 1], u[:, i + 1 :]], dim=1)
        change = scm.read_labels(scm.predict(redrawn))[:, i] - labels[:, i]
        if change.square().mean() < 2.0 * 0.01 * labels[:, i].var():  # a difference has twice the variance
            found.add(scm.graph.names[i])
    return frozenset(found)


def _truncated_normal(count: int, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Samples (count, n) from N(0, 1) truncated to [low, high], each (1, n), by inverse transform sampling."""
    normal, uniform = torch.distributions.Normal(0.0, 1.0), torch.rand(count, low.shape[1], generator=generator)
    return normal.icdf(torch.lerp(normal.cdf(low), normal.cdf(high), uniform))
