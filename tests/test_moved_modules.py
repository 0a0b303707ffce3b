"""Modules that have moved are imported under their old names."""

import importlib

import pytest

import causaldiffae


@pytest.mark.parametrize("old", causaldiffae.MOVED)
def test_the_old_name_imports_the_new_module(old: str) -> None:
    new = importlib.import_module(f"causaldiffae.{causaldiffae.MOVED[old]}")
    with pytest.warns(DeprecationWarning, match=f"causaldiffae.{old}: deprecated, use {new.__name__}"):
        assert importlib.import_module(f"causaldiffae.{old}") is new
    assert new.__name__ == f"causaldiffae.{causaldiffae.MOVED[old]}"


def test_other_names_are_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("causaldiffae.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("graph_files")
