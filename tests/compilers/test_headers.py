# SPDX-License-Identifier: Apache-2.0
"""Every header in bpf/ stands alone: it includes what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb.datapath.maps import layouts
from tests.compilers import clang

NEEDS_NO_CTX = {
    "config.h",
    "csum.h",
    "types.h",
    "records.h",
    "tuple.h",
    "reasons.h",
    "maps.h",
    "packet.h",
    "solicitation.h",
    "service.h",
    "backend.h",
    "cache.h",
    "affinity.h",
    "flow_table.h",
    "flow_state.h",
    "sctp.h",
    "ctx_xdp.h",
    "ctx_tc.h",
    "ctx_sock.h",
    "sock.h",
}
"""Headers that touch no packet; the others need ctx_xdp.h or ctx_tc.h before them."""

OF_ONE_FAMILY = {"ip4.h": 4, "arp.h": 4, "ip6.h": 6, "ndp.h": 6}
"""The headers that one IP version alone includes."""

HEADERS = sorted(path.name for path in layouts.BPF_DIR.glob("*.h"))


@pytest.mark.parametrize(("ctx", "version"), [("ctx_xdp.h", 4), ("ctx_tc.h", 6)])
@pytest.mark.parametrize("compiler", clang.available()[:1])
def test_every_header_compiles_alone(compiler: str, ctx: str, version: int, tmp_path: Path) -> None:
    complaints = {}
    options = clang.headers(tmp_path)
    for header in HEADERS:
        if OF_ONE_FAMILY.get(header, version) == version:
            prelude = "" if header in NEEDS_NO_CTX else f'#include "{ctx}"\n'
            complaints[header] = clang.check(compiler, f'{prelude}#include "{header}"\n', version, options)
    assert len(complaints) > len(NEEDS_NO_CTX)
    assert {header: words for header, words in complaints.items() if words} == {}
