# SPDX-License-Identifier: Apache-2.0
"""The lab of the two: node1 with our agent, node2 with kube-proxy's rules, node3 with neither.

Both sides have the same Services at the same addresses; a client uses its own side's node. The client outside
reaches node1 from one address and node2 from another, by a routing rule for each.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from lb.cli import main as cli
from lb.config import UplinkMode
from lb.lab import kube_proxy, namespaces
from lb.lab.addressing import POD_NETWORKS, LabSpec, Overlay, clients, node_address
from lb.lab.lab import Lab
from lb.lab.removal import down
from tests.twin import player
from tests.twin.program import BACKENDS, CLIENTS, PORTS, START, Step, World, changed
from tests.twin.services import NODE_PORTS, Side, manifests, place, source

OURS, THEIRS = Side("a", "node1", 1), Side("b", "node2", 6)
SIDES = (OURS, THEIRS)
_FAMILIES = {4: 2, 6: 10}
_FIRST_PORT, _RUNS = 20_000, 2_000
_MASQUERADE = """
table {family} twin-masquerade {{
 chain out {{
  type nat hook postrouting priority 110;
  {family} saddr {pods} {family} daddr != {pods} oifname eth0 masquerade
 }}
}}
"""
Outcome = dict[str, Any]


class Pair:
    """The lab, while it is up; use it as a context manager.

    overlay: of the pods' network; uplink: the hook of our node's uplink.
    """

    def __init__(
        self,
        lab: str,
        folder: Path,
        overlay: Overlay = Overlay.NONE,
        uplink: UplinkMode = UplinkMode.AUTO,
    ) -> None:
        self._folders = {side: folder / side.name for side in SIDES}
        for each in self._folders.values():
            each.mkdir()
        self._spec = LabSpec(
            id=lab,
            manifests=str(self._folders[OURS]),
            nodes=3,
            agents=False,
            overlay=overlay,
            uplink_mode=uplink,
        )
        self._stack = ExitStack()
        self._players: dict[tuple[Side, str], subprocess.Popen[str]] = {}
        self._world: World = {}
        self._run = -1
        self._mtu: set[str] = set()
        self._both = ThreadPoolExecutor(2)

    def __enter__(self) -> Pair:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the clients and take the lab down."""
        try:
            self._stack.close()
        finally:  # a client that has failed is no reason to leave a lab
            self._both.shutdown()
            down(self._spec.id, lambda _line: None)

    def _up(self) -> None:
        pods = "".join(side.manifests_of_pods() for side in SIDES)
        (self._folders[OURS] / "pods.yaml").write_text(pods)
        self.lab = Lab.up(self._spec, lambda _line: None)
        self.pods: dict[str, Sequence[str]] = {each.name: each.addresses for each in self.lab.store.pods()}
        for side in SIDES:
            for family, version in (("ip", 4), ("ip6", 6)):
                text = _MASQUERADE.format(family=family, pods=POD_NETWORKS[version])
                self._do(side.node, ["nft", "-f", "-"], text)
            for version in (4, 6):
                self._route(side, version)
        self._set(START)
        self.lab.start_agent(OURS.node)
        self.lab.wait_agent(OURS.node)
        self._in_step()
        for side in SIDES:
            for who in CLIENTS:
                self._players[side, who] = self._play(side, who)

    def _route(self, side: Side, version: int) -> None:
        family, table = f"-{version}", str(100 + side.client)
        here, via = str(clients(version)[side.client]), str(node_address(side.node, version))
        self._do("client", ["ip", family, "rule", "add", "from", here, "table", table])
        self._do(
            "client", ["ip", family, "route", "add", "default", "via", via, "dev", "eth0", "table", table]
        )

    def _do(self, where: str, argv: Sequence[str], text: str = "") -> None:
        done = self.lab.run(where, argv, input=text)
        assert done.returncode == 0, f"{where}: {argv}: {done.stderr}"

    def _play(self, side: Side, who: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-I", "-S", str(player.__file__)]
        if who == "bare":
            command = namespaces.command(self._spec.namespace(side.node), argv)
        else:
            pod = {"pod": "asker", "hostpod": "host", "web0": "web0"}.get(who)
            where = side.pod(pod) if pod else side.node if who == "node" else "client"
            command = self.lab.command(where, argv)
        made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.enter_context(made)
        assert made.stdin
        self._stack.callback(made.stdin.close)
        return made

    # --- running a program ----------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> list[tuple[Outcome, Outcome]]:
        """Run a program from a fresh start; return what our client and theirs saw at each step."""
        self._run = (self._run + 1) % _RUNS
        self._reset()
        try:
            return [self._step(step) for step in steps]
        finally:
            self._ask_all(CLIENTS, {"do": "end"})

    def _reset(self) -> None:
        self._set(START)
        for where in list(self._mtu):
            self._set_mtu(where, 1500)
        for side in SIDES:
            with namespaces.inside(self._spec.namespace(side.node)):
                for family in _FAMILIES.values():
                    with NFCTSocket(nfgen_family=family) as table:
                        table.flush()

    def _step(self, step: Step) -> tuple[Outcome, Outcome]:
        if step["do"] == "world":
            self._change(step)
            return {}, {}
        questions = [self.question(side, step) for side in SIDES]
        for side, question in zip(SIDES, questions, strict=True):
            self._tell(self._players[side, step["who"]], question)
        ours, theirs = (self._hear(self._players[side, step["who"]]) for side in SIDES)
        return ours, theirs

    def _ask_all(self, who: Iterable[str], question: Step) -> None:
        players = [self._players[side, each] for side in SIDES for each in who]
        for each in players:
            self._tell(each, question)
        for each in players:
            self._hear(each)

    @staticmethod
    def _tell(process: subprocess.Popen[str], question: Step) -> None:
        assert process.stdin
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()

    @staticmethod
    def _hear(process: subprocess.Popen[str]) -> Outcome:
        assert process.stdout
        answer: Outcome = json.loads(process.stdout.readline())
        return answer

    def question(self, side: Side, step: Step) -> Step:
        """Return a step as the player of a side takes it, with addresses and numbers in place of names."""
        asked = {key: value for key, value in step.items() if key not in ("who", "version", "to", "port")}
        do, version = step["do"], step["version"]
        if do in ("connect", "udp", "pieces", "ping", "trace"):
            asked["source"] = source(side, step["who"], version, self.pods)
        if "port" in step:
            asked["port"] = self._port(step["port"])
        if step.get("to"):
            asked["host"], tcp, udp = place(side, step["to"], version, self.pods)
            if do != "ping":
                asked["to"] = tcp if do == "connect" else udp
        return asked

    def _port(self, symbol: int | str) -> int:
        if isinstance(symbol, str):
            return NODE_PORTS["web"][int(symbol[-1])]
        return _FIRST_PORT + self._run * PORTS + symbol if symbol else 0

    # --- the world ------------------------------------------------------------------------------------------

    def _change(self, step: Step) -> None:
        if "flush" in step:
            for side in SIDES:
                self._do(side.node, ["ip", "neigh", "flush", "all"])
        elif "mtu" in step:
            self._set_mtu(step["pod"], step["mtu"])
        else:
            name = step["service"]
            self._set({**self._world, name: changed(self._world[name], step["field"], step["value"])})

    def _set_mtu(self, pod: str, mtu: int) -> None:
        (self._mtu.add if mtu < 1500 else self._mtu.discard)(pod)
        for side in SIDES:
            name = side.pod("asker" if pod == "pod" else pod)
            with namespaces.netlink(self._spec.namespace(side.node)) as route:
                [index] = route.link_lookup(ifname=f"pod-{name}")
                route.link("set", index=index, mtu=mtu)

    def _set(self, world: World) -> None:
        """Make the world so on both sides, and return when both have taken note."""
        if world == self._world:
            return
        self._world = world
        for side in SIDES:
            path = self._folders[side] / "services.yaml"
            other = path.with_suffix(".new")
            other.write_text(manifests(side, world, self.pods))
            other.replace(path)
        rules = self._both.submit(self._write_rules)
        if self._players:
            self._in_step()
        rules.result()

    def _in_step(self) -> None:
        words = ["audit", "--instance", self._spec.instance(OURS.node)]
        deadline = time.monotonic() + 30
        while cli(words, out=(out := io.StringIO()), err=(err := io.StringIO())):
            log = self.lab.store.log(OURS.node).read_text().splitlines()[-20:]
            assert time.monotonic() < deadline, out.getvalue() + err.getvalue() + "\n".join(log)
            time.sleep(0.01)

    def _write_rules(self) -> None:
        addresses = [node_address(THEIRS.node, version) for version in (4, 6)]
        ports = kube_proxy.ports_on(THEIRS.node, addresses, [self._folders[THEIRS]], self._spec.service_cidr)
        run = kube_proxy.run_with(lambda argv: namespaces.command(self._spec.namespace(THEIRS.node), argv))
        networks = {version: str(POD_NETWORKS[version]) for version in (4, 6)}
        kube_proxy.write(kube_proxy.Mode.NFTABLES, ports, networks, run)
        with namespaces.inside(self._spec.namespace(THEIRS.node)):
            for version in (4, 6):
                forget_stale(ports, version)


def forget_stale(ports: Sequence[kube_proxy.NamedPort], version: int) -> None:
    """Delete UDP entries of conntrack whose Service port has endpoints, but none of them serves at theirs.

    As kube-proxy does since Kubernetes 1.32: the entries of a Service port without endpoints stay, likewise
    those of one that is gone.
    """
    serving: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for port in ports:
        if port.plan.version == version and port.protocol == "udp" and port.plan.cluster:
            for vip in port.plan.vips:
                found = serving.setdefault((str(vip.key.address), vip.key.port), set())
                found |= {(str(backend.address), backend.port) for backend in port.plan.backends}
    family = _FAMILIES[version]
    with NFCTSocket(nfgen_family=family) as table:
        for entry in list(table.dump(tuple_orig=NFCTAttrTuple(family=family, proto=17))):
            forward = NFCTAttrTuple.from_netlink(family, entry.get_attr("CTA_TUPLE_ORIG"))
            back = NFCTAttrTuple.from_netlink(family, entry.get_attr("CTA_TUPLE_REPLY"))
            backends = serving.get((forward.daddr, forward.dport))
            if backends and (back.saddr, back.sport) not in backends:
                table.entry("del", tuple_orig=forward)


__all__ = ["BACKENDS", "Pair"]
