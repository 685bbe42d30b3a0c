# SPDX-License-Identifier: Apache-2.0
"""The mutants of bpf/*.h, before any is compiled."""

from __future__ import annotations

import random

from lb.datapath.maps import layouts
from tests.mutants.__main__ import GENERAL, KILLERS, LEFT_OUT, ROOT, named, sample
from tests.mutants.making import mutants


def test_every_header_has_its_tests_or_is_left_out() -> None:
    assert sorted((*KILLERS, *LEFT_OUT)) == sorted(path.name for path in layouts.BPF_DIR.glob("*.h"))
    for name in (*GENERAL, *(name for names in KILLERS.values() for name in names)):
        assert (ROOT / "tests" / "packet" / f"test_{name}.py").is_file(), name


def test_a_mutant_is_one_line_that_differs() -> None:
    for file in KILLERS:
        text = (layouts.BPF_DIR / file).read_text()
        found = list(mutants(file, text))
        assert found or file in ("step.h", "watch.h"), file
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


def test_the_sample_goes_round_the_headers() -> None:
    files = ("cache.h", "nat.h", "parse.h")
    drawn = list(sample(random.Random(1), files))
    assert drawn[: len(list(named()))] == list(named())
    rest = drawn[len(list(named())) :]
    assert {mutant.file for mutant in rest[:3]} == set(files)
    assert drawn == list(sample(random.Random(1), files))
