"""The latent structural causal model on random graphs: inversion, the pattern of its Jacobian, and the laws of do()."""

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
from causaldiffae.scm import MAX_LOG_STRETCH, MECHANISMS, LatentSCM

CASES = list(itertools.product(range(6), MECHANISMS))
COMPOSED = ["additive", "affine"]
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
    assert stretch.any() == (mechanism == "affine")


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
    assert torch.equal(scm.predict(u), u) and torch.equal(scm.abduct(u), u)
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
    for mechanism in ("affine", "one_hop"):
        assert not LatentSCM(CHAIN, 2, mechanism).log_scale.any(), "other mechanisms have a standard prior"


def test_mechanisms_have_the_given_width_and_depth() -> None:
    scm = LatentSCM(COLLIDER, 3, width=11, depth=3)
    shapes = [tuple(p.shape) for p in scm.networks[2].parameters() if p.dim() == 2]
    assert shapes == [(11, 6), (11, 11), (11, 11), (3, 11)]


def test_unknown_mechanisms_variables_and_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="mechanism: expected one of additive, affine, one_hop, got 'linear'"):
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
