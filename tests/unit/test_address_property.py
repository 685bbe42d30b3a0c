# SPDX-License-Identifier: Apache-2.0
"""Never one address twice, never moved without reason: whoever gives addresses, and whatever gets lost.

Up to three processes work with one API server that a test plays, synchronously. Each of them may hold the
Lease, lose it without knowing, hear of changes late, and end; a write may get lost, or be carried out after
any time although its answer got lost. Users make, change and delete Services and change the pools meanwhile.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lb.addresses.allocate import Reason
from lb.addresses.claimant import Claimant
from lb.addresses.controller import AddressController
from lb.addresses.decode import CLAIMANTS
from lb.addresses.pool import Pools, PoolsFile, parse
from lb.addresses.sharing import collide, may_share
from lb.addresses.telemetry import Telemetry
from lb.kube.client import ApiError, Client
from lb.kube.lease import LEASE_SECONDS, Lease, LostLeaseError
from lb.kube.timing import Timing
from lb.model import Delete, Event, IPAddress, ObjectKey, Service, Upsert

POOLS = [
    parse(f"pools: [{text}]\nrest_seconds: 20", "pools.yaml")
    for text in (
        "{name: a, addresses: [192.0.2.1-192.0.2.3, '2001:db8::1-2001:db8::2']}",
        "{name: a, addresses: [192.0.2.2]}, {name: b, addresses: [192.0.2.4/31], namespaces: [shop]}",
        "{name: b, addresses: [192.0.2.1-192.0.2.6], automatic: false}, {name: c, addresses: [192.0.2.3]}",
    )
]
ADDRESSES = [f"192.0.2.{number}" for number in range(1, 7)]
NAMES = [("default", "a"), ("default", "b"), ("shop", "c"), ("shop", "d"), ("shop", "e")]
PROCESSES = 3
Object = dict[str, Any]


class Server:
    """Services and one Lease with their versions; requests come as :class:`Client` sends them."""

    def __init__(self) -> None:
        self.version = 0
        self.services: dict[tuple[str, str], Object] = {}
        self.lease: Object = {}
        self.history: list[Event] = []
        self.under_way: list[Callable[[], object]] = []
        """Writes whose answer got lost; carried out later, or never."""
        self.lose_next = ""
        """The method of which the next request's answer gets lost."""

    def stamp(self, item: Object) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        return item

    def put(self, item: Object) -> None:
        meta = self.stamp(item)["metadata"]
        self.services[meta["namespace"], meta["name"]] = item
        self.history.append(Upsert(claimant_of(item)))

    def delete(self, key: tuple[str, str]) -> None:
        del self.services[key]
        self.version += 1
        self.history.append(Delete(Service, ObjectKey(*key)))

    def request(self, method: str, path: str, *, body: Any = None, content_type: str = "") -> Answer:
        if method == "GET":
            return Answer(self._lease_now())
        body = copy.deepcopy(body)
        if method == self.lose_next:
            self.lose_next = ""
            self.under_way.append(lambda: self._carry_out(method, path, body))
            raise ApiError("no answer")
        return Answer(self._carry_out(method, path, body))

    def _lease_now(self) -> Object:
        if not self.lease:
            raise ApiError("not found", status=404)
        return copy.deepcopy(self.lease)

    def _carry_out(self, method: str, path: str, body: Object) -> Object:
        if "/leases" in path:
            there = bool(self.lease)
            known = self.lease.get("metadata", {}).get("resourceVersion")
            if there is (method == "POST") or (there and body["metadata"].get("resourceVersion") != known):
                raise ApiError("conflict", status=409)
            self.lease = self.stamp(body)
            return copy.deepcopy(self.lease)
        *_, namespace, _, name, _ = path.split("/")
        known = self.services.get((namespace, name))
        if known is None:
            raise ApiError("not found", status=404)
        for field, value in body["metadata"].items():
            if known["metadata"][field] != value:
                raise ApiError("conflict", status=409)
        if known["spec"]["type"] != "LoadBalancer":
            body["status"]["loadBalancer"] = {}
        self.put({**copy.deepcopy(known), "status": body["status"]})
        return self.services[namespace, name]


class Answer:
    def __init__(self, item: Object) -> None:
        self._body = msgspec.json.encode(item)

    def body(self) -> bytes:
        return self._body


