# SPDX-License-Identifier: Apache-2.0
"""What of this host's network concerns the data plane: the second half of ``lbctl doctor``.

Each check is a pure function, as in :mod:`lb.diagnose.doctor`, about the network namespace of whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.config import Config, SnatPorts, UplinkMode
from lb.datapath.attach.hooks import Role, choose_uplink_mode
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.attach.roles import selection
from lb.diagnose import kube_proxy
from lb.diagnose.findings import Check, Grade
from lb.diagnose.kube_proxy import Trace
from lb.errors import LbError
from lb.words import some

_SYSCTL = Path("/proc/sys/net")
_STRICT = 1


def _sysctl(name: str) -> str | None:
    """Return the text of a setting below /proc/sys/net; None where the kernel has none of this name."""
    try:
        return (_SYSCTL / name).read_text().strip()
    except OSError:
        return None


def _interfaces() -> tuple[list[Interface], list[int]]:
    with Netlink() as net:
        return net.interfaces(), net.default_route_interfaces()


def _driver(name: str) -> str:
    """Return the name of an interface's driver, ``""`` for a device without one."""
    try:
        return Path(f"/sys/class/net/{name}/device/driver").readlink().name
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class HostProbes:
    """What the checks ask the host; sysctl takes a path below /proc/sys/net."""

    kube_proxy: Callable[[], list[Trace]] = kube_proxy.find
    sysctl: Callable[[str], str | None] = _sysctl
    interfaces: Callable[[], tuple[list[Interface], list[int]]] = _interfaces
    driver: Callable[[str], str] = _driver


def examine(ask: HostProbes, config: Config | None = None) -> list[Check]:
    """Look at the host. config: which interfaces are chosen; by default they are detected."""
    config = config or Config()
    interfaces, default_routes = ask.interfaces()
    roles = selection(config).roles(interfaces, default_routes)
    chosen = [one for one in interfaces if one.index in roles]
    found = [*uplinks(chosen, roles, config.uplink_mode, ask.driver)]
    found += mtu(chosen, roles)
    found += forwarding(ask.sysctl)
    found += rp_filter([one.name for one in chosen], ask.sysctl)
    found += snat_ports(config.snat_ports, ask.sysctl)
    found.append(other_proxy(ask.kube_proxy))
    return found


def uplinks(
    interfaces: Sequence[Interface],
    roles: Mapping[int, Role],
    wanted: UplinkMode,
    driver: Callable[[str], str],
) -> Iterator[Check]:
    """Name each uplink with its driver, and how programs would be attached to it."""
    none = True
    for one in interfaces:
        if roles[one.index] is not Role.UPLINK:
            continue
        none = False
        mode, why = choose_uplink_mode(one, wanted)
        what = f"{one.name}: {driver(one.name) or one.kind}, {mode.value} ({why})"
        if one.up:
            yield Check("uplink", Grade.OK, what)
        else:
            broken = "nothing comes in or leaves by it"
            yield Check("uplink", Grade.LIMITED, f"{what}; it is down", broken, f"ip link set {one.name} up")
    if none:
        yield Check(
            "uplink",
            Grade.LIMITED,
            "there is no default route to find it by",
            "traffic from outside is not served, and NodePorts have no address",
            "name the interface towards clients and other nodes: --uplink IFACE",
        )


def mtu(interfaces: Sequence[Interface], roles: Mapping[int, Role]) -> Iterator[Check]:
    """Compare the MTU of pods' interfaces and tunnels with that of the uplinks."""
    outward = [one for one in interfaces if roles[one.index] is Role.UPLINK]
    if not outward:
        return
    least = min(outward, key=lambda one: one.mtu)
    others = (one for one in interfaces if roles[one.index] in (Role.TUNNEL, Role.POD))
    larger = [one for one in others if one.mtu > least.mtu]
    if larger:
        names = ", ".join(f"{one.name} {one.mtu}" for one in larger[:5])
        yield Check(
            "MTU",
            Grade.LIMITED,
            f"larger than {least.name}'s {least.mtu}: {names}{' and more' if len(larger) > 5 else ''}",
            "large packets cross the uplink only after path-MTU discovery: ICMP must get through",
            f"give pods and tunnels an MTU of {least.mtu} or less, less a tunnel's own headers",
        )
    else:
        yield Check("MTU", Grade.OK, ", ".join(f"{one.name} {one.mtu}" for one in outward))


def settings(
    names: Sequence[str],
    versions: Sequence[int],
    ports: SnatPorts,
    sysctl: Callable[[str], str | None] = _sysctl,
) -> list[Check]:
    """Look at the settings that another tool may change while packets pass.

    names: interfaces by which packets of Services come in. versions: IP versions that the node has.
    """
    return [
        forwarding_at(names, versions, sysctl),
        *rp_filter(names, sysctl),
        *snat_ports(ports, sysctl),
    ]


