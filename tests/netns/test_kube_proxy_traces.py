# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's rules are seen, whatever mode wrote them, and nobody else's are taken for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from lb.diagnose.kube_proxy import Trace, find, legacy_chains
from lb.errors import LbError
from lb.lab import kube_proxy as rules
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import Backend, PortPlan, Vip, VipKey, VipKind
from tests.namespaces import NetworkNamespace

NETWORKS = {4: "10.244.0.0/16", 6: "fd00:244::/48"}
KUBELET = "-N KUBE-FIREWALL", "-N KUBE-KUBELET-CANARY", "-N KUBE-MARK-MASQ", "-N KUBE-POSTROUTING"


def port(version: int) -> rules.NamedPort:
    """Return a Service port with a clusterIP and a NodePort."""
    vip, node, pod = (
        ip_address(text)
        for text in (
            ("10.96.0.1", "192.0.2.1", "10.244.1.2")
            if version == 4
            else ("fd00:96::1", "2001:db8::1", "fd00:244::2")
        )
    )
    backends = (Backend(pod, 8080, "node1", True),)
    vips = (
        Vip(VipKey(vip, 80, Protocol.TCP), VipKind.CLUSTER_IP),
        Vip(VipKey(node, 30080, Protocol.TCP), VipKind.NODE_PORT, TrafficPolicy.CLUSTER),
    )
    plan = PortPlan("http", Protocol.TCP, version, 0, vips, backends, backends, backends)
    return rules.NamedPort("ABCDEFGHIJKLMNOP", plan)


@pytest.fixture
def run() -> Iterator[Callable[..., str]]:
    """Be in a network namespace of one's own; run commands there."""
    namespace = NetworkNamespace()

    def command(*argv: str, text: str = "") -> str:
        return subprocess.run(argv, input=text, text=True, check=True, stdout=subprocess.PIPE).stdout

    with namespace.entered():
        yield command
    namespace.close()


def write(mode: rules.Mode, run: Callable[..., str]) -> None:
    rules.write(mode, [port(4), port(6)], NETWORKS, lambda argv, text: run(*argv, text=text))


def test_a_node_without_any(run: Callable[..., str]) -> None:
    assert find() == []
    assert legacy_chains() == {}


def test_nftables(run: Callable[..., str]) -> None:
    write(rules.Mode.NFTABLES, run)
    assert find() == [Trace("nftables", "table ip kube-proxy"), Trace("nftables", "table ip6 kube-proxy")]
    rules.remove(lambda argv, text: run(*argv, text=text))
    assert find() == []


def test_iptables(run: Callable[..., str]) -> None:
    write(rules.Mode.IPTABLES, run)
    assert [str(trace) for trace in find()] == [
        "kube-proxy (iptables): chain KUBE-SERVICES and 4 more in table nat of iptables",
        "kube-proxy (iptables): chain KUBE-SERVICES and 4 more in table nat of ip6tables",
    ]
    rules.remove(lambda argv, text: run(*argv, text=text))
    assert find() == []


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
def test_iptables_legacy(tool: str, run: Callable[..., str]) -> None:
    for chain in ("KUBE-SERVICES", "KUBE-SVC-ABCDEFGHIJKLMNOP", "KUBE-FIREWALL"):
        run(tool, "-t", "nat", "-N", chain)
    assert [str(trace) for trace in find()] == [
        f"kube-proxy (iptables): chain KUBE-SERVICES and 1 more in table nat of {tool}"
    ]
    rules.remove(lambda argv, text: run(*argv, text=text))
    assert find() == []


def test_ipvs(run: Callable[..., str]) -> None:
    run("ip", "link", "add", "kube-ipvs0", "type", "bridge")  # not every kernel has the kind dummy
    assert find() == [Trace("ipvs", "interface kube-ipvs0")]


@pytest.mark.parametrize("tool", ["iptables", "iptables-legacy"])
def test_chains_of_others_are_no_sign(tool: str, run: Callable[..., str]) -> None:
    for words in (*KUBELET, "-N DOCKER", "-A POSTROUTING -j MASQUERADE"):
        run(tool, "-t", "nat", *words.split())
    run("nft", "add", "table", "inet", "filter")
    assert find() == []


def test_a_kernel_that_does_not_tell_is_an_error() -> None:
    def refused() -> dict[tuple[str, str], set[str]]:
        raise LbError("listing the rules of nftables: Operation not permitted")

    with pytest.raises(LbError, match="not permitted"):
        find(nft=refused)
