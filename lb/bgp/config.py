# SPDX-License-Identifier: Apache-2.0
"""Which routes each router gets, and the configuration of BIRD 2 that says so: pure.

Each peer has a table of its own for each family, filled by a static protocol: so peers may be told different
addresses with different attributes, and BIRD, which compares an old configuration with a new one, touches
only the routes that changed. There is no kernel protocol: BIRD neither reads nor writes the node's routes.

An address that its node serves as a last resort, or is about to leave, is told with the community
GRACEFUL_SHUTDOWN (RFC 8326), upon which routers prefer any other way, and to iBGP peers with local preference
0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.announce.servable import AddressKind, Standing, Verdict
from lb.bgp.advertisement import Advertisement
from lb.bgp.peers import Peer, Peers
from lb.model import IPAddress, IPNetwork, ObjectKey

GRACEFUL_SHUTDOWN = (65535, 0)
"""The community of RFC 8326."""
LAST_PREFERENCE = 0
RECOVERY_SECONDS = 10
"""For how long at most BIRD, started anew, waits for its peers before it tells them to go by it alone."""


@dataclass(frozen=True, slots=True)
class Route:
    """A network as a peer is told it, of one address or of several.

    communities: sorted. preference: None where none is said.
    """

    network: IPNetwork
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    preference: int | None = None


def shown(network: IPNetwork) -> str:
    """Return a route's network as people write it: without a length if it is one address."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def chosen(peers: Peers, labels: Mapping[str, str]) -> list[Peer]:
    """Return the peers of a node with these labels, by name."""
    found = (each for each in peers.peers if each.nodes.items() <= labels.items())
    return sorted(found, key=lambda each: each.name)


def routes(
    peer: Peer, advertise: Sequence[Advertisement], told: Iterable[Verdict], *, leaving: bool = False
) -> list[Route]:
    """Return what a peer is told, in the order of told; leaving: of all of it, that it is left soon.

    Entries of one length add up; those of another length are told beside. A route of several addresses is a
    last resort when that is said of all of them.
    """
    found: dict[IPNetwork, _Told] = {}
    for verdict in told:
        if verdict.standing is Standing.CANNOT or verdict.address.version not in peer.versions:
            continue
        for entry in advertise:
            if _fits(entry, peer, verdict):
                one = found.setdefault(entry.route(verdict.address), _Told())
                if entry not in one.entries:
                    one.entries.append(entry)
                one.serves |= verdict.standing is Standing.SERVES
    return [
        _route(network, one.entries, peer, last=leaving or not one.serves) for network, one in found.items()
    ]


@dataclass(slots=True)
class _Told:
    """Of a network: what it is told by. serves: an address in it is served without reserve."""

    entries: list[Advertisement] = field(default_factory=list)
    serves: bool = False


def _route(network: IPNetwork, entries: Sequence[Advertisement], peer: Peer, *, last: bool) -> Route:
    communities = {one for each in entries for one in each.communities}
    preference = next((each.local_pref for each in entries if each.local_pref is not None), None)
    return Route(
        network,
        tuple(sorted(communities | ({GRACEFUL_SHUTDOWN} if last else set()))),
        tuple(sorted({one for each in entries for one in each.large_communities})),
        LAST_PREFERENCE if last and peer.asn == peer.local_asn else preference,
    )


def _fits(entry: Advertisement, peer: Peer, verdict: Verdict) -> bool:
    """Tell whether an entry is about an address and a peer."""
    if entry.peers and peer.name not in entry.peers:
        return False
    if verdict.kind is AddressKind.EXTERNAL_IP and not entry.external_ips:
        return False
    if not any(_chooses(entry, key, labels) for key, labels in verdict.labelled()):
        return False
    return any(verdict.address in network for network in entry.networks)


def _chooses(entry: Advertisement, service: ObjectKey, labels: Mapping[str, str]) -> bool:
    """Tell whether an entry is about a Service."""
    if entry.namespaces and service.namespace not in entry.namespaces:
        return False
    return entry.labels.items() <= labels.items()


def router_id(addresses: Iterable[IPAddress], node: str) -> str:
    """Return the node's first IPv4 address; without one, a number that follows from its name.

    Two nodes must not have one in common (RFC 6286 2.1): of 1,000 nodes without IPv4, the names of some two
    come to the same with probability 1 in 8,600.
    """
    for address in addresses:
        if address.version == 4:
            return str(address)
    number = int.from_bytes(hashlib.blake2b(node.encode(), digest_size=4).digest(), "big") or 1
    return ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))


def protocol_name(peer: str) -> str:
    """Return the name of a peer's protocol in BIRD."""
    return f"peer_{peer.replace('-', '_')}"


def bird_conf(router: str, told: Sequence[tuple[Peer, Sequence[Route]]]) -> str:
    """Return the whole of BIRD's configuration; router: its router id."""
    blocks = [
        "# Written by `lbctl announce bgp`, again and again: changes do not last.\n"
        "log stderr { info, remote, warning, error, auth, fatal, bug };\n"
        f"router id {router};\n"
        f"graceful restart wait {RECOVERY_SECONDS};\n"
        "protocol device { }\n"
    ]
    if any(peer.bfd for peer, _ in told):
        blocks.append("protocol bfd { }\n")
    for peer, wanted in told:
        blocks += [_table(peer, version, wanted) for version in peer.versions]
        blocks.append(_session(peer))
    return "\n".join(blocks)


def _table(peer: Peer, version: int, wanted: Iterable[Route]) -> str:
    name = f"{protocol_name(peer.name)}_{version}"
    lines = [f"ipv{version} table t_{name};", f"protocol static routes_{name} {{"]
    lines.append(f"  ipv{version} {{ table t_{name}; }};")
    lines += [_line(each) for each in wanted if each.network.version == version]
    return "\n".join([*lines, "}\n"])


def _line(route: Route) -> str:
    sets = [f"bgp_community.add(({a},{b}));" for a, b in route.communities]
    sets += [f"bgp_large_community.add(({a},{b},{c}));" for a, b, c in route.large_communities]
    sets += [f"bgp_local_pref = {route.preference};"] if route.preference is not None else []
    attributes = f" {{ {' '.join(sets)} }}" if sets else ""
    return f"  route {route.network} blackhole{attributes};"


def _session(peer: Peer) -> str:
    name = protocol_name(peer.name)
    source = f"{peer.source} " if peer.source else ""
    lines = [
        f"protocol bgp {name} {{",
        f"  local {source}as {peer.local_asn};",
        f"  neighbor {peer.address} port {peer.port} as {peer.asn};",
        f"  multihop {peer.multihop};" if peer.multihop else "  direct;",
        f"  hold time {peer.hold_seconds};",
        # A router that comes back is greeted within seconds, not within BIRD's two minutes.
        "  connect delay time 1;",
        "  connect retry time 5;",
        "  error wait time 1, 10;",
    ]
    if peer.password:
        lines.append(f'  password "{peer.password}";')
    if peer.bfd:
        timing = f"interval {peer.bfd.interval_ms} ms; multiplier {peer.bfd.multiplier};"
        lines.append(f"  bfd {{ {timing} }};")
    if peer.graceful_restart_seconds:
        lines.append("  graceful restart on;")
        lines.append(f"  graceful restart time {peer.graceful_restart_seconds};")
    else:
        lines.append("  graceful restart off;")
    lines += [
        f"  ipv{version} {{ table t_{name}_{version}; import none; export all; }};"
        for version in peer.versions
    ]
    return "\n".join([*lines, "}\n"])
