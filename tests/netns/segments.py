# SPDX-License-Identifier: Apache-2.0
"""The segment of a lab whose addresses are announced: who answers, what a load loses, cables pulled."""

from __future__ import annotations

import http.client
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lb.lab import namespaces
from lb.lab.addressing import UPLINK, clients, node_mac
from lb.lab.lab import Lab
from lb.model import IPAddress

CLIENT_MAC = "02:77:00:00:00:64"
MANIFESTS = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: lab
          ports: [{containerPort: 8080}, {name: echo, containerPort: 9000, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {lbctl/addresses: "192.168.77.226,fd00:77::e001"}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: near, annotations: {lbctl/addresses: 192.168.77.225}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""
"""Three pods, one on each node of three; a Service for each traffic policy."""
NEAR, WEB, WEB6 = (ip_address(text) for text in ("192.168.77.225", "192.168.77.226", "fd00:77::e001"))


ECHO_PORT = 9000
_SECOND = "br1"
_UP, _PROMISCUOUS = 0x1, 0x100  # IFF_UP; IFF_PROMISC: the switch itself hears what its ports do


class Asker:
    """Asks who has an address, as hosts do that have not noted it yet. By default it is the lab's client."""

    def __init__(self, lab: Lab, namespace: str = "", interface: str = UPLINK) -> None:
        with namespaces.inside(namespace or lab.spec.client):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
            self._socket.bind((interface, 3))
        self._nodes = {node_mac(node): node for node in lab.spec.node_names}

    def close(self) -> None:
        self._socket.close()

    def claim(self, address: IPAddress, mac: str) -> None:
        """Announce an IPv4 address in another host's name."""
        self._socket.send(
            bytes(
                Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac, psrc=str(address), pdst=str(address))
            )
        )

    def ask(self, address: IPAddress) -> None:
        self._socket.send(_question(address))

    def answers(self, address: IPAddress, seconds: float) -> Iterator[str]:
        """Yield whoever says within so many seconds that it has the address: a node, or a link address."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                mac = _answer(self._socket.recv(2048), address)
                if mac:
                    yield self._nodes.get(mac, mac)

    def owners(self, address: IPAddress, seconds: float = 0.3) -> set[str]:
        """Return who answers one question, in so many seconds."""
        self.ask(address)
        return set(self.answers(address, seconds))

    def owner(self, address: IPAddress, seconds: float = 20.0) -> str:
        """Wait for somebody to answer, and return who it is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask(address)
            for node in self.answers(address, 0.1):
                return node
        raise AssertionError(f"nobody answers for {address}")


def _question(address: IPAddress) -> bytes:
    source = str(clients(address.version)[0])
    if address.version == 4:
        return bytes(
            Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff")
            / ARP(hwsrc=CLIENT_MAC, psrc=source, pdst=str(address))
        )
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(address) & 0xFFFFFF)
    link = Ether(src=CLIENT_MAC, dst="33:33:" + group.packed[-4:].hex(":"))
    asks = ICMPv6ND_NS(tgt=str(address)) / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)
    return bytes(link / IPv6(src=source, dst=str(group), hlim=255) / asks)