def claimant_of(item: Object) -> Claimant:
    read = CLAIMANTS.read(msgspec.json.encode(item))
    assert read.resource is not None, read.error
    return read.resource


def shared_and_collided(one: Claimant, other: Claimant) -> bool:
    """Tell whether two Services have agreed to share, and have come to want the same port."""
    agreed = one.request.sharing_key and one.request.sharing_key == other.request.sharing_key
    return bool(agreed and not one.request.error and not other.request.error and collide(one, other))


class Process:
    """One that gives addresses, driven by hand: what a term's threads would do is done by rules."""

    def __init__(self, number: int, server: Server, clock: Callable[[], float], pools: PoolsFile) -> None:
        self.server = server
        self.pools = pools
        self.clock = clock
        self.client = cast("Client", server)
        now = lambda: datetime.datetime.fromtimestamp(clock(), datetime.UTC)  # noqa: E731
        self.lease = Lease(
            self.client, ObjectKey("kube-system", "l"), f"p{number}", Timing(clock=clock), now=now
        )
        self.controller: AddressController | None = None
        self.heard = 0

    def hold(self) -> None:
        """Try for the Lease; with it a term begins, with everything listed as it is then."""
        try:
            held = self.lease.hold()
        except ApiError:
            return
        if not held:
            self.controller = None
        elif self.controller is None:
            self.controller = AddressController(
                self.client,
                self.lease,
                self.pools,
                Telemetry(),
                publish=lambda _notice: None,
                wall=self.clock,
            )
            for item in self.server.services.values():
                self.controller.learn(Upsert(claimant_of(item)))
            self.heard = len(self.server.history)

    def hear(self, most: int) -> None:
        """Take in some of what the watch has to tell."""
        assert self.controller is not None
        for event in self.server.history[self.heard : self.heard + most]:
            self.controller.learn(event)
            self.heard += 1

    def look(self) -> None:
        assert self.controller is not None
        try:
            self.controller.look()
        except LostLeaseError:
            self.controller = None


