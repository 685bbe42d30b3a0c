# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` says, in Prometheus' terms.

Everything is read when somebody asks, so nothing is paid between two scrapes; but for the duration of syncs,
which would be lost. Names and units follow https://prometheus.io/docs/practices/naming/: base units (seconds,
bytes), ``_total`` for what only grows. A time is in seconds since the epoch, and 0 for "never", so that
``time() - x`` is large when it should alarm.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lb.datapath.attach.snat import snat_range
from lb.datapath.maps.fill import map_fill
from lb.datapath.maps.interface import Maps
from lb.datapath.view import dump
from lb.served.exposition import family
from lb.served.history import Since

if TYPE_CHECKING:
    from lb.kube.reflector import Health

_log = logging.getLogger(__name__)

SYNC_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper ends of the buckets of sync durations."""

PROGRAMMING_SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Upper ends of the buckets of programming latencies."""


Part = Callable[[], Iterable[Metric]]
"""Reads some metrics; called from the threads that answer requests, one at a time."""


class Metrics(Collector):
    """All metrics, from named parts. A part that fails is logged and counted, and costs no other."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        self._errors: dict[str, str] = {}
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        """Return the metrics of every part, and which parts could be read."""
        metrics: list[Metric] = []
        success = GaugeMetricFamily(
            "lbctl_collector_success", "Whether these metrics could be read (1).", labels=["collector"]
        )
        with self._lock:  # many who ask at once cost no more than one
            for name, part in self._parts.items():
                found = self._read(name, part)
                success.add_metric([name], found is not None)
                metrics += found or ()
        return [*metrics, success]

    def _read(self, name: str, part: Part) -> list[Metric] | None:
        try:
            found = list(part())
        except Exception as error:
            if self._errors.get(name) != str(error):
                _log.error("metrics of %s: cannot be read: %s", name, error)
                self._errors[name] = str(error)
            return None
        self._errors.pop(name, None)
        return found


class Syncs:
    """When the last sync was, and how long syncs take: noted by the agent's thread, read by any."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._last = Gauge(
            "lbctl_last_sync_timestamp_seconds", "When the maps were last brought in step.", registry=None
        )
        self._duration = Histogram(
            "lbctl_sync_duration_seconds",
            "Planning what changed and writing it to the maps; the count is that of syncs.",
            buckets=SYNC_SECONDS,
            registry=None,
        )

    def note(self, seconds: float) -> None:
        """Note a sync that has just ended and took so long."""
        self._last.set(self._wall())
        self._duration.observe(seconds)

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._last.collect()
        yield from self._duration.collect()


class Programming:
    """How long changes take to the maps: noted by the agent's thread, read by any."""

    def __init__(self) -> None:
        self._duration = Histogram(
            "lbctl_programming_duration_seconds",
            "From a change to the maps that have it: since the change of the pod or Service that an"
            " EndpointSlice follows from (trigger), or since the event's arrival where none tells (arrival).",
            labelnames=["since"],
            buckets=PROGRAMMING_SECONDS,
            registry=None,
        )
        for since in Since:
            self._duration.labels(since)

    def note(self, since: Since, seconds: float) -> None:
        """Note that a change is in the maps."""
        self._duration.labels(since).observe(seconds)

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._duration.collect()


def build_metrics(version: str, programs: str) -> Iterator[Metric]:
    """Yield what runs: programs is the fingerprint of their build."""
    labels = {"version": version, "programs": programs}
    yield InfoMetricFamily("lbctl_build", "Version of lbctl and fingerprint of its programs.", value=labels)


def agent_metrics(services: int, problems: Mapping[str, int], busy_seconds: float) -> Iterator[Metric]:
    """Yield what the agent knows; problems: how many there are, by kind."""
    yield GaugeMetricFamily("lbctl_services", "Services that the sources have told of.", value=services)
    yield family(
        GaugeMetricFamily,
        "lbctl_problems",
        "What is wrong at present: Services and hooks that failed, VIPs that two Services claim.",
        ["kind"],
        (([kind], count) for kind, count in problems.items()),
    )
    yield GaugeMetricFamily(
        "lbctl_agent_busy_seconds",
        "How long the present step of the agent's loop has been at work; 0 while it waits for changes.",
        value=busy_seconds,
    )


def repair_metrics(repairs: int) -> Iterator[Metric]:
    """Yield how often the agent put back what somebody else had taken away."""
    yield CounterMetricFamily(
        "lbctl_repairs",
        "Hooks that somebody detached and pins that somebody removed, and that the agent put back.",
        value=repairs,
    )


def audit_metrics(drift: Mapping[str, int]) -> Iterator[Metric]:
    """Yield in how many entries the kernel differs from what was written, by map."""
    yield family(
        GaugeMetricFamily,
        "lbctl_audit_differences",
        "Entries that were not as the agent had written them when it last looked.",
        ["map"],
        (([name], count) for name, count in sorted(drift.items())),
    )


