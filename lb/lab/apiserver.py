# SPDX-License-Identifier: Apache-2.0
"""A real API server of one's own: its binaries, the commands that run it, its keys and the kubeconfigs.

The binaries are found as envtest (kubernetes-sigs/controller-runtime) finds them, in the folder that the
variable KUBEBUILDER_ASSETS names. Only flags that kubeadm or envtest give to current versions are used; the
tests run the same commands with programs that stand in for the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lb.errors import LabError
from lb.lab.certificates import issue, make_authority, make_key
from lb.model import IPNetwork

VARIABLE = "KUBEBUILDER_ASSETS"
REQUIRED = ("etcd", "kube-apiserver")
CONTROLLERS = "kube-controller-manager"
ADMIN = "lab-admin"
MASTERS = "system:masters"
"""The group that may do everything, whatever roles there are."""

ISSUER = "https://kubernetes.default.svc.cluster.local"
_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_RUN = (
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "replicaset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "service-cidr-controller",
)
"""Controllers by the names of kube-controller-manager 1.29 and later. Not those that judge nodes, which have
no leases here, hand out credentials or attach volumes."""

_WATCHES_END = "2s"
"""How long watches may go on once the API server is told to end; without it, a minute."""

_NO_ADMISSION = (
    "ServiceAccount",  # would refuse pods: nobody makes the service account "default" and its tokens
    "TaintNodesByCondition",  # taints new nodes, and nobody would take the taint away
)


def find(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the binaries.

    Raises LabError: the variable names no folder, or the folder lacks a binary; says what has to be there.
    """
    needs = f"{VARIABLE} must name a folder with the programs {' and '.join(REQUIRED)}"
    more = f"{CONTROLLERS} is used if it is there; setup-envtest use -p path downloads such a folder"
    folder = environ.get(VARIABLE, "")
    if not folder:
        raise LabError(f"no API server to run: {needs} ({more})")
    missing = [name for name in REQUIRED if not runnable(Path(folder), name)]
    if missing:
        raise LabError(f"{VARIABLE}={folder} lacks {' and '.join(missing)}: {needs} ({more})")
    return Path(folder).resolve()


def runnable(folder: Path, name: str) -> bool:
    """Tell whether the folder has this program."""
    return (folder / name).is_file() and os.access(folder / name, os.X_OK)


def kubectl(folder: str) -> str:
    """Return the kubectl to name to people: that of the folder if it has one."""
    return str(Path(folder) / "kubectl") if runnable(Path(folder), "kubectl") else "kubectl"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """etcd, an API server and perhaps its controllers.

    assets: the folder of the binaries.
    folder: where keys, certificates and etcd's data are.
    address: what the API server is reached at, of the family of the first service network, as kube-apiserver
        wants it; etcd listens on loopback.
    service_networks: the addresses of Services, at most one network of each family, the primary one first;
        its first address is that of the Service ``kubernetes``.
    advertise: whether the API server writes its address to the endpoints of the Service ``kubernetes``, which
        may not be a loopback one.
    """

    assets: Path
    folder: Path
    address: str
    service_networks: tuple[IPNetwork, ...]
    port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380
    advertise: bool = True

    @property
    def url(self) -> str:
        """Where the API server is reached."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.port}"

    @property
    def etcd_url(self) -> str:
        """Where etcd is reached."""
        return f"http://127.0.0.1:{self.etcd_port}"

    def make_keys(self) -> None:
        """Make a CA, the server's and an administrator's certificate, and the key that signs tokens.

        Raises LabError: openssl is missing or failed.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_authority(self.folder)
        own = [str(network[1]) for network in self.service_networks]
        issue(self.folder, "apiserver", hosts=(self.address, "127.0.0.1", *own, *_NAMES))
        issue(self.folder, ADMIN, group=MASTERS)
        make_key(self.folder / "sa.key")

    def etcd(self) -> list[str]:
        """Return the command of etcd; what is lost in a power cut is lost."""
        peer = f"http://127.0.0.1:{self.etcd_peer_port}"
        return [
            str(self.assets / "etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def api_server(self) -> list[str]:
        """Return the command of the API server."""
        f = self.folder
        anywhere = "::" if ":" in self.address else "0.0.0.0"  # noqa: S104
        networks = ",".join(map(str, self.service_networks))
        return [
            str(self.assets / "kube-apiserver"),
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={anywhere if self.advertise else self.address}",
            f"--advertise-address={self.address}",
            f"--endpoint-reconciler-type={'lease' if self.advertise else 'none'}",
            f"--secure-port={self.port}",
            f"--cert-dir={f}",
            f"--tls-cert-file={f / 'apiserver.crt'}",
            f"--tls-private-key-file={f / 'apiserver.key'}",
            f"--client-ca-file={f / 'ca.crt'}",
            f"--service-cluster-ip-range={networks}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={f / 'sa.key'}",
            f"--service-account-signing-key-file={f / 'sa.key'}",
            "--authorization-mode=RBAC",
            f"--shutdown-watch-termination-grace-period={_WATCHES_END}",
            f"--disable-admission-plugins={','.join(_NO_ADMISSION)}",
        ]

    @property
    def has_controllers(self) -> bool:
        """Whether the folder of binaries has controllers, too."""
        return runnable(self.assets, CONTROLLERS)

    def controllers(self, kubeconfig: Path) -> list[str]:
        """Return the command of the controllers."""
        return [
            str(self.assets / CONTROLLERS),
            f"--kubeconfig={kubeconfig}",
            f"--controllers={','.join(_RUN)}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ]

    def admin_kubeconfig(self, server: str) -> dict[str, Any]:
        """Return an administrator's kubeconfig."""
        user = {
            "client-certificate": str(self.folder / f"{ADMIN}.crt"),
            "client-key": str(self.folder / f"{ADMIN}.key"),
        }
        return self._kubeconfig(server, ADMIN, user)

    def token_kubeconfig(self, server: str, user: str, token_file: Path) -> dict[str, Any]:
        """Return the kubeconfig of a user that has a token."""
        return self._kubeconfig(server, user, {"tokenFile": str(token_file)})

    def _kubeconfig(self, server: str, user: str, credentials: dict[str, str]) -> dict[str, Any]:
        cluster = {"server": server, "certificate-authority": str(self.folder / "ca.crt")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        }


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def write_kubeconfig(path: Path, content: dict[str, Any]) -> None:
    """Write a kubeconfig file."""
    write_private(path, yaml.safe_dump(content, sort_keys=False))
