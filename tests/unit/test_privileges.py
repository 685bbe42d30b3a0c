"""What an agent must be allowed, and what it says when it is not."""

from __future__ import annotations

import pytest

from lb.datapath import privileges
from lb.errors import DatapathError

ALL = sum(1 << number for number, _ in privileges.NEEDED.values())
SYS_ADMIN, NET_ADMIN = 1 << 21, 1 << 12


def test_the_needed_ones_are_enough() -> None:
    privileges.check(ALL)


@pytest.mark.parametrize("name", privileges.NEEDED)
def test_each_is_named_when_it_is_missing(name: str) -> None:
    number, purpose = privileges.NEEDED[name]
    with pytest.raises(DatapathError, match=f"lacks {name}, which {purpose};"):
        privileges.check(ALL & ~(1 << number))


def test_sys_admin_stands_for_the_younger_ones_alone() -> None:
    privileges.check(SYS_ADMIN | NET_ADMIN)
    assert privileges.missing(SYS_ADMIN) == ["CAP_NET_ADMIN"]


def test_they_are_read_from_the_kernel() -> None:
    assert privileges.effective("Name:\tx\nCapPrm:\tff\nCapEff:\t000000c000001000\n") == ALL
    assert privileges.missing(privileges.effective()) == []  # the tests run as root
