# SPDX-License-Identifier: Apache-2.0
"""ClusterState: what a batch of events changed, and which slices a Service has."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from lb.model import (
    Delete,
    Endpoint,
    EndpointSlice,
    Event,
    IPAddress,
    Node,
    ObjectKey,
    Origin,
    Overlaps,
    Service,
    Synced,
    Upsert,
)
from lb.state import Changes, ClusterState

WEB = ObjectKey("default", "web")
DNS = ObjectKey("default", "dns")
SERVICE = Service(WEB)
SLICE = EndpointSlice(ObjectKey("default", "web-1"), WEB, endpoints=(Endpoint(ip_address("10.0.0.1")),))
NODE = Node("node1", zone="z1")


def test_a_service_comes_changes_and_goes() -> None:
    state = ClusterState()
    assert state.apply([Upsert(SERVICE)]) == Changes(services={WEB})
    assert state.service(WEB) == SERVICE
    assert set(state.service_keys()) == {WEB}
    changed = dataclasses.replace(SERVICE, affinity_seconds=5)
    assert state.apply([Upsert(changed)]) == Changes(services={WEB})
    assert state.service(WEB) == changed
    assert state.apply([Delete(Service, WEB)]) == Changes(services={WEB})
    assert state.service(WEB) is None
    assert set(state.service_keys()) == set()


def test_equal_objects_and_unknown_deletions_are_no_change() -> None:
    state = ClusterState()
    state.apply([Upsert(SERVICE), Upsert(SLICE), Upsert(NODE)])
    moved = dataclasses.replace(SERVICE, origin=Origin("other.yaml", 7))
    again = state.apply([Upsert(moved), Upsert(SLICE), Upsert(NODE)])
    assert not again
    found = state.service(WEB)
    assert found is not None
    assert found.origin == Origin("other.yaml", 7)
    gone = state.apply(
        [Delete(Service, DNS), Delete(EndpointSlice, DNS), Delete(Node, ObjectKey("", "none"))]
    )
    assert not gone


def test_a_slice_changes_its_service_also_before_that_is_there() -> None:
    state = ClusterState()
    assert state.apply([Upsert(SLICE)]) == Changes(services={WEB})
    assert state.slices(WEB) == (SLICE,)
    assert state.service(WEB) is None
    assert state.apply([Delete(EndpointSlice, SLICE.key)]) == Changes(services={WEB})
    assert state.slices(WEB) == ()


def test_a_slice_that_moves_changes_both_services() -> None:
    state = ClusterState()
    state.apply([Upsert(SLICE)])
    moved = dataclasses.replace(SLICE, service=DNS)
    assert state.apply([Upsert(moved)]) == Changes(services={WEB, DNS})
    assert state.slices(WEB) == ()
    assert state.slices(DNS) == (moved,)


def test_slices_come_in_the_order_of_their_names() -> None:
    state = ClusterState()
    slices = [dataclasses.replace(SLICE, key=ObjectKey("default", name)) for name in ("c", "a", "b")]
    state.apply([Upsert(each) for each in slices])
    assert [each.key.name for each in state.slices(WEB)] == ["a", "b", "c"]


def test_nodes() -> None:
    state = ClusterState()
    assert state.apply([Upsert(NODE)]) == Changes(nodes={"node1"})
    assert state.node("node1") == NODE
    assert state.apply([Upsert(Node("node1", zone="z2"))]) == Changes(nodes={"node1"})
    assert state.apply([Delete(Node, ObjectKey("", "node1"))]) == Changes(nodes={"node1"})
    assert state.node("node1") is None


def test_synced_by_any_source_or_by_all_that_are_awaited() -> None:
    anyone = ClusterState()
    told = [
        anyone.synced,
        anyone.apply([Synced("manifests")]),
        anyone.synced,
        anyone.apply([Synced("manifests")]),
    ]
    assert told == [False, Changes(synced=True), True, Changes()]

    both = ClusterState(["manifests", "kubernetes"])
    told = [both.apply([Synced("manifests")]), both.synced, both.apply([Synced("kubernetes")]), both.synced]
    assert told == [Changes(), False, Changes(synced=True), True]


NAMES = st.sampled_from("abc")
KEYS = NAMES.map(lambda name: ObjectKey("default", name))
SLICES = st.builds(
    EndpointSlice, KEYS, KEYS, endpoints=st.sampled_from([(), (Endpoint(ip_address("10.0.0.1")),)])
)
SERVICES = st.builds(Service, KEYS, affinity_seconds=st.sampled_from([0, 1]))
EVENTS = st.lists(
    st.builds(Upsert, SLICES | SERVICES) | st.builds(Delete, st.sampled_from([Service, EndpointSlice]), KEYS),
    max_size=30,
)


@given(st.lists(EVENTS, max_size=4))
def test_the_index_and_the_changes_are_those_of_a_plain_model(batches: list[list[Event]]) -> None:
    state = ClusterState()
    services: dict[ObjectKey, Service] = {}
    slices: dict[ObjectKey, EndpointSlice] = {}

    def seen(key: ObjectKey) -> tuple[Service | None, tuple[EndpointSlice, ...]]:
        mine = (each for _, each in sorted(slices.items()) if each.service == key)
        return services.get(key), tuple(mine)

    keys = [ObjectKey("default", name) for name in "abc"]
    for batch in batches:
        before = {key: seen(key) for key in keys}
        for event in batch:
            match event:
                case Upsert(Service() as service):
                    services[service.key] = service
                case Upsert(EndpointSlice() as one):
                    slices[one.key] = one
                case Delete(kind, key) if kind is Service:
                    services.pop(key, None)
                case Delete(_, key):
                    slices.pop(key, None)
        changes = state.apply(batch)
        assert {key for key in keys if before[key] != seen(key)} <= changes.services
        for key in keys:
            assert (state.service(key), state.slices(key)) == seen(key)
        assert set(state.service_keys()) == services.keys()


ADDRESSES: list[IPAddress] = [
    ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.96.0.1", "10.96.0.2", "fd00::1")
]
OBJECTS = [ObjectKey("default", name) for name in "abc"]
KINDS: list[type[Service] | type[EndpointSlice] | type[Node]] = [Service, EndpointSlice, Node]
some_addresses = st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True).map(tuple)
any_service = st.builds(
    Service,
    st.sampled_from(OBJECTS),
    cluster_ips=some_addresses,
    external_ips=some_addresses,
    load_balancer_ips=some_addresses,
)
any_slice = st.builds(
    EndpointSlice,
    st.sampled_from(OBJECTS),
    st.sampled_from(OBJECTS),
    endpoints=st.lists(
        st.builds(Endpoint, st.sampled_from(ADDRESSES), node=st.sampled_from(["", "node1"])), max_size=3
    ).map(tuple),
)
any_node = st.builds(Node, st.sampled_from("abc"), some_addresses)
any_change = st.one_of(
    st.builds(Upsert, any_node),
    st.builds(Upsert, any_service),
    st.builds(Upsert, any_slice),
    st.builds(Delete, st.sampled_from(KINDS), st.sampled_from(OBJECTS)),
)


def overlaps_anew(state: ClusterState, key: ObjectKey) -> Overlaps:
    """Work out from all that there is what the state follows change by change."""
    everything = [state.service(each) for each in state.service_keys()]
    pieces = [piece for name in OBJECTS for piece in state.slices(name)]
    pods = {each.address for piece in pieces for each in piece.endpoints if each.node}
    cluster_ips = {address for each in everything if each for address in each.cluster_ips}
    service = state.service(key)
    assert service is not None
    own = {each.address for piece in state.slices(key) for each in piece.endpoints}
    of_nodes = {address for node in state.nodes() for address in node.addresses}
    return Overlaps(
        frozenset(pods.intersection(service.external_ips)),
        frozenset(own & cluster_ips),
        frozenset(of_nodes.intersection((*service.load_balancer_ips, *service.external_ips))),
    )


@given(st.lists(st.lists(any_change, max_size=3), max_size=8))
def test_overlaps_are_those_worked_out_anew_and_every_change_of_them_is_told(
    batches: list[list[Event]],
) -> None:
    state = ClusterState()
    known: dict[ObjectKey, Overlaps] = {}
    for batch in batches:
        changed = state.apply(batch).services
        changed |= state.settle()
        now = {key: state.overlaps(key) for key in state.service_keys()}
        for key, overlaps in now.items():
            assert overlaps == overlaps_anew(state, key)
            assert known.get(key) == overlaps or key in changed
        known = now


def test_which_addresses_are_claimed() -> None:
    state = ClusterState()
    state.apply([Upsert(Service(WEB, external_ips=(ADDRESSES[0],), load_balancer_ips=(ADDRESSES[1],)))])
    assert [state.claims(address) for address in ADDRESSES] == [True, True, False, False, False]
    state.apply([Delete(Service, WEB)])
    assert not any(map(state.claims, ADDRESSES))
