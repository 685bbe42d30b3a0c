# SPDX-License-Identifier: Apache-2.0
"""The story of a packet, word for word, from evidence that is made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import cast

from lb.cli import trace as command
from lb.datapath.programs.rehearsal import Outcome, Verdict
from lb.datapath.view.lookups import Affinity, Flow, Vip
from lb.datapath.view.words import ShownBackend
from lb.diagnose.entries import Entries
from lb.diagnose.trace import EntryPoint, Traced
from lb.diagnose.trace_story import Evidence, Hop, Side, as_dict, render
from lb.model import FiveTuple

CLIENT, VIP, POD = ip_address("192.0.2.50"), ip_address("203.0.113.10"), ip_address("10.0.1.5")
ASKED = FiveTuple(CLIENT, 40_000, VIP, 80, 6)
BACKEND = ShownBackend(7, "10.0.1.5:8080", "node1", True, "active")
ENTRY = Vip(3, "loadBalancer", "default/web", "http", 0, 2, 2, False, True)
NEW = Flow("192.0.2.50:40000", "203.0.113.10:80", BACKEND, "192.0.2.50:40000", "new", "stack", 0.0, False)
BEFORE = "TCP 192.0.2.50:40000 > 203.0.113.10:80 [S], ttl 64, 54 bytes"
AFTER = "TCP 192.0.2.50:40000 > 10.0.1.5:8080 [S], ttl 64, 54 bytes"


def hop(reason: str, meaning: str, verdict: Verdict, program: str = "lb_tc_uplink_in") -> Hop:
    xdp = program == "lb_xdp_uplink"
    hook = "XDP_UPLINK" if xdp else "TC_UPLINK_IN"
    return Hop(
        "eth0", "xdp-native" if xdp else "tc ingress", Outcome(program, hook, reason, meaning, verdict, b"")
    )


TRANSLATED = hop("NEW_LOCAL", "first packet of a flow, backend on this node: translated", Verdict.PASS)
CONNECTION = Evidence(
    BEFORE,
    AFTER,
    (("IP.dst", "203.0.113.10", "10.0.1.5"), ("TCP.dport", "80", "8080")),
    Side.OUTSIDE,
    (TRANSLATED,),
    packet=ASKED,
    sent=FiveTuple(CLIENT, 40_000, POD, 8080, 6),
    vip=ENTRY,
    made=NEW,
)


def test_a_new_connection() -> None:
    assert render(CONNECTION) == (
        "TCP 192.0.2.50:40000 > 203.0.113.10:80 [S], ttl 64, 54 bytes\n"
        "  program   lb_tc_uplink_in at eth0, tc ingress\n"
        "  VIP       203.0.113.10:80/TCP is a loadBalancer of default/web, port http\n"
        "  flow      none known: a new connection\n"
        "  policy    from outside, externalTrafficPolicy Cluster: 2 backends are offered\n"
        "  hash      of addresses, ports and protocol: rendezvous among 2\n"
        "  backend   10.0.1.5:8080 on node1, this node, active\n"
        "  NAT       destination 203.0.113.10:80 becomes 10.0.1.5:8080; source 192.0.2.50:40000 stays\n"
        "  verdict   on to the kernel's stack: NEW_LOCAL (first packet of a flow, backend on this node:"
        " translated)\n"
        "  after     TCP 192.0.2.50:40000 > 10.0.1.5:8080 [S], ttl 64, 54 bytes\n"
        "  changed   IP.dst 203.0.113.10 > 10.0.1.5\n"
        "            TCP.dport 80 > 8080\n"
    )


def test_a_backend_whose_pod_is_known_has_its_name() -> None:
    named = replace(CONNECTION, pods={"10.0.1.5:8080": "default/web-1"})
    assert "  backend   10.0.1.5:8080 (default/web-1) on node1, this node, active\n" in render(named)
    assert as_dict(named)["pods"] == {"10.0.1.5:8080": "default/web-1"}


def test_a_table_and_an_affinity_that_is_over() -> None:
    vip = replace(ENTRY, affinity_seconds=60, offered=20, rows=2039, ranges=("192.0.2.0/24",))
    kept = Affinity(replace(BACKEND, address="10.0.1.9:8080"), 75.5, "its time is over")
    text = render(replace(CONNECTION, vip=vip, affinity=kept))
    assert "  source    192.0.2.50 is among loadBalancerSourceRanges 192.0.2.0/24\n" in text
    assert (
        "  affinity  192.0.2.50 had 10.0.1.9:8080, but its time is over; what is chosen now it keeps for"
        " 60 s\n"
        "  hash      of the client's address alone: a row of a Maglev table of 2039 for 20 backends\n"
    ) in text


def test_xdp_leaves_it_to_tc() -> None:
    left = hop("TO_TC", "left to tc", Verdict.PASS, "lb_xdp_uplink")
    text = render(replace(CONNECTION, hops=(left, TRANSLATED)))
    assert (
        "  program   lb_xdp_uplink at eth0, xdp-native: TO_TC (left to tc)\n"
        "  program   lb_tc_uplink_in at eth0, tc ingress\n"
    ) in text
    assert "  verdict   left to tc, but no program of ours is there: TO_TC (left to tc)\n" in render(
        replace(CONNECTION, hops=(left,))
    )


def test_a_drop_has_no_packet_afterwards() -> None:
    dropped = hop("NO_LOCAL_ENDPOINT", "policy Local: dropped", Verdict.DROP)
    vip = replace(ENTRY, local=True, offered=0, rows=0)
    found = replace(CONNECTION, after="", changed=(), hops=(dropped,), vip=vip, sent=None, made=None)
    assert render(found) == (
        f"{BEFORE}\n"
        "  program   lb_tc_uplink_in at eth0, tc ingress\n"
        "  VIP       203.0.113.10:80/TCP is a loadBalancer of default/web, port http\n"
        "  flow      none known: a new connection\n"
        "  policy    from outside, externalTrafficPolicy Local: no endpoint on this node, though there are"
        " some on others\n"
        "  verdict   dropped: NO_LOCAL_ENDPOINT (policy Local: dropped)\n"
    )


def test_a_flow_that_is_begun_afresh_says_why() -> None:
    for flow, why in (
        (replace(NEW, state="closed"), "is closed"),
        (replace(NEW, over=True), "has been idle for too long"),
        (replace(NEW, backend=replace(BACKEND, state="free")), "has lost its backend"),
    ):
        assert f"  flow      the one of before {why} (" in render(replace(CONNECTION, flow=flow))


def test_what_no_service_has() -> None:
    passed = hop("NOT_VIP", "not for a VIP", Verdict.PASS)
    found = Evidence(BEFORE, BEFORE, (), Side.OUTSIDE, (passed,), packet=ASKED, sent=ASKED)
    assert render(found) == (
        f"{BEFORE}\n"
        "  program   lb_tc_uplink_in at eth0, tc ingress\n"
        "  VIP       no Service has 203.0.113.10:80/TCP\n"
        "  verdict   on to the kernel's stack: NOT_VIP (not for a VIP)\n"
        "  after     as it came\n"
    )


def test_a_packet_that_is_not_read_has_a_verdict_alone() -> None:
    found = Evidence("ARP", "ARP", (), Side.OUTSIDE, (hop("NOT_IP", "no IP", Verdict.PASS),))
    assert render(found).splitlines()[2] == "  verdict   on to the kernel's stack: NOT_IP (no IP)"


def test_json_has_evidence_and_story() -> None:
    found = json.loads(json.dumps(as_dict(CONNECTION, CONNECTION)))
    assert found["reason"] == "NEW_LOCAL"
    assert found["vip"]["service"] == "default/web"
    assert found["flow_before"] is None
    assert found["flow_after"]["backend"]["address"] == "10.0.1.5:8080"
    assert found["sent"] == {
        "protocol": "TCP",
        "source": "192.0.2.50:40000",
        "destination": "10.0.1.5:8080",
    }
    assert found["changed"][0] == {"field": "IP.dst", "before": "203.0.113.10", "after": "10.0.1.5"}
    assert [each["step"] for each in found["story"]] == [
        "program", "VIP", "flow", "policy", "hash", "backend", "NAT", "verdict",
    ]  # fmt: skip
    assert found["reply"]["reason"] == "NEW_LOCAL"


def test_with_direct_return_no_answer_comes_back_here() -> None:
    hit = hop("FLOW_HIT", "packet of a known flow: translated", Verdict.PASS)
    known = replace(CONNECTION, hops=(hit,), made=replace(NEW, path="direct"))
    entry = EntryPoint("eth0", 2, "02:00:00:00:00:01", Side.OUTSIDE, ((hit.outcome.program, hit.at),))
    nowhere = cast("Entries", None)  # whoever looked for the answer's way would ask it
    assert command._answer(nowhere, entry, Traced(known, b"", b"")) is None
