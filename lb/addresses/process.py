# SPDX-License-Identifier: Apache-2.0
"""The process that gives addresses: signals, what it answers over HTTP, and one of the two allocators."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lb import memory
from lb.addresses.pool import PoolsFile
from lb.addresses.telemetry import Telemetry
from lb.errors import ConfigError
from lb.folders import read_file
from lb.model import ObjectKey
from lb.served.http import routes, serving
from lb.setting_forms import split_address
from lb.stop_event import stop_on_signals

_log = logging.getLogger(__name__)

KUBERNETES = "kubernetes"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LEASE = "lbctl-addresses"
_DEFAULT_NAMESPACE = "kube-system"

Run = Callable[[threading.Event], None]
"""Allocates until the event is set."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``lbctl addresses run`` is told.

    Attributes
    ----------
    sources: ``manifests:DIR``, one or more, or ``kubernetes`` alone.
    pools: the file of :mod:`lb.addresses.pool`.
    state: with manifests, where what was given stands.
    kubeconfig, context: how to reach the Kubernetes API; both empty: as a pod.
    lease_namespace: where the Lease is; empty: the pod's, or kube-system.
    service_cidr: networks of cluster IPs, for manifests: of which families a Service is.
    metrics_address: see :func:`lb.setting_forms.split_address`.
    """

    sources: tuple[str, ...]
    pools: Path
    state: Path | None = None
    kubeconfig: str = ""
    context: str = ""
    lease_namespace: str = ""
    service_cidr: str = "10.96.0.0/16"
    metrics_address: str = ""


def run(options: Options) -> None:
    """Give addresses until SIGTERM or SIGINT.

    Raises ConfigError: the options or the pools are wrong.
    Raises LbError: the state cannot be read or written; the Lease's promises cannot be read.
    """
    memory.few_arenas()
    telemetry, pools = Telemetry(), PoolsFile(options.pools)
    telemetry.pools = pools.pools
    work = _work(options, pools, telemetry)
    with stop_on_signals() as stop, ExitStack() as stack:
        if address := split_address(options.metrics_address):
            from lb.addresses import metrics  # noqa: PLC0415  (prometheus_client)

            stack.enter_context(serving()).open(address, routes(metrics.answers(telemetry)), "http")
        work(stop)
    _log.info("stopping; addresses stay where they are")


def _work(options: Options, pools: PoolsFile, telemetry: Telemetry) -> Run:
    """Return what gives addresses until an event is set."""
    if not options.sources:
        raise ConfigError("--source: none given; say manifests:DIR or kubernetes")
    if KUBERNETES not in options.sources:
        return _of_folders(options, pools, telemetry)
    if len(options.sources) > 1:
        raise ConfigError(f"--source: {KUBERNETES} and another; it must be the only one")
    if options.state is not None:
        raise ConfigError(f"--state: is for manifests; with --source {KUBERNETES} the statuses are the state")
    return _of_cluster(options, pools, telemetry)


def _of_folders(options: Options, pools: PoolsFile, telemetry: Telemetry) -> Run:
    from lb.addresses.folder import FolderAllocator  # noqa: PLC0415  (one of the two)
    from lb.manifests.complete import Pools as Networks  # noqa: PLC0415

    if options.state is None:
        raise ConfigError("--state: not given; say in which file it is to stand who has which address")
    if options.kubeconfig or options.context:
        raise ConfigError(f"--kubeconfig and --context: they need --source {KUBERNETES}")
    networks = Networks.parse(options.service_cidr, "30000-32767")
    return FolderAllocator(options.sources, options.state, pools, telemetry, networks=networks).run


def _of_cluster(options: Options, pools: PoolsFile, telemetry: Telemetry) -> Run:
    from lb.addresses.cluster import ClusterAllocator  # noqa: PLC0415  (one of the two)
    from lb.kube import client  # noqa: PLC0415
    from lb.kube.lease import Lease  # noqa: PLC0415
    from lb.kube.timing import Timing  # noqa: PLC0415

    api = client.by_kubeconfig_or_pod(options.kubeconfig, options.context)
    # A process that starts anew must not take itself for the one before it, whose requests may be under way.
    identity = f"{socket.gethostname()[:100]}_{os.urandom(6).hex()}"
    key = ObjectKey(options.lease_namespace or _own_namespace(), LEASE)
    timing = Timing()
    lease = Lease(api, key, identity, timing)
    return ClusterAllocator(api, lease, pools, telemetry, identity=identity, timing=timing).run


def _own_namespace() -> str:
    """Return the namespace of the pod that this is, kube-system outside of pods."""
    try:
        return read_file(NAMESPACE_FILE, 256).decode("ascii").strip() or _DEFAULT_NAMESPACE
    except (OSError, UnicodeDecodeError):
        return _DEFAULT_NAMESPACE
