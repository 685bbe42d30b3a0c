# SPDX-License-Identifier: Apache-2.0
"""Every command in a block of the documentation is run, here or by a test that is named, or has an excuse.

A command is a line of a block marked ``sh``. Those for kubectl and helm that need a cluster are given to the
real programs with an address where none is: they must fail for want of it, and not for a wrong flag or file.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lb.diagnose.kube_proxy import find
from lb.lab import kube_proxy
from tests.deploy.conftest import ROOT
from tests.namespaces import NetworkNamespace
from tests.netns.conftest import EXAMPLES, MakeLab, fresh_id, remove
from tests.netns.test_kube_proxy_traces import NETWORKS, port
from tests.netns.waiting import eventually

PAGES = ("README.md", "docs/operations.md", "docs/migration.md")
BIN = Path(sys.executable).parent
NOWHERE = {
    "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "nobody", "user": {"token": "none"}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "nobody"}}],
    "current-context": "none",
}
"""A kubeconfig: nothing listens there."""


ELSEWHERE = {
    r"make lab": "tests/netns/test_lab_demo.py",
    r"make test": ".ci/run",
    r"/opt/lbctl/bin/lbctl run --source kubernetes": "tests/netns/test_lab_kubernetes.py",
    r"python3 -m venv": "tests/deploy/conftest.py",
    r"/opt/lbctl/bin/pip (install|wheel)": "tests/deploy/conftest.py",
    r"pipx install": "tests/deploy/test_wheel.py",
    r"/opt/lbctl/bin/lbctl (version|status)": "tests/deploy/test_wheel.py",
    r"/opt/lbctl/bin/lbctl cutover": "tests/netns/test_cutover.py",
    r"lbctl node drain": "tests/netns/test_announce_arp.py",
}
"""Commands by their beginnings, and what runs them or their like."""

NOT_RUN = {
    r"apt-get install": "installs on this machine; scripts/setup does it",
    r"systemctl ": "the unit itself runs under a systemd of its own in tests/deploy/test_systemd.py",
    r"kube-proxy --cleanup": "kube-proxy is not here; the rules are removed by the commands beside it",
}
"""Commands by their beginnings, and why no test runs them."""


def commands(page: str) -> list[str]:
    """Return the commands of a page, without comments."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = (re.sub(r"\s+# .*$", "", line).strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


ALL = {command for page in PAGES for command in commands(page)}
IN_THE_LAB = [line for line in commands("docs/migration.md") if re.search(r"\bmove\b", line)]
IN_FIVE_MINUTES = [line for line in commands("README.md") if re.match(r"lbctl (lab (?!up)|maps)", line)]
KUBECTL = sorted(line for line in ALL if line.startswith("kubectl "))
HELM = sorted(line for line in ALL if line.startswith("helm "))
RULES = sorted(line for line in ALL if re.match(r"nft |ip6?tables-save", line))
FILES = sorted(line for line in ALL if re.match(r"install |cp ", line))


def test_every_command_is_accounted_for() -> None:
    here = {*IN_THE_LAB, *IN_FIVE_MINUTES, *KUBECTL, *HELM, *RULES, *FILES}
    for command in ALL - here:
        assert [each for each in (*ELSEWHERE, *NOT_RUN) if re.match(each, command)], command


@pytest.mark.parametrize("beginning", [*ELSEWHERE, *NOT_RUN])
def test_no_exception_is_stale(beginning: str) -> None:
    assert [command for command in ALL if re.match(beginning, command)]
    if place := ELSEWHERE.get(beginning):
        assert (ROOT / place).exists()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of deploy/ to run commands in, with the overlay that the reader makes."""
    base = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "deploy", base / "deploy")
    (base / "etc" / "systemd" / "system").mkdir(parents=True)
    for line in FILES:
        shell(line.replace(" /etc/", f" {base}/etc/"), base)
    return base


def shell(line: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run one line as it stands; it must succeed."""
    done = subprocess.run(["sh", "-euc", line], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done


@pytest.mark.parametrize("line", [*KUBECTL, *HELM])
def test_a_command_for_a_cluster_is_a_right_one(line: str, tree: Path, tmp_path: Path) -> None:
    name, *words = shlex.split(line.replace("NODE", "node1"))
    local = words[0] in ("kustomize", "template")
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump(NOWHERE))
    done = subprocess.run(
        [BIN / name, *words],
        cwd=tree,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "KUBECONFIG": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    if local:
        assert done.returncode == 0, done.stderr
        assert "kind: DaemonSet" in done.stdout
    else:
        assert done.returncode != 0
        assert re.search(r"connection refused|cluster unreachable", done.stderr), done.stderr


def test_the_patch_makes_kube_proxy_leave_a_node(tmp_path: Path) -> None:
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}},
    }
    file = tmp_path / "kube-proxy.yaml"
    file.write_text(yaml.safe_dump(daemon_set))
    patch = ROOT / "deploy" / "kube-proxy-off.yaml"
    argv = ["patch", "--local", f"-f={file}", "--type=strategic", f"--patch-file={patch}", "-o=yaml"]
    done = subprocess.run([BIN / "kubectl", *argv], capture_output=True, text=True, check=True)
    spec = yaml.safe_load(done.stdout)["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert expression == {"key": "kube-proxy", "operator": "NotIn", "values": ["off"]}


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    made = NetworkNamespace()
    with made.entered():
        yield made
    made.close()


@pytest.mark.parametrize("mode", kube_proxy.Mode)
def test_rules_are_removed_by_hand(
    mode: kube_proxy.Mode, namespace: NetworkNamespace, tmp_path: Path
) -> None:
    ports = [port(4), port(6)]
    kube_proxy.write(mode, ports, NETWORKS, kube_proxy.run_with(lambda argv: argv))
    assert find()
    lines = [line for line in RULES if line.startswith("nft") == (mode is kube_proxy.Mode.NFTABLES)]
    for line in lines:
        shell(line, tmp_path)
    assert find() == []


def test_five_minutes_in_the_lab(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(shutil.copytree(EXAMPLES, tmp_path / "m"), dns=True)
    eventually(lambda: all(each["ready"] for each in lab.pods()), "all pods are ready", seconds=60)
    pod = next(str(each["name"]) for each in lab.pods() if each["name"].startswith("kubia-"))
    for line in IN_FIVE_MINUTES:
        mine = re.sub(r"lbctl lab (\w+)", rf"lbctl lab \1 --id {lab.spec.id}", line)
        mine = mine.replace("--node node1", f"--instance {lab.spec.instance('node1')}").replace("POD", pod)
        done = shell(mine.replace("lbctl", f"{sys.executable} -m lb", 1), ROOT)
        assert "curl" not in line or "You've hit" in done.stdout, line


def test_the_migration_in_the_lab() -> None:
    lab = fresh_id()
    try:
        for line in IN_THE_LAB:
            mine = re.sub(r"\bmove\b", lab, line).replace(".venv/bin/lbctl", "lbctl")
            done = shell(mine.replace("lbctl", f"{sys.executable} -m lb"), ROOT)
            if "curl" in line:
                assert "You've hit" in done.stdout, line
            if "nft list" in line:
                assert "table ip kube-proxy" in done.stdout
            if "ipvsadm" in line:
                assert "192.168.77.11:30123" in done.stdout
    finally:
        remove(lab)
