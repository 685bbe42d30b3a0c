# SPDX-License-Identifier: Apache-2.0
"""From no endpoint to the first: nothing goes on untranslated, nobody who keeps trying is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from lb.datapath.maps.interface import Rows
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import DROP, PASS, SEND, Datapath, Result
from tests.packet.plans import service

PROTOCOLS = (Protocol.TCP, Protocol.UDP)
FROM_OUTSIDE_TO_HERE = [path for path in PATHS if path.client == p.CLIENT and not path.forwarded]

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
each_kind = pytest.mark.parametrize("kind", list(VipKind))


@each_path
@each_protocol
@each_kind
def test_first_endpoint_lets_a_client_in_that_keeps_trying_with_one_port(
    datapath: Datapath, path: Path, protocol: Protocol, kind: VipKind
) -> None:
    """It was rejected, and nothing is remembered of that."""
    client = Conversation(datapath, path, protocol=protocol, kind=kind)
    for backend in path.backends(20, 3):
        datapath.apply(service(protocol=protocol))
        for _ in range(3):
            result = client.try_to_send()
            assert (result.verdict, result.reason) == (SEND, "REJECT_NO_ENDPOINT")
        assert len(datapath.read("flows")[0]) == 0
        datapath.apply(service(backend, protocol=protocol))
        assert client.send().startswith("NEW_")
        assert client.backend == backend
        client.answer()
        datapath.reset()


@pytest.mark.parametrize("path", FROM_OUTSIDE_TO_HERE, ids=lambda path: path.name)
@each_protocol
@pytest.mark.parametrize("kind", [kind for kind in VipKind if kind is not VipKind.CLUSTER_IP])
def test_first_endpoint_of_this_node_under_policy_local(
    datapath: Datapath, path: Path, protocol: Protocol, kind: VipKind
) -> None:
    """What was dropped for want of an endpoint here is let in by the first one here."""
    client = Conversation(datapath, path, protocol=protocol, kind=kind)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol, external=TrafficPolicy.LOCAL))
    for _ in range(3):
        result = client.try_to_send()
        assert (result.verdict, result.reason) == (DROP, "NO_LOCAL_ENDPOINT")
    both = service(p.BACKEND_REMOTE, p.BACKEND_LOCAL, protocol=protocol, external=TrafficPolicy.LOCAL)
    datapath.apply(both)
    assert client.send() == "NEW_LOCAL"
    client.answer()


@contextmanager
def before_every_write(datapath: Datapath, look: Callable[[], None]) -> Iterator[None]:
    """Call look before each write of the reconciler to the kernel's maps."""
    maps = datapath.maps
    update, delete, array = maps.update, maps.delete, maps.array

    def watched_update(name: str, keys: Rows, values: Rows) -> None:
        look()
        update(name, keys, values)

    def watched_delete(name: str, keys: Rows) -> None:
        look()
        delete(name, keys)

    def watched_array(name: str) -> Rows:
        look()
        return array(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "update", watched_update)
        patch.setattr(maps, "delete", watched_delete)
        patch.setattr(maps, "array", watched_array)
        yield


@each_path
@each_protocol
def test_first_endpoint_at_no_moment_of_an_update_is_a_packet_forwarded_untranslated(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """Rejected or translated, before, between and after the writes, from none to one to many to none."""
    steps: list[tuple[str, ...]] = [(), path.backends(20, 1), path.backends(20, 9), (), path.backends(30, 2)]
    seen: list[Result] = []
    port = iter(range(20_000, 60_000))

    def look() -> None:
        client = Conversation(datapath, path, next(port), protocol, VipKind.CLUSTER_IP)
        seen.append(client.try_to_send())

    def plan(backends: tuple[str, ...]) -> ServicePlan:
        return service(*backends, protocol=protocol)

    datapath.apply(plan(()))
    for before, after in pairwise(steps):
        seen.clear()
        with before_every_write(datapath, look):
            datapath.apply(plan(after))
        look()
        reasons = {result.reason for result in seen}
        allowed = {"REJECT_NO_ENDPOINT"} if not (before and after) else set()
        assert reasons <= allowed | {"NEW_LOCAL", "NEW_REMOTE"}
        assert seen[-1].reason.startswith("NEW_" if after else "REJECT_")
        assert len(seen) > 1 + bool(after)  # before the tables, before the VIPs, and after all
        translated = [result for result in seen if result.reason.startswith("NEW_")]
        assert all(result.verdict == (SEND if path.forwarded else PASS) for result in translated)
