# SPDX-License-Identifier: Apache-2.0
"""What a Service may have: which addresses are not for it to claim, and which endpoints it cannot be led to.

Whoever may write a Service may write any address into its ``externalIPs``, and with it take over what is sent
there (CVE-2020-8554). So on each node these are refused:

- addresses that mean something else than one machine of the network (:func:`special_address`);
- externalIPs that the setting ``external_ips`` does not admit;
- externalIPs that are the address of an endpoint, which is a pod or another machine; not those of the node
  itself, as ingress controllers on nodes' own networks have them;
- at an address of the node itself, a port on which a process of the node listens, unless that process is an
  endpoint of the Service;
- endpoints that are a clusterIP: "the endpoint IP addresses cannot be the cluster IPs of other Kubernetes
  Services" (Kubernetes documentation, "Service", EndpointSlices), and two Services that are each other's
  endpoint would lead a packet round for ever.

:mod:`lb.plan.claims` decides which Service has an address that several of them claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lb.annotations import FORWARD, UDP_STAYS
from lb.config import Forward
from lb.model import EndpointSlice, IPAddress, Overlaps, Service
from lb.plan.types import Refusal, Topology, VipKey, VipKind

Fields = tuple[tuple[VipKind, tuple[IPAddress, ...]], ...]
"""Addresses by the field of the Service that they come from; an earlier field has precedence."""

_EXTERNAL = (VipKind.LOAD_BALANCER, VipKind.EXTERNAL_IP)
_SHIFTED_V4: Mapping[tuple[int, int], str] = {
    (0, 0): "the unspecified address",
    (0, 0xFFFFFFFF): "the broadcast address",
    (24, 127): "a loopback address",
    (16, 0xA9FE): "a link-local address",
    (28, 0xE): "a multicast address",
}
_SHIFTED_V6: Mapping[tuple[int, int], str] = {
    (0, 0): "the unspecified address",
    (0, 1): "the loopback address",
    (32, 0xFFFF): "an IPv4-mapped address",
    (118, 0xFE80 >> 6): "a link-local address",
    (120, 0xFF): "a multicast address",
}


def special_address(address: IPAddress) -> str:
    """Return what an address is that no Service and no endpoint can have; ``""`` for any other.

    Kubernetes' validation refuses unspecified, loopback and link-local ones, and link-local multicast
    (``ValidateNonSpecialIP``); not those in a load balancer's status. Other multicast, IPv4's broadcast and
    IPv4-mapped addresses are never one machine's.
    """
    number = int(address)
    for (bits, value), name in (_SHIFTED_V4 if address.version == 4 else _SHIFTED_V6).items():
        if number >> bits == value:
            return name
    return ""


@dataclass(slots=True)
class Rights:
    """Judges what one Service asks for. refusals: what it did not get, in the order of asking."""

    service: Service
    topology: Topology
    overlaps: Overlaps
    refusals: list[Refusal]

    def addresses(self) -> Fields:
        """Return the addresses that the Service may claim."""
        service = self.service
        fields = (
            (VipKind.CLUSTER_IP, service.cluster_ips),
            (VipKind.LOAD_BALANCER, service.load_balancer_ips),
            (VipKind.EXTERNAL_IP, service.external_ips),
        )
        return tuple(
            (kind, tuple([one for one in addresses if self._admits(kind, one)])) for kind, addresses in fields
        )

    def _admits(self, kind: VipKind, address: IPAddress) -> bool:
        why = ""
        networks = self.topology.external_networks
        if special := special_address(address):
            why = f"it is {special}"
        elif kind is VipKind.EXTERNAL_IP:
            if networks is not None and not any(address in network for network in networks):
                why = "the setting external_ips does not admit it"
            elif address in self.overlaps.pods and address not in self.topology.node_addresses:
                why = "it is the address of an endpoint"
        if why:
            self.refusals.append(Refusal(f"{kind} {address}", why))
        return not why

    def admits_port(self, kind: VipKind, key: VipKey, slices: Iterable[EndpointSlice]) -> bool:
        """Tell whether a port of an address is the Service's to claim."""
        if kind not in _EXTERNAL or key not in self.topology.sockets:
            return True
        if any(
            (port.port, port.protocol) == (key.port, key.protocol) and endpoint.address == key.address
            for piece in slices
            for port in piece.ports
            for endpoint in piece.endpoints
        ):
            return True
        why = "a process of this node listens there, which is no endpoint of the Service"
        self.refusals.append(Refusal(f"{kind} {key}", why))
        return False

    def direct(self) -> bool:
        """Tell whether packets from outside go to backends on other nodes by direct return."""
        asked, by_default = self.service.forward.removesuffix(UDP_STAYS), self.topology.forward
        why = ""
        if self.service.forward not in ("", Forward.SNAT, Forward.DSR, Forward.DSR + UDP_STAYS):
            why = f"it is neither {Forward.SNAT} nor {Forward.DSR}"
        elif asked == Forward.DSR and by_default is Forward.SNAT:
            why = f"the agent's setting forward is {Forward.SNAT}, so they go by SNAT"
        if why:
            self.refusals.append(Refusal(f"annotation {FORWARD}: {asked}", why))
            return by_default is Forward.DSR
        return asked == Forward.DSR or (not asked and by_default is Forward.DSR)

    def endpoints(self, slices: Iterable[EndpointSlice]) -> tuple[EndpointSlice, ...]:
        """Return the slices without endpoints that a packet cannot be led to."""
        wrong = self.overlaps.cluster_ips
        if not wrong:
            return tuple(slices)
        for address in sorted(wrong, key=int):
            self.refusals.append(Refusal(f"endpoint {address}", "it is a clusterIP, which is no endpoint"))
        return tuple(
            replace(piece, endpoints=tuple([one for one in piece.endpoints if one.address not in wrong]))
            for piece in slices
        )
