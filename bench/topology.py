# SPDX-License-Identifier: Apache-2.0
"""client — node — pods, in network namespaces that vanish with this process, and servers in the pods."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.namespaces import NetworkNamespace

CLIENT, NODE = "192.0.2.50", "192.0.2.1"
PODS = tuple(f"10.0.1.{host}" for host in range(11, 15))
POD_CLIENT = "10.0.1.20"
GATEWAY = "10.0.1.1"
TARGET_PORT = 8080
UPLINK, POD_INTERFACES = "eth0", "pod*"


class Topology:
    """One node with four server pods and a client pod, and a client on its uplink's segment.

    Everything is plain routing, without netfilter; the contender adds what it needs to ``node``, and may say
    in which control group clients run.
    """

    def __init__(self, traffic: Path) -> None:
        self._traffic = traffic
        self.cgroup: Path | None = None
        with contextlib.ExitStack() as stack:
            self.node, self.outside, self.pod = (self._namespace(stack) for _ in range(3))
            self.servers = [self._namespace(stack) for _ in PODS]
            self._wire()
            for namespace in self.servers:
                stack.callback(_end, self._serve(namespace))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _namespace(self, stack: contextlib.ExitStack) -> NetworkNamespace:
        namespace = NetworkNamespace()
        stack.callback(namespace.close)
        run(namespace, "ip", "link", "set", "lo", "up")
        return namespace

    def _wire(self) -> None:
        for setting in ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"):
            with self.node.entered():
                Path(f"/proc/sys/net/ipv4/{setting}").write_text(str(int(setting == "ip_forward")))
        self._link(UPLINK, self.outside)
        run(self.node, "ip", "addr", "add", f"{NODE}/24", "dev", UPLINK)
        run(self.outside, "ip", "addr", "add", f"{CLIENT}/24", "dev", "eth0")
        run(self.outside, "ip", "route", "add", "default", "via", NODE)
        for number, (address, namespace) in enumerate(
            zip((*PODS, POD_CLIENT), (*self.servers, self.pod), strict=True)
        ):
            self._link(f"pod{number}", namespace)
            run(self.node, "ip", "addr", "add", f"{GATEWAY}/32", "dev", f"pod{number}")
            run(self.node, "ip", "route", "add", address, "dev", f"pod{number}")
            run(namespace, "ip", "addr", "add", f"{address}/32", "dev", "eth0")
            run(namespace, "ip", "route", "add", GATEWAY, "dev", "eth0")
            run(namespace, "ip", "route", "add", "default", "via", GATEWAY)

    def _link(self, name: str, peer: NetworkNamespace) -> None:
        place = f"/proc/{os.getpid()}/fd/{peer.fileno()}"
        run(self.node, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", place)
        run(self.node, "ip", "link", "set", name, "up")
        run(peer, "ip", "link", "set", "eth0", "up")

    def _serve(self, namespace: NetworkNamespace) -> subprocess.Popen[str]:
        with namespace.entered():
            server = subprocess.Popen(
                [self._traffic, "serve", str(TARGET_PORT)], stdout=subprocess.PIPE, text=True
            )
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise RuntimeError("a server does not start")
        return server

    def datagrams_received(self) -> int:
        """Return how many datagrams the servers have read so far."""
        return sum(_udp_received(namespace) for namespace in self.servers)


def run(namespace: NetworkNamespace, *argv: str, text: str | None = None) -> None:
    """Run a command in a namespace, with text as its input.

    Raises
    ------
    RuntimeError: it failed; with its words.
    """
    with namespace.entered():
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _udp_received(namespace: NetworkNamespace) -> int:
    with namespace.entered():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    return int(values[names.index("InDatagrams")])
