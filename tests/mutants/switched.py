# SPDX-License-Identifier: Apache-2.0
"""Many mutants of the C in one compilation: each behind a switch that is set when the programs are loaded.

The compiler takes half a minute for the programs of one IP version. So a statement with a mutant stands there
twice, as it is and changed, and a number that the compiler does not know says which of the two holds: an
instruction with a mark, as for what a kernel may lack (``HAS`` of bpf/config.h). The verifier, to which that
number is a constant, drops the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lb.datapath.programs.loops import INSN
from tests.mutants.making import Mutant

MARK = 0x7FFC_0000
"""The mark of the first switch; those of lb.datapath.programs.build are above."""
MACRO = f"#define MUTANT(number) ((u64)bpf_pseudo_fd(0, {MARK} + (number)))"
"""For bpf/config.h, which every header includes."""
_LD_IMM64 = 0x18

_HEAD = re.compile(r"(\}?\s*(?:else )?(?:if|while) )\(")
_TYPED = r"(?:(?:const|struct|unsigned|enum) )*\w+ (?:\*|const )*"
_DECLARED = re.compile(rf"({_TYPED}\w+ = )(.+);", re.DOTALL)
_DECLARES = re.compile(r"(?:const|struct|enum|static|union|typedef)\b|\w+ \**\w+(?:\[[^]]*\])?(?:,| =|;)")
_NO_STATEMENT = re.compile(r"(?:return|break|continue|goto|case|default|for|do|else|asm|\}|\.|#)")
_ENDS = (";", "{", "}", ":", "*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """What a line belongs to: first and last line, from 0, and its text without the first indentation."""

    first: int
    last: int
    text: str


def statement(lines: Sequence[str], at: int) -> Statement | None:
    """Return the statement, or the head of one, that a line is in; None where it is no whole one."""
    if lines[at].startswith("#") or lines[at].endswith("\\"):
        return None
    first = at
    while first > 0 and not _ends(lines[first - 1]):
        first -= 1
        if at - first > 12:
            return None
    text = ""
    for last in range(first, min(at + 16, len(lines))):
        text = f"{text}\n{lines[last]}" if text else lines[last].lstrip("\t")
        if lines[last].endswith("\\"):
            return None
        bare = _bare(text)
        if bare.count("(") != bare.count(")") or not (bare.endswith((";", "{")) or _head_only(bare)):
            continue
        if last >= at:
            return Statement(first, last, text)
        first, text = last + 1, ""
    return None


def _bare(line: str) -> str:
    return re.sub(r"/\*.*?\*/", "", line).rstrip()


def _ends(line: str) -> bool:
    """Does a statement begin on the line after this one?"""
    bare = line.strip()
    code = _bare(line).strip()
    return not code or code.startswith("#") or bare.endswith("*/") or code.endswith(_ENDS) or _head_only(code)


def _head_only(code: str) -> bool:
    """Is it the head of an if or a loop, whose one statement follows, or ``else``?"""
    if code.strip() in ("else", "} else", "do"):
        return True
    head = re.match(r"\}?\s*(?:else )?(?:if|while|for) \(", code.strip())
    return bool(head) and code.count("(") == code.count(")") and code.endswith(")")


def switch(old: str, new: str, number: int) -> str | None:
    """Return a statement with both forms, of which the number chooses; None where C has none such."""
    chosen = f"MUTANT({number})"
    if head := _HEAD.match(old):
        ways = [_condition(text, head[1]) for text in (old, new)]
        if not ways[0] or not ways[1] or ways[0][1] != ways[1][1]:
            return None
        return f"{head[1]}({chosen} ? (u64)!!({ways[1][0]}) : (u64)!!({ways[0][0]})){ways[0][1]}"
    if old.startswith("return") and old.endswith(";") and new == ";":
        return f"if (!{chosen}) {old}"
    if old.startswith("return ") and old.endswith(";") and new.startswith("return "):
        return f"return {chosen} ? ({new[7:-1]}) : ({old[7:-1]});"
    if _NO_STATEMENT.match(old):
        return None
    if _DECLARES.match(old):
        one, two = _DECLARED.fullmatch(old), _DECLARED.fullmatch(new)
        if not one or not two or one[1] != two[1] or "{" in old or _commas(one[2]) or _commas(two[2]):
            return None
        return f"{one[1]}{chosen} ? ({two[2]}) : ({one[2]});"
    if not old.endswith(";"):
        return None
    return f"if ({chosen}) {{ {new} }} else {{ {old} }}"


def _condition(text: str, head: str) -> tuple[str, str] | None:
    """Return what is in the parentheses behind the head, and what follows them."""
    if not text.startswith(f"{head}("):
        return None
    depth = 0
    for at in range(len(head), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            rest = text[at + 1 :]
            return (text[len(head) + 1 : at], rest) if rest in ("", " {") else None
    return None


def _commas(text: str) -> bool:
    """Is there a comma outside of all parentheses?"""
    depth = 0
    for char in text:
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(char, 0)
        if char == "," and not depth:
            return True
    return False


def together(mutants: Sequence[Mutant], texts: Mapping[str, str]) -> tuple[dict[str, str], dict[int, Mutant]]:
    """Return headers by name with as many of the mutants as fit into them, each by the number of its switch.

    A statement takes one mutant. Lines stay where they are.
    """
    held: dict[int, Mutant] = {}
    lines = {file: texts[file].splitlines() for file in texts}
    taken: dict[str, set[int]] = {file: set() for file in texts}
    for mutant in mutants:
        of, at = texts[mutant.file].splitlines(), mutant.line - 1
        found, changed = statement(of, at), None
        if found and not taken[mutant.file] & set(range(found.first, found.last + 1)):
            of[at] = mutant.new
            new = "\n".join(of[found.first : found.last + 1]).lstrip("\t")
            changed = switch(_flat(found.text), _flat(new), len(held))
        if not found or not changed:
            continue
        place = range(found.first, found.last + 1)
        taken[mutant.file] |= set(place)
        for line in place:
            lines[mutant.file][line] = ""
        lines[mutant.file][found.first] = changed
        held[len(held)] = mutant
    return {file: "\n".join(rows) + "\n" for file, rows in lines.items()}, held


def _flat(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", re.sub(r"/\*.*?\*/", "", text)).rstrip()


def switches(code: bytes) -> set[int]:
    """Return the numbers of the switches in a function's instructions."""
    rows = np.frombuffer(code, INSN)
    marks = rows["imm"][_wide(rows)] - MARK
    return {int(number) for number in marks if 0 <= number < 0x10000}


def flip(code: bytes, chosen: int | None) -> bytes:
    """Return a function's instructions with one switch set and the others not."""
    rows = np.frombuffer(code, INSN).copy()
    for at in np.flatnonzero(_wide(rows)):
        number = int(rows["imm"][at]) - MARK
        if 0 <= number < 0x10000:
            rows["imm"][at] = number == chosen
    return rows.tobytes()


def _wide(rows: np.ndarray) -> np.ndarray:
    """Return where a number of 64 bits is loaded that is no map."""
    found: np.ndarray = (rows["opcode"] == _LD_IMM64) & (rows["registers"] >> 4 == 0)
    return found
