# SPDX-License-Identifier: Apache-2.0
"""Configuration, credentials that change, and TLS."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import Configuration

import lb
from lb.errors import ConfigError
from lb.kube import Access, ApiError, Client, from_kubeconfig, in_cluster
from lb.lab.certificates import issue, make_authority
from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.harness import client_of, running

PATH = "/api/v1/services"


def kubeconfig(folder: Path, url: str, user: dict[str, Any], cluster: dict[str, Any] | None = None) -> str:
    """Write a kubeconfig whose context "right", not the current one, is this; return its path."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "wrong",
        "clusters": [
            {"name": "there", "cluster": {"server": url, **(cluster or {})}},
            {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}},
        ],
        "users": [{"name": "we", "user": user}],
        "contexts": [
            {"name": "right", "context": {"cluster": "there", "user": "we"}},
            {"name": "wrong", "context": {"cluster": "nowhere", "user": "we"}},
        ],
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def rewrite(path: Path, text: str) -> None:
    """Replace a file as the kubelet does: another one of the same name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def lists(client: Client) -> bool:
    return b"ServiceList" in client.request("GET", PATH).body()


def test_a_request_names_lbctl_and_its_version(double: ApiDouble) -> None:
    assert lists(client_of(double))
    (request,) = double.asked("list", "services")
    assert request.headers["User-Agent"] == f"lbctl/{lb.__version__}"


def test_the_context_of_a_kubeconfig_and_its_token(tmp_path: Path, double: ApiDouble) -> None:
    double.tokens = {"secret"}
    path = kubeconfig(tmp_path, double.url, {"token": "secret"})
    assert lists(Client(lambda: from_kubeconfig(path, "right")))
    with pytest.raises(ApiError, match="Connection refused"):
        lists(Client(lambda: from_kubeconfig(path)))


def test_the_files_of_the_variable_kubeconfig(
    tmp_path: Path, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path, double.url, {})
    places = f"{tmp_path}/none:{path}"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", places)
    assert lists(Client(lambda: from_kubeconfig(context="right")))


def test_a_changed_kubeconfig_is_read_again(tmp_path: Path, double: ApiDouble) -> None:
    double.tokens = {"new"}
    path = kubeconfig(tmp_path, double.url, {"token": "old"})
    client = Client(lambda: from_kubeconfig(path, "right"))
    with pytest.raises(ApiError, match="401"):
        lists(client)
    kubeconfig(tmp_path, double.url, {"token": "new"})
    assert lists(client)


def test_a_token_file_that_rotates_is_read_before_the_next_request(tmp_path: Path, double: ApiDouble) -> None:
    double.tokens = {"first"}
    (tmp_path / "token").write_text("first\n")
    path = kubeconfig(tmp_path, double.url, {"tokenFile": "token"})
    client = Client(lambda: from_kubeconfig(path, "right"))
    assert lists(client)
    double.tokens = {"second"}
    rewrite(tmp_path / "token", "second")
    assert lists(client)


def test_a_service_account_whose_token_rotates(tmp_path: Path) -> None:
    make_authority(tmp_path)
    certificate, key = issue(tmp_path, "apiserver")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (tmp_path / "token").write_text("first")
    with ApiDouble(context) as double:
        double.tokens = {"first"}
        environ = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": double.url.rpartition(":")[2],
        }
        client = Client(lambda: in_cluster(f"{tmp_path}/token", f"{tmp_path}/ca.crt", environ))
        assert lists(client)
        double.tokens = {"second"}
        with pytest.raises(ApiError, match="401"):
            lists(client)
        rewrite(tmp_path / "token", "second")
        assert lists(client)
        rewrite(tmp_path / "token", "")
        assert lists(client), "an empty file does not replace a token that works"


def test_outside_a_cluster_there_is_no_service_account(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kubeconfig"):
        in_cluster(f"{tmp_path}/token", f"{tmp_path}/ca.crt", {})


@pytest.fixture
def mutual(tmp_path: Path) -> Iterator[ApiDouble]:
    """A double that wants client certificates of its CA."""
    make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issue(tmp_path, "apiserver"))
    context.load_verify_locations(tmp_path / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with ApiDouble(context) as server:
        yield server


def test_a_client_certificate_and_its_successor(tmp_path: Path, mutual: ApiDouble) -> None:
    make_authority(tmp_path, "strangers")
    issue(tmp_path, "client", "strangers")
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    path = kubeconfig(tmp_path, mutual.url, user, {"certificate-authority": "ca.crt"})
    client = Client(lambda: from_kubeconfig(path, "right"))
    with pytest.raises(ApiError):
        lists(client)
    issue(tmp_path, "client")
    assert lists(client)


def test_a_server_that_is_not_of_the_ca_is_refused(tmp_path: Path, mutual: ApiDouble) -> None:
    make_authority(tmp_path, "strangers")
    path = kubeconfig(tmp_path, mutual.url, {}, {"certificate-authority": "strangers.crt"})
    with pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
        lists(Client(lambda: from_kubeconfig(path, "right")))


def test_a_handshake_that_nobody_takes_up_is_not_put_down_to_the_credentials(tmp_path: Path) -> None:
    """A balancer in front of a server that is away takes connections and ends them."""
    loads: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as balancer:

        def load() -> Access:
            loads.append("once more")
            return Access(Configuration(host=f"https://127.0.0.1:{balancer.getsockname()[1]}"))

        def take_and_end() -> None:
            connection, _ = balancer.accept()
            connection.recv(65536)
            connection.close()

        client = Client(load)
        taking = threading.Thread(target=take_and_end)
        taking.start()
        with pytest.raises(ApiError):
            lists(client)
        taking.join()
    assert len(loads) == 1


def plugin(folder: Path, body: str) -> dict[str, Any]:
    """Write an exec plugin; return the user entry for it."""
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(path),
            "interactiveMode": "Never",
        }
    }


def test_an_exec_plugin_runs_again_after_401(tmp_path: Path, double: ApiDouble) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "TOKEN"},
    }
    runs = tmp_path / "runs"
    user = plugin(
        tmp_path,
        f"echo run >> {runs}; n=$(wc -l < {runs}); echo '{json.dumps(credential)}' | sed s/TOKEN/token-$n/",
    )
    double.tokens = {"token-1"}
    path = kubeconfig(tmp_path, double.url, user)
    client = Client(lambda: from_kubeconfig(path, "right"))
    assert lists(client)
    assert lists(client)
    assert len(runs.read_text().splitlines()) == 1
    double.tokens = {"token-2"}
    with running(client) as run:
        run.wait(lambda: run.synced)
    assert len(runs.read_text().splitlines()) == 2, "one thread of three runs it again"


def test_an_exec_plugin_that_fails_is_named(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "http://127.0.0.1:1", plugin(tmp_path, "exit 1"))
    with pytest.raises(ConfigError, match=r"plugin '.*/plugin' gave no credentials"):
        from_kubeconfig(path, "right")


WRONG = {
    "no file": (None, "", "there is no such file"),
    "no YAML": ("a: [", "", "does not parse as YAML: "),
    "no mapping": ("just words", "", "kubeconfig holds no mapping"),
    "no text": ("\0", "", "does not parse as YAML: "),
    "no bottom": ("[" * 5_000, "", "nested too deep"),
    "lists for names": ("contexts: [x]\nclusters: 7\ncurrent-context: a", "", "kubeconfig: "),
    "no such context": (
        "contexts: []\nclusters: []\nusers: []\ncurrent-context: a",
        "b",
        r"\bb\b",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_kubeconfig_with(what: str, tmp_path: Path) -> None:
    text, context, message = WRONG[what]
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_kubeconfig(str(path), context)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


FILES = {"token": "tokenFile", "client.crt": "client-certificate", "client.key": "client-key", "ca.crt": ""}
"""Files that a kubeconfig names, and the field of its user that does; the last is named by the cluster."""
DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "a folder": Path.mkdir,
    "a fifo": os.mkfifo,
    "empty": Path.touch,
    "a loop of links": lambda path: path.symlink_to(path),
    "huge": lambda path: path.write_bytes(bytes((4 << 20) + 1)),
    "no text": lambda path: path.write_bytes(b"\xff\0"),
    "cut": lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nMIIB"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_a_kubeconfig_names_is_named_when_it_is(damage: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    issue(tmp_path, "client")
    (tmp_path / "token").write_text("secret")
    user = {field: name for name, field in FILES.items() if field}
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", user, {"certificate-authority": "ca.crt"})
    from_kubeconfig(path, "right")
    for name in FILES:
        if (name, damage) == ("token", "cut"):  # is a token for all we know
            continue
        (tmp_path / name).rename(tmp_path / "aside")
        DAMAGE[damage](tmp_path / name)
        with pytest.raises(ConfigError, match=f"kubeconfig {path}: [^\n]*{tmp_path}/{name}") as caught:
            from_kubeconfig(path, "right")
        assert "\n" not in str(caught.value)
        if damage == "a folder":
            (tmp_path / name).rmdir()
        (tmp_path / "aside").rename(tmp_path / name)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_service_account_whose_file_is(damage: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    token, authority = tmp_path / "token", tmp_path / "damaged.crt"
    token.write_text("secret")
    DAMAGE[damage](authority)
    with pytest.raises(ConfigError, match=f"access as a pod of the cluster: [^\n]*{authority}"):
        in_cluster(str(token), str(authority), environ)
    if damage != "cut":
        with pytest.raises(ConfigError, match=f"access as a pod of the cluster: [^\n]*{authority}"):
            in_cluster(str(authority), f"{tmp_path}/ca.crt", environ)


def test_an_error_carries_the_servers_words(double: ApiDouble) -> None:
    double.fault("list", "services", faults.answer(403, "Forbidden"))
    with pytest.raises(ApiError) as caught:
        lists(client_of(double))
    assert str(caught.value) == "GET /api/v1/services: 403 Forbidden on command"
    assert (caught.value.status, caught.value.expired) == (403, False)


def test_a_connection_is_used_again(double: ApiDouble) -> None:
    client = client_of(double)
    for _ in range(3):
        assert lists(client)
    assert double.accepted == 1
