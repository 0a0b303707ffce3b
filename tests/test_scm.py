"""The latent structural causal model on random graphs: inversion, the pattern of its Jacobian, and the laws of do().

The second half has random graphs of continuous and discrete variables.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import normal, randomise
from torch import Tensor
from torch.autograd.functional import jacobian

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.scm import MAX_LOG_STRETCH, MECHANISMS, LatentSCM, determined_effects, sample_noise

CASES = list(itertools.product(range(6), MECHANISMS))
COMPOSED = ["additive", "affine", "spline"]
"""Mechanisms that pass an effect on along paths; `one_hop` passes noise over one edge."""
CHAIN = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c")))
COLLIDER = CausalGraph(("a", "b", "c"), (("a", "c"), ("b", "c")))
BLOCK = 2


def random_dag(seed: int) -> np.ndarray:
    """The adjacency matrix of a random DAG with at least one edge, whose variables are in no topological order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    upper = np.triu(rng.random((n, n)) < 0.55, 1)
    upper[0, 1] = True
    order = rng.permutation(n)
    return upper[np.ix_(order, order)].astype(float)


def model(graph: CausalGraph, mechanism: str, block: int = BLOCK) -> LatentSCM:
    """A float64 model without zero-initialised layers."""
    torch.manual_seed(0)
    return randomise(LatentSCM(graph, block, mechanism, width=16), scale=0.5).double()  # type: ignore[return-value]


