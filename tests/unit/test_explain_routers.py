# SPDX-License-Identifier: Apache-2.0
"""What ``lbctl explain``, ``lbctl service list`` and the page say of the routers that were told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lb.announce.reach import reached
from lb.announce.servable import Standing, Verdict
from lb.bgp.bird import NO_SESSION, SessionState
from lb.bgp.config import Route
from lb.bgp.peers import Peer
from lb.bgp.status import PeerNow, SpeakerStatus
from lb.cli.service import collect, render
from lb.diagnose.explain import explain
from lb.diagnose.facts import Finding, causes
from lb.diagnose.outside import STEP
from tests.fake_maps import FakeMaps
from tests.unit.worlds import WEB, WELL, world

VIP = ip_address("203.0.113.5")
TOR_A = Peer("tor-a", ip_address("192.168.77.1"), 64500, 64512)
TOR_B = Peer("tor-b", ip_address("192.168.77.2"), 64500, 64512)
UP = SessionState(up=True, state="Established", exported=((4, 1),))


def status(verdict: Verdict, **sessions: SessionState) -> dict[str, Any]:
    told = [] if verdict.standing is Standing.CANNOT else [Route(ip_network(VIP))]
    peers = {"a": TOR_A, "b": TOR_B}
    return SpeakerStatus(
        told=[verdict],
        peers={peers[name].name: PeerNow(peers[name], told, session) for name, session in sessions.items()},
        agent_answers=True,
    ).as_dict()


def verdict(standing: Standing, why: str = "") -> Verdict:
    return Verdict(VIP, standing, why, services=(WEB,))


def findings(tmp_path: Path, speaker: dict[str, Any] | None) -> tuple[list[Finding], list[str]]:
    facts = world(tmp_path, WELL).facts()
    assert facts.service is not None
    facts.service = replace(facts.service, load_balancer_ips=(VIP,))
    facts.speaker = speaker
    found = explain(facts)
    return [one for one in found if one.step == STEP], causes(found)


def test_nothing_is_said_where_nobody_speaks(tmp_path: Path) -> None:
    assert findings(tmp_path, None) == ([], [])


@pytest.mark.parametrize(
    ("speaker", "words", "cause"),
    [
        (status(verdict(Standing.SERVES), a=UP, b=UP), ["203.0.113.5: told to tor-a, tor-b"], []),
        (
            status(verdict(Standing.LAST, "cordoned"), a=UP),
            ["told to tor-a, as the last resort: cordoned"],
            [],
        ),
        (
            status(verdict(Standing.CANNOT, "no ready endpoint"), a=UP),
            ["203.0.113.5: not told from this node: no ready endpoint"],
            [],
        ),
        (
            status(verdict(Standing.SERVES), a=UP, b=NO_SESSION),
            ["203.0.113.5: told to tor-a", "tor-b (192.168.77.2) is told nothing"],
            [],
        ),
        (
            status(verdict(Standing.SERVES), a=NO_SESSION),
            ["203.0.113.5: would be told to tor-a", "tor-a (192.168.77.1) is told nothing"],
            ["no-router-told"],
        ),
        (status(replace(verdict(Standing.SERVES), services=()), a=UP), ["203.0.113.5: not known"], []),
        (status(verdict(Standing.SERVES)), ["203.0.113.5: not told from this node: no entry"], []),
    ],
)
def test_the_way_from_outside(
    speaker: dict[str, Any], words: list[str], cause: list[str], tmp_path: Path
) -> None:
    found, known = findings(tmp_path, speaker)
    assert len(found) == len(words)
    for one, word in zip(found, words, strict=True):
        assert word in one.found
    assert known == cause


def test_a_list_of_services_ends_with_what_routers_were_told() -> None:
    found = collect(FakeMaps(), {}, running=True)
    assert "routers" not in render(found, wide=True)
    found["announced"] = status(verdict(Standing.SERVES), a=UP)["addresses"]
    assert "routers" not in render(found)
    assert "\ntold to routers by this node:\n  203.0.113.5  tor-a\n" in render(found, wide=True)
    found["announced"] = status(verdict(Standing.CANNOT, "no ready endpoint"), a=UP)["addresses"]
    assert "  203.0.113.5  nobody: no ready endpoint\n" in render(found)


def owner(name: str | None, why: str = "", *, here: bool = False) -> dict[str, Any]:
    return {"address": str(VIP), "interface": "eth0", "owner": name, "here": here, "why": why}


@pytest.mark.parametrize(
    ("owners", "words"),
    [
        (None, ["this node answers for none: announce is off"]),
        ([], ["not known yet to who finds its owner"]),
        ([owner("n1", here=True), {**owner("n2"), "address": "203.0.113.6"}], ["on eth0: this node answers"]),
        ([owner("n2", "node n2 owns it")], ["on eth0: node n2 answers"]),
        ([owner("n2", "cordoned")], ["on eth0: node n2 answers, since here cordoned"]),
        ([owner(None, "no carrier")], ["on eth0: nobody answers: no carrier"]),
    ],
)
def test_the_page_says_who_answers_on_the_segment(
    owners: list[dict[str, Any]] | None, words: list[str]
) -> None:
    (found,) = reached([str(VIP)], owners, None)
    assert found == {
        "address": str(VIP),
        "segment": words,
        "routers": ["this node tells none: lbctl announce bgp does not run"],
    }


def test_the_page_says_which_routers_were_told_and_why_not() -> None:
    speaker = status(verdict(Standing.SERVES), a=UP, b=NO_SESSION)
    known, unknown = reached([str(VIP), "203.0.113.6"], None, speaker)
    assert known["routers"][0] == "told to tor-a"
    assert known["routers"][1].startswith("tor-b (192.168.77.2) is told nothing, its session is not up: ")
    assert unknown["routers"] == ["not known yet to who tells routers"]
    cannot = status(verdict(Standing.CANNOT, "no ready endpoint"), a=UP)
    assert reached([str(VIP)], None, cannot)[0]["routers"] == ["not told from this node: no ready endpoint"]
