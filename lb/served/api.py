# SPDX-License-Identifier: Apache-2.0
"""``GET /api/…``: what the agent knows, as JSON, for ``lbctl`` on its socket and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from lb.errors import LbError
from lb.model import ObjectKey
from lb.served.http import Answer, Request, Response

OWNERS = "/api/owners"
"""Who owns each load-balancer address on the node's segments: :meth:`lb.segment.speaker.Speaker.owners`."""

SHADOW = "/api/shadow"
"""What an agent in shadow mode has compared: :meth:`lb.shadow.watcher.Watcher.report`."""

_HEADERS = (
    ("Content-Type", "application/json; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)

Query = Mapping[str, str]


def as_json(read: Callable[[Query], Any]) -> Answer:
    """Return what answers with what read makes of the query; its LbError is a 400 with ``{"error": …}``."""

    def answer(request: Request) -> Response:
        query = {name: values[-1] for name, values in parse_qs(request.query).items()}
        try:
            status, found = 200, read(query)
        except LbError as error:
            status, found = 400, {"error": str(error)}
        return Response(status, json.dumps(found).encode() + b"\n", _HEADERS)

    return answer


def service_of(query: Query) -> ObjectKey:
    """Return the Service that ``service=NAMESPACE/NAME`` names.

    Raises LbError: the query names no Service.
    """
    namespace, slash, name = query.get("service", "").partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise LbError("service: must be NAMESPACE/NAME")
    return ObjectKey(namespace, name)