def random_scm(seed: int, mechanism: str) -> tuple[LatentSCM, Tensor, np.ndarray]:
    """A model, noise (7, n, 2), and reach (n, n): whether variable i has an effect on variable j."""
    adjacency = random_dag(seed)
    scm = model(CausalGraph.from_adjacency([f"v{i}" for i in range(len(adjacency))], adjacency), mechanism)
    paths = np.linalg.inv(np.eye(len(adjacency)) - adjacency) - np.eye(len(adjacency))  # A + A^2 + ...
    reach = adjacency if mechanism == "one_hop" else paths.round()
    return scm, normal(7, len(adjacency), BLOCK, seed=seed), reach > 0


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_abduction_inverts_prediction(seed: int, mechanism: str) -> None:
    scm, u, _ = random_scm(seed, mechanism)
    z = scm.predict(u)
    assert not torch.equal(z, u)
    torch.testing.assert_close(scm.abduct(z), u, rtol=0, atol=1e-10)
    torch.testing.assert_close(scm.predict(scm.abduct(u)), u, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_jacobian_is_non_zero_exactly_on_the_blocks_of_ancestors(seed: int, mechanism: str) -> None:
    scm, u, reach = random_scm(seed, mechanism)
    dz_du = jacobian(lambda v: scm.predict(v[None])[0], u[0]).abs().amax(dim=(1, 3))
    assert np.array_equal(dz_du != 0, reach.T | np.eye(len(reach), dtype=bool))


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_log_stretch_is_the_log_of_the_jacobian_determinant(seed: int, mechanism: str) -> None:
    scm, u, _ = random_scm(seed, mechanism)
    stretch = scm.predict_with_stretch(u).log_stretch
    for i in range(2):
        dz_du = jacobian(lambda v: scm.predict(v[None])[0].flatten(), u[i]).flatten(1)
        torch.testing.assert_close(torch.linalg.slogdet(dz_du).logabsdet, stretch[i].sum(), rtol=0, atol=1e-9)
        torch.testing.assert_close(dz_du.diagonal().log(), stretch[i].flatten(), rtol=0, atol=1e-9)
    assert bool(stretch.any()) == (mechanism in ("affine", "spline"))


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_do_sets_the_target_and_moves_all_descendants_and_nothing_else(seed: int, mechanism: str) -> None:
    scm, u, reach = random_scm(seed, mechanism)
    factual = scm.predict(u)
    for i, name in enumerate(scm.graph.names):
        moved = scm.predict(u, {name: 1.7})
        assert (moved[:, i] == 1.7).all()
        for j, other in enumerate(scm.graph.names):
            if reach[i, j]:
                assert (moved[:, j] != factual[:, j]).all(), f"do({name}) does not move its descendant {other}"
            elif j != i:
                assert torch.equal(moved[:, j], factual[:, j]), f"do({name}) moves {other}"


@pytest.mark.parametrize(("seed", "mechanism"), [case for case in CASES if case[1] in COMPOSED])
def test_do_with_the_factual_value_changes_nothing(seed: int, mechanism: str) -> None:
    scm, u, _ = random_scm(seed, mechanism)
    z = scm.predict(u)
    assert torch.equal(scm.predict(u, {}), z)
    for i, name in enumerate(scm.graph.names):
        assert torch.equal(scm.predict(u, {name: z[:, i]}), z)


@pytest.mark.parametrize("mechanism", COMPOSED)
def test_several_variables_are_set_at_once_and_their_incoming_edges_are_cut(mechanism: str) -> None:
    scm, u = model(CHAIN, mechanism), normal(4, 3, BLOCK)
    both, only_b = scm.predict(u, {"a": -1.0, "b": 0.5}), scm.predict(u, {"b": 0.5})
    assert (both[:, 0] == -1).all() and (both[:, 1] == 0.5).all()
    assert torch.equal(both[:, 2], only_b[:, 2]), "b screens c off from a"
    assert scm.predict_with_stretch(u, {"b": 0.5}).log_stretch[:, 1].abs().max() == 0


def test_do_takes_a_number_a_vector_or_a_block() -> None:
    scm, u = model(CHAIN, "additive"), normal(7, 3, BLOCK)
    number = scm.predict(u, {"b": 0.4})
    for shape in ((7,), (7, BLOCK)):
        assert torch.equal(number, scm.predict(u, {"b": torch.full(shape, 0.4, dtype=torch.float64)}))
    assert scm.predict(u, {"b": torch.arange(7.0)})[:, 1, 1].tolist() == list(range(7))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_exchanging_the_values_of_two_parents_changes_the_child_except_in_one_hop(mechanism: str) -> None:
    """Parents are concatenated; `one_hop` adds their noise."""
    scm, u = model(COLLIDER, mechanism, block=1), torch.zeros(1, 3, 1, dtype=torch.float64)
    one, other = (scm.predict(u, {"a": x, "b": -x})[0, 2, 0] for x in (1.0, -1.0))
    assert (abs((one - other).item()) > 1e-6) == (mechanism != "one_hop")


def test_one_hop_passes_noise_over_one_edge_only() -> None:
    scm, u = model(CHAIN, "one_hop", block=1), normal(2, 3, 1)
    z = scm.predict(u)
    torch.testing.assert_close(z[:, 2], scm.networks[2](u[:, 1]) + u[:, 2])
    torch.testing.assert_close(z[:, 0], scm.networks[0](torch.zeros_like(u[:, 0])) + u[:, 0])


@pytest.mark.parametrize("mechanism", COMPOSED)
@pytest.mark.parametrize("graph", [CHAIN, CausalGraph(("a", "b", "c"))])
def test_a_fresh_model_and_one_without_edges_are_the_identity(mechanism: str, graph: CausalGraph) -> None:
    scm, u = LatentSCM(graph, BLOCK, mechanism), normal(2, 3, BLOCK, dtype=torch.float32)
    for found in (scm.predict(u), scm.abduct(u)):
        torch.testing.assert_close(found, u, rtol=0, atol=1e-5 if mechanism == "spline" else 0)
    assert bool(list(scm.parameters())) == bool(graph.edges)


def test_stretch_is_bounded() -> None:
    scm, u, _ = random_scm(2, "affine")
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter.mul_(100)
    assert scm.predict_with_stretch(u).log_stretch.abs().max() <= MAX_LOG_STRETCH


def test_residual_scale_is_learned_for_additive_children_and_has_a_floor() -> None:
    scm = LatentSCM(CausalGraph(("a", "b", "c"), (("a", "b"),)), 2, min_scale=0.05)
    assert scm.raw_log_scale is not None and abs(scm.log_scale[1].item()) < 0.06, "a fresh scale is about 1"
    for raw, expected in ((-50.0, math.log(0.05)), (5.0, 5.0)):
        with torch.no_grad():
            scm.raw_log_scale.fill_(raw)
        assert scm.log_scale[1].item() == pytest.approx(expected, abs=0.01)
        assert scm.log_scale[0] == scm.log_scale[2] == 0 and scm.log_scale[1] >= math.log(0.05) - 1e-6
    scm.log_scale.sum().backward()
    assert scm.raw_log_scale.grad is not None and scm.raw_log_scale.grad.bool().tolist() == [False, True, False]
    for mechanism in ("affine", "spline", "one_hop"):
        assert not LatentSCM(CHAIN, 2, mechanism).log_scale.any(), "other mechanisms have a standard prior"


def test_mechanisms_have_the_given_width_and_depth() -> None:
    scm = LatentSCM(COLLIDER, 3, width=11, depth=3)
    shapes = [tuple(p.shape) for p in scm.networks[2].parameters() if p.dim() == 2]
    assert shapes == [(11, 6), (11, 11), (11, 11), (3, 11)]


def test_unknown_mechanisms_variables_and_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="mechanism: expected one of additive, affine, spline, one_hop, got 'linear'"):
        LatentSCM(CHAIN, 2, "linear")
    scm, u = LatentSCM(CHAIN, 2), torch.zeros(1, 3, 2)
    for shape in ((3, 4), (3, 3, 3), (3, 2, 2)):
        with pytest.raises(InputError, match=r"u: expected shape \(B, 3, 2\), got \(3, "):
            scm.predict(torch.zeros(shape))
    with pytest.raises(InputError, match="expected one of a, b, c, got 'size'"):
        scm.predict(u, {"size": 1.0})
    with pytest.raises(InputError, match=r"do: expected a number, \(1,\) or \(1, 2\), got a value of shape \(1, 3\)"):
        scm.predict(u, {"a": torch.zeros(1, 3)})


