# SPDX-License-Identifier: Apache-2.0
"""Programs in the place of etcd, kube-apiserver and kube-controller-manager.

:func:`make_assets` fills a folder as KUBEBUILDER_ASSETS names one: its ``etcd`` keeps what its
``kube-apiserver`` holds, so that the latter can be killed and started again. Its ``kube-controller-manager``
does what the lab does without one, but gives pods no node.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lb.kube import Client, from_kubeconfig
from lb.kube.availability import Availability
from lb.kube.timing import Timing
from lb.lab import controllers, garbage
from lb.lab.addressing import LabSpec
from lb.lab.api import Api, Object
from lb.lab.cluster import ClusterKubelet
from lb.lab.store import Store
from lb.lab.watch import Change, follower
from lb.model import ObjectKey
from tests.cluster_double import ClusterDouble

ROOT = Path(__file__).resolve().parents[1]


def make_assets(folder: Path, *, controllers: bool = False, broken: str = "") -> Path:
    """Fill a folder with programs that stand in for the real ones; broken names one that fails."""
    folder.mkdir(exist_ok=True)
    for name in ("etcd", "kube-apiserver", *(("kube-controller-manager",) if controllers else ())):
        command = f'PYTHONPATH={ROOT} exec {sys.executable} -m tests.cluster_programs {name} "$@"'
        if name == broken:
            command = "echo unknown flag: --no-such-flag >&2; exit 1"
        (folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name).chmod(0o755)
    return folder


def _etcd(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="etcd", allow_abbrev=False)
    for name in ("data-dir", "listen-client-urls", "advertise-client-urls", "listen-peer-urls"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("initial-advertise-peer-urls", "initial-cluster"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--unsafe-no-fsync", action="store_true")
    state = [b""]

    class Keeper(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b'{"health":"true"}' if self.path == "/health" else state[0])

        def do_PUT(self) -> None:
            state[0] = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(b"")

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    where = urlsplit(parser.parse_args(arguments).listen_client_urls)
    ThreadingHTTPServer((where.hostname or "", where.port or 0), Keeper).serve_forever()


def _api_server(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kube-apiserver", allow_abbrev=False)
    for name in (
        *("etcd-servers", "bind-address", "advertise-address", "endpoint-reconciler-type", "secure-port"),
        *("cert-dir", "tls-cert-file", "tls-private-key-file", "client-ca-file", "service-cluster-ip-range"),
        *("service-account-issuer", "service-account-key-file", "service-account-signing-key-file"),
        *("authorization-mode", "disable-admission-plugins", "shutdown-watch-termination-grace-period"),
    ):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args(arguments)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(args.tls_cert_file, args.tls_private_key_file)
    tls.load_verify_locations(args.client_ca_file)
    tls.verify_mode = ssl.CERT_OPTIONAL
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    address = (args.bind_address, int(args.secure_port))
    with ClusterDouble(tls, address, args.service_cluster_ip_range, args.etcd_servers):
        signal.sigwait({signal.SIGTERM})


class _Controllers(ClusterKubelet):
    """The controllers' part of the lab's kubelet alone."""

    async def work(self, api: Api) -> None:
        loop = asyncio.get_running_loop()

        def tell(change: Change) -> None:
            loop.call_soon_threadsafe(self._learn, change)

        availability = Availability(api.client.probe, Timing())
        for resource in self._resources:
            run = follower(api, resource, tell, availability).run
            threading.Thread(target=run, args=(threading.Event(),), daemon=True).start()
        await self._work()

    async def reconcile(self) -> None:
        await garbage.collect(self._api, self.cache)
        await self._control([])
        await self._write_slices([])


def _controllers(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kube-controller-manager", allow_abbrev=False)
    for name in ("kubeconfig", "controllers", "leader-elect", "bind-address"):
        parser.add_argument(f"--{name}", required=True)
    kubeconfig = parser.parse_args(arguments).kubeconfig
    original = controllers.pod_of

    def pod_of(owner: controllers.Owner, key: ObjectKey, node: str) -> Object:
        pod = original(owner, key, node)
        del pod["spec"]["nodeName"]
        return pod

    controllers.pod_of = pod_of
    api = Api(Client(lambda: from_kubeconfig(kubeconfig)))
    lab = LabSpec("fake", "/", nodes=1)
    asyncio.run(_Controllers(Store("fake"), lab, api, with_controllers=False).work(api))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        programs = {"etcd": _etcd, "kube-apiserver": _api_server, "kube-controller-manager": _controllers}
        programs[sys.argv[1]](sys.argv[2:])
