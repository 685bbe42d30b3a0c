# SPDX-License-Identifier: Apache-2.0
"""DNS in the lab: the pods that answer, and what they know before anybody has told them anything."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from lb.lab.addressing import LabSpec
from lb.lab.store import PodRecord, Store
from lb.names import named

ZONE = "cluster.local"
SERVER = f"ns.dns.{ZONE}"


def prepare(_store: Store, spec: LabSpec, record: PodRecord, folder: Path) -> None:
    """See :class:`lb.lab.servers.Prepare`."""
    addresses = [ip_address(each) for each in record.addresses]
    networks = [*spec.service_cidr.split(","), *(str(each) for each in spec.pod_networks)]
    reverse = named.reverse_zones(networks)
    settings = named.Settings(addresses, zones=[ZONE, *reverse])
    (folder / "etc" / "named.conf").write_text(named.named_conf(settings))
    for zone in settings.zones:
        text = named.empty_zone(zone, SERVER, addresses if zone == ZONE else ())
        (folder / "work" / named.zone_file(zone)).write_text(text)
