# SPDX-License-Identifier: Apache-2.0
"""The notes' chapters on Services, step by step: what is typed in a pod or outside, and what must come.

One step is not as in the notes: there a clusterIP does not answer a ping. Here it does, on purpose, while
there is an endpoint; see docs/differences.md. The last chapter, how to find what is wrong, is told as faults:
each is planted, and what the notes have one try shows it; so does ``lbctl explain``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.cli.grammar.lab import EXAMPLES_IN_IPV6
from lb.lab import namespaces
from lb.lab.addressing import Family, dns_service, like
from lb.lab.hints import host, url
from lb.lab.lab import Lab
from lb.model import IPAddress
from tests.netns.conftest import EXAMPLES, MakeLab
from tests.netns.waiting import eventually
from tests.notes.terminal import answered, causes, code, curl, in_ipvs, lbctl, looked_up, typed

MANIFESTS = (
    *("kubia-service.yaml", "kubia-nodeport.yaml", "kubia-loadbalancer.yaml", "kubia-headless.yaml"),
    *("external-service.yaml", "external-name.yaml"),
)
PODS = 3


@pytest.fixture(scope="module", params=[Family.IPV4, Family.IPV6])
def lab(request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The examples; a pod is ready while a file exists, which the notes' pods lack at first."""
    folder = tmp_path_factory.mktemp("notes") / "m"
    folder.mkdir()
    examples = EXAMPLES_IN_IPV6 if request.param is Family.IPV6 else EXAMPLES
    for name in MANIFESTS:
        (folder / name).write_text((examples / name).read_text())
    pods = yaml.safe_load((examples / "kubia-replicaset.yaml").read_text())
    [container] = pods["spec"]["template"]["spec"]["containers"]
    container["readinessProbe"] = {"exec": {"command": ["ls", "/var/ready"]}, "periodSeconds": 1}
    (folder / "kubia-replicaset.yaml").write_text(yaml.safe_dump(pods))
    return make_lab(folder, family=request.param, nodes=1, dns=True)


def names(lab: Lab) -> list[str]:
    """Return the names of the pods."""
    made = sorted(pod["name"] for pod in lab.pods() if pod["name"].startswith("kubia-"))
    assert len(made) == PODS
    return made


def at(lab: Lab, address: str) -> IPAddress:
    """Return what stands for an address of the notes in the lab's family."""
    return like(address, lab.spec.versions[0])


def kubia(lab: Lab) -> IPAddress:
    return at(lab, "10.66.13.240")


def node_port(lab: Lab) -> str:
    return url(lab.spec.node_addresses("node1")[0], 30123)


def address(lab: Lab, pod: str) -> str:
    return str(lab.find_pod(pod).addresses[0])


def ready(lab: Lab, *chosen: str) -> None:
    """Make these pods ready by their file, and no others."""
    for pod in names(lab):
        typed(lab, pod, *(("touch", "/var/ready") if pod in chosen else ("rm", "-f", "/var/ready")))
    eventually(
        lambda: {each["name"] for each in lab.pods() if each["ready"]} >= set(chosen), "they are ready"
    )
    eventually(
        lambda: (
            set(in_ipvs(lab, f"-t {host(str(kubia(lab)))}:80"))
            == {f"{host(address(lab, pod))}:8080" for pod in chosen}
        ),
        "the node knows of them",
    )


def change(lab: Lab, name: str, **fields: Any) -> None:
    """Write fields of a manifest's spec anew; None takes one away."""
    manifest = Path(lab.spec.manifests) / name
    item = yaml.safe_load(manifest.read_text())
    item["spec"] = {field: value for field, value in {**item["spec"], **fields}.items() if value is not None}
    draft = manifest.parent.parent / name
    draft.write_text(yaml.safe_dump(item))
    draft.rename(manifest)


def test_no_pod_is_ready_and_then_one(lab: Lab) -> None:
    one, *_ = names(lab)
    assert code(lab, "client", node_port(lab)) == 7, "nobody is reached"
    assert causes(lab, "default/kubia") == ["pods-not-ready"]
    typed(lab, one, "touch", "/var/ready")
    eventually(lambda: code(lab, "client", node_port(lab)) == 0, "one is ready")
    for _ in range(7):
        assert f"You've hit {one} " in curl(lab, "client", node_port(lab))


