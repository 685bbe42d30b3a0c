# SPDX-License-Identifier: Apache-2.0
"""What settings may hold: for each form how it is read, what it is called, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

PRIMARY = "primary"
"""In node_port_addresses: the first InternalIP of each family by the Node object, as with kube-proxy; where
the node has no such address, the first one of the uplinks."""


ALL, NONE = "all", "none"
"""In external_ips: no limit; no address at all."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a setting may hold.

    metavar is the unit or the form as shown in help texts. right says in words what would be right. parse
    turns text into the value and raises ValueError when it cannot.
    """

    metavar: str
    right: str
    parse: Callable[[str], Any]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e9:
        raise ValueError(text)
    return value


def _matching(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(text)
        return text

    return parse


def _network(text: str) -> str:
    return str(ip_network(text))


def _networks(text: str) -> str:
    return ",".join(_network(each.strip()) for each in text.split(","))


def _external_ips(text: str) -> str:
    return text if text in (ALL, NONE) else _networks(text)


def _network_or_primary(text: str) -> str:
    return PRIMARY if text == PRIMARY else _network(text)


def _port_range(text: str) -> str:
    first, _, last = text.partition("-")
    if not 1 <= int(first) <= int(last) <= 65535:
        raise ValueError(text)
    return text


OFF = "off"


def split_address(text: str) -> tuple[str, int] | None:
    """Return IP address and port of ``127.0.0.1:10249`` or ``[::1]:10249``; None for ``off`` and for nothing.

    Raises ValueError: the text is none of these.
    """
    if text in ("", OFF):
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (ip_address(bare).version == 6) != (bare != host) or not 1 <= int(port) <= 65535:
        raise ValueError(text)
    return bare, int(port)


def _listen_address(text: str) -> str:
    split_address(text)
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    return _matching("|".join(words))


_DNS_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

ENTRIES = Form("ENTRIES", "a whole number of entries from 1 to 2147483647", _whole(1, 2**31 - 1))
COUNT = Form("NUMBER", "a whole number from 0 to 1000000", _whole(0, 1_000_000))
SECONDS = Form("SECONDS", "a number of seconds above 0", _seconds)
RATE = Form("PER_SECOND", "a whole number from 0 to 1000000, so many a second", _whole(0, 1_000_000))
PORT = Form("PORT", "a port number from 1 to 65535", _whole(1, 65535))
PORT_RANGE = Form("FIRST-LAST", "a range of port numbers such as 30000-32767", _port_range)
NETWORKS = Form(
    "CIDR[,CIDR]",
    "one network or one of each family, such as 10.96.0.0/16,fd00:96::/112, without host bits",
    _networks,
)
EXTERNAL_IPS = Form(
    "all|none|CIDR[,CIDR]",
    f"{ALL}, {NONE}, or networks such as 203.0.113.0/24,2001:db8::/64, without host bits",
    _external_ips,
)
NETWORK_OR_PRIMARY = Form(
    "CIDR", f"a network such as 10.0.0.0/8, without host bits, or the word {PRIMARY}", _network_or_primary
)
NODE_NAME = Form(
    "NAME",
    "a node name as Kubernetes takes it: at most 253 lower-case letters, digits, '-' and '.'",
    _matching(rf"(?=.{{1,253}}$){_DNS_NAME}"),
)
INSTANCE = Form(
    "NAME",
    "a directory name: at most 200 letters, digits, '-', '_' and '.', beginning with a letter or digit",
    _matching(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,199}"),
)
INTERFACE = Form("IFACE", "the name of an interface, at most 15 characters", _matching(r"[^\s/:,]{1,15}"))
GLOB = Form("GLOB", "an interface name or a pattern such as veth*", _matching(r"[^\s/,]{1,64}"))
SOURCE = Form("SOURCE", "manifests:DIR or kubernetes", _matching(r"manifests:.+|kubernetes"))
NETWORK = Form("CIDR", "a network such as 203.0.113.0/24, without host bits", _network)
LEVEL = Form("LEVEL", "one of debug, info, warning, error", _one_of("debug", "info", "warning", "error"))
LOG_FORMAT = Form("FORMAT", "text or json", _one_of("text", "json"))
LISTEN_ADDRESS = Form(
    "IP:PORT", f"an IP address and a port such as 127.0.0.1:10249 or [::1]:10249, or {OFF}", _listen_address
)
CONTEXT = Form("NAME", "the name of a context", _matching(r".+"))
FILE = Form("FILE", "the path of a file", _matching(r".+"))
DIRECTORY = Form("DIR", "the path of a directory", _matching(r".+"))
