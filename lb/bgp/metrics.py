# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` of the process that speaks BGP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lb.announce.servable import Standing
from lb.bgp.status import SpeakerStatus
from lb.served.exposition import answers_of_process, family
from lb.served.http import Answer

_gauge = partial(family, GaugeMetricFamily)


class SpeakerMetrics(Collector):
    """The metrics, read from the status at each scrape."""

    def __init__(self, status: SpeakerStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        status = self._status
        peers = [([name, str(each.peer.address)], each) for name, each in status.peers.items()]
        labels = ["peer", "address"]
        yield _gauge(
            "lbctl_bgp_session_up",
            "Whether a peer's session is up.",
            labels,
            ((values, each.session.up) for values, each in peers),
        )
        yield family(
            CounterMetricFamily,
            "lbctl_bgp_session_losses",
            "Ends of a peer's session.",
            labels,
            ((values, each.losses) for values, each in peers),
        )
        yield _gauge(
            "lbctl_bgp_advertised_routes",
            "Routes that a peer has been told.",
            [*labels, "family"],
            (
                ([*values, f"IPv{version}"], count)
                for values, each in peers
                for version, count in each.session.exported
            ),
        )
        counts = Counter(one.standing for one in status.told)
        yield _gauge(
            "lbctl_bgp_addresses",
            "Addresses of Services by what this node is for them.",
            ["standing"],
            (([standing.value], counts[standing]) for standing in Standing),
        )
        yield CounterMetricFamily(
            "lbctl_bgp_engine_restarts", "How often BIRD had to be started again.", value=status.restarts
        )
        yield GaugeMetricFamily(
            "lbctl_bgp_problems",
            "What is wrong: `lbctl announce status` names it.",
            value=len(status.problems()),
        )


def answers(status: SpeakerStatus) -> Mapping[str, Answer]:
    """Return what the process answers, by path."""
    return answers_of_process(SpeakerMetrics(status))