def announce_metrics(figures: Mapping[str, int]) -> Iterator[Metric]:
    """Yield what the node owns on its segments; what it answers is in ``lbctl_hook_packets``.

    figures: those of :class:`lb.segment.speaker.Figures`, by name.
    """
    for name, figure, text in (
        ("lbctl_announced_addresses", "owned", "Load-balancer addresses that this node answers for, in ARP"
         " and neighbour discovery."),
        ("lbctl_segment_members", "members", "Other nodes that this node hears on its segments, and that may"
         " own addresses."),
        ("lbctl_address_rivals", "rivals", "Owned addresses that a host which is no such node has claimed"
         " within the last minute."),
        ("lbctl_unanswered_addresses", "unanswered", "Load-balancer addresses that no node answers for, by"
         " what this node hears on its segments."),
    ):  # fmt: skip
        yield GaugeMetricFamily(name, text, value=figures[figure])
    yield family(
        CounterMetricFamily,
        "lbctl_owner_changes",
        "How often this node took an address, and how often it ceased to own one.",
        ["change"],
        (([change], figures[change]) for change in ("taken", "ended")),
    )


def source_metrics(
    healths: Sequence[Health],
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Iterator[Metric]:
    """Yield how far each kind of object is in step with the Kubernetes API; nothing for other sources.

    clock is the one of the contact's time, wall gives seconds since the epoch.
    """
    if not healths:
        return
    ahead = wall() - clock()
    columns: tuple[tuple[str, str, Callable[[Health], float]], ...] = (
        (
            "last_contact_timestamp_seconds",
            "Last word of the API server about this kind of object; one a minute when all is quiet.",
            lambda one: 0.0 if one.contact is None else one.contact + ahead,
        ),
        ("listed", "Whether a complete list has been read since the start (1).", lambda one: one.listed),
        (
            "consecutive_failures",
            "Requests to the API server that failed since the last word; 0 when in step.",
            lambda one: one.failures,
        ),
        ("objects", "Objects known.", lambda one: one.objects),
        (
            "unusable_objects",
            "Objects that cannot be used as they are now; their last good version stays.",
            lambda one: one.broken,
        ),
        (
            "errors",
            "Requests to the API server that failed, or whose answer broke off.",
            lambda one: one.errors,
        ),
    )
    for name, text, value in columns:
        kind = CounterMetricFamily if name == "errors" else GaugeMetricFamily
        rows = (([one.resource], value(one)) for one in healths)
        yield family(kind, f"lbctl_source_{name}", text, ["resource"], rows)


def map_metrics(opened: Callable[[], contextlib.AbstractContextManager[Maps]]) -> Iterator[Metric]:
    """Yield how full the maps are and what the programs count.

    opened gives maps of the reader's own, so that those of the agent's thread are left alone. Every counter
    is there from the beginning: Prometheus takes no notice of the first packet of one that appears with it.

    Raises BpfError: the kernel refused to show a map.
    """
    with opened() as maps:
        fills, counters = map_fill(maps), dump.counters(maps)
        first, last = snat_range(maps)
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    yield gauge(
        "lbctl_snat_ports", "Ports that SNAT may use towards each remote backend.", value=last - first + 1
    )
    for kind, name, field, text in (
        (gauge, "lbctl_map_entries", "entries", "Entries in use, of the maps that can fill up."),
        (gauge, "lbctl_map_capacity", "capacity", "Entries that fit into the map."),
        (gauge, "lbctl_map_provisional_entries", "provisional", "Of the entries in use those that make room"
         " first: half-open connections, unconfirmed clients."),
        (counter, "lbctl_map_evictions", "evicted", "Entries, not provisional, that made room before their"
         " time was over, of maps that tell."),
    ):  # fmt: skip
        rows = [([fill.name], getattr(fill, field)) for fill in fills]
        yield family(kind, name, text, ["map"], rows)
    for name, field, text in (
        ("lbctl_hook_packets", "packets", "Packets by the hook that saw them and the reason they left it"
         " with; one packet may pass two hooks."),
        ("lbctl_hook_bytes", "bytes", "The bytes of those packets."),
    ):  # fmt: skip
        rows = [([one.hook, one.reason], getattr(one, field)) for one in counters]
        yield family(counter, name, text, ["hook", "reason"], rows)


def shadow_metrics(report: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield what shadow mode has compared: see :meth:`lb.shadow.tally.Tally.report`."""
    rows = []
    for one in report["services"]:
        name, _, port_name = one["service"].partition(":")
        namespace, _, service = name.rpartition("/")
        labels = (namespace, service, port_name)
        rows.append(((*labels, "agreed", ""), one["agreed"]))
        for result in ("meant", "different"):
            rows += [((*labels, result, kind), count) for kind, count in one[result].items()]
    yield family(
        CounterMetricFamily,
        "lbctl_shadow_connections",
        "Connections of which netfilter's doing was compared with what would have been done here.",
        ("namespace", "service", "port", "result", "kind"),
        rows,
    )
    yield family(
        CounterMetricFamily,
        "lbctl_shadow_not_compared",
        "Connections that could not be compared, by why.",
        ("why",),
        [((why,), count) for why, count in report["not_compared"].items()],
    )
