"""Errors that the user can fix.

Scripts turn an `InputError` into one line on standard error and exit code 2 (`script_util.run_cli`). Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_MESSAGE: Final = 2000


def one_line(message: object) -> str:
    """Puts a message on one line of at most `MAX_MESSAGE` characters, leaving out its middle if necessary.

    A message may quote untrusted text, so control, formatting and surrogate characters become question marks.
    """
    text = str(message)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 500]} ... {text[-490:]}"
    line = "".join(" " if character in "\n\r\t" else character for character in text)
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join("?" if unicodedata.category(character) in hidden else character for character in line)


class InputError(ValueError):
    """Invalid argument, configuration value or request, with a message of one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class DataError(InputError):
    """Invalid content of a file or folder."""


def check_given(settings: object, *names: str) -> None:
    """Raises `InputError` for the first of these settings that is empty; each is also a flag."""
    for name in names:
        if not getattr(settings, name):
            raise InputError(f"{name}: expected a value, got none; set --{name}")


def check_least(settings: object, **least: int) -> None:
    """Raises `InputError` for the first setting below its least value."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise InputError(f"{name}: expected {value} or more, got {getattr(settings, name)}")
