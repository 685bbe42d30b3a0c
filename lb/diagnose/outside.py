# SPDX-License-Identifier: Apache-2.0
"""The way of a packet from outside to this node: which routers were told of the Service's addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lb.announce.reach import silence, telling
from lb.diagnose.facts import Facts, Finding, Result
from lb.words import some

STEP = "routers"


def routers(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See what ``lbctl announce bgp`` has told; nothing is said where none runs for this node."""
    service, speaker = facts.service, facts.speaker
    if service is None or speaker is None:
        return
    peers = {each["name"]: each for each in speaker["peers"]}
    entries = [each for each in speaker["addresses"] if str(facts.key) in each["services"]]
    wanted = set(map(str, (*service.load_balancer_ips, *service.external_ips)))
    down = {name: each for name, each in peers.items() if not each["up"]}
    for entry in entries:
        wanted.discard(entry["address"])
        yield _of_address(entry, down)
    if wanted and speaker["agent"]["answers"]:
        yield Finding(STEP, Result.NOTE, f"{some(sorted(wanted))}: not known to who tells routers yet")
    if not entries:
        return
    for each in down.values():
        all_down = len(down) == len(peers)
        yield Finding(
            STEP,
            Result.CAUSE if all_down else Result.NOTE,
            silence(each),
            "no-router-told" if all_down else "",
            "lbctl announce status; compare AS numbers, address and password with the router's configuration",
        )


def _of_address(entry: Mapping[str, Any], down: Mapping[str, Any]) -> Finding:
    """Return what is known of one address."""
    found = f"{entry['address']}: {telling(entry, down)}"
    if entry["peers"]:
        all_down = all(name in down for name in entry["peers"])
        return Finding(STEP, Result.NOTE if all_down else Result.OK, found)
    then = "" if entry["standing"] == "cannot" else "advertise in the file of peers has to name its network"
    return Finding(STEP, Result.NOTE, found, "", then)