def test_parameters_grow_with_the_number_of_edges() -> None:
    """Twice the variables with the same number of edges each need twice the parameters, not four times."""

    def parameters(n: int) -> int:
        names = [f"v{i}" for i in range(n)]
        graph = CausalGraph(tuple(names), tuple((names[i - k], names[i]) for i in range(2, n) for k in (1, 2)))
        return sum(p.numel() for p in LatentSCM(graph, 8, width=64, depth=2).networks.parameters())

    assert parameters(62) / parameters(32) == pytest.approx(60 / 30, rel=0.01)


# ---------------------------------------------------------------------- graphs with discrete variables

WIDE = 4
MIXED = list(itertools.product(range(6), COMPOSED))
SWITCH = CausalGraph(("switch", "level", "mode"), (("switch", "level"), ("level", "mode"), ("switch", "mode")))
TWO, THREE = (-1.0, 1.0), (0.0, 0.7, 1.1)
KINDS = {"switch": TWO, "mode": THREE}


def mixed_scm(seed: int, mechanism: str) -> tuple[LatentSCM, Tensor, np.ndarray]:
    """A model in which every second variable has 2 to 4 categories, causal variables z (7, n, 4), and reach (n, n)."""
    adjacency, rng = random_dag(seed), np.random.default_rng(seed + 100)
    names = [f"v{i}" for i in range(len(adjacency))]
    chosen = [name for i, name in enumerate(names) if i % 2 == seed % 2]
    categories = {name: sorted(rng.normal(size=rng.integers(2, 5))) for name in chosen}
    torch.manual_seed(0)
    graph = CausalGraph.from_adjacency(names, adjacency)
    scm = randomise(LatentSCM(graph, WIDE, mechanism, width=16, categories=categories), scale=1.0).double()
    paths = np.linalg.inv(np.eye(len(adjacency)) - adjacency) - np.eye(len(adjacency))
    labels = normal(7, len(names), seed=seed)
    return scm, scm.predict(scm.abduct(scm.label_blocks(labels))), paths.round() > 0  # type: ignore[operator, return-value]


def switch_scm(mechanism: str = "affine") -> LatentSCM:
    torch.manual_seed(0)
    return randomise(LatentSCM(SWITCH, 3, mechanism, width=16, categories=KINDS), scale=1.0)  # type: ignore[return-value]


def is_code(scm: LatentSCM, z: Tensor, i: int) -> bool:
    codes = scm.discrete[i].codes.to(z.dtype)
    return bool((z[:, i, None] == codes).all(dim=2).any(dim=1).all())


@pytest.mark.parametrize(("seed", "mechanism"), MIXED)
def test_prediction_inverts_abduction_and_categories_come_back_bitwise(seed: int, mechanism: str) -> None:
    scm, z, _ = mixed_scm(seed, mechanism)
    for draw in range(3):
        u = scm.abduct(z, torch.Generator().manual_seed(draw))
        again = scm.predict(u)
        torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
        assert torch.equal(again[:, scm.is_discrete], z[:, scm.is_discrete])
        back = scm.abduct(again)
        torch.testing.assert_close(back[:, ~scm.is_discrete], u[:, ~scm.is_discrete], rtol=0, atol=1e-9)
    assert bool(scm.discrete) and all(is_code(scm, z, i) for i in scm.discrete)
    assert not torch.equal(scm.abduct(z, torch.Generator().manual_seed(1)), u)
    assert torch.equal(scm.abduct(z), scm.abduct(z)), "without a generator the draw is seeded"


