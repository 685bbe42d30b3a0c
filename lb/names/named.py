# SPDX-License-Identifier: Apache-2.0
"""The configuration and zone files with which BIND's named starts: pure.

BIND, and not a server that is authoritative alone, because of Services of type ExternalName: the resolvers of
pods (glibc's, musl's) do not follow a CNAME record by themselves, so whoever answers has to follow it into
names outside of the cluster. Updates (RFC 2136) bring everything else into the zones while named runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from lb.model import IPAddress
from lb.names import ZONE

WORK = "/var/cache/bind"
"""Where named keeps zones and their journals; Debian's AppArmor profile lets it write there."""

KEY = "lbctl"
"""The name of the TSIG key, which may update and list the zones; its algorithm is HMAC-SHA256."""

TTL = 5
"""Seconds of every record, and of the answer that there is none."""

SERVER = f"ns.dns.{ZONE}"
"""The name that the DNS specification of Kubernetes gives the server."""

_NOBODY = "127.0.0.1 port 9"
"""Where nothing listens: a question that is sent there fails at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one named serves.

    Attributes
    ----------
    addresses: where it listens, port 53 of UDP and TCP.
    zones: text by the name of the zone, without the final dot; see :func:`empty_zone`.
    resolvers: who is asked for all other names, ``ADDRESS`` or ``ADDRESS port NUMBER``; without any, these
        questions fail at once.
    secret: of the TSIG key, in base64; ``""``: nobody may update anything.
    """

    addresses: Sequence[IPAddress]
    zones: Sequence[str]
    resolvers: Sequence[str] = ()
    secret: str = ""


def zone_file(zone: str) -> str:
    """Return the name of a zone's file in :data:`WORK`."""
    return f"{zone}.zone"


def named_conf(settings: Settings) -> str:
    """Return named.conf."""
    listen = {
        version: " ".join(f"{each};" for each in settings.addresses if each.version == version) or "none;"
        for version in (4, 6)
    }
    resolvers = " ".join(f"{each};" for each in settings.resolvers or (_NOBODY,))
    lines = [
        "options {",
        f'  directory "{WORK}";',
        f"  listen-on {{ {listen[4]} }};",
        f"  listen-on-v6 {{ {listen[6]} }};",
        "  pid-file none;",
        "  session-keyfile none;",
        "  allow-query { any; };",
        "  allow-recursion { any; };",  # for what is behind a CNAME
        "  allow-query-cache { any; };",
        "  forward only;",
        f"  forwarders {{ {resolvers} }};",
        "  dnssec-validation no;",  # nobody has signed names that exist in one cluster only
        "  empty-zones-enable no;",
        "  minimal-responses yes;",
        "  answer-cookie no;",  # several servers have one address, and no secret in common
        "  notify no;",
        "  check-names primary ignore;",  # of the addresses of endpoints: fd00-- is no host name
        f"  max-ncache-ttl {TTL};",
        "  max-cache-size 8m;",
        "  max-journal-size 256k;",
        "};",
        "controls { };",
    ]
    rights = ""
    if settings.secret:
        lines.append(f'key "{KEY}" {{ algorithm hmac-sha256; secret "{settings.secret}"; }};')
        rights = f' allow-update {{ key "{KEY}"; }}; allow-transfer {{ key "{KEY}"; }};'
    lines += (
        f'zone "{zone}" {{ type primary; file "{zone_file(zone)}";{rights} }};' for zone in settings.zones
    )
    return "\n".join(lines) + "\n"


def empty_zone(zone: str, server: str, addresses: Sequence[IPAddress] = ()) -> str:
    """Return a zone of which nothing is known yet but its server.

    server: the name of the server without final dot. addresses: the server's, where its name is in the zone.
    """
    records = [
        f"$TTL {TTL}",
        f"{zone}. SOA {server}. hostmaster.{zone}. 1 7200 1800 86400 {TTL}",
        f"{zone}. NS {server}.",
        *(f"{server}. {'AAAA' if each.version == 6 else 'A'} {each}" for each in addresses),
    ]
    return "\n".join(records) + "\n"


def reverse_zones(networks: Sequence[str]) -> list[str]:
    """Return the zones that the names of addresses in these networks are in (RFC 1035 3.5, RFC 3596 2.5).

    A zone begins at a whole octet of IPv4 and at a whole hexadecimal digit of IPv6, so a network that ends
    between two of them is in a zone that is wider.
    """
    found = []
    for text in networks:
        network = ip_network(text)
        unit = 8 if network.version == 4 else 4
        labels = network.network_address.reverse_pointer.split(".")
        kept = network.prefixlen // unit
        found.append(".".join(labels[network.max_prefixlen // unit - kept :]))
    return list(dict.fromkeys(found))
