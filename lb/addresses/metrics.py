# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` of the process that gives addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lb.addresses.telemetry import Place, Telemetry
from lb.served.exposition import answers_of_process, family
from lb.served.http import Answer

_gauge = partial(family, GaugeMetricFamily)


class TelemetryMetrics(Collector):
    """The metrics, read from the telemetry at each scrape."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; one that does not lead knows nothing of Services."""
        telemetry = self._telemetry
        yield GaugeMetricFamily(
            "lbctl_addresses_leader", "Whether this process gives addresses (1).", value=telemetry.leading
        )
        yield GaugeMetricFamily(
            "lbctl_addresses_pools_file_ok",
            "Whether the file of pools is right.",
            value=not telemetry.pools_error,
        )
        yield CounterMetricFamily(
            "lbctl_addresses_write_failures",
            "Writes that failed and are tried again.",
            value=telemetry.failures,
        )
        sizes = telemetry.sizes()
        yield _of_pools("lbctl_pool_addresses", "Addresses of a pool, in use or not.", sizes)
        if not telemetry.leading:
            return
        zero = dict.fromkeys(sizes, 0)
        used, resting = {**zero, **telemetry.used()}, {**zero, **telemetry.resting()}
        yield _of_pools("lbctl_pool_used_addresses", "Addresses of a pool that Services have.", used)
        yield _of_pools("lbctl_pool_resting_addresses", "Addresses that became free a moment ago.", resting)
        yield _of_pools(
            "lbctl_pool_node_addresses",
            "Addresses of a pool that are Nodes' own, and are given to no Service.",
            {**zero, **telemetry.of_nodes()},
        )
        yield _gauge(
            "lbctl_balanced_services",
            "Services of type LoadBalancer that are ours, by what became of their request for an address.",
            ["reason", "satisfied"],
            (
                ([reason, str(satisfied).lower()], count)
                for (reason, satisfied), count in telemetry.reasons().items()
            ),
        )


def _of_pools(name: str, text: str, counts: Mapping[Place, int]) -> Metric:
    rows = (([pool, f"IPv{version}"], count) for (pool, version), count in counts.items())
    return _gauge(name, text, ["pool", "family"], rows)


def answers(telemetry: Telemetry) -> Mapping[str, Answer]:
    """Return what the process answers, by path."""
    return answers_of_process(TelemetryMetrics(telemetry))
