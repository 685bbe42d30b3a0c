# SPDX-License-Identifier: Apache-2.0
"""Whether kube-proxy serves Services on this node, by what each of its modes leaves in the kernel.

It is asked in the network namespace of the calling thread. Rules stay when kube-proxy is stopped, so what is
found may be an old one's: it says that something else may translate what lbctl does not see first.

Looked for are the names that kube-proxy gives (Kubernetes: "Virtual IPs and Service Proxies"; the source of
its modes nftables, iptables and ipvs): tables ``kube-proxy``, chains ``KUBE-SERVICES`` and its like, and the
dummy interface ``kube-ipvs0``. Chains that the kubelet makes (``KUBE-FIREWALL``, ``KUBE-KUBELET-CANARY``, and
``KUBE-MARK-MASQ``, ``KUBE-POSTROUTING`` before Kubernetes 1.29) are no sign of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lb.datapath.kernel import rtnl
from lb.errors import LbError

_NETLINK_NETFILTER = 12
_GET_TABLES, _GET_CHAINS = 0x0A01, 0x0A04  # nfnetlink's subsystem nftables, and its message
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3
_FAMILIES = {2: "ip", 10: "ip6"}
_CHAIN = re.compile(r"KUBE-(SERVICES|NODEPORTS|PROXY-CANARY|(SVC|SVL|SEP|EXT|FW|XLB)-[A-Za-z0-9-]+)")
_LEGACY = {
    "ip": (socket.AF_INET, socket.SOL_IP, Path("/proc/thread-self/net/ip_tables_names")),
    "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6, Path("/proc/thread-self/net/ip6_tables_names")),
}
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO and its like for IPv6, which has the same numbers
_TABLE_NAME_LENGTH, _INFO_LENGTH = 32, 84  # of struct ipt_getinfo; its last field is the size of the entries
IPVS_INTERFACE = "kube-ipvs0"
_libc = ctypes.CDLL(None, use_errno=True)

Chains = dict[tuple[str, str], set[str]]
"""Names of chains by family (``"ip"``, ``"ip6"``) and table."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one mode of kube-proxy left: mode is ``"nftables"``, ``"iptables"`` or ``"ipvs"``."""

    mode: str
    what: str

    def __str__(self) -> str:
        return f"kube-proxy ({self.mode}): {self.what}"


def find(
    nft: Callable[[], Chains] | None = None,
    legacy: Callable[[], Chains] | None = None,
    interfaces: Callable[[], list[str]] | None = None,
) -> list[Trace]:
    """Return what there is of kube-proxy in this network namespace; empty: nothing.

    nft, legacy: the chains of nftables (those of iptables-nft are among them) and of iptables-legacy;
    interfaces: names of all; by default the kernel is asked, which takes CAP_NET_ADMIN.

    Raises LbError: the kernel refused to tell.
    """
    modern, old = (nft or nft_chains)(), (legacy or legacy_chains)()
    names = interfaces() if interfaces else [name for _, name in socket.if_nameindex()]
    found = [
        Trace("nftables", f"table {family} {table}")
        for family, table in sorted(modern)
        if table == "kube-proxy"
    ]
    for kind, chains in (("iptables", modern), ("iptables-legacy", old)):
        for (family, table), every in sorted(chains.items()):
            mine = sorted(filter(_CHAIN.fullmatch, every)) if table != "kube-proxy" else []
            if mine:
                more = f" and {len(mine) - 1} more" if len(mine) > 1 else ""
                place = kind if family == "ip" else kind.replace("ip", "ip6", 1)
                shown = "KUBE-SERVICES" if "KUBE-SERVICES" in mine else mine[0]
                found.append(Trace("iptables", f"chain {shown}{more} in table {table} of {place}"))
    if IPVS_INTERFACE in names:
        found.append(Trace("ipvs", f"interface {IPVS_INTERFACE}"))
    return found


def nft_chains() -> Chains:
    """Return the chains of every table of nftables; a table without any is there with none.

    Raises LbError: the kernel refused to tell.
    """
    found: Chains = {}
    for family, attrs in _dump(_GET_TABLES):
        found.setdefault((family, _text(attrs[_TABLE_NAME])), set())
    for family, attrs in _dump(_GET_CHAINS):
        found.setdefault((family, _text(attrs[_CHAIN_TABLE])), set()).add(_text(attrs[_CHAIN_NAME]))
    return found


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _dump(message: int) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Yield family and attributes of each object; none where the kernel has no nftables."""
    try:
        for payload in rtnl.dump(_NETLINK_NETFILTER, message, bytes(4)):
            if payload[0] in _FAMILIES:
                yield _FAMILIES[payload[0]], rtnl.attributes(payload[4:])
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            raise LbError(f"listing the rules of nftables: {error.strerror}") from error


def legacy_chains() -> Chains:
    """Return kube-proxy's chains in each table of iptables-legacy that is in use.

    A table is asked for only when it is there: to ask for another would make it.

    Raises LbError: the kernel refused to tell.
    """
    found: Chains = {}
    for family, (kind, level, names) in _LEGACY.items():
        try:
            tables = names.read_text().split()
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise LbError(f"listing the tables of iptables: {error.strerror}") from error
        for table in tables:
            try:
                blob = _legacy_table(kind, level, table)
            except OSError as error:
                raise LbError(f"reading table {table} of iptables: {error.strerror}") from error
            text = blob.decode("latin-1")
            found[family, table] = {match[0] for match in _CHAIN.finditer(text)}
    return found


def _legacy_table(kind: int, level: int, table: str) -> bytes:
    """Return the rules of a table as the kernel has them; the name of a chain is text in its first rule."""
    name = table.encode().ljust(_TABLE_NAME_LENGTH, b"\0")
    with socket.socket(kind, socket.SOCK_DGRAM) as asking:
        info = _ask(asking, level, _GET_INFO, name.ljust(_INFO_LENGTH, b"\0"))
        (size,) = struct.unpack_from("=I", info, _INFO_LENGTH - 4)
        return _ask(asking, level, _GET_ENTRIES, name + struct.pack("=I4x", size) + bytes(size))


def _ask(asking: socket.socket, level: int, option: int, question: bytes) -> bytes:
    """Call getsockopt() with a question in its buffer, which Python's own leaves empty."""
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if _libc.getsockopt(asking.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]