class FixedPools:
    """Stands for a file of pools that a test changes."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools


class World(RuleBasedStateMachine):
    """All of it; whose an address is, is looked at after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1_000_000.0
        self.server = Server()
        self.pools = FixedPools(POOLS[0])
        self.processes: list[Process] = []
        self.started = 0
        self.made = 0
        self.before: dict[str, Claimant] = {}

    @initialize()
    def start(self) -> None:
        for _ in range(PROCESSES):
            self.processes.append(self._process())
        self.processes[0].hold()

    def _process(self) -> Process:
        self.started += 1
        return Process(self.started, self.server, lambda: self.time, cast("PoolsFile", self.pools))

    # users

    @rule(key=st.sampled_from(NAMES))
    def apply_plainly(self, key: tuple[str, str]) -> None:
        self.apply_service(key)

    @rule(
        key=st.sampled_from(NAMES),
        kind=st.sampled_from(["LoadBalancer", "LoadBalancer", "ClusterIP"]),
        request=st.sampled_from(["", "", *ADDRESSES, "192.0.2.77", "no address"]),
        pool=st.sampled_from(["", "", "a", "b"]),
        sharing=st.sampled_from(["", "", "k"]),
        port=st.sampled_from([80, 443]),
        families=st.sampled_from([["IPv4"], ["IPv4", "IPv6"], ["IPv6"]]),
    )
    def apply(self, key: tuple[str, str], **how: Any) -> None:
        self.apply_service(key, **how)

    def apply_service(
        self,
        key: tuple[str, str],
        *,
        kind: str = "LoadBalancer",
        request: str = "",
        pool: str = "",
        sharing: str = "",
        port: int = 80,
        families: list[str] = ["IPv4"],  # noqa: B006  (nobody changes it)
    ) -> None:
        known = self.server.services.get(key)
        if known is None:
            self.made += 1
        meta = (
            known["metadata"] if known else {"uid": f"u{self.made}", "creationTimestamp": f"{self.made:09}"}
        )
        notes = {"lbctl/addresses": request, "lbctl/pools": pool, "lbctl/sharing-key": sharing}
        stays = known["status"] if known and kind == "LoadBalancer" == known["spec"]["type"] else {}
        self.server.put(
            {
                "metadata": {**meta, "namespace": key[0], "name": key[1], "annotations": notes},
                "spec": {"type": kind, "ports": [{"port": port}], "ipFamilies": families},
                "status": copy.deepcopy(stays),
            }
        )

    @rule(key=st.sampled_from(NAMES))
    def delete(self, key: tuple[str, str]) -> None:
        if key in self.server.services:
            self.server.delete(key)

    @rule(pools=st.sampled_from(POOLS))
    def change_pools(self, pools: Pools) -> None:
        self.pools.pools = pools

    # the world

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS / 2, LEASE_SECONDS + 1.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.time += seconds

    @rule(method=st.sampled_from(["PATCH", "PATCH", "PUT"]))
    def lose_the_next_answer(self, method: str) -> None:
        self.server.lose_next = method

    @precondition(lambda self: self.server.under_way)
    @rule(data=st.data(), carried_out=st.booleans())
    def settle_what_got_lost(self, data: st.DataObject, carried_out: bool) -> None:
        at = data.draw(st.integers(0, len(self.server.under_way) - 1))
        write = self.server.under_way.pop(at)
        if carried_out:
            with contextlib.suppress(ApiError):
                write()

    # processes

    @rule(number=st.integers(0, PROCESSES - 1))
    def end_one_and_start_another(self, number: int) -> None:
        self.processes[number] = self._process()

    @rule(number=st.integers(0, PROCESSES - 1))
    def hold(self, number: int) -> None:
        self.processes[number].hold()

    @precondition(lambda self: any(each.controller is not None for each in self.processes))
    @rule(data=st.data(), most=st.sampled_from([1, 3, 1000]))
    def work(self, data: st.DataObject, most: int) -> None:
        process = data.draw(st.sampled_from([each for each in self.processes if each.controller is not None]))
        process.hear(most)
        process.look()

    @precondition(lambda self: {each.controller is None for each in self.processes} == {True, False})
    @rule(keys=st.permutations(NAMES), request=st.sampled_from(["", *ADDRESSES]), carried_out=st.booleans())
    def lose_a_write_and_the_lease(
        self, keys: list[tuple[str, str]], request: str, carried_out: bool
    ) -> None:
        """Let a status get on its way to a Service, and another process see to others before it arrives."""
        leader = next(each for each in self.processes if each.controller is not None)
        leader.hear(1000)
        leader.look()
        self.apply_service(keys[0])
        if leader.controller is None:
            return
        leader.hear(1000)
        self.server.lose_next = "PATCH"
        leader.look()
        for key in keys[1:]:
            self.apply_service(key, request=request)
        if leader.controller is not None:
            self.take_over()
        if carried_out and self.server.under_way:
            with contextlib.suppress(ApiError):
                self.server.under_way.pop()()

    @precondition(lambda self: self.processes and not all(each.controller for each in self.processes))
    @rule()
    def take_over(self) -> None:
        """Let one that does not give addresses take the place of who does, and begin at once."""
        self.time += LEASE_SECONDS + 1.0
        process = next(each for each in self.processes if each.controller is None)
        process.hold()
        self.time += LEASE_SECONDS + 1.0
        process.hold()
        if process.controller is not None:
            process.look()

    # what has to hold

    @invariant()
    def no_address_is_twice(self) -> None:
        holders: defaultdict[IPAddress, list[Claimant]] = defaultdict(list)
        for item in self.server.services.values():
            each = claimant_of(item)
            for address in each.standing:
                for other in holders[address]:
                    # Two that may share may change then; neither loses it. And a change may not be known yet.
                    pairs = itertools.product(self._versions(each), self._versions(other))
                    assert any(itertools.starmap(may_share, pairs)), f"{address}: {each.key}, {other.key}"
                holders[address].append(each)

    def _versions(self, each: Claimant) -> list[Claimant]:
        """Return a Service as it was at any time."""
        known = (event.resource for event in self.server.history if isinstance(event, Upsert))
        return [one for one in known if isinstance(one, Claimant) and one.uid == each.uid]

    @invariant()
    def no_address_moves_without_reason(self) -> None:
        now = {each.uid: each for each in map(claimant_of, self.server.services.values())}
        for uid, each in now.items():
            known = self.before.get(uid)
            if known is None or not each.balanced or not known.balanced:
                continue
            since = [one for one in self._versions(each) if int(one.version) >= int(known.version)]
            for address in set(known.standing) - set(each.standing):
                requested = {one.request.addresses.get(address.version) for one in since}
                given_up = any(address.version not in one.families for one in since)
                moved = requested & set(each.standing)
                assert given_up or moved or self._has_collided(each, address), f"{each.key}: {address}"
        self.before = now

    def _has_collided(self, each: Claimant, address: IPAddress) -> bool:
        """Tell whether a Service has ever shared an address with one that wanted the same port."""
        others = [
            one
            for item in self.server.services.values()
            for one in self._versions(claimant_of(item))
            if one.uid != each.uid and address in one.standing
        ]
        return any(shared_and_collided(one, other) for one in self._versions(each) for other in others)

    def no_port_is_twice(self) -> None:
        """Of two that share an address one has moved, unless it names the address or there is no other."""
        services = [claimant_of(item) for item in self.server.services.values()]
        for one, other in itertools.combinations(services, 2):
            if shared_and_collided(one, other):
                younger = max((one, other), key=lambda each: each.created)
                for address in set(one.standing) & set(other.standing):
                    no_other = younger.conditions[0]["reason"] in (Reason.POOL_FULL, Reason.NO_POOL)
                    assert younger.request.addresses.get(address.version) == address or no_other, younger.key

    def teardown(self) -> None:
        """See that all comes to rest: one process with an answering server gives all that can be had."""
        if not self.processes:
            return
        self.server.lose_next = ""
        self.server.under_way.clear()
        self.time += LEASE_SECONDS + 1.0
        process = self._process()
        process.hold()
        self.time += LEASE_SECONDS + 1.0
        process.hold()
        assert process.controller is not None
        for _ in range(3):
            process.hear(1000)
            process.look()
            self.no_address_is_twice()
            self.no_address_moves_without_reason()
        version = self.server.version
        process.hear(1000)
        process.look()
        assert self.server.version == version, "nothing is left to write"
        for item in self.server.services.values():
            each = claimant_of(item)
            if each.balanced:
                assert each.conditions, each.key
                assert bool(each.standing) is (each.conditions[0]["status"] == "True")
        self.no_port_is_twice()


