# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: what counts as a difference, and how differences are told."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.cli.shadow import render
from lb.config import Announce, Config, SocketMode, Switch, UplinkMode
from lb.datapath.maps.layouts import Side, VipKindCode
from lb.model import Protocol
from lb.served import metrics
from lb.shadow import judge, tally
from lb.shadow.judge import AGREED, Offer, Ours, Outcome, Theirs, Verdict
from lb.shadow.mode import as_shadow
from lb.shadow.watcher import Recent

CLIENT = ip_address("192.0.2.7")
HERE, THERE, OTHER = ((ip_address(f"10.0.{n}.1"), 8080) for n in range(3))
OFFER = Offer(VipKindCode.CLUSTER_IP, {HERE: True, THERE: False}, frozenset({HERE, THERE}))
OUTSIDE = VipKindCode.NODE_PORT
SERVED, REFUSED, DROPPED, UNTOUCHED = Outcome.SERVED, Outcome.REFUSED, Outcome.DROPPED, Outcome.UNTOUCHED


def verdict(
    ours: Outcome,
    theirs: Theirs,
    *,
    reason: str = "",
    side: Side = Side.OUTSIDE,
    offer: Offer = OFFER,
    protocol: Protocol = Protocol.TCP,
) -> Verdict:
    """Return what the judge says."""
    return judge.judge(Ours(ours, reason, side), theirs, offer, CLIENT, protocol)


@pytest.mark.parametrize(
    ("side", "backend", "masqueraded", "kind", "row"),
    [
        (Side.OUTSIDE, HERE, False, "", ""),
        (Side.OUTSIDE, HERE, True, "masqueraded-there", "source-address-kept"),
        (Side.OUTSIDE, THERE, True, "", ""),
        (Side.OUTSIDE, THERE, False, "kept-there", ""),
        (Side.INSIDE, THERE, False, "", ""),
        (Side.INSIDE, HERE, True, "masqueraded-there", ""),
        (Side.HOST, HERE, True, "", ""),
        (Side.OUTSIDE, OTHER, False, "other-backend", ""),
    ],
)
def test_served_by_both(side: Side, backend: judge.Place, masqueraded: bool, kind: str, row: str) -> None:
    assert verdict(SERVED, Theirs(SERVED, backend, masqueraded), side=side) == Verdict(kind, row)


def test_a_pod_that_is_its_own_backend_is_masqueraded_on_both_sides() -> None:
    itself = (CLIENT, 8080)
    offer = Offer(VipKindCode.CLUSTER_IP, {itself: True}, frozenset({itself}))
    assert verdict(SERVED, Theirs(SERVED, itself, True), side=Side.INSIDE, offer=offer) == AGREED
    kept = verdict(SERVED, Theirs(SERVED, itself, False), side=Side.INSIDE, offer=offer)
    assert kept == Verdict("kept-there")


def test_a_pod_at_a_node_port_keeps_its_address_as_meant() -> None:
    offer = Offer(OUTSIDE, OFFER.offered, OFFER.known)
    found = verdict(SERVED, Theirs(SERVED, THERE, True), side=Side.INSIDE, offer=offer)
    assert found == Verdict("masqueraded-there", "source-address-kept")


def test_a_backend_of_another_service_is_told_apart() -> None:
    offer = Offer(OFFER.kind, OFFER.offered, OFFER.known, "default/other:")
    assert verdict(SERVED, Theirs(SERVED, OTHER), offer=offer) == Verdict("other-service")
    narrowed = Offer(OFFER.kind, {HERE: True}, OFFER.known)
    assert verdict(SERVED, Theirs(SERVED, THERE), offer=narrowed) == Verdict("other-backend")


@pytest.mark.parametrize("ours", Outcome)
@pytest.mark.parametrize("theirs", Outcome)
def test_outcomes_agree_with_themselves_alone_and_each_difference_has_words(
    ours: Outcome, theirs: Outcome
) -> None:
    found = verdict(ours, Theirs(theirs, HERE if theirs is SERVED else None), reason="X")
    assert (found == AGREED) == (ours is theirs)
    assert not found.row
    assert not found.kind or judge.MEANINGS[found.kind]


