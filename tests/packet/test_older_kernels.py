# SPDX-License-Identifier: Apache-2.0
"""What programs do by another way on kernels that lack something comes out the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lb.datapath.programs import features
from lb.model import Protocol
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import Datapath
from tests.packet.plans import service


@pytest.fixture(scope="module")
def old() -> Iterator[Datapath]:
    """The programs as they are where they may call no function of the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "kernel_functions", lambda: features.NO_FUNCTIONS)
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
