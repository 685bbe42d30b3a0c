# SPDX-License-Identifier: Apache-2.0
"""Maps of a node that has carried something, without a kernel."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import BackendFlag, BackendStateCode
from lb.datapath.sync import accounts
from lb.model import Protocol
from tests.fake_maps import FakeMaps
from tests.unit.pins_bench import LIMITS

WEB, DNS, MAIL = 1, 2, 3
WEB_6 = 4
"""Service port ids. WEB and WEB_6 are the two families of one; MAIL has no VIP, all lost to others."""

REASON = {name: at for at, (name, _) in enumerate(layouts.REASONS)}


class Node:
    """A node with a web server (three backends, one of IPv6), a DNS server, and a mail server without VIP."""

    def __init__(self, maps: FakeMaps | None = None) -> None:
        self.maps = maps or FakeMaps(LIMITS)
        names = [
            (WEB, ("default", "web", "http")),
            (DNS, ("kube-system", "kube-dns", "dns")),
            (MAIL, ("default", "mail", "")),
            (WEB_6, ("default", "web", "http")),
        ]
        ids = [service for service, _ in names]
        accounts.begin(self.maps, ids)
        rows = [tuple(text.encode() for text in each) for _, each in names]
        self.maps.update("services", np.array(ids, "u4"), np.array(rows, layouts.SERVICE_NAME))
        self.maps.update(
            "nodes", np.array([0, 2], "u4"), np.array([(b"node1",), (b"node2",)], layouts.NODE_NAME)
        )
        self._vip(WEB, "10.96.0.1", 80, Protocol.TCP)
        self._vip(WEB_6, "fd00:96::1", 80, Protocol.TCP)
        self._vip(DNS, "10.96.0.10", 53, Protocol.UDP)
        self.backend(1, WEB, "10.244.1.2", 8080, node=0)
        self.backend(2, WEB, "10.244.2.2", 8080, node=2)
        self.backend(1, WEB_6, "fd00:244::2", 8080, node=0)
        self.backend(17, DNS, "10.244.2.3", 53, node=2, state=BackendStateCode.TERMINATING)

    def _vip(self, service: int, address: str, port: int, protocol: Protocol) -> None:
        version = ip_address(address).version
        key, value = np.zeros(1, layouts.VIP_KEY[version]), np.zeros(1, layouts.VIP)
        key["address"], key["port"], key["protocol"] = (
            layouts.pack_address(ip_address(address)),
            port,
            protocol,
        )
        value["service"] = service
        self.maps.update(f"vips{version}", key, value)
        whole = key.copy()
        whole["port"] = whole["protocol"] = 0
        self.maps.update(f"vips{version}", whole, value)

    def backend(
        self,
        slot: int,
        service: int,
        address: str,
        port: int,
        *,
        node: int,
        state: BackendStateCode = BackendStateCode.ACTIVE,
        generation: int = 1,
    ) -> None:
        """Let a slot be in use."""
        version = ip_address(address).version
        row = self.maps.array(f"backends{version}")[slot : slot + 1]
        row["address"], row["port"] = layouts.pack_address(ip_address(address)), port
        row["state"], row["service"], row["generation"], row["node"] = state, service, generation, node
        row["flags"] = BackendFlag.LOCAL if node == 0 else 0

    def count(
        self,
        slot: int,
        *,
        version: int = 4,
        generation: int = 1,
        cpu: int = 0,
        traffic: tuple[int, int, int, int] = (0, 0, 0, 0),
        connections: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Add to the counters of a slot, as the programs do on one CPU."""
        (line,), (place,) = accounts.line_of(np.array([slot], "u4"))
        keys = np.array([line], "u4")
        rows = self.maps.some(f"traffic{version}", keys)
        cell = rows["cells"][0, cpu, place : place + 1]
        if cell["generation"] != generation:
            cell[:] = 0
            cell["generation"] = generation
        for name, number in zip(accounts.OF_TRAFFIC, traffic, strict=True):
            cell[name] += number
        self.maps.update(f"traffic{version}", keys, rows)
        row = self.maps.array(f"connections{version}")[slot : slot + 1]
        for name, number in zip(accounts.OF_CONNECTIONS, connections, strict=True):
            row[name] += number

    def of_service(
        self, service: int, handshakes: dict[int, int], ns: int = 0, dropped: dict[str, int] | None = None
    ) -> None:
        """Add handshakes by bucket, the sum of their times, and dropped packets by reason."""
        keys, rows = self.maps.read("service_counters")
        row = rows[keys == service].copy()
        for bucket, count in handshakes.items():
            row["handshakes"][0, bucket] += count
        row["handshake_ns"] += ns
        for reason, count in (dropped or {}).items():
            row["dropped"][0, REASON[reason]] += count
        self.maps.update("service_counters", np.array([service], "u4"), row)

    def busy(self) -> None:
        """Let a minute of requests pass."""
        self.count(1, traffic=(400, 40_000, 380, 900_000), connections=(50, 0, 1))
        self.count(1, cpu=1, traffic=(100, 10_000, 100, 250_000))
        self.count(2, traffic=(200, 20_000, 190, 480_000), connections=(30, 4, 0))
        self.count(1, version=6, traffic=(10, 1_000, 10, 25_000), connections=(2, 0, 0))
        self.count(17, traffic=(60, 4_800, 60, 9_000), connections=(60, 0, 0))
        self.of_service(WEB, {3: 40, 5: 30, 9: 6}, ns=2_500_000, dropped={"SOURCE_NOT_ALLOWED": 3})
        self.of_service(WEB_6, {4: 2}, ns=300_000, dropped={"SOURCE_NOT_ALLOWED": 1})
        self.of_service(MAIL, {}, dropped={"REJECT_NO_ENDPOINT": 2})
