# SPDX-License-Identifier: Apache-2.0
"""Texts that fit the terminal."""

from __future__ import annotations

import pytest

from lb.cli import forms
from lb.cli.width import folded
from lb.datapath.view.dump import CounterEntry

TEXT = """\
default/payment-authorization-gateway: 3 live connections, 12 closed, 4 clients with affinity

  loadBalancer 203.0.113.22:80: 3 offered; only from 192.0.2.0/24, 198.51.100.0/24
    → 10.244.2.5:8080, pod payment-authorization-gateway-2wtbh, on node2, active; so far 0 connections
"""


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_too_long_goes_on_below_its_beginning(width: int) -> None:
    lines = folded(TEXT, width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(TEXT.split()), "no word is lost or parted"
    assert [line for line in lines if line.startswith(" " * 8)], "further in than what it belongs to"


def test_what_fits_or_goes_to_no_terminal_stays_as_it_is() -> None:
    assert folded(TEXT, 120) == TEXT
    assert folded(TEXT, None) == TEXT


def test_a_dump_fits_with_its_numbers_flush_right() -> None:
    entries = [
        CounterEntry("TC_UPLINK_IN", "NOT_VIP", 12345, 1, "not for a VIP and not a reply: untouched"),
        CounterEntry("SOCK_GETPEERNAME", "NOT_VIP", 7, 22, "not for a VIP and not a reply: untouched"),
    ]
    head, *rows = forms.as_table({"counters": entries}, 60).splitlines()[1:]
    assert max(map(len, (head, *rows))) <= 60
    ends = {row.index(number) + len(number) for row, number in zip(rows[1::2], ("12345", "7"), strict=True)}
    assert ends == {head.index("PACKETS") + len("PACKETS")}
