# SPDX-License-Identifier: Apache-2.0
"""From peers and addresses to BIRD's configuration, which BIRD itself checks; and the lab's routers' own."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lb.announce.servable import AddressKind, Standing, Verdict
from lb.bgp.advertisement import Advertisement
from lb.bgp.bird import SessionState, parse_protocols, program
from lb.bgp.config import GRACEFUL_SHUTDOWN, Route, bird_conf, chosen, router_id, routes
from lb.bgp.peers import Bfd, Peer, Peers
from lb.lab import router
from lb.lab.addressing import Announce, Family, LabSpec, RouterKind
from lb.model import ObjectKey

TEXTS = Path(__file__).parent / "texts"
TOR = Peer("tor-a", ip_address("192.168.77.1"), 64500, 64512, bfd=Bfd())
CORE = Peer(
    "core",
    ip_address("fd00:77::1"),
    64512,
    64512,
    source=ip_address("fd00:77::11"),
    password="it's # a {secret};",
    multihop=3,
    hold_seconds=9,
    graceful_restart_seconds=0,
    versions=(6,),
    nodes={"rack": "a"},
)
WEB = ObjectKey("shop", "web")
FOUR, SIX = ip_address("203.0.113.5"), ip_address("2001:db8:203::5")
TOLD = (
    Verdict(FOUR, Standing.SERVES, services=(WEB,)),
    Verdict(ip_address("203.0.113.6"), Standing.LAST, services=(WEB,)),
    Verdict(ip_address("203.0.113.7"), Standing.CANNOT, services=(WEB,)),
    Verdict(SIX, Standing.LEAVING, services=(WEB,)),
)
EVERYTHING = Advertisement((ip_network("203.0.113.0/24"), ip_network("2001:db8:203::/112")))
COLOURED = replace(
    EVERYTHING, communities=((64512, 100),), large_communities=((64512, 1, 2),), local_pref=200
)


def checked(text: str, folder: Path) -> None:
    path = folder / "bird.conf"
    path.write_text(text)
    done = subprocess.run(
        [program(), "-p", "-c", str(path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_configuration_is_as_written_down_and_bird_takes_it(tmp_path: Path) -> None:
    peers = Peers((TOR, CORE), (COLOURED,))
    told = [(peer, routes(peer, peers.advertise, TOLD)) for peer in chosen(peers, {"rack": "a"})]
    text = bird_conf("192.168.77.11", told)
    assert text == (TEXTS / "bird.conf").read_text()
    checked(text, tmp_path)


def test_without_peers_it_is_a_configuration_as_well(tmp_path: Path) -> None:
    checked(bird_conf("192.168.77.11", []), tmp_path)


def test_a_node_has_the_peers_that_its_labels_fit() -> None:
    peers = Peers((TOR, CORE))
    assert chosen(peers, {}) == [TOR]
    assert chosen(peers, {"rack": "b"}) == [TOR]
    assert chosen(peers, {"rack": "a", "more": ""}) == [CORE, TOR]


def test_a_last_resort_is_told_as_such() -> None:
    told = routes(TOR, [EVERYTHING], TOLD)
    assert told == [
        Route(ip_network(FOUR)),
        Route(ip_network("203.0.113.6"), (GRACEFUL_SHUTDOWN,)),
        Route(ip_network(SIX), (GRACEFUL_SHUTDOWN,)),
    ]
    inner = replace(CORE, versions=(4, 6))
    assert [each.preference for each in routes(inner, [COLOURED], TOLD)] == [200, 0, 0]
    assert all(
        GRACEFUL_SHUTDOWN in each.communities for each in routes(TOR, [EVERYTHING], TOLD, leaving=True)
    )


@pytest.mark.parametrize(
    ("entry", "verdict", "fits"),
    [
        (EVERYTHING, TOLD[0], True),
        (replace(EVERYTHING, networks=(ip_network("203.0.113.8/29"),)), TOLD[0], False),
        (replace(EVERYTHING, peers=frozenset(("core",))), TOLD[0], False),
        (replace(EVERYTHING, peers=frozenset(("core", "tor-a"))), TOLD[0], True),
        (replace(EVERYTHING, namespaces=frozenset(("blog",))), TOLD[0], False),
        (replace(EVERYTHING, namespaces=frozenset(("blog", "shop"))), TOLD[0], True),
        (replace(EVERYTHING, labels={"tier": "front"}), TOLD[0], False),
        (replace(EVERYTHING, labels={"tier": "front"}), replace(TOLD[0], labels=({"tier": "front"},)), True),
        (replace(EVERYTHING, labels={"tier": "front"}), replace(TOLD[0], labels=({"tier": "back"},)), False),
        (EVERYTHING, replace(TOLD[0], kind=AddressKind.EXTERNAL_IP), False),
        (replace(EVERYTHING, external_ips=True), replace(TOLD[0], kind=AddressKind.EXTERNAL_IP), True),
    ],
)
def test_what_an_entry_is_about(entry: Advertisement, verdict: Verdict, *, fits: bool) -> None:
    assert bool(routes(TOR, [entry], [verdict])) is fits


def test_entries_add_up() -> None:
    second = replace(EVERYTHING, communities=((64512, 7),), local_pref=300)
    [route] = routes(TOR, [COLOURED, second], TOLD[:1])
    assert route == Route(ip_network(FOUR), ((64512, 7), (64512, 100)), ((64512, 1, 2),), 200)


def test_of_services_that_share_an_address_one_must_fit_an_entry_by_itself() -> None:
    entry = replace(EVERYTHING, namespaces=frozenset(("shop",)), labels={"tier": "front"})
    other = ObjectKey("blog", "web")
    shared = replace(TOLD[0], services=(other, WEB), labels=({"tier": "front"}, {"tier": "back"}))
    assert not routes(TOR, [entry], [shared])
    assert routes(TOR, [entry], [replace(shared, labels=({}, {"tier": "front"}))])


def test_a_route_of_several_addresses_is_there_while_one_is_and_a_last_resort_when_all_are(
    tmp_path: Path,
) -> None:
    wide = replace(EVERYTHING, lengths={4: 24, 6: 112}, communities=((64512, 1),))
    no_export = replace(EVERYTHING, communities=((65535, 65281),))
    network = ip_network("203.0.113.0/24")
    told = routes(TOR, [wide, no_export], TOLD[:3])
    assert told == [
        Route(network, ((64512, 1),)),
        Route(ip_network(FOUR), ((65535, 65281),)),
        Route(ip_network("203.0.113.6"), ((65535, 0), (65535, 65281))),
    ]
    assert routes(TOR, [wide], TOLD[1:3]) == [Route(network, ((64512, 1), GRACEFUL_SHUTDOWN))]
    assert routes(TOR, [wide], TOLD[2:3]) == []
    checked(bird_conf("192.168.77.11", [(TOR, told)]), tmp_path)


def test_router_ids() -> None:
    addresses = (ip_address("fd00:77::11"), ip_address("192.168.77.11"))
    assert router_id(addresses, "node1") == "192.168.77.11"
    first, second = (router_id(addresses[:1], name) for name in ("node1", "node2"))
    assert first != second
    assert ip_address(first).version == 4


ANSWER = """\
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     10:00:00.000

