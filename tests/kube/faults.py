# SPDX-License-Identifier: Apache-2.0
"""Faults for the double: answers to requests, and what happens to open watches."""

from __future__ import annotations

import json

from tests.kube.double import Disturbance, Fault, Handler
from tests.kube.rules import StatusError

# faults: answers to requests


def answer(
    code: int, reason: str = "InternalError", retry_after: str = "", causes: tuple[str, ...] = ()
) -> Fault:
    """Answer with a Status."""

    def fault(handler: Handler) -> None:
        headers = {"Retry-After": retry_after} if retry_after else {}
        handler.send_json(code, StatusError(code, reason, f"{reason} on command", causes).body, headers)

    return fault


def garbage(body: bytes) -> Fault:
    """Answer 200 with anything."""
    return lambda handler: handler.send_bytes(200, body)


def hang(handler: Handler) -> None:
    """Do not answer until the double is released."""
    handler.double.released.wait()
    handler.close_connection = True


def drop(handler: Handler) -> None:
    """Break the connection without an answer."""
    handler.reset()


def truncated(handler: Handler) -> None:
    """Send half of a list, then break the connection."""
    body = json.dumps(handler.double.page(handler.request_)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.reset()


def stream(*chunks: bytes) -> Fault:
    """Answer a watch with these bytes, then end it properly."""

    def fault(handler: Handler) -> None:
        handler.begin_stream()
        for chunk in (*chunks, b""):
            handler.send_chunk(chunk)

    return fault


# disturbances: what happens to open watches


def end(handler: Handler) -> bool:
    """End a watch as when its time is over."""
    handler.send_chunk(b"")
    return False


def reset(handler: Handler) -> bool:
    """Break a watch's connection."""
    handler.reset()
    return False


def half_line(then: Disturbance) -> Disturbance:
    """Send half of an event, then do something else."""

    def disturbance(handler: Handler) -> bool:
        handler.send_chunk(b'{"type":"ADDED","object":{"metadata":{"name":"ha')
        return then(handler)

    return disturbance


def error_event(code: int, reason: str) -> Disturbance:
    """Send an ERROR event, and end the watch as the API server does."""

    def disturbance(handler: Handler) -> bool:
        handler.send_event("ERROR", StatusError(code, reason, f"{reason} on command").body)
        handler.send_chunk(b"")
        return False

    return disturbance


def silent(handler: Handler) -> bool:
    """Keep the connection and say nothing more."""
    hang(handler)
    return False


def bookmark(handler: Handler) -> bool:
    """Send a bookmark with the present version, if the watch was begun at one below."""
    if handler.double.version > handler.begun:
        handler.send_bookmark(handler.double.version)
    return True
