# SPDX-License-Identifier: Apache-2.0
"""Routers to tell, what to tell them, and the file that both stand in.

::

    asn: 64512                        # ours
    peers:
      - name: tor-a
        address: 192.168.77.1
        asn: 64500                    # the router's; equal to ours: iBGP
        local_asn: 64513              # default: the asn above
        port: 179                     # default
        source: 192.168.77.11         # our address of the session; default: the one that routing picks
        password_file: tor-a.key      # MD5 (RFC 2385); beside this file, or an absolute path
        multihop: 2                   # default 0: the router is on a network of the node
        hold_seconds: 9               # default: 90; the router forgets us after so long without a word
        bfd: true                     # default false; then after bfd_interval_ms times bfd_multiplier
        bfd_interval_ms: 300          # default
        bfd_multiplier: 3             # default
        graceful_restart_seconds: 30  # default; 0: none (RFC 4724)
        families: [ipv4, ipv6]        # default: both, over the one session (RFC 4760)
        nodes: {rack: a}              # labels that a Node must have; default: every node has this peer
    advertise:                        # what fits no entry is not told to anybody
      - addresses: [203.0.113.0/24, 2001:db8:203::/112]
        external_ips: true            # default false: load-balancer addresses alone
        namespaces: [shop]            # of Services; default: all
        labels: {exposed: "yes"}      # labels that a Service must have; default: none
        nodes: {rack: a}              # labels that a Node must have; default: none
        peers: [tor-a]                # default: all
        communities: ["64512:100", no-export]
        large_communities: ["64512:1:2"]
        local_pref: 200               # to iBGP peers
        aggregate: 24                 # one route of this length for all IPv4 addresses in it; default: 32
        aggregate_ipv6: 112           # the same of IPv6; default: 128
    withdraw_seconds: 1               # these four: see lb.announce.damping; defaults
    announce_seconds: 3
    drain_seconds: 10
    silent_seconds: 60

A peer that is wrong costs only itself: the others are used, and of it what was good before. Anything else
that is wrong leaves everything as it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

from lb.announce.damping import Hold
from lb.bgp.advertisement import MOST_ASN, Advertisement, advertisement
from lb.errors import ConfigError
from lb.folders import read_file, signature
from lb.manifests import syntax
from lb.manifests.fields import Field, Problems
from lb.manifests.own_file import one_document, read_text
from lb.model import IPAddress
from lb.words import some

_log = logging.getLogger(__name__)

_MOST_PASSWORD = 80  # TCP_MD5SIG_MAXKEYLEN of linux/tcp.h
_MOST_SECONDS = 3600
_TOP = frozenset(
    (
        "asn",
        "peers",
        "advertise",
        "withdraw_seconds",
        "announce_seconds",
        "drain_seconds",
        "silent_seconds",
    )
)
_PEER = frozenset(
    (
        "name",
        "address",
        "asn",
        "local_asn",
        "port",
        "source",
        "password_file",
        "multihop",
        "hold_seconds",
        "bfd",
        "bfd_interval_ms",
        "bfd_multiplier",
        "graceful_restart_seconds",
        "families",
        "nodes",
    )
)
_FAMILIES = {"ipv4": 4, "ipv6": 6}
_PASSWORD = re.compile(r"[\x20\x21\x23-\x7e]+")  # printable ASCII but ", which BIRD cannot take


@dataclass(frozen=True, slots=True)
class Bfd:
    """BFD towards a peer: a packet every interval_ms each way; when so many are missing the peer is down."""

    interval_ms: int = 300
    multiplier: int = 3


@dataclass(frozen=True, slots=True)
class Peer:
    """A router; see the module. versions: IP versions of the addresses that it is told.

    password is ``""`` without one. nodes: labels that a Node must have.
    """

    name: str
    address: IPAddress
    asn: int
    local_asn: int
    port: int = 179
    source: IPAddress | None = None
    password: str = field(default="", repr=False)
    multihop: int = 0
    hold_seconds: int = 90
    bfd: Bfd | None = None
    graceful_restart_seconds: int = 30
    versions: tuple[int, ...] = (4, 6)
    nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peers:
    """All of the file."""

    peers: tuple[Peer, ...] = ()
    advertise: tuple[Advertisement, ...] = ()
    hold: Hold = field(default_factory=Hold)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the text of a file says: errors of single peers, by name where it has one, and all else."""

    found: Peers
    errors: tuple[str, ...] = ()
    broken: frozenset[str] = frozenset()


