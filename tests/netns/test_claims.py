# SPDX-License-Identifier: Apache-2.0
"""An older Service of a stranger claims what is somebody else's: nobody's packets go to it."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.cli import main
from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually

NODE1 = str(node_address("node1", 4))
VICTIM, THIEF, PING, PONG = (f"10.96.0.{last}" for last in (101, 102, 103, 104))
SSH = 2222
"""The port of a process of node1, which is root's."""


def pod(name: str) -> str:
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n"
        "spec: {nodeName: node1, containers: [{ports: [{name: http, containerPort: 8080}]}]}\n---\n"
    )


MANIFEST = f"""\
{pod("victim")}{pod("thief")}{pod("asker")}apiVersion: v1
kind: Service
metadata: {{name: victim, creationTimestamp: "2026-02-02T00:00:00Z"}}
spec:
  clusterIP: {VICTIM}
  selector: {{app: victim}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: thief, creationTimestamp: "2026-01-01T00:00:00Z"}}
spec:
  clusterIP: {THIEF}
  externalIPs: [{VICTIM}, {NODE1}]
  selector: {{app: thief}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: ssh, port: {SSH}, targetPort: 8080}}]
"""
LOOP = "".join(
    f"""---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {own}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 80}}]
endpoints: [{{addresses: [{other}]}}]
"""
    for name, own, other in (("ping", PING, PONG), ("pong", PONG, PING))
)


@pytest.fixture
def lab(make_lab: MakeLab, tmp_path: Path) -> Iterator[Lab]:
    (tmp_path / "all.yaml").write_text(MANIFEST + LOOP)
    lab = make_lab(manifests=tmp_path)
    yield lab
    remove(lab.spec.id)


def answer(lab: Lab, where: str, address: str, port: int = 80) -> str:
    done = lab.run(where, ["curl", "-sS", "-m", "5", f"http://{address}:{port}/hostname"])
    return done.stdout.strip() or done.stderr


def lbctl(lab: Lab, *words: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    main([*words, "--instance", lab.spec.instance("node1")], out=out, err=err)
    return out.getvalue() + err.getvalue()


def test_claims_of_what_is_anothers_are_refused_and_named(lab: Lab) -> None:
    for where in ("asker", "node1"):
        assert answer(lab, where, VICTIM) == "victim"
        assert "curl: (7)" in answer(lab, where, VICTIM, SSH), "a port that the clusterIP does not have"
        for address in (PING, PONG):
            assert "curl: (7)" in answer(lab, where, address), "two Services that are each other's endpoint"
    assert answer(lab, "client", NODE1) == "thief", "a port of the node on which nobody listens"
    assert answer(lab, "client", NODE1, SSH) == "thief"
    listed = lbctl(lab, "service", "list")
    for port in (80, SSH):
        whose = f"{VICTIM}:{port}/TCP is refused to Service default/thief: {VICTIM} is the clusterIP of"
        assert f"conflict: {whose} Service default/victim\n" in listed
    for name, endpoint in (("ping", PONG), ("pong", PING)):
        told = f"service default/{name}: endpoint {endpoint} is refused: it is a clusterIP"
        assert f"refused: {told}" in listed
        assert told in lab.store.log("node1").read_text()
        assert "part-refused" in lbctl(lab, "explain", name, "--no-probes")

    argv = lab.command("node1", ["python3", "-m", "http.server", str(SSH), "--bind", "0.0.0.0"])
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            eventually(lambda: "thief" not in answer(lab, "client", NODE1, SSH), "its process has the port")
            assert "File not found" in answer(lab, "client", NODE1, SSH)
            assert answer(lab, "client", NODE1) == "thief"
        finally:
            daemon.kill()
