# SPDX-License-Identifier: Apache-2.0
"""Keeps the DNS servers of a cluster that has no CoreDNS: ``python -m lb.names --secret-file FILE …``.

For the lab and for nodes without Kubernetes. It reads what an agent reads, from the same sources, and ends on
SIGTERM; the servers carry on with what they hold.
"""

from __future__ import annotations

import argparse
import logging
import queue
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lb.config import Config
from lb.errors import InputError
from lb.model import Event
from lb.names.controller import Controller, Zones
from lb.names.feed import Feed
from lb.names.named import KEY, TTL, reverse_zones
from lb.stop_event import StopEvent

if TYPE_CHECKING:
    from lb.kube.source import KubernetesSource
    from lb.manifests.source import ManifestSource

_log = logging.getLogger("lb.names")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lb.names", description=__doc__)
    parser.add_argument(
        "--source", action="append", required=True, help="manifests:DIR, again; or kubernetes"
    )
    parser.add_argument("--kubeconfig", default="", help="of --source kubernetes")
    parser.add_argument("--service-cidr", required=True, help="networks of clusterIPs, with commas between")
    parser.add_argument("--pod-cidr", required=True, help="networks of pods, with commas between")
    parser.add_argument("--secret-file", type=Path, required=True, help="secret of the TSIG key, in base64")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    args = _parser().parse_args(argv)
    secret = args.secret_file.read_text().strip()
    zones = Zones(reverse=tuple(reverse_zones([*args.service_cidr.split(","), *args.pod_cidr.split(",")])))

    def keep(address: str, port: int) -> Feed:
        _log.info("DNS server %s, port %d: is kept", address, port)
        return Feed(address, port, name=KEY, secret=secret, last=zones.version, ttl=TTL)

    inbox: queue.SimpleQueue[Sequence[Event] | None] = queue.SimpleQueue()
    stop = StopEvent()
    signal.signal(signal.SIGTERM, lambda *_: inbox.put(None))
    source = _source(args)

    def read() -> None:
        try:
            source.run(inbox.put, stop)
        finally:
            inbox.put(None)  # without a source, whoever watches over us has to start us anew

    threading.Thread(target=read, daemon=True).start()
    controller = Controller([source.name], zones, keep)
    while (events := inbox.get()) is not None:
        controller.apply(events)
    stop.set()


def _report(error: InputError) -> None:
    _log.warning("%s", error)


def _source(args: argparse.Namespace) -> ManifestSource | KubernetesSource:
    if args.source == ["kubernetes"]:
        from lb.kube import access, client, source  # noqa: PLC0415 - large; manifests do without

        api = client.Client(lambda: access.from_kubeconfig(args.kubeconfig, ""))
        return source.KubernetesSource(api, node_name="", report=_report, for_names=True)
    from lb.manifests.source import ManifestSource  # noqa: PLC0415

    return ManifestSource(
        args.source,
        service_cidr=args.service_cidr,
        node_port_range=Config().node_port_range,
        report=_report,
    )


if __name__ == "__main__":
    main()
