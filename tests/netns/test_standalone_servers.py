# SPDX-License-Identifier: Apache-2.0
"""The servers of a node without Kubernetes, as vagrant/servers.sh starts them: nginx and BIND."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.lab import namespaces, pod
from lb.names import named
from tests.netns.conftest import fresh_id
from tests.netns.waiting import eventually
from tests.unit import ingress_objects
from tests.unit.ingress_objects import rule, secret

NODE, CIDRS = "10.77.0.11", ("--service-cidr", "10.66.0.0/16")
SECRET = "bGJjdGwtbGFiLWxiY3RsLWxhYi1sYmN0bC1sYWItMTI="
WEB = f"""\
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: 10.66.0.9, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Endpoints
metadata: {{name: web}}
subsets: [{{addresses: [{{ip: {NODE}}}], ports: [{{port: 8080}}]}}]
"""
DNS = f"""\
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec: {{clusterIP: 10.66.0.10, ports: [{{name: dns, port: 53, protocol: UDP}}]}}
---
apiVersion: v1
kind: Endpoints
metadata: {{name: kube-dns, namespace: kube-system}}
subsets: [{{addresses: [{{ip: {NODE}}}], ports: [{{name: dns, port: 53, protocol: UDP}}]}}]
"""


class Node:
    """A network namespace with one address, and processes in it."""

    def __init__(self) -> None:
        self.netns = fresh_id()
        self._processes: list[subprocess.Popen[str]] = []
        namespaces.create(self.netns)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{NODE}/32", "dev", "lo")

    def start(self, *argv: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(namespaces.command(self.netns, argv), stderr=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def run(self, *argv: str) -> str:
        command = namespaces.command(self.netns, argv)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        namespaces.delete(self.netns)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.end()


def write(folder: Path, name: str, text: str) -> None:
    draft = folder.parent / name
    draft.write_text(text)
    draft.rename(folder / name)


def test_ingresses_of_a_folder_are_served_and_followed(node: Node, tmp_path: Path) -> None:
    folder, conf = tmp_path / "m", tmp_path / "nginx"
    folder.mkdir()
    write(folder, "web.yaml", WEB)
    write(folder, "secret.yaml", secret("tls-secret", "a.example.com"))
    tls = "  tls: [{hosts: [a.example.com], secretName: tls-secret}]\n  rules:\n"
    write(folder, "ingress.yaml", ingress_objects.ingress(tls + rule("a.example.com", "Prefix / web:80")))
    node.start(sys.executable, "-I", "-S", str(pod.__file__), "web", NODE, "tcp:8080:http", "--")
    process = node.start(
        sys.executable, "-m", "lb.ingress", "--source", f"manifests:{folder}", *CIDRS, "--folder", str(conf)
    )

    def got(host: str, scheme: str = "http") -> str:
        where = f"{host}:{443 if scheme == 'https' else 80}:{NODE}"
        return node.run("curl", "-sk", "-m", "5", "--resolve", where, f"{scheme}://{host}/")

    eventually(lambda: got("a.example.com").startswith("You've hit web"), "nginx serves", seconds=60)
    assert got("a.example.com", "https").startswith("You've hit web")
    write(
        folder,
        "more.yaml",
        ingress_objects.ingress("  rules:\n" + rule("b.example.com", "Prefix / web:80"), "more"),
    )
    eventually(lambda: got("b.example.com").startswith("You've hit web"), "a new host is served")
    (folder / "secret.yaml").unlink()
    eventually(lambda: not got("a.example.com", "https"), "without the Secret no HTTPS")
    assert got("a.example.com").startswith("You've hit web")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0, told
    assert "Secret default/tls-secret does not exist" in told
    assert not got("a.example.com"), "nginx has ended, too"


def test_names_are_served_and_fed(node: Node, tmp_path: Path) -> None:
    folder, key = tmp_path / "m", tmp_path / "secret"
    folder.mkdir()
    key.write_text(SECRET)
    write(folder, "all.yaml", WEB + "---\n" + DNS)
    common = (*CIDRS, "--pod-cidr", "10.244.0.0/16", "--secret-file", str(key))
    served = ("-m", "lb.names.server", "--address", NODE, *common, "--conf", str(tmp_path / "named.conf"))
    own = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {named.WORK} && exec "$@"', "sh"]
    node.start(*own, sys.executable, *served)
    node.start(sys.executable, "-m", "lb.names", "--source", f"manifests:{folder}", *common)

    def address(name: str) -> str:
        return node.run("dig", "+short", "+time=2", "+tries=1", f"@{NODE}", name).strip()

    eventually(
        lambda: address("web.default.svc.cluster.local") == "10.66.0.9", "the name is known", seconds=60
    )
    assert address("ns.dns.cluster.local") == "10.66.0.10"
    write(folder, "all.yaml", WEB.replace("10.66.0.9", "10.66.0.99") + "---\n" + DNS)
    eventually(lambda: address("web.default.svc.cluster.local") == "10.66.0.99", "it follows the Service")
    assert (tmp_path / "named.conf").stat().st_mode & 0o777 == 0o600, "the secret is in it"