def test_a_service_is_found_by_address_by_variable_and_by_name(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    variables = dict(line.split("=", 1) for line in typed(lab, two, "env").splitlines())
    where, bare = str(kubia(lab)), host(str(kubia(lab)))
    expected = {"HOST": where, "PORT": "80", "PORT_HTTP_DEFAULT": "80", "PORT_HTTP_MUX1": "90"}
    expected = {f"KUBIA_SERVICE_{name}": value for name, value in expected.items()}
    expected["KUBIA_PORT"] = f"tcp://{bare}:80"
    for port in ("80", "90"):
        parts = {"": f"tcp://{bare}:{port}", "_PROTO": "tcp", "_PORT": port, "_ADDR": where}
        expected |= {f"KUBIA_PORT_{port}_TCP{part}": value for part, value in parts.items()}
    found = {name: value for name, value in variables.items() if name.startswith("KUBIA_")}
    of_others = ("KUBIA_NODEPORT_", "KUBIA_LOADBALANCER_")
    assert {name: value for name, value in found.items() if not name.startswith(of_others)} == expected
    assert typed(lab, two, "cat", "/etc/resolv.conf").splitlines() == [
        f"nameserver {dns_service(lab.spec.versions[0])}",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
    ]
    port = variables["KUBIA_SERVICE_PORT_HTTP_MUX1"]
    for each in (bare, "kubia.default.svc.cluster.local", "kubia.default", "kubia"):
        assert curl(lab, two, f"http://{each}:{port}/").strip() == f"You've hit {one} on http-mux1"
        assert curl(lab, two, f"http://{each}/").strip() == f"You've hit {one} on http-default"


def test_endpoints_by_hand_and_an_alias_lead_outside(lab: Lab) -> None:
    one, *_ = names(lab)
    assert "You've hit outside" in curl(lab, one, url(at(lab, "10.66.10.171"), 80))
    for name in ("external-name", "external-name.default.svc.cluster.local"):
        assert "You've hit outside" in curl(lab, one, f"http://{name}/get")
    assert "external-name  " in lbctl(lab, "service", "list").partition("without a VIP, as asked for:")[2]


def test_a_load_balancer_has_an_address_that_answers(lab: Lab) -> None:
    one, *_ = names(lab)
    ready(lab, one)
    given = at(lab, "203.0.113.22")
    assert f"loadBalancer {host(str(given))}:80" in lbctl(lab, "service", "list")
    typed(lab, "client", "ping", "-c", "2", "-W", "5", str(given))
    assert f"You've hit {one} " in curl(lab, "client", url(given, 80))
    assert f"You've hit {one} " in curl(lab, "client", url(lab.spec.node_addresses("node1")[0], 32179))


def test_the_name_of_a_headless_service_is_its_pods(lab: Lab) -> None:
    one, two, three = names(lab)
    ready(lab, one, two)
    assert looked_up(lab, three, "kubia") == {str(kubia(lab))}
    able = {address(lab, one), address(lab, two)}
    eventually(lambda: looked_up(lab, three, "kubia-headless") == able, "those that are ready")
    assert "default/kubia-headless  " in lbctl(lab, "service", "list").partition("without a VIP")[2]
    change(lab, "kubia-headless.yaml", publishNotReadyAddresses=True)
    every = able | {address(lab, three)}
    eventually(lambda: looked_up(lab, three, "kubia-headless") == every, "all, ready or not")
    change(lab, "kubia-headless.yaml", publishNotReadyAddresses=None)
    eventually(lambda: looked_up(lab, three, "kubia-headless") == able, "as before")


# --- how to find what is wrong ------------------------------------------------------------------------


@contextlib.contextmanager
def without_a_way(lab: Lab, address: IPAddress) -> Iterator[None]:
    """Have the client outside know no way to an address, as usual for that of a cluster."""
    words = ("unreachable", str(address))
    typed(lab, "client", "ip", f"-{address.version}", "route", "add", *words)
    try:
        yield
    finally:
        typed(lab, "client", "ip", f"-{address.version}", "route", "del", *words)


def test_1_a_cluster_ip_is_for_the_inside(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    with without_a_way(lab, at(lab, "10.66.5.6")):
        assert code(lab, "client", url(at(lab, "10.66.5.6"), 80)) == 7
        assert f"You've hit {one} " in curl(lab, two, url(at(lab, "10.66.5.6"), 80))
        assert f"You've hit {one} " in curl(lab, "client", node_port(lab))
    said = lbctl(lab, "explain", "default/kubia-nodeport")
    assert "a clusterIP is for pods and nodes; from outside: " in said
    assert f"{host(str(lab.spec.node_addresses('node1')[0]))}:30123" in said


def test_2_a_ping_is_no_measure(lab: Lab) -> None:
    """Elsewhere none is answered. Here it tells whether there is an endpoint, and no more."""
    one, two, _ = names(lab)
    ping = ["ping", "-c", "1", "-W", "5", str(kubia(lab))]
    ready(lab, one)
    assert lab.run(two, ping).returncode == 0
    assert code(lab, two, url(kubia(lab), 8080)) == 7, "although the Service has no such port"
    said = lbctl(lab, "explain", "default/kubia")
    assert "A ping is answered while there is an endpoint" in " ".join(said.split())
    ready(lab)
    assert lab.run(two, ping).returncode != 0


def test_3_a_pod_whose_probe_fails_is_no_part_of_it(lab: Lab) -> None:
    one, two, three = names(lab)
    ready(lab, one, two)
    assert answered(lab, "client", node_port(lab)) == {one, two}
    [message] = [each["message"] for each in lab.pods() if each["name"] == three]
    assert "readiness probe failed" in message
    assert "/var/ready" in message
    ready(lab)
    assert causes(lab, "default/kubia-nodeport") == ["pods-not-ready"]


def test_4_the_endpoints_name_the_pods_that_are_part_of_it(lab: Lab) -> None:
    one, *_ = names(lab)
    ready(lab, one)
    place = f"{host(address(lab, one))}:8080"
    assert f"→ {place}, pod {one}, on this node" in lbctl(lab, "service", "show", "default/kubia-nodeport")
    change(lab, "kubia-nodeport.yaml", selector={"app": "cubia"})
    eventually(lambda: code(lab, "client", node_port(lab)) == 7, "the selector matches nothing")
    assert causes(lab, "default/kubia-nodeport") == ["selector-matches-nothing"]
    change(lab, "kubia-nodeport.yaml", selector={"app": "kubia"})
    eventually(lambda: code(lab, "client", node_port(lab)) == 0, "as before")


def test_5_where_the_name_fails_the_address_may_work(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    servers = [each["name"] for each in lab.pods() if each["namespace"] == "kube-system"]
    for server in servers:
        lab.ask_kubelet("unready", pod=server)
    try:
        eventually(lambda: code(lab, two, "http://kubia/") == 6, "no name is known", seconds=60)
        assert f"You've hit {one} " in curl(lab, two, url(kubia(lab), 80))
        assert causes(lab, "default/kubia") == ["dns-silent"]
    finally:
        for server in servers:
            lab.ask_kubelet("ready", pod=server)
    eventually(lambda: code(lab, two, "http://kubia/") == 0, "names again")


def test_6_clients_use_the_services_port(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    assert code(lab, two, url(at(lab, "10.66.5.6"), 8080)) == 7
    assert code(lab, two, url(at(lab, "10.66.5.6"), 80)) == 0
    assert "clients use port 80, not the pods' port 8080" in lbctl(lab, "explain", "default/kubia-nodeport")


def with_target(lab: Lab, port: int) -> None:
    """Have the NodePort Service lead to another port of its pods."""
    change(
        lab, "kubia-nodeport.yaml", ports=[{"port": 80, "targetPort": port, "nodePort": 30123}]
    )  # fmt: skip


def test_7_the_pod_itself_tells_whether_its_port_is_right(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    with_target(lab, 9999)
    eventually(lambda: code(lab, two, url(at(lab, "10.66.5.6"), 80)) == 7, "nobody listens there")
    assert curl(lab, two, f"http://{host(address(lab, one))}:8080/").startswith(f"You've hit {one} ")
    assert causes(lab, "default/kubia-nodeport") == ["wrong-target-port"]
    with_target(lab, 8080)
    eventually(lambda: code(lab, two, url(at(lab, "10.66.5.6"), 80)) == 0, "as before")


def test_8_what_listens_on_localhost_alone_is_reached_by_nobody(lab: Lab) -> None:
    one, two, _ = names(lab)
    ready(lab, one)
    loopback = "127.0.0.1" if lab.spec.versions[0] == 4 else "::1"
    family = socket.AF_INET if lab.spec.versions[0] == 4 else socket.AF_INET6
    with namespaces.inside(lab.find_pod(one).netns):
        listener = socket.create_server((loopback, 9099), family=family)
    with listener:
        with_target(lab, 9099)
        eventually(
            lambda: in_ipvs(lab, f"-t {host(str(at(lab, '10.66.5.6')))}:80")[0].endswith(":9099"), "it"
        )
        assert code(lab, two, url(at(lab, "10.66.5.6"), 80)) == 7
        assert code(lab, two, f"http://{host(address(lab, one))}:9099/") == 7
        assert causes(lab, "default/kubia-nodeport") == ["localhost-only"]
    with_target(lab, 8080)
