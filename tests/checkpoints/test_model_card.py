"""The model card: what it says about variables, and what it does not overwrite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from causaldiffae.checkpoints.model_card import CardFacts, card, write_card
from causaldiffae.errors import InputError


@pytest.fixture
def facts() -> CardFacts:
    loaded = tiny_model()
    return CardFacts(loaded.config, loaded.spec, 1000, None, "squares")


def with_categories(facts: CardFacts, *names: str, **changes: Any) -> CardFacts:
    """The first variable, `size`, is discrete."""
    kinds = ("binary" if len(names) in (0, 2) else "categorical", "continuous")
    spec = replace(facts.spec, kinds=kinds, categories=(names, ()) if names else (), **changes)
    return replace(facts, spec=spec)


def test_categories_are_named(facts: CardFacts, tmp_path: Path) -> None:
    whole = {"low": (0.0, 50.0), "high": (1.0, 250.0)}
    assert "| size |  | no, yes | none |" in card(tmp_path, with_categories(facts, "no", "yes", **whole))
    assert "| size |  | 0, 1 | none |" in card(tmp_path, with_categories(facts, **whole)), "numbers without names"
    many = with_categories(facts, *(f"c{i}" for i in range(25)), low=(0.0, 50.0), high=(24.0, 250.0))
    assert "c18, c19 and 5 more | none |" in card(tmp_path, many)
    odd = with_categories(facts, "a|b", "<i>", **whole)
    assert "| a\\|b, &lt;i> | none |" in card(tmp_path, odd)
    assert "| grey |  | 50 .. 250 | size |" in card(tmp_path, odd)


def test_a_card_replaces_a_card(facts: CardFacts, tmp_path: Path) -> None:
    write_card(tmp_path, replace(facts, name="first"))
    text = write_card(tmp_path, replace(facts, name="second")).read_text()
    assert '"second"' in text and '"first"' not in text


@pytest.mark.parametrize("text", ["my notes\n", "---\nlicense: mit\n---\nlibrary_name: causaldiffae\n", "---\n", ""])
def test_the_readme_of_a_user_is_kept(facts: CardFacts, tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.warns(UserWarning, match=r"README\.md: kept, as it is no model card of this package; remove it"):
        write_card(tmp_path, facts)
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("value", ["good", None, [1.0]])
def test_metrics_are_numbers(facts: CardFacts, tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="^metrics: L1: expected a number, got "):
        write_card(tmp_path, facts, {"L1": value})
    assert not list(tmp_path.iterdir())
