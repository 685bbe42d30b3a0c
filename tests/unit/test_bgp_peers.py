# SPDX-License-Identifier: Apache-2.0
"""The file of peers: what it may say, and what becomes of the rest of it when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lb.announce.damping import Hold
from lb.bgp.advertisement import Advertisement
from lb.bgp.peers import Bfd, Peer, PeersFile, parse, read
from lb.errors import ConfigError

FULL = """\
asn: 64512
peers:
  - name: tor-a
    address: 192.168.77.1
    asn: 64500
  - name: core
    address: fd00:77::1
    asn: 64512
    local_asn: 64513
    port: 1790
    source: fd00:77::11
    password_file: core.key
    multihop: 3
    hold_seconds: 9
    bfd: true
    bfd_interval_ms: 100
    bfd_multiplier: 5
    graceful_restart_seconds: 0
    families: [ipv6]
    nodes: {rack: a}
advertise:
  - addresses: [203.0.113.0/24, "2001:db8:203::5"]
    external_ips: true
    namespaces: [shop]
    peers: [core]
    communities: ["64512:100", no-export]
    large_communities: ["64512:1:4294967295"]
    local_pref: 200
    labels: {exposed: "yes"}
    nodes: {rack: a}
    aggregate: 24
  - addresses: [198.51.100.0/24]
withdraw_seconds: 2
announce_seconds: 4
drain_seconds: 20
silent_seconds: 90
"""
TOR = Peer("tor-a", ip_address("192.168.77.1"), 64500, 64512)
CORE = Peer(
    "core",
    ip_address("fd00:77::1"),
    64512,
    64513,
    port=1790,
    source=ip_address("fd00:77::11"),
    password="a b'c",
    multihop=3,
    hold_seconds=9,
    bfd=Bfd(100, 5),
    graceful_restart_seconds=0,
    versions=(6,),
    nodes={"rack": "a"},
)
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "core.key").write_text("a b'c\n")

    def write(text: str) -> Path:
        path = tmp_path / "peers.yaml"
        path.write_text(text)
        return path

    return write


def test_all_that_it_may_say(write: Write) -> None:
    reading = read(write(FULL))
    assert reading.errors == ()
    assert reading.found.peers == (TOR, CORE)
    assert reading.found.hold == Hold(2, 4, 20, 90)
    assert reading.found.advertise == (
        Advertisement(
            (ip_network("203.0.113.0/24"), ip_network("2001:db8:203::5/128")),
            external_ips=True,
            namespaces=frozenset(("shop",)),
            peers=frozenset(("core",)),
            communities=((64512, 100), (65535, 65281)),
            large_communities=((64512, 1, 4294967295),),
            local_pref=200,
            labels={"exposed": "yes"},
            nodes={"rack": "a"},
            lengths={4: 24, 6: 128},
        ),
        Advertisement((ip_network("198.51.100.0/24"),)),
    )
    assert "a b'c" not in repr(reading.found)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("asn: 64500", "asn: 0", "peers[0].asn: must be from 1 to 4294967295, is 0"),
        ("    asn: 64500\n", "", "peers[0].asn: must be an AS number from 1 to 4294967295, is missing"),
        ("name: tor-a", "name: Tor_A", "peers[0].name"),
        ("name: tor-a", "nam: tor-a", "did you mean name?"),
        ("address: 192.168.77.1\n", "address: 192.168.77.300\n", "peers[0].address: must be an IP address"),
        ("address: 192.168.77.1\n", "address: 127.0.0.1\n", "peers[0].address"),
        ("name: core", "name: tor-a", "peers[1].name: 'tor-a' is the name of an earlier peer, too"),
        ("source: fd00:77::11", "source: 192.168.77.11", "peers[1].source: must be of the family"),
        ("core.key", "nothing.key", "peers[1].password_file"),
        ("hold_seconds: 9", "hold_seconds: 2", "peers[1].hold_seconds: must be from 3 to 65535, is 2"),
        ("families: [ipv6]", "families: [ipx]", "peers[1].families[0]: must be ipv4 or ipv6, is 'ipx'"),
        ("bfd: true", "bfd: sometimes", "peers[1].bfd: must be a boolean"),
    ],
)
def test_a_peer_that_is_wrong_costs_only_itself(write: Write, old: str, new: str, field: str) -> None:
    path = write(FULL.replace("    peers: [core]\n", "").replace(old, new, 1))
    reading = read(path)
    error = reading.errors[0]
    assert error.startswith(f"{path}:")
    assert field in error
    assert reading.found.peers == ((CORE,) if "peers[0]" in error else (TOR,))


@pytest.mark.parametrize("secret", ["", "x" * 81, 'a"b', "two\nlines", "gr\u00fc\u00df"])
def test_passwords_that_cannot_be(write: Write, secret: str) -> None:
    path = write(FULL)
    (path.parent / "core.key").write_text(secret)
    [error] = read(path).errors
    assert "peers[1].password_file" in error
    assert secret not in error or not secret


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("asn: 64512\npeers", "asn: much\npeers", "asn"),
        ("[198.51.100.0/24]", "[198.51.100.1/24]", "advertise[1].addresses[0]"),
        ("peers: [core]", "peers: [cor]", "advertise[0].peers[0]: 'cor' is no peer of this file"),
        ('"64512:100"', '"64512:65536"', "advertise[0].communities[0]"),
        ('"64512:1:4294967295"', '"64512:1"', "advertise[0].large_communities[0]"),
        ("aggregate: 24", "aggregate: 23", "advertise[0].aggregate: must be 24 at least"),
        (
            "aggregate: 24",
            "aggregate_ipv6: 129",
            "advertise[0].aggregate_ipv6: must be from 0 to 128, is 129",
        ),
        ("withdraw_seconds: 2", "withdraw_secs: 2", "withdraw_secs: unknown field"),
        (FULL[FULL.index("advertise") :], "", "advertise: must say which addresses may be told"),
        (FULL, "# nothing\n", "must hold one YAML document, holds 0"),
        (FULL, FULL + "---\n" + FULL, "must hold one YAML document"),
    ],
)
def test_what_is_wrong_elsewhere_is_one_error(write: Write, old: str, new: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(FULL.replace(old, new, 1)))
    assert field in str(caught.value)


def test_an_advertisement_may_name_a_peer_that_is_wrong(write: Write) -> None:
    reading = parse(FULL.replace("asn: 64512\n    local", "asn: 0\n    local"), str(write(FULL)))
    assert len(reading.errors) == 1
    assert reading.broken == {"core"}


def test_the_file_is_followed_and_what_was_good_stays(write: Write) -> None:
    path = write(FULL)
    file = PeersFile(path)
    assert not file.refresh()
    write(FULL.replace("hold_seconds: 9", "hold_seconds: 0").replace("asn: 64500", "asn: 64501"))
    assert file.refresh()
    assert {each.name: (each.asn, each.hold_seconds) for each in file.peers.peers} == {
        "tor-a": (64501, 90),
        "core": (64512, 9),
    }
    assert len(file.errors) == 1
    before = file.peers
    write("asn: [")
    assert not file.refresh()
    assert file.peers == before
    assert len(file.errors) == 1
    path.unlink()
    assert not file.refresh()
    assert "No such file" in file.errors[0]
    assert file.peers == before
    write(FULL)
    assert file.refresh()
    assert not list(file.errors)


def test_a_password_that_changes_is_read_again(write: Write) -> None:
    path = write(FULL)
    file = PeersFile(path)
    (path.parent / "core.key").write_text("another one")
    assert file.refresh()
    assert [each.password for each in file.peers.peers] == ["", "another one"]
