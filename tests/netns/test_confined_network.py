# SPDX-License-Identifier: Apache-2.0
"""The pods that tell routers and give addresses as deploy/ has them: arguments, user, capabilities, mounts.

tests/deploy/confine.py plays the container runtime; see test_confined.py for what it does not play.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.lab import router
from lb.lab.addressing import Announce, RouterKind
from lb.lab.certificates import issue, make_authority
from lb.lab.processes import environment
from lb.rundir import RunDir
from lb.served.servable import spoken
from tests.cluster_double import ClusterDouble
from tests.deploy.confine import Policy
from tests.deploy.conftest import ROOT
from tests.netns.bgp_bench import EVERYWHERE, MANIFEST, answered
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

NODE = "node1"
CAPABILITIES = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13}  # linux/capability.h


ACCOUNT = Path("/run/secrets/kubernetes.io/serviceaccount")
USER = 65532


@pytest.fixture
def places() -> Iterator[None]:
    """The folders that a pod's files are mounted on, for as long as the test runs."""
    made = []
    for path in (Path("/etc/lbctl"), ACCOUNT):
        for each in (*reversed(path.parents), path):
            if not each.exists():
                each.mkdir()
                made.append(each)
    yield
    for each in reversed(made):
        each.rmdir()


def container(path: str) -> Mapping[str, Any]:
    """Return the one container of a manifest."""
    found = yaml.safe_load((ROOT / "deploy" / path).read_text())
    (one,) = found["spec"]["template"]["spec"]["containers"]
    context = one["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    return dict(one)


def command(
    path: str, files: Path, mounted: Sequence[tuple[str, str]] = (), user: int = 0, **variables: str
) -> list[str]:
    """Return the command of a manifest's container under its policy.

    files: what is mounted at /etc/lbctl. mounted: what is mounted besides, and where. variables: that the
    arguments name.
    """
    found = container(path)
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in found["volumeMounts"]}
    assert mounts.pop("/etc/lbctl") is True
    assert not any(mounts.values())
    policy = Policy(
        [CAPABILITIES[name] for name in found["securityContext"]["capabilities"].get("add", ())],
        writable=list(mounts),
        mounts=[(str(files), "/etc/lbctl"), *mounted],
        user=user,
    )
    arguments = [str(each) for each in found["args"]]
    for name, value in variables.items():
        arguments = [each.replace(f"$({name})", value) for each in arguments]
    return policy.command([sys.executable, "-m", "lb", *arguments])


@contextlib.contextmanager
def running(argv: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("w") as words,
        subprocess.Popen(argv, env=environment() | variables, stdout=words, stderr=words) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def test_routers_are_told_by_the_pod_that_tells_them(make_lab: MakeLab, places: None, tmp_path: Path) -> None:
    (manifests := tmp_path / "m").mkdir()
    (manifests / "all.yaml").write_text(MANIFEST)
    lab = make_lab(manifests=manifests, nodes=1, announce=Announce.BGP, router=RouterKind.BIRD)
    files = tmp_path / "etc"
    files.mkdir()
    shutil.copy(router.peers_file(lab.store), files / "peers.yaml")
    speaker = lab.store.running(router.speaker_name(NODE))
    assert speaker is not None
    os.kill(speaker.pid, signal.SIGTERM)
    eventually(
        lambda: not lab.store.running(router.speaker_name(NODE)), "the lab's own has ended", seconds=60
    )
    instance, log = lab.spec.instance(NODE), tmp_path / "log"

    def told() -> bool:
        assert process.poll() is None, log.read_text()
        found = spoken(RunDir(instance)) or {"peers": []}
        return bool(found["peers"]) and all(each["up"] and each["addresses"] for each in found["peers"])

    argv = lab.command(NODE, command("bgp/daemonset.yaml", files, NODE_NAME=instance))
    with running(argv, log) as process:
        eventually(told, "the router is told", seconds=60)
        status = Path(f"/proc/{process.pid}/status").read_text()
        bits = f"{sum(1 << number for number in CAPABILITIES.values()):016x}"
        assert f"CapEff:\t{bits}\n" in status
        for address in EVERYWHERE:
            eventually(lambda a=address: answered(lab, a, 1) == 1, "it answers")  # type: ignore[misc]
        done = lab.run(NODE, ["curl", "-sf", "-m", "5", "http://127.0.0.1:10252/livez"])
        assert done.returncode == 0


def test_addresses_are_given_by_the_pod_that_gives_them(places: None, tmp_path: Path) -> None:
    """As a user without a name, with the account of a pod, towards an API server with a certificate."""
    if any(not each.stat().st_mode & 1 for each in Path(sys.executable).parents):
        pytest.skip("another user cannot reach the virtual environment")
    files, account = tmp_path / "etc", tmp_path / "account"
    for folder in (files, account):
        folder.mkdir(mode=0o755)
    (files / "pools.yaml").write_text("pools: [{name: edge, addresses: [192.0.2.8/29]}]")
    make_authority(tmp_path)
    certificate, key = issue(tmp_path, "apiserver")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    shutil.copy(tmp_path / "ca.crt", account)
    (account / "token").write_text("secret")
    (account / "namespace").write_text("kube-system")
    double = ClusterDouble(context)
    with double:
        double.issued["secret"] = "system:serviceaccount:kube-system:lbctl-addresses"
        for name in ("kube-system", "shop"):
            double.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for item in yaml.safe_load_all((ROOT / "deploy" / "addresses" / "rbac.yaml").read_text()):
            if item["kind"] in ("Role", "ClusterRole"):
                double.put(item)
        spec = {"type": "LoadBalancer", "ports": [{"port": 80}]}
        with double.changed:
            body = {"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}
            double.registry.create("services", "shop", body, {})
        argv = command("addresses/deployment.yaml", files, [(str(account), str(ACCOUNT))], USER)
        variables = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": double.url.rpartition(":")[2],
        }
        log = tmp_path / "log"

        def given() -> bool:
            assert process.poll() is None, log.read_text()
            with double.changed:
                status = double.objects["services"]["shop", "web"].get("status") or {}
            return "192.0.2.8" in str(status)

        with running(argv, log, **variables) as process:
            eventually(given, "the Service has an address", seconds=60)
            told = Path(f"/proc/{process.pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}" in told
        assert "CapEff:\t0000000000000000\n" in told