@pytest.mark.parametrize(("seed", "mechanism"), MIXED)
def test_what_an_encoder_returns_gives_the_nearest_categories_and_keeps_its_continuous_noise(
    seed: int, mechanism: str
) -> None:
    scm, z, _ = mixed_scm(seed, mechanism)
    blocks = torch.where(scm.is_discrete[:, None], z + 0.2 * normal(*z.shape, seed=9), normal(*z.shape, seed=8))
    u = scm.infer(blocks)
    assert torch.equal(u[:, ~scm.is_discrete], blocks[:, ~scm.is_discrete])
    assert torch.equal(scm.predict(u)[:, scm.is_discrete], z[:, scm.is_discrete])


@pytest.mark.parametrize("most_probable", [False, True])
@pytest.mark.parametrize(("seed", "mechanism"), MIXED)
def test_do_sets_a_category_moves_only_descendants_and_these_stay_categories(
    seed: int, mechanism: str, most_probable: bool
) -> None:
    scm, z, reach = mixed_scm(seed, mechanism)
    u = scm.abduct(z)
    factual = scm.predict(u)
    for i, name in enumerate(scm.graph.names):
        values = scm.discrete[i].values.tolist() if i in scm.discrete else [0.3, -2.0]
        for value in values:
            moved = scm.predict(u, {name: value}, most_probable)
            target = scm.label_blocks(torch.full((7, len(reach)), value, dtype=torch.float64))[:, i]
            assert torch.equal(moved[:, i], target)
            assert all(is_code(scm, moved, j) for j in scm.discrete)
            for j in range(len(reach)):
                if j != i and not reach[i, j]:
                    assert torch.equal(moved[:, j], factual[:, j])
                elif j != i and j not in scm.discrete and i in scm.parent_index[j]:
                    changed = (target != factual[:, i]).any(dim=1)
                    assert torch.equal((moved[:, j] != factual[:, j]).any(dim=1)[changed], changed[changed])


@pytest.mark.parametrize("most_probable", [False, True])
@pytest.mark.parametrize(("seed", "mechanism"), MIXED)
def test_do_with_the_factual_category_changes_nothing(seed: int, mechanism: str, most_probable: bool) -> None:
    scm, z, _ = mixed_scm(seed, mechanism)
    u = scm.abduct(z)
    factual, labels = scm.predict(u), scm.read_labels(z)
    for i, name in enumerate(scm.graph.names):
        given = [factual[:, i], labels[:, i]] if i in scm.discrete else [factual[:, i]]
        for value in given:
            assert torch.equal(scm.predict(u, {name: value}, most_probable), factual)


def test_labels_of_categories_are_read_off_their_codes_exactly() -> None:
    scm = switch_scm()
    labels = torch.tensor([[TWO[k % 2], 0.1 * k, THREE[k % 3]] for k in range(6)])
    blocks = scm.label_blocks(labels)
    assert blocks.shape == (6, 3, 3) and torch.equal(blocks[:, 1], labels[:, 1:2].expand(-1, 3))
    assert torch.equal(scm.read_labels(blocks)[:, [0, 2]], labels[:, [0, 2]])
    torch.testing.assert_close(scm.read_labels(blocks + 0.3 * normal(6, 3, 3).float())[:, 2], labels[:, 2])


def test_the_order_of_categories_has_no_effect() -> None:
    """Codes are equally far from each other, unlike numbers 0, 1, 2."""
    codes = switch_scm().discrete[2].codes
    distances = torch.cdist(codes, codes)[~torch.eye(3, dtype=torch.bool)]
    torch.testing.assert_close(distances, distances[0].expand(6))


def test_the_most_probable_category_is_the_plurality_of_draws_and_probabilities_are_their_shares() -> None:
    scm, count = switch_scm(), 4000
    one = scm.label_blocks(torch.tensor([[TWO[0], 0.4, THREE[2]]]))
    z = one.expand(count, -1, -1)
    u, do = scm.abduct(z, torch.Generator().manual_seed(3)), {"switch": TWO[1], "level": -2.0}
    drawn = scm.discrete[2].nearest_code(scm.predict(u, do)[:, 2])
    shares = torch.bincount(drawn, minlength=3) / count
    moved = scm.predict(scm.abduct(one), do, most_probable=True)
    exact = scm.counterfactual_probabilities(one, moved)["mode"][0]
    torch.testing.assert_close(exact, shares, rtol=0, atol=0.03)
    assert scm.discrete[2].nearest_code(moved[:, 2]).item() == shares.argmax() == exact.argmax()
    assert 0.5 < shares.max() < 0.95, "the draws differ"


