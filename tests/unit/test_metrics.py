# SPDX-License-Identifier: Apache-2.0
"""Metrics: what is told, in names that Prometheus' conventions allow, over a real socket."""

from __future__ import annotations

import contextlib
import gzip
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lb.datapath.maps import layouts
from lb.datapath.maps.fill import map_fill
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.errors import BpfError
from lb.kube.reflector import Health
from lb.served import metrics
from lb.served.exposition import exposition
from lb.served.history import Since
from lb.served.http import routes
from tests.fake_maps import FakeMaps
from tests.unit.http_bench import LOOPBACK, PATIENCE, serving, url_of
from tests.unit.pins_bench import LIMITS, own_pins, pin_empty_maps

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SERVICES = Health(
    resource="services",
    listed=True,
    contact=100.0,
    resource_version="7",
    error="",
    failures=0,
    errors=4,
    objects=12,
    broken=1,
)
NODES = replace(
    SERVICES, resource="nodes", listed=False, contact=None, failures=3, errors=3, objects=0, broken=0
)

parse_openmetrics: Callable[[str], Iterator[Metric]] = openmetrics.text_string_to_metric_families
Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(families: list[Metric]) -> Samples:
    """Return values by the sample's name and the values of its labels."""
    return {
        (one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples
    }


def all_parts(maps: Maps) -> dict[str, metrics.Part]:
    """Return every part that the agent has, on a bench."""
    syncs = metrics.Syncs(wall=lambda: 5000.0)
    syncs.note(1 / 256)
    syncs.note(1 / 32)
    programming = metrics.Programming()
    programming.note(Since.TRIGGER, 1 / 4)
    programming.note(Since.ARRIVAL, 1 / 512)
    return {
        "build": lambda: metrics.build_metrics("1.2", "abcd"),
        "agent": lambda: metrics.agent_metrics(7, {"service": 2, "hook": 0, "conflict": 1}, 0.25),
        "syncs": syncs.metrics,
        "programming": programming.metrics,
        "source": lambda: metrics.source_metrics((SERVICES, NODES), lambda: 130.0, lambda: 5030.0),
        "maps": lambda: metrics.map_metrics(lambda: contextlib.nullcontext(maps)),
    }


@contextlib.contextmanager
def answering(parts: dict[str, metrics.Part]) -> Iterator[str]:
    """Answer at a port of the kernel's choice; yield the URL."""
    with serving() as server:
        server.open((LOOPBACK, 0), routes({"/metrics": exposition(metrics.Metrics(parts))}), "metrics")
        yield f"{url_of(server, (LOOPBACK, 0))}/metrics"


def get(url: str, accept: str = "text/plain") -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        text: str = response.read().decode()
    return text


def scrape(url: str) -> list[Metric]:
    return list(text_string_to_metric_families(get(url)))


# The endpoint --------------------------------------------------------------------------------------------


def test_a_scrape_has_everything() -> None:
    with answering(all_parts(FakeMaps(LIMITS))) as url:
        found = samples(scrape(url))
    ours = {key: value for key, value in found.items() if key[0].startswith("lbctl_")}
    simple = {key: value for key, value in ours.items() if not key[0].startswith(("lbctl_map", "lbctl_hook"))}
    buckets = {key: value for key, value in simple.items() if key[0].endswith("_bucket")}
    assert buckets["lbctl_sync_duration_seconds_bucket", ("0.002",)] == 0
    assert buckets["lbctl_sync_duration_seconds_bucket", ("0.005",)] == 1
    assert buckets["lbctl_sync_duration_seconds_bucket", ("+Inf",)] == 2
    assert buckets["lbctl_programming_duration_seconds_bucket", ("0.1", "trigger")] == 0
    assert buckets["lbctl_programming_duration_seconds_bucket", ("0.25", "trigger")] == 1
    assert buckets["lbctl_programming_duration_seconds_bucket", ("0.002", "arrival")] == 1
    simple = {key: value for key, value in simple.items() if not key[0].endswith("_created")}
    wanted: Samples = {
        ("lbctl_build_info", ("abcd", "1.2")): 1,
        ("lbctl_services", ()): 7,
        ("lbctl_agent_busy_seconds", ()): 0.25,
        ("lbctl_snat_ports", ()): 1,
        ("lbctl_problems", ("service",)): 2,
        ("lbctl_problems", ("hook",)): 0,
        ("lbctl_problems", ("conflict",)): 1,
        ("lbctl_last_sync_timestamp_seconds", ()): 5000,
        ("lbctl_sync_duration_seconds_count", ()): 2,
        ("lbctl_sync_duration_seconds_sum", ()): 9 / 256,
        ("lbctl_programming_duration_seconds_count", ("trigger",)): 1,
        ("lbctl_programming_duration_seconds_count", ("arrival",)): 1,
        ("lbctl_programming_duration_seconds_sum", ("trigger",)): 1 / 4,
        ("lbctl_programming_duration_seconds_sum", ("arrival",)): 1 / 512,
        ("lbctl_source_last_contact_timestamp_seconds", ("services",)): 5000,
        ("lbctl_source_last_contact_timestamp_seconds", ("nodes",)): 0,
        ("lbctl_source_listed", ("services",)): 1,
        ("lbctl_source_listed", ("nodes",)): 0,
        ("lbctl_source_consecutive_failures", ("services",)): 0,
        ("lbctl_source_consecutive_failures", ("nodes",)): 3,
        ("lbctl_source_errors_total", ("services",)): 4,
        ("lbctl_source_errors_total", ("nodes",)): 3,
        ("lbctl_source_objects", ("services",)): 12,
        ("lbctl_source_objects", ("nodes",)): 0,
        ("lbctl_source_unusable_objects", ("services",)): 1,
        ("lbctl_source_unusable_objects", ("nodes",)): 0,
        **{("lbctl_collector_success", (name,)): 1 for name in all_parts(FakeMaps())},
    }
    assert {key: value for key, value in simple.items() if key not in buckets} == wanted
    assert found["process_resident_memory_bytes", ()] > 0


def test_names_units_and_help_follow_the_conventions() -> None:
    with answering(all_parts(FakeMaps(LIMITS))) as url:
        families = [one for one in scrape(url) if not one.name.endswith("_created")]
        strict = list(parse_openmetrics(get(url, OPENMETRICS)))
    assert {one.name.removesuffix("_info") for one in families} == {one.name for one in strict}
    for family in families:
        assert family.name.startswith(("lbctl_", "process_")), family.name
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_total")), family.name
        words = family.name.split("_")
        assert not {"milliseconds", "ms", "us", "ns", "kb", "percent", "gauge", "counter"} & set(words)
        if {"duration", "timestamp", "time"} & set(words):
            assert words[-1] == "seconds", family.name
        if family.type == "counter":
            assert {one.name for one in family.samples} == {f"{family.name}_total"}
        names = [tuple(sorted(one.labels)) for one in family.samples if not one.name.endswith("_bucket")]
        assert len(set(names)) == 1, family.name


def test_some_metrics_by_name() -> None:
    with answering(all_parts(FakeMaps(LIMITS))) as url:
        assert [one.name for one in scrape(f"{url}?name[]=lbctl_services")] == ["lbctl_services"]


def test_a_scrape_may_be_compressed() -> None:
    with answering(all_parts(FakeMaps(LIMITS))) as url:
        request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            body = response.read()
            assert response.headers["Content-Encoding"] == "gzip"
    assert b"lbctl_services 7.0" in gzip.decompress(body)


# The parts -----------------------------------------------------------------------------------------------


def test_a_part_that_fails_is_named_and_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    maps = FakeMaps(LIMITS)
    collector = metrics.Metrics(all_parts(maps))
    maps.fail("vips4", times=2, operation="read")
    for _ in range(2):
        found = samples(collector.collect())
        assert found["lbctl_collector_success", ("maps",)] == 0
        assert found["lbctl_collector_success", ("agent",)] == found["lbctl_build_info", ("1.2", "abcd")] == 1
        assert not any(name.startswith("lbctl_map") for name, _ in found)
    assert [one.getMessage().split(": ")[0] for one in caplog.records] == ["metrics of maps"]
    assert samples(collector.collect())["lbctl_collector_success", ("maps",)] == 1


def test_a_source_that_is_never_out_of_step_has_no_metrics() -> None:
    assert list(metrics.source_metrics(())) == []


def test_the_contact_is_told_in_time_of_day() -> None:
    families = list(metrics.source_metrics((replace(SERVICES, contact=time.monotonic() - 60),)))
    stale = time.time() - samples(families)["lbctl_source_last_contact_timestamp_seconds", ("services",)]
    assert stale >= 60


def test_no_sync_yet() -> None:
    found = samples(list(metrics.Syncs().metrics()))
    assert (
        found["lbctl_last_sync_timestamp_seconds", ()] == found["lbctl_sync_duration_seconds_count", ()] == 0
    )


@pytest.mark.parametrize("kernel", [False, True])
def test_maps(kernel: bool) -> None:
    with contextlib.ExitStack() as stack:
        maps: Maps = FakeMaps(LIMITS)
        opened: Callable[[], contextlib.AbstractContextManager[Maps]] = lambda: contextlib.nullcontext(maps)  # noqa: E731
        if kernel:
            pins = stack.enter_context(own_pins())
            pin_empty_maps(pins)
            maps = stack.enter_context(contextlib.closing(KernelMaps(pins.maps)))
            opened = lambda: contextlib.closing(KernelMaps(pins.maps))  # noqa: E731
        keys = np.zeros(5, layouts.VIP_KEY[4])
        keys["port"] = np.arange(5)
        maps.update("vips4", keys, np.zeros(5, layouts.VIP))
        maps.array("backends4")["state"][[3, 60]] = layouts.BackendStateCode.ACTIVE
        if kernel:  # the fake's counters are nobody's to write
            rows, counts = maps.read("reasons")
            at = layouts.REASONS_PER_HOOK + [name for name, _ in layouts.REASONS].index("NO_ROUTE")
            counts["packets"][at], counts["bytes"][at] = 2, 120
            maps.update("reasons", rows, counts)
        found = samples(list(metrics.map_metrics(opened)))
        for fill in map_fill(maps):
            assert found["lbctl_map_entries", (fill.name,)] == fill.entries
            assert found["lbctl_map_capacity", (fill.name,)] == maps.capacity(fill.name)
    assert found["lbctl_map_entries", ("vips4",)] == 5
    assert found["lbctl_map_entries", ("backends4",)] == 2
    hook = layouts.HOOKS[1][0]
    packets = {labels: value for (name, labels), value in found.items() if name == "lbctl_hook_packets_total"}
    cpus = counts.shape[1] if kernel else 0
    assert len(packets) == len(layouts.HOOKS) * len(layouts.REASONS)
    assert sum(packets.values()) == packets[hook, "NO_ROUTE"] == 2 * cpus
    assert found["lbctl_hook_bytes_total", (hook, "NO_ROUTE")] == 120 * cpus


def test_maps_that_are_gone() -> None:
    with own_pins() as pins, pytest.raises(BpfError):
        list(metrics.map_metrics(lambda: contextlib.closing(KernelMaps(pins.maps))))
