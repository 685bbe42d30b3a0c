# SPDX-License-Identifier: Apache-2.0
"""``GET /metrics``: the answer, in the format that the request prefers; and how metrics are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lb.served.http import Answer, Request, Response


def family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    labels: Sequence[str],
    rows: Iterable[tuple[Sequence[str], float | None]],
) -> Metric:
    """Return a metric with its samples: values of the labels, and the number; None: there is none."""
    made = kind(name, text, labels=labels)
    for values, number in rows:
        if number is not None:
            made.add_metric(values, number)
    return made


def answers_of_process(metrics: Collector) -> Mapping[str, Answer]:
    """Return what a process beside the agent answers to Prometheus and to its supervisor, by path."""
    alive = Response(200, b"ok\n")
    return {"/metrics": exposition(metrics), "/livez": lambda _: alive}


def exposition(metrics: Collector) -> Answer:
    """Return what answers with these metrics, and with memory and CPU time of this process.

    Prometheus' own WSGI application does it: format and compression by the request's headers, some metrics
    alone by ``?name[]=``.
    """
    registry = CollectorRegistry(support_collectors_without_names=True)  # /metrics?name[]=…
    registry.register(metrics)
    ProcessCollector(registry=registry)
    application = make_wsgi_app(registry)

    def answer(request: Request) -> Response:
        told: list[tuple[int, tuple[tuple[str, str], ...]]] = []

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            told.append((int(status[:3]), tuple(headers)))

        environ = {
            "REQUEST_METHOD": "GET",  # the server leaves the body out for HEAD
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.headers.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
        }
        body = b"".join(application(environ, start))
        (status, headers), *_ = told
        return Response(status, body, headers)

    return answer
