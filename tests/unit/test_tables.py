# SPDX-License-Identifier: Apache-2.0
"""Tables, and what becomes of them where they do not fit."""

from __future__ import annotations

import pytest

from lb.cli.tables import table

COLUMNS = ("service", "port", "backends", "vips")
ROWS = [
    ["default/kubia", "http", 3, "clusterIP 10.66.13.240:80, nodePort 192.168.77.11:30123, more of it"],
    ["default/a", "", 12, "-"],
]


def test_a_table_that_fits_has_a_line_for_each_row() -> None:
    wide = table(COLUMNS, ROWS)
    assert wide == table(COLUMNS, ROWS, width=len(max(wide.splitlines(), key=len)))
    assert wide.splitlines()[0] == "SERVICE        PORT  BACKENDS  VIPS"
    assert wide.splitlines()[2] == "default/a                  12  -"


@pytest.mark.parametrize("width", [40, 50, 60])
def test_one_that_does_not_is_broken_between_columns(width: int) -> None:
    text = table(COLUMNS, ROWS, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("SERVICE")
    assert [line for line in lines if not line.startswith(" ")][1:] == [
        line for line in lines if line.startswith("default/")
    ]
    assert text.split() == table(COLUMNS, ROWS).split()  # the order is that of columns


def test_the_columns_of_a_line_stand_below_those_of_the_header() -> None:
    lines = table(COLUMNS, ROWS, width=40).splitlines()
    assert lines[:2] == ["SERVICE        PORT  BACKENDS", "    VIPS"]
    assert lines[2:4] == ["default/kubia  http         3", "    clusterIP 10.66.13.240:80, nodePort"]
