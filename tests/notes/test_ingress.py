# SPDX-License-Identifier: Apache-2.0
"""The notes' chapters on Ingress and on TLS, step by step: what is typed, and what must come.

In one respect the notes tell of their provider: there a Pod that answers 500 shows the load balancer's page
of 502, since its health check takes the Pod out. Here readiness alone decides that, and what a Pod says is
what a client reads.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
import yaml

from lb.lab.addressing import Family
from lb.lab.lab import Lab
from tests.netns.conftest import EXAMPLES, MakeLab, remove
from tests.netns.waiting import eventually

HOST = "kubia.example.com"

INGRESS = f"""\
apiVersion: extensions/v1beta1
kind: Ingress
metadata:
  name: kubia
spec:
  rules:
    - host: {HOST}
      http:
        paths:
          - path: /
            backend:
              serviceName: kubia-nodeport
              servicePort: 80
"""
WITH_TLS = INGRESS.replace(
    "spec:\n", f"spec:\n  tls:\n    - hosts:\n        - {HOST}\n      secretName: tls-secret\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("notes") / "m"
    made.mkdir()
    for name in ("kubia-replicaset.yaml", "kubia-nodeport.yaml"):
        (made / name).write_text((EXAMPLES / name).read_text())
    (made / "kubia-ingress.yaml").write_text(INGRESS)
    return made


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, folder: Path) -> Lab:
    """A lab as the notes have it: IPv4, the ReplicaSet, the NodePort Service, the Ingress."""
    return make_lab(folder, family=Family.IPV4, nodes=1)


def address(lab: Lab) -> str:
    """Return what stands under ADDRESS in the list of Ingresses."""
    shown = yaml.safe_load((lab.store.cluster / "ingress.default.kubia.yaml").read_text())
    [one] = shown["status"]["loadBalancer"]["ingress"]
    return str(one["ip"])


def curl(lab: Lab, *words: str, port: int = 80) -> subprocess.CompletedProcess[str]:
    """Type curl at the client outside, which finds the name by --resolve instead of /etc/hosts."""
    return lab.run("client", ["curl", "-s", "-m", "10", "--resolve", f"{HOST}:{port}:{address(lab)}", *words])


def test_the_notes_on_ingress_and_tls(lab: Lab, folder: Path, tmp_path: Path) -> None:
    # The Ingress is taken as it is, although its API version is gone.
    [said] = lab.ask_kubelet("list")["errors"]
    assert said.startswith("warning: ")
    assert "networking.k8s.io/v1" in said
    # It has an address, and the name leads to one of the Pods.
    assert address(lab) == "203.0.113.80"
    done = curl(lab, "-i", f"http://{HOST}")
    assert done.stdout.startswith("HTTP/1.1 200 OK")
    assert "You've hit kubia-" in done.stdout
    # A Pod that answers 500: that and its own page.
    done = curl(lab, "-w", "%{http_code}", f"http://{HOST}/fail")
    assert done.stdout.startswith("kubia-")
    assert done.stdout.endswith(" fails, as it was asked to\n500")
    # A key, a certificate that it signs itself, a Secret of both, and the Ingress names it.
    assert curl(lab, "-k", f"https://{HOST}/", port=443).returncode != 0
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.cert"
    for words in (
        f"genrsa -out {key} 2048",
        f"req -new -x509 -sha256 -key {key} -out {certificate} -days 3650 -subj /CN={HOST}",
    ):
        subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    data = {
        name: base64.b64encode(path.read_bytes()).decode()
        for name, path in (("tls.crt", certificate), ("tls.key", key))
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
              "metadata": {"name": "tls-secret"}, "data": data}  # fmt: skip
    (folder / "tls-secret.yaml").write_text(yaml.safe_dump(secret))
    (folder / "kubia-ingress.yaml").write_text(WITH_TLS)
    # HTTPS shows that certificate, and speaks HTTP/2.
    ask = ("-kv", "-w", "%{http_version}", f"https://{HOST}/")
    answers: list[subprocess.CompletedProcess[str]] = []

    def is_answered() -> bool:
        answers.append(curl(lab, *ask, port=443))
        return answers[-1].returncode == 0

    eventually(is_answered, "HTTPS is answered")
    done = answers[-1]
    assert f"subject: CN={HOST}" in done.stderr
    assert f"issuer: CN={HOST}" in done.stderr
    assert done.stdout.startswith("You've hit kubia-")
    assert done.stdout.endswith("\n2")
    # It is signed by nobody who is known; until then a worker of nginx with the former configuration answers.
    eventually(lambda: curl(lab, f"https://{HOST}/", port=443).returncode == 60, "the certificate is refused")
    # Plain HTTP goes on.
    assert curl(lab, f"http://{HOST}").stdout.startswith("You've hit kubia-")
    remove(lab.spec.id)
