# SPDX-License-Identifier: Apache-2.0
"""The mutants of bpf/*.h and of the Python that writes, before any is tried."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from lb.datapath.maps import layouts
from lb.datapath.programs.loops import INSN
from tests.mutants import python
from tests.mutants.__main__ import (
    BEGIN,
    END,
    GENERAL,
    IN_A_TREE,
    KILLERS,
    LEFT_OUT,
    OF_PYTHON,
    ROOT,
    every,
    named,
    sample,
    scored,
    with_score,
)
from tests.mutants.making import Mutant, mutants
from tests.mutants.switched import MARK, flip, statement, switch, switches, together

WITHOUT = ("step.h", "watch.h", "lb/addresses/claimant.py", "lb/plan/types.py")
"""Files without a mutant: they declare."""


def test_every_header_has_its_tests_or_is_left_out() -> None:
    headers = sorted(path.name for path in layouts.BPF_DIR.glob("*.h"))
    in_a_tree = [file for file in IN_A_TREE if file.endswith(".h")]
    assert sorted((*KILLERS, *in_a_tree, *LEFT_OUT)) == headers
    for name in (*GENERAL, *(name for names in KILLERS.values() for name in names)):
        assert (ROOT / "tests" / "packet" / f"test_{name}.py").is_file(), name
    for name in (name for names in IN_A_TREE.values() for name in names):
        assert (ROOT / "tests" / f"{name}.py").is_file(), name


def test_every_folder_of_python_has_its_tests() -> None:
    assert sorted(OF_PYTHON) == sorted({file.rpartition("/")[0] for file in python.sources()})
    for name in (name for names in OF_PYTHON.values() for name in names):
        path = ROOT / "tests" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_a_mutant_is_one_line_that_differs() -> None:
    for file, found in every(()).items():
        text = (ROOT / file if file.endswith(".py") else layouts.BPF_DIR / file).read_text()
        assert found or file in WITHOUT, file
        for mutant in found:
            changed = [
                number
                for number, (old, new) in enumerate(
                    zip(text.splitlines(), mutant.of(text).splitlines(), strict=True), 1
                )
                if old != new
            ]
            assert changed == [mutant.line], mutant


def test_what_is_no_code_is_left_as_it_is() -> None:
    text = "/* 1 == 2 */\n#include <x.h>\n\tif (a == 1) /* b != 2 */\n\t\treturn true;\n"
    changed = [mutant.new for mutant in mutants("x.h", text)]
    assert changed == ["\tif (a != 1) /* b != 2 */", "\tif (a == 2) /* b != 2 */", "\t\treturn false;"]


def test_what_is_no_code_of_python_is_left_as_it_is() -> None:
    text = 'X = 1\ndef f(a: int = 1) -> int:\n    """1 == 2"""\n    if a == "1 == 2":  # 3\n        g(a)\n'
    changed = [mutant.new for mutant in python.mutants("x.py", text)]
    assert changed == ['    if a != "1 == 2":  # 3', "        pass"]


def test_the_sample_goes_round_the_files() -> None:
    files = ("cache.h", "nat.h", "lb/plan/claims.py")
    drawn = list(sample(random.Random(1), files))
    assert drawn[: len(list(named()))] == list(named())
    rest = drawn[len(list(named())) :]
    assert {mutant.file for mutant in rest[:3]} == set(files)
    assert drawn == list(sample(random.Random(1), files))
    drawn = list(sample(random.Random(1), files, {"cache.h": 2, "nat.h": 1}))
    assert drawn[len(list(named()))].file == "lb/plan/claims.py"


def test_the_score_grows() -> None:
    page = f"a\n{BEGIN}{END}\nb\n"
    for file, fate in (("a.h", "noticed"), ("b.h", "survived"), ("a.h", "noticed"), ("a.h", "same")):
        page = with_score(page, scored(page) + Counter({(file, fate): 1}))
    assert page.startswith("a\n")
    assert page.endswith("\nb\n")
    assert "| `a.h` | 3 | 1 | 0 | 2 | 0 | 0 |\n| `b.h` | 1 | 0 | 0 | 0 | 1 | 0 |\n| all | 4 |" in page


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        ("if (a)", "if (!a)", "if (MUTANT(7) ? (u64)!!(!a) : (u64)!!(a))"),
        ("} else if (a) {", "} else if (b) {", "} else if (MUTANT(7) ? (u64)!!(b) : (u64)!!(a)) {"),
        ("return a;", "return b;", "return MUTANT(7) ? (b) : (a);"),
        ("return a;", ";", "if (!MUTANT(7)) return a;"),
        ("f(a);", ";", "if (MUTANT(7)) { ; } else { f(a); }"),
        ("a += 1;", "a += 2;", "if (MUTANT(7)) { a += 2; } else { a += 1; }"),
        (
            "const u32 *a = f(b, 1);",
            "const u32 *a = f(b, 2);",
            "const u32 *a = MUTANT(7) ? (f(b, 2)) : (f(b, 1));",
        ),
        ("u32 a = 1, b;", "u32 a = 2, b;", None),
        ("u8 a[1];", "u8 a[2];", None),
        ("for (i = 0; i < 1; i++)", "for (i = 1; i < 1; i++)", None),
        ("A = 1,", "A = 2,", None),
    ],
)
def test_a_statement_holds_both_forms(old: str, new: str, both: str | None) -> None:
    assert switch(old, new, 7) == both


def test_a_line_belongs_to_a_whole_statement() -> None:
    lines = ["\tf(a);", "\tif (a &&", "\t    b)", "\t\treturn c +", "\t\t       d;", "#define X 1"]
    found = [statement(lines, at) for at in range(len(lines))]
    places = [(each.first, each.last) if each else None for each in found]
    assert places == [(0, 0), (1, 2), (1, 2), (3, 4), (3, 4), None]


def test_mutants_of_one_statement_are_not_together() -> None:
    text = "#pragma once\n\tif (a == 1)\n\t\tf(a);\n"
    held = together(list(mutants("x.h", text)), {"x.h": text})[1]
    assert [mutant.line for mutant in held.values()] == [2, 3]


def test_lines_stay_where_they_are() -> None:
    text = "\tif (a &&\n\t    b)\n\t\tf(a);\n"
    changed, held = together([Mutant("x.h", 2, "\t    b)", "\t    !b)")], {"x.h": text})
    assert len(held) == 1
    assert changed["x.h"] == "if (MUTANT(0) ? (u64)!!(a && !b) : (u64)!!(a && b))\n\n\t\tf(a);\n"


def test_one_switch_is_set() -> None:
    rows = np.zeros(4, INSN)
    rows["opcode"][:3] = 0x18
    rows["imm"] = (MARK, MARK + 1, 5, MARK + 2)
    assert switches(rows.tobytes()) == {0, 1}
    assert np.frombuffer(flip(rows.tobytes(), 1), INSN)["imm"].tolist() == [0, 1, 5, MARK + 2]
