"""The latent structural causal model on random graphs: inversion, the Jacobian's pattern, and the laws of do()."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import randomise
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.scm import MAX_LOG_STRETCH, MECHANISMS, LatentSCM

CASES = list(itertools.product(range(6), MECHANISMS))
BLOCK = 2


def random_graph(seed: int) -> CausalGraph:
    """A random DAG whose variables are not named in a topological order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    upper = np.triu(rng.random((n, n)) < 0.55, 1)
    upper[0, 1] = True
    order = rng.permutation(n)
    return CausalGraph.from_adjacency([f"v{i}" for i in range(n)], upper[np.ix_(order, order)].astype(float))


def random_scm(seed: int, mechanism: str) -> tuple[CausalGraph, LatentSCM, Tensor]:
    """A graph, a model without zero-initialised layers, and noise (7, n, 2), in float64."""
    graph = random_graph(seed)
    torch.manual_seed(seed)
    scm = randomise(LatentSCM(graph, BLOCK, mechanism, width=16), seed, scale=0.5).double()
    return graph, scm, torch.randn(7, len(graph), BLOCK, dtype=torch.float64)


def influence(scm: LatentSCM, u: Tensor) -> Tensor:
    """(n, n): largest |dz_i / du_j| of each pair of blocks, for one u (n, d)."""
    jacobian = torch.autograd.functional.jacobian(lambda v: scm.predict(v[None])[0], u)
    return jacobian.abs().amax(dim=(1, 3))


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_abduction_undoes_prediction(seed: int, mechanism: str) -> None:
    _, scm, u = random_scm(seed, mechanism)
    z = scm.predict(u)
    assert not torch.equal(z, u)
    torch.testing.assert_close(scm.abduct(z), u, rtol=0, atol=1e-10)
    torch.testing.assert_close(scm.predict(scm.abduct(u)), u, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_jacobian_is_non_zero_exactly_where_the_graph_says(seed: int, mechanism: str) -> None:
    graph, scm, u = random_scm(seed, mechanism)
    reach = {"one_hop": graph.parents}.get(mechanism, {name: graph.ancestors(name) for name in graph.names})
    expected = [[j == i or j in reach[i] for j in graph.names] for i in graph.names]
    assert (influence(scm, u[0]) != 0).tolist() == expected


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_log_stretch_is_the_log_determinant(seed: int, mechanism: str) -> None:
    _, scm, u = random_scm(seed, mechanism)
    stretch = scm.predict_with_stretch(u).log_stretch
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: scm.predict(v[None])[0].flatten(), u[i])
        jacobian = jacobian.flatten(1)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, stretch[i].sum(), rtol=0, atol=1e-9)
        torch.testing.assert_close(jacobian.diagonal().log(), stretch[i].flatten(), rtol=0, atol=1e-9)
    assert stretch.any() == (mechanism == "affine")


@pytest.mark.parametrize(("seed", "mechanism"), CASES)
def test_laws_of_do(seed: int, mechanism: str) -> None:
    graph, scm, u = random_scm(seed, mechanism)
    factual = scm.predict(u)
    for name in graph.names:
        moved = scm.predict(u, {name: 1.7})
        reached = set(graph.children[name]) if mechanism == "one_hop" else graph.descendants(name)
        for other in graph.names:
            i = graph.index(other)
            if other == name:
                assert (moved[:, i] == 1.7).all()
            elif other in reached:
                assert (moved[:, i] != factual[:, i]).all(), f"do({name}) leaves its descendant {other}"
            else:
                assert torch.equal(moved[:, i], factual[:, i]), f"do({name}) moves {other}"


@pytest.mark.parametrize(("seed", "mechanism"), [case for case in CASES if case[1] != "one_hop"])
def test_doing_the_factual_changes_nothing(seed: int, mechanism: str) -> None:
    graph, scm, u = random_scm(seed, mechanism)
    z = scm.predict(u)
    assert torch.equal(scm.predict(u, {}), z)
    for name in graph.names:
        assert torch.equal(scm.predict(u, {name: z[:, graph.index(name)]}), z)


@pytest.mark.parametrize("mechanism", ["additive", "affine"])
def test_several_interventions_at_once(mechanism: str) -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c")))
    torch.manual_seed(0)
    scm = randomise(LatentSCM(graph, 2, mechanism, width=8)).double()
    u = torch.randn(4, 3, 2, dtype=torch.float64)
    both, only_b = scm.predict(u, {"a": -1.0, "b": 0.5}), scm.predict(u, {"b": 0.5})
    assert (both[:, 0] == -1).all()
    assert (both[:, 1] == 0.5).all()
    assert torch.equal(both[:, 2], only_b[:, 2]), "b screens c off from a"
    assert scm.predict_with_stretch(u, {"b": 0.5}).log_stretch[:, 1].abs().max() == 0


def test_an_edge_is_cut_by_an_intervention_on_its_end() -> None:
    _, scm, _ = random_scm(0, "additive")
    graph = scm.graph
    cause, effect = graph.edges[0]
    u = torch.randn(3, len(graph), BLOCK, dtype=torch.float64)
    a, b = (scm.predict(u, {cause: value, effect: 0.0}) for value in (-1.0, 1.0))
    i = graph.index(effect)
    assert torch.equal(a[:, i], b[:, i])


