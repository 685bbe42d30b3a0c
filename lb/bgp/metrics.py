# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` of the process that speaks BGP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lb.announce.servable import Standing
from lb.bgp.status import SpeakerStatus
from lb.served.exposition import exposition
from lb.served.http import Answer


class SpeakerMetrics(Collector):
    """The metrics, read from the status at each scrape."""

    def __init__(self, status: SpeakerStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        status = self._status
        peers = list(status.peers.items())
        labels = ["peer", "address"]
        up = GaugeMetricFamily("lbctl_bgp_session_up", "Whether a peer's session is up.", labels=labels)
        losses = CounterMetricFamily("lbctl_bgp_session_losses", "Ends of a peer's session.", labels=labels)
        routes = GaugeMetricFamily(
            "lbctl_bgp_advertised_routes",
            "Routes that a peer has been told.",
            labels=[*labels, "family"],
        )
        for name, each in peers:
            values = [name, str(each.peer.address)]
            up.add_metric(values, each.session.up)
            losses.add_metric(values, each.losses)
            for version, count in each.session.exported:
                routes.add_metric([*values, f"IPv{version}"], count)
        yield from (up, losses, routes)
        addresses = GaugeMetricFamily(
            "lbctl_bgp_addresses",
            "Addresses of Services by what this node is for them.",
            labels=["standing"],
        )
        counts = Counter(one.standing for one in status.told)
        for standing in Standing:
            addresses.add_metric([standing.value], counts[standing])
        yield addresses
        yield CounterMetricFamily(
            "lbctl_bgp_engine_restarts", "How often BIRD had to be started again.", value=status.restarts
        )
        yield GaugeMetricFamily(
            "lbctl_bgp_problems",
            "What is wrong: `lbctl announce status` names it.",
            value=len(status.problems()),
        )


def answer(status: SpeakerStatus) -> Answer:
    """Return what answers ``/metrics``."""
    return exposition(SpeakerMetrics(status))
