# SPDX-License-Identifier: Apache-2.0
"""Metrics of single Services and backends, as a scrape has them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from lb.datapath.view.figures import HANDSHAKE_BOUNDS
from lb.errors import BpfError
from lb.served.metrics import Part
from lb.served.service_metrics import service_metrics
from tests.fake_maps import FakeMaps
from tests.unit.figures_bench import WEB, Node
from tests.unit.pins_bench import LIMITS
from tests.unit.test_metrics import OPENMETRICS, Samples, answering, get, parse_openmetrics

WEB_LABELS = ("default", "web", "http", "TCP")
DNS_LABELS = ("kube-system", "kube-dns", "dns", "UDP")
MAIL_LABELS = ("default", "mail", "", "")
ORDER = (
    "namespace",
    "service",
    "port",
    "protocol",
    "backend",
    "direction",
    "reason",
    "of",
    "collector",
    "le",
)


@pytest.fixture
def node() -> Node:
    node = Node()
    node.busy()
    return node


def told(node: Node, services: int = 100, backends: int = 100) -> list[Metric]:
    """Return the metrics after a way over the wire."""
    parts: dict[str, Part] = {
        "figures": lambda: service_metrics(lambda: contextlib.nullcontext(node.maps), services, backends)
    }
    with answering(parts) as url:
        list(parse_openmetrics(get(url, OPENMETRICS)))
        families = list(text_string_to_metric_families(get(url)))
    return [one for one in families if one.name.startswith("lbctl_") and not one.name.endswith("_created")]


def samples(families: Sequence[Metric]) -> Samples:
    """Return values by the sample's name and the values of its labels, in the order of ORDER."""
    return {
        (one.name, tuple(one.labels[name] for name in sorted(one.labels, key=ORDER.index))): one.value
        for family in families
        for one in family.samples
    }


def of(families: Sequence[Metric], name: str) -> set[tuple[str, ...]]:
    """Return the values of the labels of all samples of a name."""
    return {labels for sample, labels in samples(families) if sample == name}


def test_services_and_their_failures(node: Node) -> None:
    found = samples(told(node))
    packets, octets = "lbctl_service_packets_total", "lbctl_service_bytes_total"
    assert found[packets, (*WEB_LABELS, "request")] == 710
    assert found[packets, (*WEB_LABELS, "reply")] == 680
    assert found[octets, (*WEB_LABELS, "request")] == 71_000
    assert found[octets, (*WEB_LABELS, "reply")] == 1_655_000
    assert found["lbctl_service_connections_total", WEB_LABELS] == 82
    assert found["lbctl_service_connections_total", MAIL_LABELS] == 0
    failures = "lbctl_service_connect_failures_total"
    assert (found[failures, (*WEB_LABELS, "refused")], found[failures, (*WEB_LABELS, "unanswered")]) == (4, 1)
    dropped = {
        labels: value for (name, labels), value in found.items() if name.startswith("lbctl_service_drop")
    }
    assert dropped == {
        ("default", "web", "SOURCE_NOT_ALLOWED"): 4,
        ("default", "mail", "REJECT_NO_ENDPOINT"): 2,
    }


def test_backends(node: Node) -> None:
    families = told(node)
    found = samples(families)
    here, away, six = "10.244.1.2:8080", "10.244.2.2:8080", "[fd00:244::2]:8080"
    wanted = {*((*WEB_LABELS, backend) for backend in (here, away, six)), (*DNS_LABELS, "10.244.2.3:53")}
    assert of(families, "lbctl_backend_connections_total") == wanted
    assert found["lbctl_backend_connections_total", (*WEB_LABELS, six)] == 2
    assert found["lbctl_backend_packets_total", (*WEB_LABELS, here, "reply")] == 480
    assert found["lbctl_backend_connect_failures_total", (*WEB_LABELS, away, "refused")] == 4
    assert found["lbctl_backend_connect_failures_total", (*WEB_LABELS, here, "unanswered")] == 1


def test_handshake_times_are_a_histogram_of_services_that_have_handshakes(node: Node) -> None:
    families = told(node)
    found = samples(families)
    name = "lbctl_service_handshake_seconds"
    buckets = {
        float(labels[-1]): value
        for (sample, labels), value in found.items()
        if sample == f"{name}_bucket" and labels[:4] == WEB_LABELS
    }
    assert tuple(buckets) == (*HANDSHAKE_BOUNDS, float("inf"))
    assert [buckets[HANDSHAKE_BOUNDS[at]] for at in (2, 3, 4, 5, 8, 9, 19)] == [0, 40, 42, 72, 72, 78, 78]
    assert found[f"{name}_count", WEB_LABELS] == buckets[float("inf")] == 78
    assert found[f"{name}_sum", WEB_LABELS] == 0.0028
    assert of(families, f"{name}_count") == {WEB_LABELS, MAIL_LABELS}


@pytest.mark.parametrize(("most", "left_out"), [(0, (3, 4)), (1, (2, 3)), (2, (1, 2)), (4, (0, 0))])
def test_no_more_than_the_settings_allow(node: Node, most: int, left_out: tuple[int, int]) -> None:
    families = told(node, most, most)
    found = samples(families)
    assert len(of(families, "lbctl_service_connections_total")) == 3 - left_out[0]
    assert len(of(families, "lbctl_backend_connections_total")) == 4 - left_out[1]
    assert found["lbctl_metrics_left_out", ("services",)] == left_out[0]
    assert found["lbctl_metrics_left_out", ("backends",)] == left_out[1]
    if most == 1:
        assert of(families, "lbctl_service_connections_total") == {WEB_LABELS}
        assert of(families, "lbctl_backend_connections_total") == {(*DNS_LABELS, "10.244.2.3:53")}


def test_where_traffic_is_not_counted_nothing_is_said_of_it() -> None:
    class Off(FakeMaps):
        def capacity(self, name: str) -> int:
            return 1 if name.startswith("traffic") else super().capacity(name)

    names = {one.name for one in told(Node(Off(LIMITS)))}
    assert "lbctl_service_connections" in names
    assert not [name for name in names if name.endswith(("_packets", "_bytes")) and "dropped" not in name]


def test_maps_that_cannot_be_read(node: Node) -> None:
    node.maps.fail("service_counters", operation="read")
    with pytest.raises(BpfError, match="service_counters"):
        list(service_metrics(lambda: contextlib.nullcontext(node.maps), 1, 1))
    node.of_service(WEB, {0: 1})
