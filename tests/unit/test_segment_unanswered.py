# SPDX-License-Identifier: Apache-2.0
"""Addresses that nobody on the segment answers for: what is told of them, and when."""

from __future__ import annotations

from typing import Any

from lb.model import ObjectKey
from lb.segment.unanswered import GRACE_SECONDS, Unanswered

WEB, DNS = ObjectKey("default", "web"), ObjectKey("kube-system", "dns")
SERVICES = {"192.0.2.1": (WEB,), "192.0.2.2": (DNS,), "198.51.100.1": (WEB,)}


def held(address: str, owner: str | None, why: str = "", interface: str = "eth0") -> dict[str, Any]:
    return {"address": address, "interface": interface, "owner": owner, "here": False, "why": why}


def test_an_address_may_be_nobodys_for_a_moment() -> None:
    one = Unanswered()
    lost = [held("192.0.2.1", None, "no ready endpoint")]
    assert one.note(lost, SERVICES, 0) == []
    assert one.note([held("192.0.2.1", "node2")], SERVICES, 1) == []
    assert one.note(lost, SERVICES, 2) == []
    assert one.note(lost, SERVICES, 1 + GRACE_SECONDS) == []
    (told,) = one.note(lost, SERVICES, 2 + GRACE_SECONDS)
    assert told.text == (
        "1 load-balancer address is answered for by nobody on the segment, 192.0.2.1 of default/web:"
        " no ready endpoint"
    )
    assert "lbctl explain default/web" in told.next
    assert one.note(lost, SERVICES, 3 + GRACE_SECONDS) == [], "it is told once"
    assert one.problems(routed=True) == [told]
    assert one.note([held("192.0.2.1", "node2")], SERVICES, 4 + GRACE_SECONDS) == []
    assert (one.problems(routed=False), one.count()) == ([], 0)


def test_addresses_with_one_reason_are_one_problem() -> None:
    one = Unanswered()
    lost = [held("192.0.2.1", None, "eth0 has no carrier"), held("192.0.2.2", None, "eth0 has no carrier")]
    one.note(lost, SERVICES, 0)
    (told,) = one.note(lost, SERVICES, GRACE_SECONDS)
    assert "2 load-balancer addresses are answered for" in told.text
    assert "192.0.2.1 of default/web, 192.0.2.2 of kube-system/dns: eth0 has no carrier" in told.text
    assert one.count() == 2


def test_an_owner_on_another_segment_or_the_node_s_own_stack_is_an_owner() -> None:
    one = Unanswered()
    for now in (0, GRACE_SECONDS):
        ways = [held("192.0.2.1", None, "no carrier"), held("192.0.2.1", "node1", "", "eth1")]
        ways.append(held("192.0.2.2", None, "it is an address of node node2"))
        assert one.note(ways, SERVICES, now) == []


def test_an_address_outside_of_the_segment_may_be_the_routers() -> None:
    one = Unanswered()
    for now in (0, GRACE_SECONDS):
        one.note([held("198.51.100.1", None, "in no network", "")], SERVICES, now)
    assert one.problems(routed=True) == []
    (told,) = one.problems(routed=False)
    assert "announce_networks" in told.next