@pytest.mark.parametrize(
    ("ours", "reason", "theirs", "protocol", "side", "row"),
    [
        (REFUSED, "REJECT_UNKNOWN_PORT", UNTOUCHED, Protocol.TCP, Side.INSIDE, "unused-cluster-ip-refused"),
        (REFUSED, "REJECT_UNKNOWN_PORT", DROPPED, Protocol.TCP, Side.INSIDE, "unused-cluster-ip-refused"),
        (REFUSED, "REJECT_UNKNOWN_PORT", SERVED, Protocol.TCP, Side.INSIDE, ""),
        (REFUSED, "REJECT_NO_ENDPOINT", SERVED, Protocol.UDP, Side.OUTSIDE, "udp-without-endpoints-refused"),
        (REFUSED, "REJECT_NO_ENDPOINT", SERVED, Protocol.TCP, Side.OUTSIDE, ""),
        (DROPPED, "NO_LOCAL_ENDPOINT", REFUSED, Protocol.UDP, Side.HOST, "dropped-in-silence"),
        (DROPPED, "NO_LOCAL_ENDPOINT", REFUSED, Protocol.UDP, Side.OUTSIDE, ""),
    ],
)
def test_what_is_meant_to_differ(
    ours: Outcome, reason: str, theirs: Outcome, protocol: Protocol, side: Side, row: str
) -> None:
    found = verdict(ours, Theirs(theirs, HERE), reason=reason, protocol=protocol, side=side)
    assert found.row == row
    differences = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
    assert not row or f"| `{row}` |" in differences


EXAMPLE = {
    "protocol": "TCP",
    "client": "192.0.2.7:40000",
    "vip": "10.96.0.10:80",
    "from": "outside",
    "here": {"outcome": "served", "reason": "NEW_LOCAL", "backend": "10.0.0.1:8080"},
    "there": {"outcome": "served", "backend": "10.0.2.1:8080", "masqueraded": True, "service": "default/b:"},
}


def counted() -> tally.Tally:
    """Return a tally of three Services' connections."""
    found = tally.Tally(1000.0)
    for _ in range(3):
        found.add("default/a:http", AGREED, {})
    found.add("default/a:http", Verdict("other-service"), EXAMPLE)
    found.add("default/b:", Verdict("masqueraded-there", "source-address-kept"), EXAMPLE)
    found.skip("lost", 7)
    return found


def test_a_report_sums_up_and_keeps_the_last_example() -> None:
    report = counted().report(1060.0)
    assert (report["agreed"], report["different"], report["meant"]) == (
        3,
        {"other-service": 1},
        {"source-address-kept": 1},
    )
    assert report["not_compared"]["lost"] == 7
    text = render(report)
    assert "5 connections compared in 60 s" in text
    assert "3  alike, 60.0 %" in text
    assert "7  not compared: the ring had no room" in text
    assert (
        "TCP 192.0.2.7:40000 > 10.96.0.10:80; here served 10.0.0.1:8080 (NEW_LOCAL);"
        " there served 10.0.2.1:8080 (default/b:,masqueraded)" in text
    )


def test_a_report_as_metrics() -> None:
    found = {
        tuple(one.labels.values()): one.value
        for family in metrics.shadow_metrics(counted().report(1060.0))
        for one in family.samples
    }
    assert found["default", "a", "http", "agreed", ""] == 3
    assert found["default", "a", "http", "different", "other-service"] == 1
    assert found["default", "b", "", "meant", "source-address-kept"] == 1
    assert found[("lost",)] == 7


def test_an_agent_in_shadow_mode_takes_nothing_that_kube_proxy_has() -> None:
    asked = Config(
        shadow=Switch.ON, uplink_mode=UplinkMode.XDP_NATIVE, redirect=Switch.ON, announce=Announce.ARP
    )
    got = as_shadow(asked)
    assert (got.uplink_mode, got.socket_lb, got.redirect) == (UplinkMode.TC, SocketMode.HOST, Switch.OFF)
    assert (got.announce, got.healthz_address, got.shadow) == (Announce.OFF, "off", Switch.ON)


def test_what_was_seen_of_late_is_bounded() -> None:
    recent = Recent(most=2)
    for at, key in enumerate("abc"):
        recent.note(key, at)
    assert [recent.has(key, 0) for key in "abc"] == [False, True, True]
    assert not recent.has("b", 2)
