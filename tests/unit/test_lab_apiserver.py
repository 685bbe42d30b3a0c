# SPDX-License-Identifier: Apache-2.0
import subprocess
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
import yaml

from lb.errors import LabError
from lb.lab.apiserver import ADMIN, ControlPlane, find, kubectl, write_kubeconfig
from lb.lab.certificates import issue, make_authority


def program(folder: Path, name: str, mode: int = 0o755) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(mode)


def plane(folder: Path, **more: bool) -> ControlPlane:
    networks = (IPv4Network("10.66.0.0/16"), IPv6Network("fd00:66::/112"))
    return ControlPlane(folder, folder / "keys", "192.0.2.2", networks, **more)


def test_the_folder_of_binaries_is_the_variables(tmp_path: Path) -> None:
    for name in ("etcd", "kube-apiserver"):
        program(tmp_path, name)
    assert find({"KUBEBUILDER_ASSETS": str(tmp_path)}) == tmp_path.resolve()


@pytest.mark.parametrize("variable", [None, ""])
def test_no_folder(variable: str | None) -> None:
    environ = {} if variable is None else {"KUBEBUILDER_ASSETS": variable}
    with pytest.raises(
        LabError, match="KUBEBUILDER_ASSETS must name a folder with the programs etcd and kube"
    ):
        find(environ)


def test_what_is_missing_in_the_folder_is_named(tmp_path: Path) -> None:
    environ = {"KUBEBUILDER_ASSETS": str(tmp_path)}
    program(tmp_path, "etcd")
    with pytest.raises(LabError, match=f"={tmp_path} lacks kube-apiserver: "):
        find(environ)
    program(tmp_path, "kube-apiserver", 0o644)
    with pytest.raises(LabError, match="lacks kube-apiserver: "):
        find(environ)
    (tmp_path / "etcd").unlink()
    with pytest.raises(LabError, match="lacks etcd and kube-apiserver: "):
        find({"KUBEBUILDER_ASSETS": str(tmp_path / "none")})


def test_controllers_and_kubectl_are_used_if_they_are_there(tmp_path: Path) -> None:
    assert not plane(tmp_path).has_controllers
    assert kubectl(str(tmp_path)) == "kubectl"
    for name in ("kube-controller-manager", "kubectl"):
        program(tmp_path, name)
    assert plane(tmp_path).has_controllers
    assert kubectl(str(tmp_path)) == str(tmp_path / "kubectl")


def test_a_loopback_address_is_not_advertised(tmp_path: Path) -> None:
    shown = set(plane(tmp_path).api_server())
    assert "--service-cluster-ip-range=10.66.0.0/16,fd00:66::/112" in shown
    assert {"--bind-address=0.0.0.0", "--endpoint-reconciler-type=lease"} <= shown
    hidden = set(plane(tmp_path, advertise=False).api_server())
    assert {"--bind-address=192.0.2.2", "--endpoint-reconciler-type=none"} <= hidden


def test_an_api_server_is_reached_by_the_primary_family(tmp_path: Path) -> None:
    made = ControlPlane(tmp_path, tmp_path / "keys", "fd00:77::2", (IPv6Network("fd00:66::/112"),))
    assert made.url == "https://[fd00:77::2]:6443"
    assert {"--bind-address=::", "--advertise-address=fd00:77::2"} <= set(made.api_server())


def test_keys_fit_together_and_are_private(tmp_path: Path) -> None:
    made = plane(tmp_path)
    made.make_keys()
    keys = made.folder
    assert keys.stat().st_mode & 0o777 == 0o700
    ca = str(keys / "ca.crt")
    for name, purpose in (("apiserver", "sslserver"), (ADMIN, "sslclient")):
        checked = ["openssl", "verify", "-CAfile", ca, "-purpose", purpose, str(keys / f"{name}.crt")]
        subprocess.run(checked, check=True, capture_output=True)
    for host, flag in (
        ("192.0.2.2", "-checkip"),
        ("127.0.0.1", "-checkip"),
        ("10.66.0.1", "-checkip"),
        ("fd00:66::1", "-checkip"),
        ("kubernetes.default.svc", "-checkhost"),
    ):
        asked = ["openssl", "x509", "-in", str(keys / "apiserver.crt"), "-noout", flag, host]
        done = subprocess.run(asked, check=True, capture_output=True, text=True)
        assert "does match" in done.stdout, host
    subject = [
        "openssl",
        "x509",
        "-in",
        str(keys / f"{ADMIN}.crt"),
        "-noout",
        "-subject",
        "-nameopt",
        "RFC2253",
    ]
    done = subprocess.run(subject, check=True, capture_output=True, text=True)
    assert done.stdout == f"subject=CN={ADMIN},O=system:masters\n"


def test_kubeconfigs_name_files_and_are_private(tmp_path: Path) -> None:
    made = plane(tmp_path)
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, made.admin_kubeconfig("https://127.0.0.1:1"))
    write_kubeconfig(path, made.token_kubeconfig(made.url, "lbctl", tmp_path / "token"))
    assert path.stat().st_mode & 0o777 == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://192.0.2.2:6443"
    assert config["users"] == [{"name": "lbctl", "user": {"tokenFile": str(tmp_path / "token")}}]


def test_openssl_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_authority(tmp_path)
    with pytest.raises(LabError, match=r"^openssl x509: "):
        issue(tmp_path, "a", "nobody")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="openssl is missing"):
        make_authority(tmp_path)
