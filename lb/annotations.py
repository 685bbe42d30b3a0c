# SPDX-License-Identifier: Apache-2.0
"""Annotations of ours that say where connections go: their names, and what their texts mean.

Both sources read them here, so that manifests and the API mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from lb.model import MAX_SLOW_START, MAX_WEIGHT

WEIGHT = "lbctl/weight"
"""On a Pod of a manifest: the weight of its endpoints."""

WEIGHTS = "lbctl/weights"
"""On an EndpointSlice: weights by name of the pod, or by address; ``*`` for the others."""

SLOW_START = "lbctl/slow-start"
"""On a Service: over how many seconds a new endpoint comes to its whole share."""

FORWARD = "lbctl/forward"
"""On a Service: how its packets from outside reach backends on other nodes, ``dsr``, ``dsr+udp`` or ``snat``.

What the text means depends on the agent's settings: see :meth:`lb.plan.rights.Rights.direct`."""

UDP_STAYS = "+udp"
"""Behind ``dsr``: conversations of UDP have a second chance, too."""

OTHERS = "*"


def read_weight(text: str) -> int:
    """Return a weight.

    Raises ValueError: it is no whole number, or too large.
    """
    return _number(text, MAX_WEIGHT)


def read_slow_start(text: str) -> int:
    """Return seconds, 0 for none.

    Raises ValueError: it is no whole number, or too large.
    """
    return _number(text, MAX_SLOW_START)


def read_weights(text: str) -> Mapping[str, int]:
    """Return weights by what an EndpointSlice says of its endpoints: ``web-0=50, 10.0.0.7=200, *=100``.

    Raises ValueError: an entry has another form, or one name comes twice.
    """
    found: dict[str, int] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, weight = (part.strip() for part in entry.partition("="))
        if not (name and equals):
            raise ValueError(f"must be a list such as web-0=50, *=100; {entry!r} is no NAME=WEIGHT")
        if name in found:
            raise ValueError(f"names {name} twice")
        try:
            found[name] = read_weight(weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def weight_in(weights: Mapping[str, int], pod: str, address: str, otherwise: int) -> int:
    """Return the weight of an endpoint; pod: its name without the namespace, ``""`` for none."""
    for name in (pod, address, OTHERS):
        if name in weights:
            return weights[name]
    return otherwise


def _number(text: str, most: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= most):
        raise ValueError(f"must be a whole number from 0 to {most}, is {text!r}")
    return int(text)