peer_core  BGP        ---        start  10:00:01.000  Connect       Socket: Connection refused
  BGP state:          Connect
    Neighbor address: fd00:77::1
    Neighbor AS:      64512
    Last error:       Socket: Connection refused
  Channel ipv6
    State:          DOWN
    Table:          t_peer_core_6

routes_peer_tor_a_4 Static     t_peer_tor_a_4 up     10:00:00.000
  Channel ipv4
    State:          UP
    Routes:         2 imported, 0 exported, 2 preferred

peer_tor_a BGP        ---        up     10:00:01.000  Established
  BGP state:          Established
    Neighbor address: 192.168.77.1
  Channel ipv4
    State:          UP
    Table:          t_peer_tor_a_4
    Routes:         0 imported, 2 exported, 2 preferred
  Channel ipv6
    State:          UP
    Routes:         0 imported, 1 exported, 1 preferred
"""


def test_what_bird_says_of_its_sessions() -> None:
    assert parse_protocols(ANSWER.splitlines()) == {
        "peer_core": SessionState(up=False, state="Connect", error="Socket: Connection refused"),
        "peer_tor_a": SessionState(up=True, state="Established", exported=((4, 2), (6, 1))),
    }


def spec(kind: RouterKind, family: Family) -> LabSpec:
    return LabSpec("lab", "/nowhere", announce=Announce.BGP, router=kind, family=family)


@pytest.mark.parametrize("family", list(Family))
def test_the_labs_routers_take_their_configurations(family: Family, tmp_path: Path) -> None:
    checked(router.bird_conf(spec(RouterKind.BIRD, family)), tmp_path)
    path = tmp_path / "frr.conf"
    path.write_text(router.frr_conf(spec(RouterKind.FRR, family)))
    for name in ("zebra", "bfdd", "bgpd"):
        done = subprocess.run(
            [f"/usr/lib/frr/{name}", "-C", "-f", str(path)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + done.stdout
