"""Errors a user can mend: what was wrong, what was given, what is allowed.

Scripts turn an `InputError` into one line on standard error and exit code 2 (`script_util.run_cli`);
any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_MESSAGE: Final = 2000


def one_line(message: object) -> str:
    """A message on one line of `MAX_MESSAGE` characters at most, its middle left out; nothing in it steers a terminal.

    It may quote what a stranger wrote: characters for control, formatting and surrogates become question marks.
    """
    text = str(message)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 500]} ... {text[-490:]}"
    line = "".join(" " if character in "\n\r\t" else character for character in text)
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join("?" if unicodedata.category(character) in hidden else character for character in line)


class InputError(ValueError):
    """An argument, a configuration value or a request that cannot be served; its message is one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class DataError(InputError):
    """A file or folder whose content is not what its name or its place promises."""


def check_given(settings: object, *names: str) -> None:
    """`InputError` for the first of these settings that is empty; every one is a flag too."""
    for name in names:
        if not getattr(settings, name):
            raise InputError(f"{name}: it is not given; --{name} must name it")


def check_least(settings: object, **least: int) -> None:
    """`InputError` for the first of these settings that is below what is named as its least value."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise InputError(f"{name}: {getattr(settings, name)} given, {value} or more is needed")