def test_probabilities_are_those_of_the_mechanism_given_the_parents() -> None:
    scm, z = switch_scm(), normal(5, 3, 3).float()
    found = scm.probabilities(z)
    assert found["switch"].shape == (5, 2) and found["mode"].shape == (5, 3)
    expected = scm.discrete[2].logits(torch.cat([z[:, 0], z[:, 1]], dim=1)).softmax(1)
    torch.testing.assert_close(found["mode"], expected)
    torch.testing.assert_close(found["switch"], scm.discrete[0].prior.softmax(0).expand(5, 2))  # type: ignore[union-attr]


def test_samples_have_the_categories_of_the_prior() -> None:
    scm = switch_scm()
    torch.nn.init.constant_(scm.discrete[0].prior, 0.0)  # type: ignore[arg-type]
    scm.discrete[0].prior.data[1] = 1.0  # type: ignore[union-attr]
    u = sample_noise(scm, torch.full((3,), -3.0), torch.full((3,), 3.0), 5000, torch.Generator().manual_seed(0))
    z = scm.predict(u)
    labels = scm.read_labels(z)
    assert set(labels[:, 0].tolist()) == set(TWO)
    assert (labels[:, 0] == TWO[1]).float().mean().item() == pytest.approx(math.e / (1 + math.e), abs=0.02)
    shares = torch.stack([(labels[:, 2] == value).float() for value in torch.tensor(THREE)], dim=1).mean(0)
    torch.testing.assert_close(shares, scm.probabilities(z)["mode"].mean(0), rtol=0, atol=0.02)


def test_discrete_variables_need_a_block_entry_per_category_and_a_mechanism_that_passes_them_on() -> None:
    with pytest.raises(
        InputError, match="rep_dim: expected at least 3 latents per variable, one for each category of m"
    ):
        LatentSCM(SWITCH, 2, categories=KINDS)
    with pytest.raises(InputError, match="mechanism: expected additive, affine or spline with discrete variables"):
        LatentSCM(SWITCH, 3, "one_hop", categories=KINDS)
    with pytest.raises(InputError, match="mode: expected at most 1000 categories, got 1001"):
        LatentSCM(SWITCH, 2000, categories={"mode": [float(k) for k in range(1001)]})


# ---------------------------------------------------------------------- determined effects

RANGE = torch.full((4,), -3.0), torch.full((4,), 3.0)


def linear_scm(scale: float, discrete: bool = False) -> LatentSCM:
    """c = a + b and d = a, each plus noise of the given scale."""
    graph = CausalGraph(("a", "b", "c", "d"), [("a", "c"), ("b", "c"), ("a", "d")])
    scm = LatentSCM(graph, 2, min_scale=1e-3, categories={"c": [-1.0, 1.0]} if discrete else None)
    for i, name in enumerate(graph.names[2:], start=2):
        if i not in scm.discrete:
            scm.networks[i] = Sum(len(graph.parents[name]))
    assert scm.raw_log_scale is not None
    scm.raw_log_scale.data.fill_(math.log(scale))
    return scm


class Sum(torch.nn.Module):
    """Sums the blocks of its parents, of two numbers each."""

    def __init__(self, parents: int) -> None:
        super().__init__()
        self.parents = parents

    def forward(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), self.parents, 2).sum(dim=1)


@pytest.mark.parametrize(("scale", "found"), [(0.005, {"c"}), (0.1, {"c"}), (0.25, set()), (1.0, set())])
def test_effects_that_two_causes_determine_are_found_by_the_share_of_their_noise(scale: float, found: set[str]) -> None:
    """The variance of c is about 2 + scale^2: the share of its noise is 0.5 % at 0.1 and 3 % at 0.25."""
    assert determined_effects(linear_scm(scale), *RANGE) == found


def test_discrete_effects_with_noise_or_without_variance_are_not_determined() -> None:
    scm = linear_scm(0.005, discrete=True)
    assert determined_effects(scm, *RANGE) == set(), "equal logits"
    list(scm.discrete[2].parameters())[-1].data[0] = 100.0
    assert determined_effects(scm, *RANGE) == set(), "one category"
