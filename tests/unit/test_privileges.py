# SPDX-License-Identifier: Apache-2.0
"""What an agent must be allowed, and what it says when it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lb.datapath.kernel import privileges
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


_WITHOUT_BPF = """
import ctypes
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
allow_all, refuse = ctypes.c_uint32(0x7FFF0000), ctypes.c_uint32(0x00050001)
context = ctypes.c_void_p(library.seccomp_init(allow_all))
number = library.seccomp_syscall_resolve_name(b"bpf")
assert library.seccomp_rule_add_array(context, refuse, number, 0, None) == 0
assert library.seccomp_load(context) == 0
from lb.datapath.kernel import privileges
privileges.check()
"""


def test_a_seccomp_profile_is_told_from_a_missing_capability() -> None:
    assert not privileges.forbidden()
    done = subprocess.run([sys.executable, "-c", _WITHOUT_BPF], capture_output=True, text=True, check=False)
    assert "bpf() is forbidden to this process although it has the capabilities" in done.stderr
