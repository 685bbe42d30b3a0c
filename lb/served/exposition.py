# SPDX-License-Identifier: Apache-2.0
"""``GET /metrics``: the answer, in the format that the request prefers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

from lb.served.http import Answer, Request, Response


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
