# SPDX-License-Identifier: Apache-2.0
"""How the network finds a load-balancer address, in the words of the commands and the page; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lb.announce.servable import is_nodes_own
from lb.words import some


def balanced(one: Mapping[str, Any]) -> str:
    """Say which load-balancer addresses a Service has.

    one: an entry of :meth:`lb.served.state_view.StateView.balanced`.
    """
    if one["addresses"]:
        return str(one["note"] or ", ".join(one["addresses"]))
    return f"none: {one['note'] or 'nobody has given it one'}"


def answerer(one: Mapping[str, Any]) -> str:
    """Return who answers for an address, as the agent tells it: :meth:`lb.segment.speaker.Speaker.owners`."""
    where = f"on {one['interface']}: " if one["interface"] else ""
    if one["here"]:
        who = "this node answers"
    elif one["owner"]:
        reason = "" if one["why"] == f"node {one['owner']} owns it" else f", since here {one['why']}"
        who = f"node {one['owner']} answers{reason}"
    elif is_nodes_own(one["why"]):
        who = f"its own host answers: {one['why']}"
    else:
        who = f"nobody answers: {one['why']}"
    return where + who


def telling(entry: Mapping[str, Any], down: Collection[str]) -> str:
    """Return which routers were told of an address, an entry of :meth:`lb.bgp.status.SpeakerStatus.as_dict`.

    down: the names of those whose session is not up.
    """
    told = [name for name in entry["peers"] if name not in down]
    if told:
        reserve = f", as the last resort: {entry['why']}" if entry["standing"] in ("last", "leaving") else ""
        return f"told to {some(told)}{reserve}"
    if entry["peers"]:
        return f"would be told to {some(entry['peers'])}"
    return f"not told from this node: {entry['why']}"


def silence(peer: Mapping[str, Any]) -> str:
    """Return why a router is told nothing: a peer of the same, whose session is not up."""
    return f"{peer['name']} ({peer['address']}) is told nothing, its session is not up: {peer['why']}"


def reached(
    addresses: Sequence[str], owners: Sequence[Mapping[str, Any]] | None, speaker: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return how each address is found, ``{"address": …, "segment": [text, …], "routers": [text, …]}``.

    owners: as :func:`answerer` has them; None where the agent does not announce. speaker: as
    :meth:`lb.bgp.status.SpeakerStatus.as_dict` gives it; None where nobody tells routers.
    """
    return [
        {"address": one, "segment": _segment(one, owners), "routers": _routers(one, speaker)}
        for one in addresses
    ]


def _segment(address: str, owners: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if owners is None:
        return ["this node answers for none: announce is off"]
    found = [answerer(one) for one in owners if one["address"] == address]
    return found or ["not known yet to who finds its owner"]


def _routers(address: str, speaker: Mapping[str, Any] | None) -> list[str]:
    if speaker is None:
        return ["this node tells none: lbctl announce bgp does not run"]
    down = {one["name"]: one for one in speaker["peers"] if not one["up"]}
    entry = next((one for one in speaker["addresses"] if one["address"] == address), None)
    if entry is None:
        return ["not known yet to who tells routers"]
    return [telling(entry, down), *(silence(down[name]) for name in entry["peers"] if name in down)]
