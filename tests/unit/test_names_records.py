# SPDX-License-Identifier: Apache-2.0
"""The records of Services, after the DNS specification of Kubernetes, and in which zone they are."""

from ipaddress import ip_address

import pytest

from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
)
from lb.names.records import Records, by_zone, merged, service_records, zone_records

KEY = ObjectKey("shop", "web")
NAME = "web.shop.svc.cluster.local."
HTTP = ServicePort("http", Protocol.TCP, 80, 8080)


def service(*addresses: str, ports: tuple[ServicePort, ...] = (HTTP,), **fields: object) -> Service:
    return Service(KEY, ports=ports, cluster_ips=tuple(map(ip_address, addresses)), **fields)  # type: ignore[arg-type]


def piece(*endpoints: tuple[str, bool], hostnames: str = "", port: str = "http") -> EndpointSlice:
    return EndpointSlice(
        ObjectKey("shop", "web-1"),
        KEY,
        (EndpointPort(port, Protocol.TCP, 8080),),
        tuple(Endpoint(ip_address(address), ready) for address, ready in endpoints),
        hostnames=hostnames,
    )


def lines(records: Records) -> list[str]:
    """Return records as lines of a zone file, sorted."""
    return sorted(f"{owner} {kind} {data}" for (owner, kind), found in records.items() for data in found)


def told(given: Service, *slices: EndpointSlice) -> list[str]:
    return lines(service_records(given, slices, "cluster.local"))


def test_a_cluster_ip() -> None:
    assert told(service("10.66.1.2"), piece(("10.244.1.2", True))) == [
        f"2.1.66.10.in-addr.arpa. PTR {NAME}",
        f"_http._tcp.{NAME} SRV 0 100 80 {NAME}",
        f"{NAME} A 10.66.1.2",
    ]


def test_both_families() -> None:
    found = told(service("10.66.1.2", "fd00:66::1"))
    assert f"{NAME} A 10.66.1.2" in found
    assert f"{NAME} AAAA fd00:66::1" in found
    back = ip_address("fd00:66::1").reverse_pointer
    assert back.startswith("1.0.0.")
    assert f"{back}. PTR {NAME}" in found


def test_a_port_without_a_name_has_no_record_of_its_own() -> None:
    found = told(service("10.66.1.2", ports=(ServicePort("", Protocol.UDP, 53, 53),)))
    assert not [line for line in found if " SRV " in line]


def test_a_service_that_has_no_address_yet_has_no_name() -> None:
    assert told(service()) == []


def test_headless_is_told_by_its_ready_endpoints() -> None:
    headless = service(headless=True)
    found = told(headless, piece(("10.244.1.2", True), ("10.244.1.3", False)))
    one = f"10-244-1-2.{NAME}"
    assert found == [
        f"{one} A 10.244.1.2",
        f"2.1.244.10.in-addr.arpa. PTR {one}",
        f"_http._tcp.{NAME} SRV 0 100 8080 {one}",
        f"{NAME} A 10.244.1.2",
    ]


def test_headless_of_several_slices_and_families() -> None:
    slices = (piece(("10.244.1.2", True)), piece(("fd00:244::2", True), port="admin"))
    found = told(service(headless=True), *slices)
    assert f"{NAME} A 10.244.1.2" in found
    assert f"{NAME} AAAA fd00:244::2" in found
    assert f"_admin._tcp.{NAME} SRV 0 100 8080 fd00-244--2.{NAME}" in found


def test_a_hostname_is_the_endpoints_name() -> None:
    found = told(
        service(headless=True), piece(("10.244.1.2", True), ("10.244.1.3", True), hostnames="\nweb-1")
    )
    assert f"web-1.{NAME} A 10.244.1.3" in found
    assert f"10-244-1-2.{NAME} A 10.244.1.2" in found
    assert f"3.1.244.10.in-addr.arpa. PTR web-1.{NAME}" in found
    assert f"_http._tcp.{NAME} SRV 0 100 8080 web-1.{NAME}" in found


def test_publish_not_ready_addresses() -> None:
    found = told(service(headless=True, publish_not_ready=True), piece(("10.244.1.3", False)))
    assert f"{NAME} A 10.244.1.3" in found


def test_headless_without_a_ready_endpoint_still_has_its_name() -> None:
    assert told(service(headless=True), piece(("10.244.1.3", False))) == [
        f'{NAME} TXT "no endpoint is ready"'
    ]


@pytest.mark.parametrize("target", ["www.example.org", "www.example.org."])
def test_external_name_is_an_alias_and_nothing_else(target: str) -> None:
    alias = service(type=ServiceType.EXTERNAL_NAME, external_name=target)
    assert told(alias, piece(("10.244.1.2", True))) == [f"{NAME} CNAME www.example.org."]


def test_what_a_zone_has_besides() -> None:
    assert lines(zone_records("cluster.local", "ns.dns.cluster.local", [ip_address("10.66.0.10")])) == [
        'dns-version.cluster.local. TXT "1.1.0"',
        "ns.dns.cluster.local. A 10.66.0.10",
    ]


def test_records_of_one_owner_come_together() -> None:
    one: Records = {("a.", "PTR"): frozenset({"x."})}
    two: Records = {("a.", "PTR"): frozenset({"y."}), ("a.", "TXT"): frozenset({"t"})}
    assert merged((one, two)) == {("a.", "PTR"): {"x.", "y."}, ("a.", "TXT"): {"t"}}


def test_each_record_is_in_the_innermost_zone() -> None:
    given: Records = {
        (owner, "TXT"): frozenset({"x"})
        for owner in (
            "local.",
            "cluster.local.",
            "a.cluster.local.",
            "notcluster.local.",
            "a.in.cluster.local.",
        )
    }
    found = by_zone(given, ["cluster.local", "in.cluster.local"])
    assert {zone: {owner for owner, _ in records} for zone, records in found.items()} == {
        "cluster.local": {"cluster.local.", "a.cluster.local."},
        "in.cluster.local": {"a.in.cluster.local."},
    }
