# SPDX-License-Identifier: Apache-2.0
"""What is known of the cluster: Services, their EndpointSlices, Nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field

from lb.model import (
    Delete,
    EndpointSlice,
    Event,
    IPAddress,
    Node,
    ObjectKey,
    Overlaps,
    Resource,
    Service,
    Synced,
    Upsert,
)
from lb.state.overlaps import AddressOverlaps

__all__ = ["Changes", "ClusterState"]


@dataclass(slots=True)
class Changes:
    """What a batch of events changed.

    services: keys of the Services that changed, or whose slices did; also keys of Services that do not exist,
        or no longer do.
    nodes: names of the nodes that came, changed or went.
    synced: this batch completed the first listing of every source.
    """

    services: set[ObjectKey] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    synced: bool = False

    def __bool__(self) -> bool:
        return bool(self.services or self.nodes or self.synced)


class ClusterState:
    """Applies events and tells what they changed. Not thread-safe: one thread applies and reads.

    sources are the names of those that have to list everything once before :attr:`synced` is true; without
    any, the first to do so is enough. Applying an object equal to the one that is there is no change.

    Attributes
    ----------
    slice_changes: how often a slice has come, changed or gone; may be read from any thread.
    changes: how many events were applied; likewise.
    """

    def __init__(self, sources: Collection[str] = ()) -> None:
        self._awaited = set(sources)
        self._synced = False
        self._services: dict[ObjectKey, Service] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._by_service: dict[ObjectKey, tuple[ObjectKey, ...]] = {}  # sorted; most have one
        self._nodes: dict[str, Node] = {}
        self._overlaps = AddressOverlaps()
        self.slice_changes = 0
        self.changes = 0

    @property
    def synced(self) -> bool:
        """Whether every source has listed everything once; only then may maps be written."""
        return self._synced

    def service(self, key: ObjectKey) -> Service | None:
        """Return a Service, None when there is none of this name."""
        return self._services.get(key)

    def slices(self, key: ObjectKey) -> tuple[EndpointSlice, ...]:
        """Return a Service's slices in the order of their keys; the Service itself need not exist."""
        return tuple([self._slices[each] for each in self._by_service.get(key, ())])

    def overlaps(self, key: ObjectKey) -> Overlaps:
        """Return which addresses of a Service are something else, too; as of the last :meth:`settle`."""
        service = self._services.get(key)
        return self._overlaps.of(service, self.slices(key)) if service else Overlaps()

    def claims(self, address: IPAddress) -> bool:
        """Tell whether a Service has this address as an external or load-balancer address."""
        return self._overlaps.claims(address)

    def settle(self) -> set[ObjectKey]:
        """Find endpoints at addresses that Services have newly claimed; return their Services.

        To be called before anything is planned. It takes a look at every endpoint, and only when a Service
        has claimed a new address since.
        """
        return {self._slices[key].service for key in self._overlaps.look(self._slices.values())}

    def node(self, name: str) -> Node | None:
        """Return a node, None when it is unknown."""
        return self._nodes.get(name)

    def nodes(self) -> list[Node]:
        """Return all Nodes as they are now; may be called from any thread."""
        return list(self._nodes.values())

    def lacks_node(self, name: str) -> bool:
        """Tell whether there are Nodes, and none of this name; may be called from any thread."""
        return bool(self._nodes) and name not in self._nodes

    def services(self) -> list[Service]:
        """Return all Services as they are now; may be called from any thread."""
        return list(self._services.values())

    def all_slices(self) -> list[EndpointSlice]:
        """Return the slices of all Services as they are now; may be called from any thread."""
        return list(self._slices.values())

    def service_keys(self) -> Set[ObjectKey]:
        """Return the keys of all Services, as a live view."""
        return self._services.keys()

    def apply(self, events: Iterable[Event]) -> Changes:
        """Apply events in order."""
        changes = Changes()
        for event in events:
            self.changes += 1
            match event:
                case Upsert(resource):
                    self._upsert(resource, changes)
                case Delete(kind, key):
                    self._delete(kind, key, changes)
                case Synced(source):
                    self._awaited.discard(source)
                    if not self._awaited and not self._synced:
                        self._synced = changes.synced = True
        return changes

    def _upsert(self, resource: Resource, changes: Changes) -> None:
        match resource:
            case Service():
                known_service = self._services.get(resource.key)
                if known_service != resource:
                    changes.services.add(resource.key)
                    self._cross(resource.key, known_service, resource, changes)
                self._services[resource.key] = resource
            case EndpointSlice():
                known = self._slices.get(resource.key)
                if known is not None and known.service != resource.service:
                    self._drop_slice(known, changes)
                if known != resource:
                    self.slice_changes += 1
                    changes.services.add(resource.service)
                    changes.services |= self._overlaps.replace_slice(known, resource)
                self._slices[resource.key] = resource
                keys = self._by_service.get(resource.service, ())
                if resource.key not in keys:
                    self._by_service[resource.service] = tuple(sorted((*keys, resource.key)))
            case Node():
                known_node = self._nodes.get(resource.name)
                if known_node != resource:
                    changes.nodes.add(resource.name)
                    changes.services |= self._overlaps.replace_node(known_node, resource)
                self._nodes[resource.name] = resource

    def _delete(self, kind: type[Resource], key: ObjectKey, changes: Changes) -> None:
        if kind is Service:
            gone = self._services.pop(key, None)
            if gone is not None:
                changes.services.add(key)
                self._cross(key, gone, None, changes)
        elif kind is EndpointSlice:
            known = self._slices.get(key)
            if known is not None:
                changes.services |= self._overlaps.replace_slice(known, None)
                self._drop_slice(known, changes)
        elif kind is Node and (gone_node := self._nodes.pop(key.name, None)) is not None:
            changes.nodes.add(key.name)
            changes.services |= self._overlaps.replace_node(gone_node, None)

    def _cross(self, key: ObjectKey, before: Service | None, after: Service | None, changes: Changes) -> None:
        touched = self._overlaps.replace_service(key, before, after)
        changes.services |= {self._slices[each].service for each in touched if each in self._slices}

    def _drop_slice(self, known: EndpointSlice, changes: Changes) -> None:
        self.slice_changes += 1
        changes.services.add(known.service)
        del self._slices[known.key]
        keys = tuple([key for key in self._by_service.pop(known.service) if key != known.key])
        if keys:
            self._by_service[known.service] = keys
