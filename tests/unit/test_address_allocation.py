# SPDX-License-Identifier: Apache-2.0
"""Who gets which load-balancer address, in rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from lb.addresses.allocate import Outcome, Past, Reason, Rest, allocate
from lb.addresses.claimant import Claimant
from lb.addresses.pool import parse
from lb.addresses.request import AddressRequest
from lb.addresses.sharing import may_share
from lb.model import IPAddress, ObjectKey, Protocol, ServicePort, ServiceType, TrafficPolicy

POOLS = parse(
    """\
pools:
  - {name: small, addresses: [192.0.2.1-192.0.2.2, "2001:db8::1-2001:db8::2"]}
  - {name: asked, addresses: [198.51.100.0/24], automatic: false}
  - {name: shop, addresses: [203.0.113.0/24], namespaces: [shop]}
""",
    "pools.yaml",
)
A, B, V6 = ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8::1")
ASKED, SHOP = ip_address("198.51.100.7"), ip_address("203.0.113.0")
ELSEWHERE = ip_address("192.0.2.99")
NOW = 1_000_000.0


def service(name: str, *has: IPAddress, port: int = 80, key: str = "", **more: Any) -> Claimant:
    """Return a Service in the namespace default, unless its name says another; key: that of sharing."""
    namespace, _, name = f"default/{name}".split("/", 1)[-1].rpartition("/")
    fields: dict[str, Any] = {"request": AddressRequest({}, sharing_key=key)} if key else {}
    return Claimant(
        ObjectKey(namespace or "default", name),
        ServiceType.LOAD_BALANCER,
        ports=(ServicePort("", Protocol.TCP, port, port),),
        load_balancer_ips=has,
        **{**fields, **more},
    )


def requesting(*addresses: IPAddress, pools: tuple[str, ...] = (), **more: Any) -> AddressRequest:
    return AddressRequest({each.version: each for each in addresses}, pools, **more)


def given(outcome: Outcome) -> dict[str, tuple[IPAddress, ...]]:
    return {key.name: each.addresses for key, each in outcome.verdicts.items()}


def run(*services: Claimant, past: Past | None = None, **more: Any) -> Outcome:
    return allocate(POOLS, services, NOW, past=past or Past(), **more)


def reason(outcome: Outcome, name: str) -> Reason:
    return next(each.reason for key, each in outcome.verdicts.items() if key.name == name)


def test_the_older_service_gets_the_lower_address_and_pools_are_used_in_their_order() -> None:
    young = service("shop/young", created="2021")
    outcome = run(young, service("shop/old", created="2020"), service("shop/late", created="2022"))
    assert given(outcome) == {"old": (A,), "young": (B,), "late": (SHOP,)}
    assert outcome.verdicts[young.key].note == f"{B} from pool small"
    assert outcome.verdicts[young.key].satisfied
    assert not outcome.verdicts[young.key].fault


def test_what_stands_stays() -> None:
    outside, other = service("outside", ELSEWHERE), service("web", B)
    outcome = run(outside, other, service("new"))
    assert given(outcome) == {"outside": (ELSEWHERE,), "web": (B,), "new": (A,)}
    assert reason(outcome, "outside") is Reason.OUTSIDE
    assert outcome.verdicts[outside.key].satisfied
    assert outcome.verdicts[outside.key].fault


def test_two_that_have_one_address_keep_it_and_are_told() -> None:
    outcome = run(service("one", A), service("two", A))
    assert given(outcome) == {"one": (A,), "two": (A,)}
    assert [each.reason for each in outcome.verdicts.values()] == [Reason.TAKEN] * 2


def test_a_full_pool_is_said() -> None:
    outcome = run(service("one", A), service("two", B), service("three"))
    assert given(outcome)["three"] == ()
    verdict = outcome.verdicts[ObjectKey("default", "three")]
    assert (verdict.reason, verdict.satisfied, verdict.fault) == (Reason.POOL_FULL, False, True)
    assert verdict.note == "no IPv4 address is left in pool small"


@pytest.mark.parametrize(
    ("asked", "expected", "why"),
    [
        (requesting(B), (B,), Reason.GIVEN),
        (requesting(ASKED), (ASKED,), Reason.GIVEN),
        (requesting(pools=("asked",)), (ip_address("198.51.100.0"),), Reason.GIVEN),
        (requesting(ASKED, pools=("asked",)), (ASKED,), Reason.GIVEN),
        (requesting(A), (), Reason.TAKEN),
        (requesting(ELSEWHERE), (), Reason.OUTSIDE),
        (requesting(SHOP), (), Reason.REFUSED),
        (requesting(B, pools=("asked",)), (), Reason.REFUSED),
        (requesting(pools=("shop",)), (), Reason.NO_POOL),
        (requesting(pools=("none",)), (), Reason.NO_POOL),
        (requesting(error="lbctl/addresses: no"), (), Reason.UNREADABLE),
        (requesting(B, V6), (B,), Reason.REFUSED),
    ],
)
def test_requests(asked: AddressRequest, expected: tuple[IPAddress, ...], why: Reason) -> None:
    outcome = run(service("holder", A), service("web", request=asked))
    assert given(outcome)["web"] == expected
    assert reason(outcome, "web") is why
    assert outcome.verdicts[ObjectKey("default", "web")].fault is (why is not Reason.GIVEN)


def test_a_request_that_can_be_had_moves_an_address_and_one_that_cannot_does_not() -> None:
    outcome = run(service("web", A, request=requesting(B)), service("other", created="2020"))
    assert given(outcome) == {"web": (B,), "other": ()}, "what is left rests, and is not given at once"
    for request in (requesting(ELSEWHERE), requesting(ASKED, pools=("small",)), requesting(error="no")):
        assert given(run(service("web", A, request=request)))["web"] == (A,)


def test_a_node_s_own_address_is_given_to_nobody() -> None:
    """A pool that has it passes it over, a Service that names it is refused, one that has it is told."""
    nodes = {A: "node1", ip_address("2001:db8::9"): "node1"}
    outcome = run(service("web"), service("asks", request=requesting(A)), nodes=nodes)
    assert given(outcome) == {"web": (B,), "asks": ()}
    verdict = outcome.verdicts[ObjectKey("default", "asks")]
    assert (verdict.reason, verdict.note, verdict.fault) == (
        Reason.OF_NODE,
        f"{A}, which it names, is Node node1's own",
        True,
    )
    outcome = run(service("has", A, key="k"), service("shares", port=81, key="k"), nodes=nodes)
    assert given(outcome) == {"has": (A,), "shares": (B,)}, "what stands stays, and is shared no further"
    assert reason(outcome, "has") is Reason.OF_NODE
    rested = Past(resting={A: Rest(NOW + 9, ObjectKey("default", "web"))})
    assert given(run(service("web"), service("b", B), past=rested, nodes=nodes))["web"] == ()


def test_requests_come_before_what_is_given_freely() -> None:
    outcome = run(service("old", created="2020"), service("new", created="2021", request=requesting(A)))
    assert given(outcome) == {"old": (B,), "new": (A,)}


@pytest.mark.parametrize(
    ("families", "requires_all", "expected", "satisfied"),
    [
        ((4, 6), False, (A, V6), True),
        ((6, 4), True, (V6, A), True),
        ((6,), False, (V6,), True),
    ],
)
def test_families(
    families: tuple[int, ...], requires_all: bool, expected: tuple[IPAddress, ...], satisfied: bool
) -> None:
    outcome = run(service("web", families=families, requires_all=requires_all))
    assert given(outcome)["web"] == expected
    assert outcome.verdicts[ObjectKey("default", "web")].satisfied is satisfied


@pytest.mark.parametrize("requires_all", [False, True])
def test_a_family_that_no_pool_has_is_missed_by_who_requires_it(requires_all: bool) -> None:
    request = requesting(pools=("asked",))
    outcome = run(service("web", families=(4, 6), requires_all=requires_all, request=request))
    verdict = outcome.verdicts[ObjectKey("default", "web")]
    assert verdict.addresses == (ip_address("198.51.100.0"),)
    assert verdict.reason is Reason.NO_POOL
    assert (verdict.satisfied, verdict.fault) == (not requires_all, requires_all)


def test_a_family_that_is_given_up_goes_back() -> None:
    assert given(run(service("web", A, V6, families=(4,))))["web"] == (A,)


@pytest.mark.parametrize(
    "more",
    [
        {"type": ServiceType.NODE_PORT},
        {"load_balancer_class": "example.com/other"},
        {"elsewhere": True},
    ],
)
def test_services_that_are_not_ours_get_nothing_and_keep_what_they_have(more: Mapping[str, Any]) -> None:
    foreign = replace(service("foreign", A), **more)
    outcome = run(foreign, service("web"))
    assert foreign.key not in outcome.verdicts
    assert given(outcome)["web"] == ((A,) if "type" in more else (B,))


def test_addresses_that_are_something_else_are_not_given() -> None:
    other = Claimant(ObjectKey("default", "other"), external_ips=(A,), cluster_ips=(V6,))
    outcome = run(other, service("web", families=(4, 6)))
    assert given(outcome)["web"] == (B, ip_address("2001:db8::2"))


def test_what_is_promised_counts_as_given() -> None:
    promised = {ObjectKey("default", "young"): (A,)}
    outcome = run(service("old", created="2020"), service("young", created="2021"), promised=promised)
    assert given(outcome) == {"old": (B,), "young": (A,)}


def test_an_address_rests_and_goes_back_to_a_service_of_its_name() -> None:
    past = run(service("web", A)).past
    outcome = run(service("next"), past=past)
    assert given(outcome)["next"] == (B,)
    assert outcome.past.resting == {A: Rest(NOW + POOLS.rest_seconds, ObjectKey("default", "web"))}
    later = run(service("next", B), service("third"), service("web"), past=outcome.past)
    assert given(later)["web"] == (A,)
    assert A not in later.past.resting


def test_what_rests_is_given_when_nothing_else_is_left_the_longest_first() -> None:
    resting = {A: Rest(NOW + 9, ObjectKey("x", "a")), B: Rest(NOW + 5, ObjectKey("x", "b"))}
    assert given(run(service("web"), past=Past({}, resting)))["web"] == (B,)
    over = {A: Rest(NOW, ObjectKey("x", "a")), B: Rest(NOW + 5, ObjectKey("x", "b"))}
    assert given(run(service("web"), past=Past({}, over)))["web"] == (A,)


SHARING: Iterable[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"key": "k"}, {"key": "k", "port": 443}, True),
    ({"key": "k"}, {"key": "other", "port": 443}, False),
    ({}, {"port": 443}, False),
    ({"key": "k"}, {"key": "k"}, False),
    ({"key": "k", "external_policy": TrafficPolicy.LOCAL}, {"key": "k", "port": 443}, False),
    (
        {"key": "k", "external_policy": TrafficPolicy.LOCAL, "selector": {"app": "a"}},
        {"key": "k", "port": 443, "selector": {"app": "a"}},
        True,
    ),
]


@pytest.mark.parametrize(("one", "other", "together"), SHARING)
def test_sharing(one: dict[str, Any], other: dict[str, Any], together: bool) -> None:
    first, second = service("one", A, **one), service("two", **other)
    assert may_share(first, second) is may_share(second, first) is together
    assert given(run(first, second))["two"] == ((A,) if together else (B,))


def test_sharing_across_namespaces_is_for_who_opens_itself() -> None:
    open_to_all = AddressRequest({}, sharing_key="k", sharing_namespaces=frozenset("*"))
    open_to_shop = AddressRequest({}, sharing_key="k", sharing_namespaces=frozenset(("shop",)))
    other = service("shop/two", request=open_to_all, port=443)
    assert not may_share(service("one", A, key="k"), other)
    assert may_share(service("one", A, request=open_to_shop), other)
    assert not may_share(
        service("one", A, request=open_to_shop), service("blog/two", request=open_to_all, port=443)
    )


def test_ports_of_two_protocols_are_two() -> None:
    udp = replace(service("dns", key="k"), ports=(ServicePort("", Protocol.UDP, 80, 80),))
    assert may_share(service("web", key="k"), udp)


def test_a_third_shares_only_with_all() -> None:
    outcome = run(
        service("one", A, key="k"), service("two", A, key="k", port=443), service("three", key="k", port=443)
    )
    assert given(outcome)["three"] == (B,)


COLLISIONS: Iterable[tuple[dict[str, Any], tuple[IPAddress, ...], Reason, Reason]] = [
    ({"key": "k"}, (B,), Reason.GIVEN, Reason.GIVEN),
    ({"key": "other"}, (A,), Reason.TAKEN, Reason.TAKEN),  # they never agreed to share
    ({"request": AddressRequest({4: A}, sharing_key="k")}, (A,), Reason.TAKEN, Reason.TAKEN),
    ({"request": AddressRequest({}, ("none",), sharing_key="k")}, (A,), Reason.NO_POOL, Reason.GIVEN),
]


@pytest.mark.parametrize(("younger", "has", "why", "older"), COLLISIONS)
def test_of_two_sharing_services_that_come_to_want_one_port_the_younger_moves_if_it_can(
    younger: dict[str, Any], has: tuple[IPAddress, ...], why: Reason, older: Reason
) -> None:
    outcome = run(service("b", A, key="k", created="2020"), service("a", A, created="2021", **younger))
    assert given(outcome) == {"b": (A,), "a": has}
    assert (reason(outcome, "a"), reason(outcome, "b")) == (why, older)


def test_what_a_service_shares_otherwise_than_agreed_stays() -> None:
    """Only a port that two want cannot be served for both."""
    local: dict[str, Any] = {"external_policy": TrafficPolicy.LOCAL, "port": 443}
    outcome = run(service("a", A, key="k"), service("b", A, key="k", **local))
    assert given(outcome) == {"a": (A,), "b": (A,)}


def test_a_request_for_an_address_that_may_be_shared_is_granted() -> None:
    request = AddressRequest({4: A}, sharing_key="k")
    outcome = run(service("one", A, key="k"), service("two", request=request, port=443))
    assert given(outcome)["two"] == (A,)
