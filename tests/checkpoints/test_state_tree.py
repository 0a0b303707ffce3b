"""Nested states survive the split into tensors and JSON bit for bit; an invalid tree is a DataError."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bitwise_equal

from causaldiffae.checkpoints.state_tree import flatten_state, unflatten_state
from causaldiffae.errors import DataError, InputError

plain_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
states = st.recursive(
    plain_values | st.integers(0, 3).map(lambda n: torch.arange(n) * 0.5) | st.floats(width=32).map(np.float32),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$kind"), inner, max_size=3)
    ),
    max_leaves=10,
)
trees = st.recursive(
    plain_values,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$kind", "items", "name", "value", "x"]), inner, max_size=4)
        | st.fixed_dictionaries(
            {"$kind": st.sampled_from(["tensor", "array", "scalar", "tuple", "dict", "float", "module"])},
            optional={"items": inner, "name": inner | st.just("a"), "value": inner},
        )
    ),
    max_leaves=8,
)


def through_json(state: Any) -> Any:
    tensors, tree = flatten_state(state)
    return unflatten_state(tensors, json.loads(json.dumps(tree, allow_nan=False)))


def test_optimizer_and_random_states_round_trip() -> None:
    weights = [torch.randn(3, 4, requires_grad=True), torch.randn(2, requires_grad=True)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 0.1 + 0.2}, {"params": weights[1:], "betas": (0, 1)}])
    sum(weight.square().sum() for weight in weights).backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "python": random.Random(5).getstate(),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(0, 3, dtype=torch.bfloat16)},
        "array": np.array([1.5, np.nan], dtype="f4"),
        "scalar": np.uint64(2**64 - 1),
    }
    found = through_json(state)
    del state["a"]["b"], found["a"]["b"]  # numpy() does not know bfloat16
    assert bitwise_equal(found, state)


@settings(deadline=None)
@given(states)
def test_any_nested_state_round_trips(state: Any) -> None:
    assert bitwise_equal(through_json(state), state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"f": len}}, "a.f: expected a tensor, .*, got builtin_function_or_method"),
        ({"a": [{1.5: 0}]}, "a.0: expected keys of type str or int, got 1.5"),
        ({1, 2}, "top level: expected a tensor, .*, got set"),
    ],
)
def test_values_of_other_types_are_refused(state: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"training state: {message}"):
        flatten_state(state)


@settings(deadline=None)
@given(trees)
def test_any_tree_is_a_state_or_a_data_error(tree: Any) -> None:
    try:
        unflatten_state({"a": torch.zeros(2, dtype=torch.bfloat16)}, tree, "training.json")
    except DataError as error:
        assert str(error).startswith("training.json: ")


@pytest.mark.parametrize("tree", [{"$kind": "A" * 70_000}, {"$kind": "tensor", "name": "x"}, {"$kind": [0] * 999}])
def test_messages_about_invalid_entries_are_short(tree: Any) -> None:
    with pytest.raises(DataError, match="^t.json: invalid entry .{0,100}$"):
        unflatten_state({}, tree, "t.json")


def test_deep_nesting_is_refused() -> None:
    tree: Any = 0
    for _ in range(50_000):
        tree = [tree]
    with pytest.raises(DataError, match="nested too deeply"):
        unflatten_state({}, tree)
