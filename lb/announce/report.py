# SPDX-License-Identifier: Apache-2.0
"""What an agent says of the addresses that its node can serve, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from lb.announce.servable import AddressKind, Standing, Verdict
from lb.errors import LbError
from lb.model import IPAddress, ObjectKey


@dataclass(frozen=True, slots=True)
class Report:
    """An agent's answer.

    version: another text whenever the rest has changed, or another agent answers.
    ready: everything that the source listed is in the kernel; before, nothing follows from what is missing.
    node, node_addresses, labels: of the Node object, InternalIP addresses in its order; empty where unknown.
    verdicts: in ascending order of addresses, IPv4 first.
    """

    version: str
    ready: bool
    node: str
    node_addresses: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[IPAddress, Verdict] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "version": self.version,
            "ready": self.ready,
            "node": self.node,
            "node_addresses": [str(address) for address in self.node_addresses],
            "labels": dict(self.labels),
            "addresses": [
                {
                    "address": str(one.address),
                    "kind": one.kind.value,
                    "standing": one.standing.value,
                    "why": one.why,
                    "services": [str(key) for key in one.services],
                    "labels": [dict(each) for each in one.labels],
                }
                for one in self.verdicts.values()
            ],
        }


def from_dict(told: Mapping[str, Any]) -> Report:
    """Return the report that :meth:`Report.as_dict` gave.

    Raises LbError: it is none, as from an agent of another version.
    """
    try:
        verdicts = [_verdict(one) for one in told["addresses"]]
        return Report(
            version=str(told["version"]),
            ready=bool(told["ready"]),
            node=str(told["node"]),
            node_addresses=tuple(map(ip_address, told["node_addresses"])),
            labels={str(name): str(value) for name, value in told["labels"].items()},
            verdicts={one.address: one for one in verdicts},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LbError(
            f"the agent's answer is not as expected: {error!r}; is it of another version?"
        ) from error


def _verdict(told: Mapping[str, Any]) -> Verdict:
    keys = [key.partition("/") for key in told["services"]]
    return Verdict(
        ip_address(told["address"]),
        Standing(told["standing"]),
        str(told["why"]),
        AddressKind(told["kind"]),
        tuple(ObjectKey(namespace, name) for namespace, _, name in keys),
        tuple({str(name): str(value) for name, value in each.items()} for each in told.get("labels", ())),
    )
