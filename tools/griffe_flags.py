"""Griffe extension for the API page: documents fields declared as `flag(default, text)` by their help text."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class FlagTexts(griffe.Extension):
    """Replaces the value of such a field by its default, and its docstring by the text."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "flag":
            default, text = attr.value.arguments
            attr.value = default
            written = str(text)
            if written.isidentifier():  # a constant of the same module
                written = str(attr.module[written].value)
            attr.docstring = griffe.Docstring(ast.literal_eval(written), parent=attr)