class PeersFile:
    """The file, read again when it or a password changes. What is wrong is logged, and what was good stays.

    peers: what holds now. errors: what is wrong with the file now.

    Raises ConfigError: it cannot be used to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._signature()
        reading = read(path)
        self.peers, self.errors = reading.found, reading.errors
        self._tell()

    def refresh(self) -> bool:
        """Look at the file again; return whether something else is to be done now."""
        seen = self._signature()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            reading = read(self._path)
        except ConfigError as error:
            self.errors = (str(error),)
            self._tell()
            return False
        self.errors = reading.errors
        self._tell()
        kept = [each for each in self.peers.peers if each.name in reading.broken]
        found = replace(reading.found, peers=(*reading.found.peers, *kept))
        changed, self.peers = found != self.peers, found
        if changed:
            _log.info("%s: peers %s", self._path, some(each.name for each in found.peers) or "none")
        return changed

    def _tell(self) -> None:
        for error in self.errors:
            _log.error("%s; what was good stays", error)

    def _signature(self) -> tuple[object, ...]:
        """Return what changes when the file does, or one beside it: a Secret may be mounted there."""
        return tuple(map(signature, (self._path, *_passwords(self._path))))


def _passwords(path: Path) -> list[Path]:
    """Return the password files that a file names, as far as that can be told."""
    try:
        text = read_text(path)
    except ConfigError:
        return []
    return [path.parent / name for name in re.findall(r"password_file:\s*[\"']?([^\s\"',}]+)", text)]


def read(path: Path) -> Reading:
    """Return what a file says.

    Raises ConfigError: it cannot be read, or something in it is wrong beside single peers.
    """
    return parse(read_text(path), str(path))


def parse(text: str, path: str) -> Reading:
    """Return what the text of a file says; path: for errors, and where password files are looked for.

    Raises ConfigError: something beside single peers is wrong; the first thing is named.
    """
    problems, of_peers = Problems(path), Problems(path)
    root = one_document(text, problems)
    if root is None:
        raise ConfigError(f"{path}: is empty; say asn, peers and advertise")
    top = root.fields(_TOP)
    asn = _asn(top["asn"])
    peers: dict[str, Peer] = {}
    broken: set[str] = set()
    for place in top["peers"].items():
        name, peer = _peer(replace(place, problems=of_peers), asn, Path(path).parent, peers.keys() | broken)
        if peer is None:
            broken.add(name)
        else:
            peers[name] = peer
    advertise = tuple(advertisement(place, peers.keys() | broken) for place in top["advertise"].items())
    if not advertise:
        top["advertise"].error("must say which addresses may be told: an entry with addresses, at least")
    usual = Hold()
    hold = Hold(
        *(
            top[name].number(0, _MOST_SECONDS, int(getattr(usual, name)))
            for name in ("withdraw_seconds", "announce_seconds", "drain_seconds", "silent_seconds")
        )
    )
    for error in problems.errors():
        raise ConfigError(str(error))
    errors = tuple(str(error) for error in of_peers.errors())
    return Reading(Peers(tuple(peers.values()), advertise, hold), errors, frozenset(broken) - {""})


def _asn(place: Field) -> int:
    if not place.present:
        place.error(f"must be an AS number from 1 to {MOST_ASN}, is missing")
        return 1
    return place.number(1, MOST_ASN, 1)


def _peer(place: Field, asn: int, folder: Path, taken: set[str]) -> tuple[str, Peer | None]:
    """Return a peer and its name; None, with the errors noted, if something in it is wrong."""
    problems = place.problems
    before = len(problems.noted) + problems.left_out
    fields = place.fields(_PEER)
    name = fields["name"].text()
    if not name:
        fields["name"].error("is missing")
    elif fields["name"].check(syntax.dns_label(name)) and name in taken:
        fields["name"].error(f"{name!r} is the name of an earlier peer, too")
        name = ""
    address = fields["address"].address()
    if address is not None:
        fields["address"].check(syntax.endpoint_address(address))
    source = fields["source"].address() if fields["source"].present else None
    if address and source and source.version != address.version:
        fields["source"].error(f"must be of the family of the peer's address, {address}")
    bfd = fields["bfd"].flag()
    timing = Bfd(fields["bfd_interval_ms"].number(10, 10_000, 300), fields["bfd_multiplier"].number(2, 50, 3))
    hold = fields["hold_seconds"].number(3, 65535, 90)
    found = Peer(
        name,
        address or _NOWHERE,
        _asn(fields["asn"]),
        fields["local_asn"].number(1, MOST_ASN, asn),
        fields["port"].number(1, 65535, 179),
        source,
        _password(fields["password_file"], folder),
        fields["multihop"].number(0, 255),
        hold,
        timing if bfd else None,
        fields["graceful_restart_seconds"].number(0, 4095, 30),
        _versions(fields["families"]),
        fields["nodes"].string_map(syntax.label_key, syntax.label_value),
    )
    wrong = len(problems.noted) + problems.left_out > before
    return name, None if wrong else found


_NOWHERE = ip_network("0.0.0.0/32").network_address


def _password(place: Field, folder: Path) -> str:
    """Return what is in a file, without the end of its line."""
    if not place.present:
        return ""
    path = folder / place.text()
    try:
        text = read_file(path, 1024).decode("ascii").rstrip("\r\n")
    except OSError as error:
        place.error(f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        place.error(f"{path}: holds more than ASCII")
    else:
        if len(text) <= _MOST_PASSWORD and _PASSWORD.fullmatch(text):
            return text
        place.error(f'{path}: must hold one line of 1 to {_MOST_PASSWORD} printable characters but "')
    return ""


def _versions(place: Field) -> tuple[int, ...]:
    if not place.present:
        return (4, 6)
    found = set()
    for item in place.items():
        if (word := item.text()) in _FAMILIES:
            found.add(_FAMILIES[word])
        else:
            item.error(f"must be ipv4 or ipv6, is {word!r}")
    if not place.items():
        place.error("must name ipv4, ipv6, or both")
    return tuple(sorted(found))
