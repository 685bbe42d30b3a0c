# SPDX-License-Identifier: Apache-2.0
"""Events: one for each thing, counted up, shared among nodes, never in anyone's way."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Sequence

import pytest

from lb.kube import events
from lb.kube.availability import Availability
from lb.kube.events import EventWriter, Notice
from lb.kube.timing import Timing
from lb.model import Node, ObjectKey, Service
from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.harness import Waits, client_of
from tests.kube.objects import NAMESPACE, NODE, Object


def notice(note: str = "10.96.0.10:80/TCP is taken by shop/older") -> Notice:
    return Notice(Service, ObjectKey(NAMESPACE, "web"), "u-1", "Conflict", "SkipAddress", note)


class Bench:
    """A writer that is stepped by hand, with its clocks."""

    def __init__(self, double: ApiDouble, instance: str = NODE) -> None:
        self.double = double
        self.now = 0.0
        self.waits = Waits()
        timing = Timing(clock=lambda: self.now, random=lambda: 0.0, wait=self.waits)
        begun = datetime.datetime(2020, 1, 15, 10, 20, 58, tzinfo=datetime.UTC)
        client = client_of(double)
        self.writer = EventWriter(
            client,
            instance,
            timing,
            Availability(client.probe, timing),
            now=lambda: begun + datetime.timedelta(seconds=self.now),
        )
        self.stop = threading.Event()

    def tell(self, *notices: Notice) -> None:
        """Publish and send all that is then due."""
        for each in notices:
            self.writer.publish(each)
        while self.writer.waiting:
            self.writer.step(self.stop)

    def written(self) -> Sequence[Object]:
        return list(self.double.objects["events"].values())


def test_an_event_as_the_api_wants_it(double: ApiDouble) -> None:
    bench = Bench(double)
    bench.tell(notice())
    (event,) = bench.written()
    name = event["metadata"]["name"]
    assert name.startswith("web.")
    assert {k: v for k, v in event.items() if k != "metadata"} == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "eventTime": "2020-01-15T10:20:58.000000Z",
        "reportingController": "lbctl",
        "reportingInstance": NODE,
        "regarding": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": NAMESPACE,
            "name": "web",
            "uid": "u-1",
        },
        "reason": "Conflict",
        "action": "SkipAddress",
        "note": "10.96.0.10:80/TCP is taken by shop/older",
        "type": "Warning",
    }


def test_an_event_about_a_node_is_in_the_default_namespace(double: ApiDouble) -> None:
    bench = Bench(double)
    bench.tell(Notice(Node, ObjectKey("", NODE), "", "MapFull", "SkipService", "vips is full"))
    (event,) = bench.written()
    assert event["metadata"]["namespace"] == "default"
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": NODE}


def test_a_recurring_thing_is_counted_up_now_and_then(double: ApiDouble) -> None:
    bench = Bench(double)
    bench.tell(notice(), notice(), notice())
    assert "series" not in bench.written()[0]
    bench.now += events.SERIES_SECONDS
    bench.tell(notice())
    (event,) = bench.written()
    assert event["series"] == {"count": 4, "lastObservedTime": "2020-01-15T10:26:58.000000Z"}
    bench.now += 1
    bench.tell(notice())
    assert len(double.asked("patch", "events")) == 1


def test_an_event_that_expired_meanwhile_is_written_again(double: ApiDouble) -> None:
    bench = Bench(double)
    bench.tell(notice())
    double.remove(bench.written()[0])
    bench.now += events.SERIES_SECONDS
    bench.tell(notice())
    assert len(bench.written()) == 1
    assert len(double.asked("create", "events")) == 2


def test_what_another_node_has_said_is_not_said_again(double: ApiDouble) -> None:
    first, second = Bench(double), Bench(double, "node2")
    first.tell(notice())
    second.tell(notice())
    second.now += events.SERIES_SECONDS
    second.tell(notice())
    (event,) = first.written()
    assert event["reportingInstance"] == NODE
    assert double.asked("patch", "events") == []


def test_a_burst_is_spread_out_and_bounded(double: ApiDouble) -> None:
    bench = Bench(double)
    bench.tell(*(notice(f"thing {i}") for i in range(events.QUEUE + 50)))
    assert len(bench.written()) == events.QUEUE
    assert bench.waits.seconds[: events.BURST] == [0.0] * events.BURST
    assert bench.waits.seconds[events.BURST] == events.REFILL_SECONDS
    bench.tell(notice(f"thing {events.QUEUE}"))
    assert len(bench.written()) == events.QUEUE + 1, "what was dropped may be told later"


def test_a_failure_is_tried_again_a_few_times_then_logged(
    double: ApiDouble, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(double)
    double.fault("create", "events", faults.answer(500), times=events.TRIES - 1)
    bench.tell(notice())
    assert len(bench.written()) == 1
    double.fault("create", "events", faults.answer(500), times=events.TRIES)
    with caplog.at_level(logging.WARNING):
        bench.tell(notice("another"))
    assert "event Conflict on Service shop/web not written" in caplog.text
    assert len(bench.written()) == 1
    bench.tell(notice("another"))
    assert len(bench.written()) == 2


def test_a_refusal_is_not_tried_again(double: ApiDouble, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(double)
    double.fault("create", "events", faults.answer(403, "Forbidden"), times=9)
    bench.tell(notice())
    assert len(double.asked("create", "events")) == 1
    assert "403" in caplog.text


def test_long_texts_are_cut_to_what_the_api_takes(double: ApiDouble) -> None:
    bench = Bench(double, "n" * 200)
    bench.tell(notice("ü" * 2000))
    (event,) = bench.written()
    assert event["note"] == "ü" * 512
    assert len(event["reportingInstance"]) == 128
