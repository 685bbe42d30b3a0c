# SPDX-License-Identifier: Apache-2.0
"""The tables that forget: where the programs put an entry, Python looks for it, and the other way round."""

from __future__ import annotations

import numpy as np
import pytest

from lb.datapath.kernel import bpf
from lb.datapath.maps import cache
from lb.datapath.maps.map_pins import read_rows
from lb.datapath.maps.map_table import MAP_SPECS
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import XDP, Datapath, own
from tests.packet.plans import VIPS, service

VIP = VIPS[VipKind.LOAD_BALANCER]


@pytest.mark.parametrize("name", ["flows", "affinity"])
def test_python_and_the_programs_agree_where_an_entry_is(datapath: Datapath, name: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, affinity_seconds=100))
    for number in range(100, 150):
        datapath.run(XDP, p.tcp(p.FROM_CLIENT, (f"192.0.2.{number}", 1000), VIP))
    spec = MAP_SPECS[own(name)]
    with bpf.obj_get(datapath.pins.maps / own(name)) as fd:
        buckets = read_rows(fd, spec)[1].reshape(-1).view(spec.kernel_value)
    found = 0
    for number, bucket in enumerate(buckets):
        entries = cache.entries(np.array([bucket]))
        if not len(entries.keys):
            continue
        at, tag = cache.places(datapath.array("hashing"), entries.keys, len(buckets))
        assert set(at.tolist()) == {number}
        assert sorted(tag.tolist()) == sorted(
            tag for tag in cache.tags(np.array([bucket]))[0].tolist() if tag
        )
        found += len(at)
    assert found == {"flows": 100, "affinity": 50}[name]
