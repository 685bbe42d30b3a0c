# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink messages that pyroute2 does not do: ids of tc filters, subjects of events, XDP.

Layouts: linux/netlink.h, linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from lb.errors import AttachError

TC_PRIORITY = 2
TC_HANDLE = 0x6C62  # "lb"
"""Our tc filters: a priority and a handle of our own, so that nobody else's filter is replaced or removed.
A low priority number runs early: the VIP is gone before other filters look at the packet."""


_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_TCMSG = struct.Struct("=B3xiIII")  # family, ifindex, handle, parent, info
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 20, 21, 24, 25
_RTM_NEWTFILTER, _RTM_GETTFILTER = 44, 46
_NLM_F_REQUEST_DUMP = 0x301
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME, _TCA_BPF_ID = 1, 2, 7, 11
_RTA_OIF = 4
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, ifindex, flags, change
_RTM_SETLINK = 19
_NLM_F_REQUEST_ACK = 0x5
_IFLA_XDP, _IFLA_XDP_FD, _IFLA_XDP_FLAGS, _NLA_F_NESTED = 43, 1, 3, 0x8000
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLMSGERR_ATTR_MSG = 1


class Direction(IntEnum):
    """A hook of the clsact qdisc; the value is the parent of its filters."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """One tc filter at a clsact hook. program_id is 0 when it is not a BPF filter."""

    priority: int
    handle: int
    name: str
    program_id: int

    @property
    def ours(self) -> bool:
        """True for a filter that :meth:`Netlink.attach_tc` made."""
        return (self.priority, self.handle) == (TC_PRIORITY, TC_HANDLE) and self.name.startswith("lb_tc")


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split what a netlink socket received into (type, payload)."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, data[_HEADER.size : length]
        data = data[-(-length // 4) * 4 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """Split a run of netlink attributes; of several with one number the last stays."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[-(-length // 4) * 4 :]
    return found


def dump(protocol: int, message: int, body: bytes) -> Iterator[bytes]:
    """Ask one of the netlink protocols for a listing, and yield the payload of each message of the answer.

    Raises OSError: the kernel refused, or has no such protocol.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.send(_HEADER.pack(_HEADER.size + len(body), message, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, payload in messages(link.recv(1 << 17)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, os.strerror(code))
                yield payload


def filters(ifindex: int, direction: Direction) -> list[Filter]:
    """Return all filters of a clsact hook; none when there is no such qdisc or interface.

    Raises AttachError: the kernel refused the question.
    """
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, int(direction), 0)
    try:
        listed = list(dump(socket.NETLINK_ROUTE, _RTM_GETTFILTER, body))
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):
            return []
        raise AttachError(f"interface {ifindex}: listing tc filters: {error.strerror}") from error
    return [one for payload in listed for one in _filter(payload)]


def set_xdp(ifindex: int, fd: int, flags: int) -> None:
    """Attach a program to an interface's XDP hook; fd -1 detaches. flags are XDP_FLAGS_*.

    pyroute2 0.7 sends these flags in a wrong form, and no version hands on the driver's own words.

    Raises OSError: the kernel refused; strerror ends with what the driver says, if it says something.
    """
    body = struct.pack("=HHiHHI", 8, _IFLA_XDP_FD, fd, 8, _IFLA_XDP_FLAGS, flags)
    body = struct.pack("=HH", 4 + len(body), _IFLA_XDP | _NLA_F_NESTED) + body
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # no copy of the request in the answer
        link.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        link.send(_HEADER.pack(_HEADER.size + len(body), _RTM_SETLINK, _NLM_F_REQUEST_ACK, 1, 0) + body)
        for _, payload in messages(link.recv(1 << 16)):
            code = -struct.unpack_from("=i", payload)[0]
            if code:
                says = attributes(payload[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
                more = f" ({says.decode(errors='replace')})" if says else ""
                raise OSError(code, f"{os.strerror(code)}{more}")


def _filter(payload: bytes) -> list[Filter]:
    """Convert one RTM_NEWTFILTER message; the kernel also sends one without options for each priority."""
    _, _, handle, _, info = _TCMSG.unpack_from(payload)
    attrs = attributes(payload[_TCMSG.size :])
    if _TCA_OPTIONS not in attrs:
        return []
    options = attributes(attrs[_TCA_OPTIONS])
    if attrs.get(_TCA_KIND, b"").rstrip(b"\0") != b"bpf":
        return [Filter(info >> 16, handle, "", 0)]
    name = options.get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
    return [Filter(info >> 16, handle, name, int.from_bytes(options.get(_TCA_BPF_ID, b""), "little"))]


def changed_interfaces(data: bytes) -> set[int]:
    """Return the ifindexes that a run of events is about; 0 for a default route without a single interface.

    Routes other than default ones say nothing about our hooks and are left out.
    """
    found = set()
    for kind, payload in messages(data):
        if kind in (_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR):
            found.add(struct.unpack_from("=4xi", payload)[0])
        elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and payload[1] == 0:
            found.add(int.from_bytes(attributes(payload[12:]).get(_RTA_OIF, b""), "little"))
    return found