World.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase


def test_a_write_that_arrives_after_the_lease_was_lost_doubles_nothing() -> None:
    world = World()
    world.start()
    old, new = NAMES[0], NAMES[4]
    world.apply_service(old, kind="ClusterIP")
    world.apply_service(new)
    first = world.processes[0]
    assert first.controller is not None
    first.hear(2)
    world.server.lose_next = "PATCH"
    first.look()
    world.apply_service(old)  # the older of the two now, which would come first
    world.take_over()
    [write] = world.server.under_way
    with contextlib.suppress(ApiError):
        write()
    found = {key: claimant_of(item).standing for key, item in world.server.services.items()}
    assert {str(one) for one in found[new]} == {"192.0.2.1"}, "what was promised to it"
    assert {str(one) for one in found[old]} == {"192.0.2.2"}


def test_a_port_that_two_sharing_services_come_to_want_at_once_is_one_s_alone() -> None:
    """The one is given the address of the other, whose ports a user changes before that is written."""
    world = World()
    world.start()
    old, new = NAMES[0], NAMES[1]
    world.apply_service(old, sharing="k")
    process = world.processes[0]
    assert process.controller is not None
    process.hear(1000)
    process.look()
    world.apply_service(new, sharing="k", port=443)
    process.hear(1000)
    world.apply_service(old, sharing="k", port=443)  # not heard of yet
    process.look()
    found = {key: claimant_of(item).standing for key, item in world.server.services.items()}
    assert {str(one) for one in (*found[old], *found[new])} == {"192.0.2.1"}
    process.hear(1000)
    process.look()
    found = {key: claimant_of(item).standing for key, item in world.server.services.items()}
    assert [str(one) for one in (*found[old], *found[new])] == ["192.0.2.1", "192.0.2.2"]
    world.no_port_is_twice()
    world.teardown()


def test_a_process_that_lost_the_lease_writes_nothing() -> None:
    world = World()
    world.start()
    world.apply_service(NAMES[0])
    first = world.processes[0]
    first.hear(1)
    world.take_over()
    version = world.server.version
    first.look()
    assert world.processes[0].controller is None
    assert world.server.version == version