def _answer(frame: bytes, address: IPAddress) -> str | None:
    """Return the link address that a frame tells for an address, if it answers a question."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    if (
        kind == 0x0806
        and frame[20:22] == b"\0\2"
        and frame[28:32] == address.packed
        and frame[:6] != b"\xff" * 6
    ):
        return frame[22:28].hex(":")
    if (
        kind == 0x86DD
        and frame[20] == 58
        and frame[54] == 136
        and frame[62:78] == address.packed
        and frame[58] & 0x40
    ):
        return frame[6:12].hex(":")
    return None


class Load:
    """Clients of an address that never pause: some keep their connection, some open one for each request.

    Others send datagrams of the Service's UDP port from one socket, whole and in pieces.

    failed: what went wrong, in words. answered: how many requests were not. longest: seconds between two
    answers to the same client, at most. echoed_by: the pods that answered datagrams.
    """

    def __init__(
        self,
        lab: Lab,
        address: IPAddress,
        *,
        kept: int = 4,
        fresh: int = 2,
        udp: int = 0,
        pause: float = 0.005,
    ) -> None:
        self._namespace, self._host, self._pause = lab.spec.client, str(address), pause
        self._stop = threading.Event()
        self.failed: list[str] = []
        self.answered: Counter[str] = Counter()
        self.longest = 0.0
        self.echoed_by: set[str] = set()
        kinds = ["kept"] * kept + ["fresh"] * fresh
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in kinds]
        self._threads += [threading.Thread(target=self._echo, daemon=True) for _ in range(udp)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, kind: str) -> None:
        namespaces.enter(self._namespace)
        connection, last = self._connection(), time.monotonic()
        while not self._stop.is_set():
            try:
                connection.request("GET", "/hostname")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{kind}: {error!r}")
                connection.close()
                connection = self._connection()
            else:
                now = time.monotonic()
                self.longest, last = max(self.longest, now - last), now
                self.answered[kind] += 1
            if kind == "fresh":
                connection.close()
                connection = self._connection()
            time.sleep(self._pause)
        connection.close()

    def _echo(self) -> None:
        namespaces.enter(self._namespace)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            asking.connect((self._host, ECHO_PORT))
            while not self._stop.is_set():
                for size in (8, 4000):
                    asking.send(sent := os.urandom(size))
                    try:
                        name, _, found = asking.recv(8192).split(b" ", 2)
                    except OSError as error:
                        self.failed.append(f"datagram of {size} bytes: {error!r}")
                        continue
                    if found != sent:
                        self.failed.append(f"datagram of {size} bytes: another came back")
                    self.echoed_by.add(name.decode())
                    self.answered["datagrams"] += 1
                    time.sleep(self._pause)

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, 80, timeout=10)


def set_port(lab: Lab, node: str, *, up: bool) -> None:
    """Plug a node's cable in, or pull it: its uplink has a carrier or none."""
    with namespaces.netlink(lab.spec.switch) as switch:
        switch.link("set", index=switch.link_lookup(ifname=node)[0], state="up" if up else "down")


def set_bridged(lab: Lab, node: str, *, bridged: bool) -> None:
    """Put a wall between a node and the others, which it cannot see, or take it away."""
    with namespaces.netlink(lab.spec.switch) as switch:
        bridge = switch.link_lookup(ifname="br0")[0] if bridged else 0
        switch.link("set", index=switch.link_lookup(ifname=node)[0], master=bridge)


@contextmanager
def asker(lab: Lab) -> Iterator[Asker]:
    """Give an asker that is closed at the end."""
    found = Asker(lab)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def halves(lab: Lab, far: Collection[str]) -> Iterator[Asker]:
    """Part the segment: some nodes are at a switch of their own meanwhile. Give an asker on their side."""
    with namespaces.netlink(lab.spec.switch) as switch:
        switch.link("add", ifname=_SECOND, kind="bridge", br_mcast_snooping=0)
        bridge = switch.link_lookup(ifname=_SECOND)[0]
        switch.link("set", index=bridge, state="up")
        switch.link("set", index=bridge, flags=_UP | _PROMISCUOUS, change=_PROMISCUOUS)
    try:
        _move(lab, far, _SECOND)
        found = Asker(lab, lab.spec.switch, _SECOND)
        try:
            yield found
        finally:
            found.close()
    finally:
        _move(lab, far, "br0")
        with namespaces.netlink(lab.spec.switch) as switch:
            switch.link("del", index=switch.link_lookup(ifname=_SECOND)[0])


def _move(lab: Lab, nodes: Collection[str], bridge: str) -> None:
    with namespaces.netlink(lab.spec.switch) as switch:
        index = switch.link_lookup(ifname=bridge)[0]
        for node in nodes:
            switch.link("set", index=switch.link_lookup(ifname=node)[0], master=index)


def watch_two(asking: Asker, address: IPAddress, seconds: float) -> int:
    """Ask again and again for so long; return how many times two nodes answered."""
    twice = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        twice += len(asking.owners(address, 0.05)) > 1
    return twice
