"""Interventions as text."""

from typing import Any

import pytest
from tiny import squares_spec

from causaldiffae.datasets.do_text import parse_do
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph


def test_interventions_are_parsed() -> None:
    assert parse_do("size=3, grey=90", squares_spec()) == {"size": 3.0, "grey": 90.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size", "do: expected name=value, like thickness=4.5, got 'size'"),
        ("x" * 5000, "do: expected name=value"),
        ("size=5,5", "do: expected name=value, like thickness=4.5, got '5'; write decimals with a point"),
        ("size=5,grey", "do: expected name=value, like thickness=4.5, got 'grey'$"),
        ("size=1,size=2", "do: expected each variable once, got size twice"),
        ("size=" + "y" * 5000, "do: size: expected a finite number"),
        ("width=1", "do: expected one of .*, got 'width'"),
    ],
)
def test_other_interventions_are_refused_in_a_short_message(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_do(text, squares_spec())
    assert len(str(caught.value)) < 400


def spec_with_names(*names: str, categories: tuple[tuple[str, ...], ...] = ()) -> DatasetSpec:
    n = len(names)
    kinds = tuple("categorical" if each else "continuous" for each in categories)
    numbers: dict[str, Any] = {"shift": (0.0,) * n, "scale": (1.0,) * n, "low": (0.0,) * n, "high": (99.0,) * n}
    return DatasetSpec("folder", 8, 1, CausalGraph(names), kinds=kinds, categories=categories, **numbers)


@pytest.mark.parametrize(
    ("text", "do"),
    [
        ("weight, kg=60", {"weight, kg": 60.0}),
        ('"weight, kg"=60, height=cm=7', {"weight, kg": 60.0, "height=cm": 7.0}),
        ("'height=cm' = 7,hat=felt, wide", {"height=cm": 7.0, "hat": 1.0}),
        ('hat="a=b",weight=3', {"hat": 0.0, "weight": 3.0}),
        ("Gro\u0308\u00dfe=5", {"Gr\u00f6\u00dfe": 5.0}),
    ],
)
def test_names_and_categories_may_contain_commas_and_equals_signs(text: str, do: dict[str, float]) -> None:
    names = ("weight, kg", "height=cm", "hat", "weight", "Gr\u00f6\u00dfe")
    spec = spec_with_names(*names, categories=((), (), ("a=b", "felt, wide"), (), ()))
    assert parse_do(text, spec) == do


def test_text_after_a_quoted_value_is_refused() -> None:
    with pytest.raises(InputError, match="do: hat: expected a comma after 'a', got 'b'"):
        parse_do('hat="a"b', spec_with_names("hat", categories=(("a", "b"),)))


def test_a_category_with_the_name_of_a_number_is_that_category() -> None:
    spec = spec_with_names("kids", categories=(("1", "2", "3+"),))
    assert [parse_do(f"kids={name}", spec) for name in ("1", "2", "3+")] == [{"kids": i} for i in (0.0, 1.0, 2.0)]
