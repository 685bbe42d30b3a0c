# SPDX-License-Identifier: Apache-2.0
"""What is concluded from the answers of DNS about the name of a Service."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.diagnose.facts import Finding, Result
from lb.diagnose.names import look, resolves
from lb.model import Endpoint, EndpointSlice, ObjectKey, Service, ServiceType
from lb.names import DNS, SILENT

KEY = ObjectKey("shop", "web")
WEB = Service(KEY, cluster_ips=(ip_address("10.66.1.2"),))
KUBE_DNS = Service(DNS, cluster_ips=(ip_address("10.66.0.10"),))
SLICE = EndpointSlice(ObjectKey("shop", "web-1"), KEY, (), (Endpoint(ip_address("10.244.1.2")),))
HEADLESS = replace(WEB, cluster_ips=(), headless=True)
ALIAS = Service(KEY, ServiceType.EXTERNAL_NAME, external_name="a.example.org")
Answers = dict[str, tuple[str, list[str]]]
ZONE: Answers = {"SOA": ("NOERROR", ["the SOA"])}


def said(answers: Answers) -> Callable[[Sequence[tuple[str, str, str]]], list[tuple[str, Sequence[str]]]]:
    """Return a DNS that gives these answers by type; of other types the name has no data."""

    def ask(questions: Sequence[tuple[str, str, str]]) -> list[tuple[str, Sequence[str]]]:
        assert {server for server, _, _ in questions} == {"10.66.0.10"}
        assert {owner for _, owner, kind in questions if kind != "SOA"} == {"web.shop.svc.cluster.local."}
        return [answers.get(kind, ("NOERROR", [])) for _, _, kind in questions]

    return ask


def found(service: Service, answers: Answers, *slices: EndpointSlice) -> Finding:
    [finding] = resolves(look(service, slices, KUBE_DNS, said(answers)))
    return finding


@pytest.mark.parametrize(
    ("service", "answers", "told"),
    [
        (WEB, {"A": ("NOERROR", ["10.66.1.2"])}, "web.shop.svc.cluster.local is 10.66.1.2"),
        (HEADLESS, {"A": ("NOERROR", ["10.244.1.2"])}, "web.shop.svc.cluster.local is 10.244.1.2"),
        (
            ALIAS,
            {"CNAME": ("NOERROR", ["a.example.org."])},
            "web.shop.svc.cluster.local is a.example.org.",
        ),
    ],
)
def test_the_name_is_what_it_should_be(service: Service, answers: Answers, told: str) -> None:
    finding = found(service, ZONE | answers, SLICE)
    assert (finding.result, finding.found) == (Result.OK, told)


@pytest.mark.parametrize(
    ("service", "answers", "cause", "told"),
    [
        (WEB, {"A": ("NXDOMAIN", []), "AAAA": ("NXDOMAIN", [])}, "name-missing", "is NXDOMAIN"),
        (WEB, {"A": ("NOERROR", ["10.66.1.9"])}, "name-differs", "should be 10.66.1.2"),
        (WEB, {}, "name-differs", "is without an address"),
        (HEADLESS, {"A": ("NOERROR", ["10.244.1.2", "10.244.1.3"])}, "name-differs", "should be 10.244.1.2"),
        (ALIAS, {"CNAME": ("NOERROR", ["other.example.org."])}, "name-differs", "should be a.example.org."),
    ],
)
def test_the_name_is_something_else(service: Service, answers: Answers, cause: str, told: str) -> None:
    finding = found(service, ZONE | answers, SLICE)
    assert (finding.result, finding.cause) == (Result.CAUSE, cause)
    assert told in finding.found


def test_nobody_answers() -> None:
    finding = found(WEB, {kind: (SILENT, []) for kind in ("SOA", "A", "AAAA")})
    assert (finding.result, finding.cause) == (Result.CAUSE, "dns-silent")


def test_another_domain_is_no_fault() -> None:
    finding = found(WEB, {kind: ("NXDOMAIN", []) for kind in ("SOA", "A", "AAAA")})
    assert (finding.result, finding.cause) == (Result.NOTE, "other-domain")


def test_without_dns_there_is_a_note() -> None:
    for dns in (None, replace(KUBE_DNS, cluster_ips=())):
        [finding] = resolves(look(WEB, (), dns, said({})))
        assert (finding.result, finding.cause) == (Result.NOTE, "no-dns")


def test_endpoints_that_are_not_known_prove_nothing() -> None:
    finding = found(HEADLESS, ZONE | {"A": ("NOERROR", ["10.244.1.2"])})
    assert finding.result is Result.OK