def test_values_as_number_vector_and_block() -> None:
    graph, scm, u = random_scm(1, "additive")
    name = graph.names[0]
    number = scm.predict(u, {name: 0.4})
    assert torch.equal(number, scm.predict(u, {name: torch.full((7,), 0.4, dtype=torch.float64)}))
    assert torch.equal(number, scm.predict(u, {name: torch.full((7, BLOCK), 0.4, dtype=torch.float64)}))
    each = scm.predict(u, {name: torch.arange(7.0)})
    assert each[:, graph.index(name), 1].tolist() == list(range(7))


def test_parents_are_told_apart() -> None:
    """Concatenated, not summed: exchanging two parents' values changes the child (it does not for `one_hop`)."""
    graph = CausalGraph(("a", "b", "c"), (("a", "c"), ("b", "c")))
    for mechanism in MECHANISMS:
        torch.manual_seed(0)
        scm = randomise(LatentSCM(graph, 1, mechanism, width=8), scale=0.5).double()
        u = torch.zeros(1, 3, 1, dtype=torch.float64)
        there, back = (scm.predict(u, {"a": x, "b": -x})[0, 2, 0] for x in (1.0, -1.0))
        assert (abs((there - back).item()) > 1e-6) == (mechanism != "one_hop")


def test_one_hop_passes_noise_over_one_edge_only() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c")))
    scm = randomise(LatentSCM(graph, 1, "one_hop", width=4)).double()
    u = torch.randn(2, 3, 1, dtype=torch.float64)
    f_c = scm.networks[2](u[:, 1])
    torch.testing.assert_close(scm.predict(u)[:, 2], f_c + u[:, 2])
    torch.testing.assert_close(scm.predict(u)[:, 0], scm.networks[0](torch.zeros(2, 1).double()) + u[:, 0])


def test_fresh_mechanisms_are_the_identity() -> None:
    for mechanism in ("additive", "affine"):
        u = torch.randn(3, 4, 2)
        scm = LatentSCM(CausalGraph(tuple("abcd"), (("a", "b"), ("b", "c"))), 2, mechanism)
        assert torch.equal(scm.predict(u), u)


def test_stretch_is_bounded() -> None:
    graph, scm, u = random_scm(2, "affine")
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter.mul_(100)
    stretch = scm.predict_with_stretch(u).log_stretch
    assert stretch.isfinite().all()
    assert stretch.abs().max() <= MAX_LOG_STRETCH
    assert len(graph) == u.shape[1]


def test_scale_is_for_children_and_has_a_floor() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"),))
    scm = LatentSCM(graph, 2, min_scale=0.05)
    assert scm.raw_log_scale is not None
    assert abs(float(scm.log_scale[1])) < 0.06, "a fresh scale is about 1"
    for raw, expected in ((-50.0, math.log(0.05)), (5.0, 5.0)):
        with torch.no_grad():
            scm.raw_log_scale.fill_(raw)
        assert scm.log_scale[0] == scm.log_scale[2] == 0
        assert abs(float(scm.log_scale[1]) - expected) < 0.01
        assert scm.log_scale[1] >= math.log(0.05) - 1e-6
    scm.log_scale.sum().backward()
    assert scm.raw_log_scale.grad is not None
    assert scm.raw_log_scale.grad[1] > 0
    assert scm.raw_log_scale.grad[0] == 0


@pytest.mark.parametrize("mechanism", ["affine", "one_hop"])
def test_other_mechanisms_have_a_standard_prior(mechanism: str) -> None:
    scm = LatentSCM(CausalGraph(("a", "b"), (("a", "b"),)), 2, mechanism)
    assert scm.raw_log_scale is None
    assert scm.log_scale.tolist() == [0.0, 0.0]


def test_a_graph_without_edges() -> None:
    scm = LatentSCM(CausalGraph(("a", "b")), 3)
    u = torch.randn(2, 2, 3)
    assert list(scm.parameters()) == []
    assert torch.equal(scm.predict(u), u)
    assert torch.equal(scm.abduct(u), u)


def test_depth_and_width() -> None:
    scm = LatentSCM(CausalGraph(("a", "b", "c"), (("a", "c"), ("b", "c"))), 3, width=11, depth=3)
    shapes = [tuple(p.shape) for p in scm.networks[2].parameters() if p.dim() == 2]
    assert shapes == [(11, 6), (11, 11), (11, 11), (3, 11)]


def test_messages() -> None:
    graph = CausalGraph(("a", "b"), (("a", "b"),))
    with pytest.raises(InputError, match="mechanism: expected one of additive, affine, one_hop, got 'linear'"):
        LatentSCM(graph, 2, "linear")
    scm = LatentSCM(graph, 2)
    for shape in ((3, 4), (3, 2, 3), (3, 3, 2)):
        with pytest.raises(InputError, match=r"u: expected shape \(B, 2, 2\), got \(3, "):
            scm.predict(torch.zeros(shape))
    with pytest.raises(InputError, match="'size'"):
        scm.predict(torch.zeros(1, 2, 2), {"size": 1.0})
