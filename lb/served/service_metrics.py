# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` says of single Services and backends: no more of them than the settings allow.

Each scrape reads the maps; IPv4 and IPv6 of a Service port are one series. When a Service or a backend comes
again its counters begin at 0, which Prometheus takes for a restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.view import figures
from lb.datapath.view.figures import HANDSHAKE_BOUNDS, Figures, PortName, Sample

PORT_LABELS = ("namespace", "service", "port", "protocol")
BACKEND_LABELS = (*PORT_LABELS, "backend")

_BOUNDS = (*map(floatToGoString, HANDSHAKE_BOUNDS), "+Inf")


def service_metrics(
    opened: Callable[[], contextlib.AbstractContextManager[Maps]], services: int, backends: int
) -> Iterator[Metric]:
    """Yield packets, bytes, connections and their failures, handshake times, and what went nowhere.

    opened gives maps of the reader's own. services, backends: of how many at most; those with the most
    connections come first.

    Raises BpfError: the kernel refused to show a map.
    """
    with opened() as maps:
        found = figures.sample(maps)
    names = list(found.ports)
    chosen = [(names[row], row) for row in _busiest(found.figures, services)]
    by_port = [(name, found.of_port(row)) for name, row in chosen]
    yield from _counters("service", PORT_LABELS, by_port, traffic=found.counts_traffic)
    yield _handshakes(found, chosen)
    yield _dropped(found, chosen)
    by_backend = _backends(found, names, backends)
    yield from _counters("backend", BACKEND_LABELS, by_backend, traffic=found.counts_traffic)
    left_out = GaugeMetricFamily(
        "lbctl_metrics_left_out",
        "Service ports and backends that have no metrics: settings metrics_services and metrics_backends.",
        labels=["of"],
    )
    left_out.add_metric(["services"], len(names) - len(chosen))
    left_out.add_metric(["backends"], sum(len(one.ids) for one in found.backends.values()) - len(by_backend))
    yield left_out


def _busiest(counted: Rows, most: int) -> list[int]:
    """Return the rows with the most connections, then packets; where these are equal, the first ones."""
    order = np.lexsort((np.arange(len(counted)), ~counted["packets"], ~counted["opened"]))
    rows: list[int] = order[:most].tolist()
    return rows


def _backends(found: Sample, names: Sequence[PortName], most: int) -> list[tuple[tuple[str, ...], Figures]]:
    """Return labels and figures of the busiest backends."""
    places = [(one.version, row) for one in found.backends.values() for row in range(len(one.ids))]
    counted = np.concatenate([one.figures for one in found.backends.values()])
    labels: list[tuple[tuple[str, ...], Figures]] = []
    for at in _busiest(counted, most):
        version, row = places[at]
        port = names[int(found.backends[version].ports[row])]
        labels.append(((*port, found.backend(version, row).address), Figures(*counted[at].item())))
    return labels


def _counters(
    of: str, labels: Sequence[str], counted: Sequence[tuple[tuple[str, ...], Figures]], *, traffic: bool
) -> Iterator[Metric]:
    """Yield what is counted alike of Service ports and backends; of: "service" or "backend"."""
    packets = CounterMetricFamily(
        f"lbctl_{of}_packets",
        "Packets translated towards backends (request) and back (reply), as the hooks see them.",
        labels=[*labels, "direction"],
    )
    octets = CounterMetricFamily(
        f"lbctl_{of}_bytes", "The bytes of those packets.", labels=[*labels, "direction"]
    )
    connections = CounterMetricFamily(
        f"lbctl_{of}_connections",
        "Connections opened, those led to a backend at the socket too.",
        labels=labels,
    )
    failures = CounterMetricFamily(
        f"lbctl_{of}_connect_failures",
        "Connections that the backend refused with a reset, or left unanswered until the first packet came"
        " again; without those led to it at the socket.",
        labels=[*labels, "reason"],
    )
    for values, one in counted:
        packets.add_metric([*values, "request"], one.packets)
        packets.add_metric([*values, "reply"], one.reply_packets)
        octets.add_metric([*values, "request"], one.bytes)
        octets.add_metric([*values, "reply"], one.reply_bytes)
        connections.add_metric(list(values), one.opened)
        failures.add_metric([*values, "refused"], one.refused)
        failures.add_metric([*values, "unanswered"], one.unanswered)
    if traffic:
        yield from (packets, octets)
    yield from (connections, failures)


def _handshakes(found: Sample, chosen: Sequence[tuple[PortName, int]]) -> Metric:
    family = HistogramMetricFamily(
        "lbctl_service_handshake_seconds",
        "From a client's SYN to the backend's SYN-ACK, as seen where packets are translated.",
        labels=PORT_LABELS,
    )
    for name, row in chosen:
        if name.protocol != "UDP":
            counts = accumulate(found.handshakes[row].tolist())
            family.add_metric(
                name, buckets=list(zip(_BOUNDS, counts, strict=True)), sum_value=found.handshake_ns[row] / 1e9
            )
    return family


def _dropped(found: Sample, chosen: Sequence[tuple[PortName, int]]) -> Metric:
    family = CounterMetricFamily(
        "lbctl_service_dropped_packets",
        "Packets for a Service that went nowhere: dropped, or answered with a reset or an error; the reasons"
        " that there were.",
        labels=["namespace", "service", "reason"],
    )
    counts: dict[tuple[str, str, str], int] = {}
    for name, row in chosen:
        for reason, count in found.dropped_of(row).items():
            labels = (name.namespace, name.service, reason)
            counts[labels] = counts.get(labels, 0) + count
    for labels, count in sorted(counts.items()):
        family.add_metric(labels, count)
    return family
