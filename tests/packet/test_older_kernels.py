# SPDX-License-Identifier: Apache-2.0
"""What programs do by another way on kernels that lack something comes out the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lb.datapath.programs import features
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import SEND, TC_UPLINK_IN, Datapath
from tests.packet.plans import VIPS, service


@pytest.fixture(scope="module")
def old() -> Iterator[Datapath]:
    """The programs as they are where they may call no function of the kernel, and it tells no MTU."""
    with pytest.MonkeyPatch.context() as patch:
        known = features.optional(features.NO_FUNCTIONS)
        patch.setattr(features, "kernel_functions", lambda: features.NO_FUNCTIONS)
        patch.setattr(features, "optional", lambda *_: {**known, "FIB_MTU": 0})
        datapath = Datapath()
    yield datapath
    datapath.close()


@each_path
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_checksums_where_the_kernel_alone_knows_whether_they_are_complete(
    old: Datapath, path: Path, protocol: Protocol
) -> None:
    old.apply()
    old.reset()
    old.apply(service(*path.backends(20, 2), protocol=protocol))
    conversation = Conversation(old, path, protocol=protocol)
    conversation.establish()
    assert conversation.send("A") == "FLOW_HIT"
    assert conversation.answer("A") == "REPLY"


@pytest.mark.parametrize(
    ("backend", "length", "told"),
    [(p.BACKEND_REMOTE, 1501, 1500), (p.BACKEND_NARROW, 1501, 1500), (p.BACKEND_NARROW, 1500, 1280)],
)
def test_icmp_errors_tell_the_mtu_of_the_uplink_where_the_kernel_does_not(
    old: Datapath, backend: str, length: int, told: int
) -> None:
    """Where that does not explain it, as the route takes less, it is what every way takes."""
    old.reset()
    old.set_up_node()
    old.apply(service(backend))
    headers = {4: 40, 6: 60}[p.version()]
    client, vip = (p.CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP]
    frame = p.tcp(p.FROM_CLIENT, client, vip, payload=bytes(length - headers))
    result = old.run(TC_UPLINK_IN, frame)
    assert (result.verdict, result.reason) == (SEND, "TOO_BIG")
    p.assert_same(result.packet, p.icmp_error_for(frame, p.NODE1, "too big", told))
