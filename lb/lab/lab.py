# SPDX-License-Identifier: Apache-2.0
"""Bringing a lab up and using it; :mod:`lb.lab.removal` takes it down."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lb.errors import LabError
from lb.lab import balancer, cgroups, dns, namespaces, pod, resolver, router, topology
from lb.lab.addressing import (
    BALANCED,
    POD_INTERFACES,
    UPLINK,
    Announce,
    LabSpec,
    Overlay,
    outside_server,
)
from lb.lab.processes import COMPILE_SECONDS, START_SECONDS, ProcessRef, environment, spawn, wait_for
from lb.lab.removal import Report, down
from lb.lab.status import status
from lb.lab.store import LabRecord, PodRecord, Store
from lb.lab.tunnels import TUNNELS

if TYPE_CHECKING:
    from lb.lab.apihost import ApiHost

_PATIENCE_SECONDS = 2.0  # after which it is said what is waited for
_TABLE_ROWS = 1 << 20  # 8 MB for each node, instead of a real node's 64
_WITH_RESOLVER = """\
for each in resolv.conf nsswitch.conf; do [ ! -e "/etc/$each" ] || mount --bind "$1/$each" "/etc/$each"; done
shift
exec "$@"
"""
OUTSIDE_PORTS = ("tcp:80:http", "udp:9000:echo")


class Lab:
    """A lab that is up, or is being brought up."""

    def __init__(self, store: Store, spec: LabSpec) -> None:
        self.store, self.spec = store, spec

    @classmethod
    def open(cls, lab: str) -> Lab:
        """Return the lab of this id.

        Raises LabError: there is no such lab, or it is half-made.
        """
        store = Store(lab)
        record = store.read_lab()
        if not record.complete:
            raise LabError(store.why_taken())
        return cls(store, record.spec)

    # --- using it -----------------------------------------------------------------------------------------

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv at a place: ``client``, ``switch``, ``node1`` or a pod's name.

        Raises LabError: there is no such place, or the pod's process does not run.
        """
        if where in self._hosts:
            return namespaces.command(self.spec.namespace(where), self._asking_the_lab(argv))
        if where in self.spec.node_names:
            return self._on_node(where, self._asking_the_lab(argv))
        found = self.find_pod(where)
        if found.process is None or not found.process.alive():
            raise LabError(f"pod {where}: its process does not run")
        # Nothing of whoever asks: a token in the operator's environment is none of the pod's business.
        argv = ["env", "-i", *_variables(found.process.pid), *argv]
        inside = namespaces.command(found.netns, argv, pid=found.process.pid)
        group = self.cgroup(found.node) / self.spec.pod_namespace(found.namespace, found.name)
        return cgroups.command(group, inside)

    def _asking_the_lab(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv with the lab's resolver: nobody there reaches the machine's."""
        enter = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _WITH_RESOLVER, "sh"]
        return [*enter, str(self.store.resolver), *argv]

    def _on_node(self, node: str, argv: Sequence[str]) -> list[str]:
        return cgroups.command(self.cgroup(node), namespaces.command(self.spec.namespace(node), argv))

    def cgroup(self, node: str) -> Path:
        """Return the control group (cgroup v2) of a node's processes; those of its pods are below it."""
        return cgroups.of_node(self.spec.id, node)

    @property
    def _hosts(self) -> tuple[str, ...]:
        others = (("router",) if self.spec.routed else ()) + (("api",) if self.spec.kubernetes else ())
        return ("client", "switch", *others)

    def find_pod(self, name: str) -> PodRecord:
        """Return the record of the pod called NAME or NAMESPACE/NAME.

        Raises LabError: no pod has this name, or pods of several namespaces have it.
        """
        found = [each for each in self.store.pods() if name in (each.name, f"{each.namespace}/{each.name}")]
        if len(found) == 1:
            return found[0]
        names = (*self._hosts, *self.spec.node_names, *(each.name for each in self.store.pods()))
        places = ", ".join(name for name in names if name != "switch")
        raise LabError(
            f"{'no place' if not found else 'more than one pod'} is called {name}; there are {places}"
        )

    def run(self, where: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command at a place as subprocess.run does, by default with its output captured as text."""
        given: dict[str, Any] = {"text": True, "check": False, **options}
        if "stdout" not in options:
            given.setdefault("capture_output", True)
        done: subprocess.CompletedProcess[str] = subprocess.run(self.command(where, argv), **given)  # noqa: PLW1510
        return done

    def ask_kubelet(self, what: str, *, timeout: float = 60.0, **details: Any) -> dict[str, Any]:
        """Send the kubelet a request of :mod:`lb.lab.kubelet` and return its answer.

        Raises LabError: the kubelet does not answer, or says what could not be done.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(timeout)
                line.connect(str(self.store.socket))
                line.sendall(json.dumps({"do": what, **details}).encode() + b"\n")
                with line.makefile("rb") as stream:
                    answer: dict[str, Any] = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            log = self.store.log("kubelet")
            raise LabError(
                f"the kubelet of lab {self.spec.id} does not answer ({error}); see {log}"
            ) from error
        if "error" in answer:
            raise LabError(answer["error"])
        return answer

    def _kubelet_answers(self) -> bool:
        try:
            self.ask_kubelet("list")
        except LabError:
            return False
        return True

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods as the kubelet lists them: namespace, name, node, address, phase, ready, …"""
        found: list[dict[str, Any]] = self.ask_kubelet("list")["pods"]
        return found

    def requests(self) -> list[tuple[str, str]]:
        """Return what is worth a look: a place, and the URL of a Service to ask for there."""
        return [(place, url) for place, url in self.ask_kubelet("try")["requests"]]

    def wait_ready(self, seconds: float = 30.0) -> list[dict[str, Any]]:
        """Wait until every pod is ready, at most so long; return the pods that are not."""
        listing = self.ask_kubelet("wait", seconds=seconds, timeout=seconds + 10)
        return [each for each in listing["pods"] if not each["ready"]]

    # --- API server -----------------------------------------------------------------------------------------

    def api_host(self) -> ApiHost:
        """Return the host of the lab's API server.

        Raises LabError: the lab has no API server.
        """
        from lb.lab.apihost import ApiHost  # noqa: PLC0415 - large, and most labs do without

        if not self.spec.kubernetes:
            raise LabError(f"lab {self.spec.id} has no API server: it was not brought up with --kubernetes")
        return ApiHost(self.store, self.spec)

    # --- agents -------------------------------------------------------------------------------------------

    def agent_command(self, node: str) -> list[str]:
        """Return the command of a node's agent, without the entering of the node."""
        spec, store = self.spec, self.store
        flags = {
            "--node-name": node,
            "--instance": spec.instance(node),
            "--uplink": UPLINK,
            "--uplink-mode": str(spec.uplink_mode),
            "--redirect": str(spec.redirect),
            "--forward": str(spec.forward),
            "--pod-interface": POD_INTERFACES,
            "--service-cidr": spec.service_cidr,
            "--cgroup": str(self.cgroup(node)),
            "--limits-table-rows": str(_TABLE_ROWS),
            "--ready-file": str(store.ready_file(node)),
        }
        if spec.announce is Announce.ARP:
            flags["--announce"] = "arp"
        if spec.overlay in TUNNELS:
            flags["--tunnel"] = TUNNELS[spec.overlay]
        if spec.kubernetes:
            sources = ["--source=kubernetes", f"--kubeconfig={store.agent_kubeconfig}"]
        else:
            folders = [spec.manifests, store.cluster, *([store.addons] if store.addons.is_dir() else [])]
            sources = [f"--source=manifests:{folder}" for folder in folders]
        rest = [f"{flag}={value}" for flag, value in flags.items()]
        if spec.announce is Announce.ARP:  # the client's routes lead to a node: nobody has to ask
            rest += [f"--announce-network={BALANCED[version]}" for version in spec.versions]
        return [sys.executable, "-m", "lb", "run", *sources, *rest]

    def start_agent(self, node: str, *, shadow: bool = False) -> None:
        """Start a node's agent without waiting for it; shadow: in shadow mode.

        Raises LabError: there is no such node, or its agent runs already.
        """
        self._check_node(node)
        if running := self.store.running(node):
            raise LabError(f"the agent of {node} runs already, process {running.pid}")
        self.store.ready_file(node).unlink(missing_ok=True)
        more = ["--shadow"] if shadow else []
        argv = self._on_node(node, [*self.agent_command(node), *more])
        self.store.write_process(node, spawn(argv, self.store.log(node), environment()))

    def wait_agent(self, node: str, seconds: float = COMPILE_SECONDS) -> None:
        """Wait until the node's agent has brought everything into the kernel once.

        Raises LabError: it ended, or it took longer; carries the end of its log.
        """
        process = self.store.process(node)
        ready = self.store.ready_file(node).exists
        wait_for(f"the agent of {node}", ready, process, self.store.log(node), seconds)

    def stop_agent(self, node: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal a node's agent and wait until it has ended; pins and hooks stay.

        Raises LabError: there is no such node, its agent does not run, or it does not end.
        """
        self._check_node(node)
        self.store.end_process(node, f"the agent of {node}", how)

    def _check_node(self, node: str) -> None:
        if node not in self.spec.node_names:
            raise LabError(f"lab {self.spec.id} has no node {node}, only {', '.join(self.spec.node_names)}")

    # --- status -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the lab consists of and what of it runs."""
        return status(
            self.spec, self.store, lambda: self.ask_kubelet("list"), lambda: self.api_host().status()
        )

    # --- bringing it up -----------------------------------------------------------------------------------

    @classmethod
    def up(
        cls, spec: LabSpec, report: Report, pods_within: float = 30.0, kubelet_within: float = START_SECONDS
    ) -> Lab:
        """Bring a lab up and return it once its pods are ready and its agents have synced.

        Pods that are not ready within so many seconds are reported, and no error: a manifest may want that.
        If anything fails, what was made is removed.

        Raises LabError: a lab of this id exists, a namespace's name is taken, or a step failed.
        """
        namespaces.check_machine()
        cgroups.of_lab(spec.id)  # says so when there are none
        if spec.routed:
            router.check(spec)
        if not Path(spec.manifests).is_dir():
            raise LabError(f"--manifests {spec.manifests}: there is no such directory")
        own = ProcessRef.own()
        store = Store(spec.id)
        if not store.exists():
            for name in filter(namespaces.exists, spec.namespaces):
                raise LabError(
                    f"a network namespace {name} exists already and is no lab's; choose another --id"
                )
        store.create(LabRecord(spec, own))
        lab = cls(store, spec)
        try:
            lab._bring_up(report, pods_within, kubelet_within)
        except BaseException:
            report("failed: removing what was made")
            down(spec.id, lambda _line: None)
            raise
        store.write_lab(LabRecord(spec, own, complete=True))
        return lab

    def _bring_up(self, report: Report, pods_within: float, kubelet_within: float) -> None:
        spec, store = self.spec, self.store
        overlay = "routed" if spec.overlay is Overlay.NONE else f"behind tunnels ({spec.overlay})"
        client = " and ".join(str(spec.clients(version)[0]) for version in spec.versions)
        between = f"router ({spec.router}), " if spec.routed else ""
        report(f"network: switch, {between}client {client}, {spec.nodes} nodes; pods {overlay}")
        for node in spec.node_names:
            cgroups.create(self.cgroup(node))
        topology.build(spec)
        store.resolver.mkdir()
        for name, text in resolver.of_a_host(dns.node_resolvers(spec)).items():
            (store.resolver / name).write_text(text)
        if spec.routed:
            router.start_router(store, spec)
        self._start_outside_server()
        if spec.dns:
            dns.bring_up(store, spec)
        if spec.kubernetes:
            self._bring_up_api(report)
        if spec.dns:
            dns.start_feeding(store, spec)
        report(f"pods: of the manifests in {spec.manifests}")
        kubelet = spawn(
            [sys.executable, "-m", "lb.lab.kubelet", spec.id], store.log("kubelet"), environment()
        )
        store.write_process("kubelet", kubelet)
        wait_for("the kubelet", self._kubelet_answers, kubelet, store.log("kubelet"), kubelet_within)
        listing = self._wait_for_pods(report, pods_within)
        waiting = [each for each in listing["pods"] if not each["ready"]]
        if spec.kubernetes:
            self.api_host().check()
        for error in listing["errors"]:
            report(_told(error))
        report(f"  {len(listing['pods']) - len(waiting)} of {len(listing['pods'])} ready")
        for each in waiting:
            report(f"  not ready: {each['name']}: {each['message'] or each['phase']}")
        if store.process(balancer.NAME) is not None:
            self._wait_for_addresses()
        if spec.agents:
            self._start_agents(report)
        if spec.routed:
            self._announce(report)

    def _start_outside_server(self) -> None:
        """Start the HTTP server and UDP echo that are outside of the cluster."""
        spec, log = self.spec, self.store.log("outside")
        addresses = ",".join(str(outside_server(version)) for version in spec.versions)
        argv = [sys.executable, "-I", "-S", str(pod.__file__), "outside", addresses, *OUTSIDE_PORTS, "--"]
        self.store.write_process("outside", spawn(namespaces.command(spec.client, argv), log))

    def _start_agents(self, report: Report) -> None:
        report("agents: compiling and loading programs, one agent for each node")
        for node in self.spec.node_names:
            self.start_agent(node)
        for node in self.spec.node_names:
            self.wait_agent(node)

    def _announce(self, report: Report) -> None:
        """Start what tells the router which addresses each node serves, and wait until it knows."""
        report("routes: each node tells the router by BGP which addresses it serves")
        for node in self.spec.node_names:
            router.start_speaker(self.store, self.spec, node)
        router.wait(self.store, self.spec)

    def _wait_for_pods(self, report: Report, seconds: float) -> dict[str, Any]:
        """Wait until the pods are ready, at most so long; say what for if it takes a while."""
        at_once = min(seconds, _PATIENCE_SECONDS)
        listing = self.ask_kubelet("wait", seconds=at_once)
        if not listing["settled"]:
            names = [each["name"] for each in listing["pods"] if not each["ready"]]
            report(f"  waiting up to {seconds:g} s for {', '.join(names) or 'pods to be made'}")
            left = seconds - at_once
            listing = self.ask_kubelet("wait", seconds=left, timeout=left + 10)
        return listing

    def _wait_for_addresses(self) -> None:
        """Wait until every Service of type LoadBalancer has an address, or it is said why not."""
        log, process = self.store.log(balancer.NAME), self.store.process(balancer.NAME)
        done = self.api_host().is_balanced if self.spec.kubernetes else self.store.addresses.exists
        wait_for("load-balancer addresses", done, process, log)

    def _bring_up_api(self, report: Report) -> None:
        from lb.lab.apply import apply  # noqa: PLC0415 - see api_host

        report(f"API server: etcd and kube-apiserver of {self.spec.kubernetes}")
        host = self.api_host()
        host.bring_up()
        if not host.plane.has_controllers:
            report("  no kube-controller-manager there: the lab makes pods and EndpointSlices itself")
        api = host.api(START_SECONDS)
        errors = apply(api, self.store.addons, None) if self.spec.dns else []
        for error in [*errors, *apply(api, Path(self.spec.manifests), self.spec.replicas)]:
            report(_told(str(error)))
        if self.spec.balanced:
            balancer.ensure(self.store, self.spec)


def _told(error: str) -> str:
    """Return the line that tells what is wrong with a manifest."""
    return f"  manifest {error}" if error.startswith("warning: ") else f"  manifest error: {error}"


def _variables(pid: int) -> list[str]:
    """Return the environment of a process, each variable as ``NAME=value``."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended: entering it will fail
    return [each for each in text.split("\0") if each]
