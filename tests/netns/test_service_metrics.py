# SPDX-License-Identifier: Apache-2.0
"""What agents that run tell of single Services and backends, after real connections and real failures."""

from __future__ import annotations

from pathlib import Path

from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from tests.netns.waiting import eventually, scrape

REFUSED, TIMED_OUT = 7, 28  # curl's exit codes

FAILING = """\
apiVersion: v1
kind: Service
metadata: {name: failing}
spec:
  clusterIP: 10.66.99.1
  type: NodePort
  ports: [{name: closed, port: 81, nodePort: 30391}, {name: silent, port: 82, nodePort: 30392}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: failing-1, labels: {kubernetes.io/service-name: failing}}
addressType: IPv4
ports: [{name: closed, port: 9}, {name: silent, port: 10}]
endpoints: [{addresses: [%s], nodeName: node1, conditions: {ready: true}}]
"""


def of_service(lab: Lab, name: str, service: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric of node1 for one Service, by the values of its other labels."""
    at = ("default", "TCP")
    return {
        tuple(label for label in labels[1:] if label not in (*at, service)): value
        for labels, value in scrape(lab, "node1").items()
        if labels[0] == name and service in labels
    }


def test_what_a_service_carries(lab: Lab) -> None:
    """A request from outside is packets; one of a process of the node is a connection at the socket."""
    service = "kubia-nodeport"

    def counted() -> dict[str, float]:
        packets = of_service(lab, "lbctl_service_packets_total", service)
        (connections,) = of_service(lab, "lbctl_service_connections_total", service).values()
        (handshakes,) = of_service(lab, "lbctl_service_handshake_seconds_count", service).values()
        (seconds,) = of_service(lab, "lbctl_service_handshake_seconds_sum", service).values()
        return {
            "requests": sum(value for labels, value in packets.items() if "request" in labels),
            "replies": sum(value for labels, value in packets.items() if "reply" in labels),
            "connections": connections,
            "of backends": sum(of_service(lab, "lbctl_backend_connections_total", service).values()),
            "handshakes": handshakes,
            "seconds": seconds,
        }

    before = counted()
    request = ["curl", "-sS", "-m", "5", f"http://{node_address('node1')}:30123/"]
    assert lab.run("client", request).returncode == 0
    after = {name: value - before[name] for name, value in counted().items()}
    assert (after["connections"], after["of backends"], after["handshakes"]) == (1, 1, 1)
    assert after["requests"] >= 4  # SYN, ACK, request, FIN
    assert after["replies"] >= 3
    assert 0 < after["seconds"] < 5
    before = counted()
    assert lab.run("node1", request).returncode == 0
    after = {name: value - before[name] for name, value in counted().items()}
    assert (after["connections"], after["of backends"]) == (1, 1)
    assert (after["requests"], after["handshakes"]) == (0, 0)


def test_backends_that_refuse_and_that_are_silent_are_named(lab: Lab) -> None:
    pod = next(pod for pod in lab.pods() if pod["node"] == "node1")
    place, name = pod["address"], pod["name"]
    drop = ["INPUT", "-p", "tcp", "--dport", "10", "-j", "DROP"]
    file = Path(lab.spec.manifests) / "failing.yaml"
    file.write_text(FAILING % place)
    try:
        eventually(lambda: bool(of_service(lab, "lbctl_backend_connections_total", "failing")), "its metrics")
        assert lab.run(name, ["iptables", "-A", *drop]).returncode == 0
        url = f"http://{node_address('node1')}"
        assert lab.run("client", ["curl", "-sS", "-m", "5", f"{url}:30391/"]).returncode == REFUSED
        assert lab.run("client", ["curl", "-sS", "-m", "1.6", f"{url}:30392/"]).returncode == TIMED_OUT
        found = of_service(lab, "lbctl_backend_connect_failures_total", "failing")
        assert found == {
            (f"{place}:9", "closed", "refused"): 1,
            (f"{place}:9", "closed", "unanswered"): 0,
            (f"{place}:10", "silent", "refused"): 0,
            (f"{place}:10", "silent", "unanswered"): 1,
        }
    finally:
        lab.run(name, ["iptables", "-D", *drop])
        file.unlink()
    # The Service's figures stay for as long as its VIPs linger for the connection that waits for an answer.
    gone = ["curl", "-sS", "-m", "1", f"http://{node_address('node1')}:30392/"]
    eventually(lambda: lab.run("client", gone).returncode == REFUSED, "its node port takes no new connection")
