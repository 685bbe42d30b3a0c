# SPDX-License-Identifier: Apache-2.0
"""The Vagrantfile and vagrant/, as far as they can be looked at without a machine: see `make test-vm`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lb.lab import addressing
from tests.deploy.conftest import ROOT
from tests.vm.machines import SYNCED

VAGRANT = ROOT / "vagrant"
VAGRANTFILE = (ROOT / "Vagrantfile").read_text()
DAEMON_SET: dict[str, Any] = yaml.safe_load((VAGRANT / "kubia.yaml").read_text())


def text(name: str) -> str:
    return (VAGRANT / name).read_text()


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
def test_the_pods_of_the_cluster_are_valid(version: str) -> None:
    kubernetes_validate.validate(DAEMON_SET, version, strict=True)


def test_the_pods_of_the_cluster_open_what_those_of_the_examples_do() -> None:
    (example,) = (
        each for each in yaml.safe_load_all((ROOT / "examples" / "kubia-replicaset.yaml").read_text()) if each
    )
    (wanted,) = example["spec"]["template"]["spec"]["containers"]
    (found,) = DAEMON_SET["spec"]["template"]["spec"]["containers"]
    assert found["ports"] == wanted["ports"]
    opened = [
        f"{port.get('protocol', 'TCP').lower()}:{port['containerPort']}:{port['name']}"
        for port in wanted["ports"]
    ]
    assert found["args"][2:] == [*opened, "--"]
    assert " ".join([*opened, "--"]) in text("pod.sh").replace("\\\n", "")
    labels = example["spec"]["selector"]["matchLabels"]
    assert DAEMON_SET["spec"]["template"]["metadata"]["labels"] == labels


def test_addresses_are_those_of_the_namespace_lab() -> None:
    network, smoke = text("network.sh"), text("smoke.sh")
    assert str(addressing.SEGMENTS[4]) == "192.168.77.0/24"
    assert f'192.168.77.$1/{addressing.SEGMENTS[4].prefixlen}"' in network
    assert f'fd00:77::$1/{addressing.SEGMENTS[6].prefixlen}"' in network
    for version in (4, 6):
        for networks in (addressing.SERVICE_CIDRS, addressing.POD_NETWORKS):
            assert str(networks[version]) in network
            assert str(networks[version]) in text("kubernetes.sh")
    assert str(addressing.outside_server()) in text("provision.sh")
    for number in (1, 2):
        assert str(addressing.node_address(f"node{number}")) == f"192.168.77.{10 + number}"
    assert str(addressing.CLIENTS[1]) in smoke
    assert addressing.POD_GATEWAY_MAC in text("pod.sh")
    assert all(str(gateway) in text("pod.sh") for gateway in addressing.POD_GATEWAYS.values())
    assert addressing.node_mac("node3") == "02:77:00:00:00:03"
    assert 'format("0277000000%02x", number)' in VAGRANTFILE


def test_smoke_asks_for_what_the_examples_have() -> None:
    examples = "".join(path.read_text() for path in (ROOT / "examples").glob("*.yaml"))
    asked = set(
        re.findall(r"10\.66\.\d+\.\d+|fd00:66::\d+|203\.0\.113\.\d+|198\.51\.100\.\d+", text("smoke.sh"))
    )
    assert len(asked) > 5
    assert [each for each in asked if each not in examples + text("standalone.sh")] == []


def test_what_is_not_copied_is_said_once_for_vagrant_and_once_for_the_tests() -> None:
    excluded = re.search(r"rsync__exclude: %w\[([^]]*)\]", VAGRANTFILE)
    assert excluded is not None
    assert tuple(each.rstrip("/") for each in excluded[1].split()) == SYNCED


def test_kubernetes_does_without_kube_proxy() -> None:
    script = text("kubernetes.sh")
    assert "--disable-kube-proxy" in script
    assert "kubeproxy.kubeconfig" in script  # its rights are those that lbctl needs


def test_packages_are_those_that_set_up_installs() -> None:
    wanted = re.search(r"\bpackages=\(([^)]*)\)", (ROOT / "scripts" / "setup").read_text())
    assert wanted is not None
    of_the_lab = ('"${SERVERS[@]}"', "bind9-dnsutils", "iputils-ping")  # its pods run them, and its commands
    assert "\tpackages bind9 nginx\n" in text("provision.sh"), "those of standalone nodes"
    packages = sorted(each for each in wanted[1].split() if each not in of_the_lab)
    assert f"packages {' '.join(packages)}\n" in text("provision.sh").replace("packages python3\n", "")


@pytest.mark.parametrize("script", sorted(VAGRANT.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_refuse_to_go_on_after_an_error(script: Path) -> None:
    if script.name != "common.sh":
        assert "\nset -euo pipefail\n" in script.read_text()
        assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
