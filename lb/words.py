# SPDX-License-Identifier: Apache-2.0
"""Texts for people: lists of a few names, and text from elsewhere without its control characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from unicodedata import category

MOST = 5
"""How many of a kind are named; of the others the number."""

_NUMBER = re.compile(r"([0-9]+)")
_SHOWN_AS_IS = "\n\t"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode's categories of what a terminal obeys, turns text around, is not seen, or is no character."""


def some(words: Iterable[object], most: int = MOST) -> str:
    """Return the first few, and how many more there are."""
    every = [str(one) for one in words]
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def several(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 entry``, ``2 entries``; many: default is one with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def short(name: str) -> str:
    """Return ``name`` of an object called ``namespace/name``; ``""`` stays so."""
    return name.rpartition("/")[2]


def by_number(text: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts texts as a person does: the numbers in them by value, ``#9`` before ``#10``."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(text) if part)


def shown(text: str) -> str:
    r"""Return a text as it may be shown on a terminal: what is not a visible character is escaped.

    Names come from manifests and from the API, and a terminal obeys what is in them: control characters (C0,
    C1, escape sequences), characters that turn the direction of writing or are not seen. They become
    ``\x1b``, ``\u202e``. Line ends and tabs stay: whoever makes lines of names calls :func:`in_line` first.
    """
    if text.isascii() and not _CONTROLS.search(text):
        return text
    return "".join(map(_escaped, text))


def in_line(text: str) -> str:
    r"""Return a text of strangers as it may stand within a line: line ends and tabs are escaped as well."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(character: str) -> str:
    if character in _SHOWN_AS_IS or category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode("ascii")
