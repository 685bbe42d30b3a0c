# SPDX-License-Identifier: Apache-2.0
"""From what is known of a cluster to what each of its DNS servers should hold.

The servers are the endpoints of a Service, by default kube-system/kube-dns; those that are not ready too,
because a server is ready only once it holds everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lb import model
from lb.model import Event, ObjectKey
from lb.names import DNS, ZONE
from lb.names.records import Records, by_zone, merged, service_records, zone_records
from lb.state import ClusterState


@dataclass(frozen=True, slots=True)
class Zones:
    """The zones that are kept, names without final dot.

    cluster is the cluster's own, reverse are those of addresses. server is the name of the DNS server in
    the cluster's zone.
    """

    cluster: str = ZONE
    reverse: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """The name that the specification gives the server."""
        return f"ns.dns.{self.cluster}"

    @property
    def version(self) -> str:
        """The owner name of the record that is written last."""
        return f"dns-version.{self.cluster}."


class Keeper(Protocol):
    """Keeps one server in step; :class:`lb.names.feed.Feed`."""

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self) -> None:
        """End, soon."""
        ...

    def want(self, zones: Mapping[str, Records]) -> None:
        """Say what the server should hold."""
        ...


class Controller:
    """Applies events and tells the servers; one thread calls it.

    keep makes a keeper of an address and a port.
    """

    def __init__(
        self,
        sources: Collection[str],
        zones: Zones,
        keep: Callable[[str, int], Keeper],
        service: ObjectKey = DNS,
    ) -> None:
        self._state = ClusterState(sources)
        self._zones, self._keep, self._service = zones, keep, service
        self._records: dict[ObjectKey, Records] = {}
        self._wanted: Mapping[str, Records] = {}
        self._keepers: dict[tuple[str, int], Keeper] = {}

    def apply(self, events: Iterable[Event]) -> None:
        """Take events in; servers hear of nothing before everything was listed once."""
        changes = self._state.apply(events)
        if not self._state.synced or not (changes.services or changes.synced):
            return
        keys = self._state.service_keys() if changes.synced else changes.services
        before = dict(self._records) if len(keys) == 1 else None
        for key in list(keys):
            service = self._state.service(key)
            if service is None:
                self._records.pop(key, None)
            else:
                self._records[key] = service_records(service, self._state.slices(key), self._zones.cluster)
        if before != self._records:
            self._plan()
        if self._service in keys:
            self._find_servers()

    def _plan(self) -> None:
        dns = self._state.service(self._service)
        own = zone_records(self._zones.cluster, self._zones.server, dns.cluster_ips if dns else ())
        everything = merged((own, *self._records.values()))
        self._wanted = by_zone(everything, (self._zones.cluster, *self._zones.reverse))
        for keeper in self._keepers.values():
            keeper.want(self._wanted)

    def _find_servers(self) -> None:
        """Begin to keep servers that are new, and leave those that are gone.

        A pod with addresses of both families is one server.
        """
        servers: dict[str, tuple[str, int]] = {}
        for piece in self._state.slices(self._service):
            ports = [port.port for port in piece.ports if port.protocol is model.Protocol.UDP]
            for endpoint, pod in piece.named() if ports else ():
                address = str(endpoint.address)
                servers.setdefault(pod or address, (address, ports[0]))
        present = set(servers.values())
        for gone in self._keepers.keys() - present:
            self._keepers.pop(gone).stop()
        for new in present - self._keepers.keys():
            self._keepers[new] = keeper = self._keep(*new)
            keeper.want(self._wanted)
            keeper.start()
