# SPDX-License-Identifier: Apache-2.0
"""The notes' chapters on Services, step by step: what is typed in a pod or outside, and what must come.

One step is not as in the notes: there a clusterIP does not answer a ping. Here it does, on purpose; see
docs/differences.md.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml

from lb.cli import main
from lb.lab.addressing import Family, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import EXAMPLES, MakeLab
from tests.netns.waiting import eventually

MANIFESTS = (
    *("kubia-service.yaml", "kubia-nodeport.yaml", "kubia-headless.yaml"),
    *("external-service.yaml", "external-name.yaml"),
)
PODS = 3
CLUSTER_IP = "10.66.13.240"
NODE_PORT = f"{node_address('node1')}:30123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples; a pod is ready while a file exists, which the notes' pods lack at first."""
    made = tmp_path_factory.mktemp("notes") / "m"
    made.mkdir()
    for name in MANIFESTS:
        (made / name).write_text((EXAMPLES / name).read_text())
    pods = yaml.safe_load((EXAMPLES / "kubia-replicaset.yaml").read_text())
    [container] = pods["spec"]["template"]["spec"]["containers"]
    container["readinessProbe"] = {"exec": {"command": ["ls", "/var/ready"]}, "periodSeconds": 1}
    (made / "kubia-replicaset.yaml").write_text(yaml.safe_dump(pods))
    return made


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, folder: Path) -> Lab:
    return make_lab(folder, family=Family.IPV4, nodes=1, dns=True)


@pytest.fixture(scope="module")
def names(lab: Lab) -> list[str]:
    """The names of the pods, none of which is ready."""
    made = sorted(pod["name"] for pod in lab.pods() if pod["name"].startswith("kubia-"))
    assert len(made) == PODS
    return made


def typed(lab: Lab, where: str, *argv: str) -> str:
    """Return what a command prints, which has to succeed."""
    done = lab.run(where, argv, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def curl(lab: Lab, where: str, url: str) -> str:
    return typed(lab, where, "curl", "-sS", "-m", "10", url)


def looked_up(lab: Lab, pod: str, name: str) -> set[str]:
    """Return the addresses that ``nslookup`` prints after those of the server."""
    done = lab.run(pod, ["nslookup", name], timeout=60)
    _, _, answer = done.stdout.partition("\n\n")
    return {line.split()[1] for line in answer.splitlines() if line.startswith("Address:")}


def lbctl(*argv: str) -> str:
    out = io.StringIO()
    main(argv, out=out, err=out)
    return out.getvalue()


def address(lab: Lab, pod: str) -> str:
    return str(lab.find_pod(pod).addresses[0])


def test_the_notes_on_services(lab: Lab, folder: Path, names: list[str]) -> None:
    one, two, three = names
    # No pod is ready, so nobody is reached, and explain names the reason.
    ask = ["curl", "-s", "-m", "10", f"http://{NODE_PORT}/"]
    assert lab.run("client", ask).returncode == 7
    said = lbctl("explain", "default/kubia", "--instance", lab.spec.instance("node1"))
    assert "CAUSE" in said
    assert "ready" in said
    # A file makes one pod ready, and all traffic goes there.
    typed(lab, one, "touch", "/var/ready")
    eventually(
        lambda: "hit" in lab.run("client", ["curl", "-sm5", f"http://{NODE_PORT}/"]).stdout, "one is ready"
    )
    for _ in range(7):
        assert f"You've hit {one} " in curl(lab, "client", f"http://{NODE_PORT}/")
    # The clusterIP is reached from a pod, ready or not: by address, by variable, by name.
    variables = dict(line.split("=", 1) for line in typed(lab, two, "env").splitlines())
    assert variables["KUBIA_SERVICE_HOST"] == CLUSTER_IP
    assert variables["KUBIA_SERVICE_PORT"] == variables["KUBIA_SERVICE_PORT_HTTP_DEFAULT"] == "80"
    port = variables["KUBIA_SERVICE_PORT_HTTP_MUX1"]
    assert port == "90"
    assert "nameserver 10.66.0.10\n" in typed(lab, two, "cat", "/etc/resolv.conf")
    for host in (CLUSTER_IP, "kubia.default.svc.cluster.local", "kubia.default", "kubia"):
        assert curl(lab, two, f"http://{host}:{port}/").strip() == f"You've hit {one} on http-mux1"
    # Endpoints written by hand lead outside; so does a name that is an alias.
    assert "You've hit outside" in curl(lab, two, "http://10.66.10.171/")
    assert "You've hit outside" in curl(lab, two, "http://external-name/")
    # A usual Service's name is the clusterIP; a headless one's are the addresses of the pods that are ready.
    assert looked_up(lab, three, "kubia") == {CLUSTER_IP}
    typed(lab, two, "touch", "/var/ready")
    ready = {address(lab, one), address(lab, two)}
    eventually(lambda: looked_up(lab, three, "kubia-headless") == ready, "two are ready")
    # All pods, whether ready or not.
    manifest = folder / "kubia-headless.yaml"
    headless = yaml.safe_load(manifest.read_text())
    headless["spec"]["publishNotReadyAddresses"] = True
    manifest.write_text(yaml.safe_dump(headless))
    every = ready | {address(lab, three)}
    eventually(lambda: looked_up(lab, three, "kubia-headless") == every, "all are published")
    # What the notes see in IPVS: the Service, and below it the two that are ready.
    table = lbctl("maps", "dump", "-o", "ipvsadm", "--instance", lab.spec.instance("node1"))
    below = table.partition(f"-t {CLUSTER_IP}:80 ")[2].split("\n-t ")[0].split("\n-u ")[0]
    assert {each.rpartition(":")[0] for each in below.split() if each.endswith(":8080")} == ready
