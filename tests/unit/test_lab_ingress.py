# SPDX-License-Identifier: Apache-2.0
"""What a lab makes of the Ingresses in a directory of manifests, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lb.ingress import nginx
from lb.ingress.folder import write
from lb.lab import ingress, servers
from lb.lab.addressing import Family, LabSpec
from lb.lab.ingress import Front
from lb.lab.ingress_files import IngressFiles
from lb.lab.store import Store
from tests.unit.ingress_objects import ingress as manifest
from tests.unit.ingress_objects import rule, secret

RULES = "  rules:\n" + rule("a.org", "Prefix / web:80")


class Directory:
    """A directory of manifests, and what a lab has made of it."""

    def __init__(self, folder: Path, family: Family = Family.DUAL) -> None:
        self.path = folder / "m"
        self.path.mkdir()
        self.store = Store("t", folder / "labs")
        self.store.cluster.mkdir(parents=True)
        self.front = Front(self.store, LabSpec("t", str(self.path), family=family))
        self.files = IngressFiles(self.store, self.front)

    def read(self, **texts: str) -> list[str]:
        """Replace files; return the errors."""
        for name, text in texts.items():
            (self.path / f"{name}.yaml").write_text(text)
        self.files.read(self.path, sorted(self.path.iterdir()))
        self.files.plan([])
        return [str(error) for error in self.files.errors()]

    def written(self) -> list[str]:
        return sorted(path.name for path in self.store.cluster.iterdir())


@pytest.fixture(autouse=True)
def machine_with_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "check", lambda image: servers.SERVERS[image])


def test_an_ingress_brings_pods_a_service_and_its_own_status(tmp_path: Path) -> None:
    made = Directory(tmp_path, Family.IPV6)
    made.read(web=manifest(RULES))
    pods = {each.key.name: each for each in made.files.workloads()}
    assert pods.keys() == {"ingress-node1", "ingress-node2"}
    assert pods["ingress-node2"].node == "node2"
    assert pods["ingress-node2"].image == ingress.IMAGE
    assert made.written() == ["ingress.default.web.yaml", "service.kube-system.ingress.yaml"]
    for name in made.written():
        item = yaml.safe_load((made.store.cluster / name).read_text())
        assert item["status"]["loadBalancer"]["ingress"] == [{"ip": "2001:db8:203::80"}]
    (made.path / "web.yaml").unlink()
    assert made.read() == []
    assert made.files.workloads() == []
    assert made.written() == []


def test_without_nginx_one_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("lb.lab.servers.shutil.which", lambda *_args, **_more: None)
    made = Directory(tmp_path)
    [error] = made.read(web=manifest(RULES), other=manifest(RULES, "other"))
    assert "Ingress default/" in error
    assert "install the Debian package nginx" in error
    assert made.files.workloads() == []
    assert made.written() == []


def test_a_file_with_errors_keeps_what_it_had(tmp_path: Path) -> None:
    made = Directory(tmp_path)
    made.read(web=manifest(RULES), secret=secret())
    error = made.read(web=manifest("  rules: 7\n"))[0]
    assert f"{made.path / 'web.yaml'}:6: Ingress default/web: spec.rules: must be a list" in error
    assert len(made.files.workloads()) == 2
    assert "ingress.default.web.yaml" in made.written()


def test_an_ingress_of_another_class_is_left_alone(tmp_path: Path) -> None:
    made = Directory(tmp_path)
    other = "---\napiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: other}\n"
    text = manifest("  ingressClassName: other\n" + RULES)
    assert made.read(web=text, other=f"{other}spec: {{controller: example.com/other}}\n") == []
    assert not made.files.active
    assert made.written() == []


def test_files_are_whole_private_and_no_more_than_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    write(folder, {nginx.MAIN: "1", "a.pem": "A"})
    write(folder, {nginx.MAIN: "2", "b.pem": "B"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {nginx.MAIN: "2", "b.pem": "B"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