def forwarding_at(
    names: Sequence[str], versions: Sequence[int], sysctl: Callable[[str], str | None]
) -> Check:
    """Look whether the kernel forwards what comes in by these interfaces; writing to "all" changes each."""
    off: dict[str, list[str]] = {}
    for version in versions:
        if sysctl(f"ipv{version}/conf/all/forwarding") == "0":
            off[f"net.ipv{version}.conf.all.forwarding"] = []
            continue
        for name in names:
            if sysctl(f"ipv{version}/conf/{name}/forwarding") == "0":
                off.setdefault(f"net.ipv{version}.conf.*.forwarding", []).append(name)
    if not off:
        return Check("forwarding", Grade.OK, "wherever packets come in")
    said = [f"{setting}{f' on {some(at)}' if at else ''}" for setting, at in off.items()]
    return Check(
        "forwarding",
        Grade.LIMITED,
        f"{' and '.join(said)} off",
        "packets for backends are dropped by the host's stack",
        "; ".join(f"sysctl -w {setting.replace('*', 'INTERFACE')}=1" for setting in off)
        + ", and find what switched it off",
    )


def forwarding(sysctl: Callable[[str], str | None]) -> Iterator[Check]:
    """Look whether the kernel forwards: packets for pods go through its stack."""
    names = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    off = [f"net.{name.replace('/', '.')}" for name in names if sysctl(name) == "0"]
    if not off:
        yield Check("forwarding", Grade.OK, "IPv4 and IPv6, as far as the kernel has them")
        return
    only_six = off == ["net.ipv6.conf.all.forwarding"]
    yield Check(
        "forwarding",
        Grade.LIMITED,
        f"{' and '.join(off)} off",
        f"{'IPv6 packets' if only_six else 'packets'} for pods are dropped by the host's stack",
        "; ".join(f"sysctl -w {name}=1" for name in off),
    )


def rp_filter(names: Sequence[str], sysctl: Callable[[str], str | None]) -> Iterator[Check]:
    """Look for strict reverse-path filters: the kernel takes the larger of "all" and the interface's own.

    (Linux: Documentation/networking/ip-sysctl.rst, RFC 3704.)
    """
    everywhere = int(sysctl("ipv4/conf/all/rp_filter") or 0)
    strict = [
        name for name in names if max(everywhere, int(sysctl(f"ipv4/conf/{name}/rp_filter") or 0)) == _STRICT
    ]
    if not strict:
        yield Check("rp_filter", Grade.OK, "not strict where traffic passes")
        return
    yield Check(
        "rp_filter",
        Grade.LIMITED,
        f"strict (1) on {', '.join(strict[:5])}{' and more' if len(strict) > 5 else ''}",
        "where replies take another way than requests came (several uplinks, tunnels), packets are dropped",
        "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), unless each source has one way only",
    )


def snat_ports(ports: SnatPorts, sysctl: Callable[[str], str | None]) -> Iterator[Check]:
    """Look whether Linux picks ports of the SNAT range for connections of the node's own."""
    first, last = map(int, (sysctl("ipv4/ip_local_port_range") or "1 0").split())
    both = set(range(max(first, ports.first), min(last, ports.last) + 1))
    for part in filter(None, (sysctl("ipv4/ip_local_reserved_ports") or "").split(",")):
        begin, _, end = part.partition("-")
        both -= set(range(int(begin), int(end or begin) + 1))
    if not both:
        yield Check("SNAT ports", Grade.OK, f"{ports.first} to {ports.last}: Linux picks none of them")
        return
    yield Check(
        "SNAT ports",
        Grade.LIMITED,
        f"{len(both)} of {ports.first} to {ports.last} are in net.ipv4.ip_local_port_range, {first}-{last}",
        "a connection of the node that gets a client's port towards the same backend ends the client's",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={ports.first}-{ports.last}, or another snat_ports",
    )


def other_proxy(find: Callable[[], list[Trace]]) -> Check:
    """Look for what another Service proxy left."""
    check = "kube-proxy"
    try:
        traces = find()
    except (LbError, OSError) as error:
        return Check(
            check, Grade.LIMITED, f"cannot be told: {error}", "its rules may be there", "run as root"
        )
    if not traces:
        return Check(check, Grade.OK, "none of its rules are here")
    return Check(
        check,
        Grade.LIMITED,
        "; ".join(f"{one.mode}: {one.what}" for one in traces[:3]) + (" and more" if len(traces) > 3 else ""),
        "Services that lbctl does not see first are translated by these rules, with what they knew last",
        "stop kube-proxy on this node; then lbctl cutover removes its rules: docs/migration.md",
    )
