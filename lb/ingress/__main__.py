# SPDX-License-Identifier: Apache-2.0
"""Serves the Ingresses of folders of manifests by an nginx on this node: ``python -m lb.ingress --source …``.

For nodes without Kubernetes; in a cluster that is the business of its Ingress controller. nginx is a child of
this process and ends with it. A configuration that nginx refuses is logged, and the one before goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lb.config import Config
from lb.errors import InputError
from lb.folders import read_file
from lb.ingress import nginx
from lb.ingress.folder import refused, write
from lb.ingress.plan import Site, ours, plan
from lb.ingress.read import Content, read
from lb.manifests.cluster import assemble
from lb.manifests.complete import Pools
from lb.manifests.library import MOST_BYTES, Library, walk
from lb.manifests.notices import RESCAN_SECONDS, notices
from lb.model import EndpointSlice, Service

_PACE_SECONDS = 0.5
"""Between two changes of nginx's configuration: each leaves a worker behind until its connections end."""

_log = logging.getLogger("lb.ingress")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lb.ingress", description=__doc__)
    parser.add_argument("--source", action="append", required=True, help="manifests:DIR, again")
    parser.add_argument("--service-cidr", required=True, help="networks of clusterIPs, with commas between")
    parser.add_argument(
        "--folder", type=Path, required=True, help="of nginx's configuration; made if missing"
    )
    return parser


class Folders:
    """What the Ingresses of some folders of manifests come to.

    Raises ConfigError: service_cidr is malformed.
    """

    def __init__(self, directories: Sequence[Path], service_cidr: str) -> None:
        self._directories = directories
        self._pools = Pools.parse(service_cidr, Config().node_port_range)
        self._library = Library(directories, self._pools.node_ports, time.time)
        self._told: set[str] = set()
        self._site = Site()

    def site(self) -> Site:
        """Look at the folders and return what to serve; what is wrong is logged, once while it stands.

        Of what can be read no more, the last that could be read goes on.
        """
        if not self._library.refresh():
            return self._site
        objects, _ = self._library.contents()  # what is wrong with these, the agent says
        resources, _ = assemble(objects, self._pools)
        content, unread = self._read()
        served, wrong = ours(content.ingresses.values(), content.classes)
        site, more = plan(
            served,
            [each for each in resources.values() if isinstance(each, Service)],
            [each for each in resources.values() if isinstance(each, EndpointSlice)],
            content.certificates,
        )
        self._tell([*content.errors, *content.warnings, *wrong, *more, *unread])
        if not unread:
            self._site = site
        return self._site

    def _read(self) -> tuple[Content, list[InputError]]:
        content, unread = Content(), list[InputError]()
        for path, _ in sorted(walk(self._directories, unread)):
            try:
                content.add(read(path, read_file(Path(path), MOST_BYTES).decode("utf-8-sig")))
            except FileNotFoundError:
                continue  # gone since the folder was listed
            except (OSError, UnicodeDecodeError, InputError) as error:
                unread.append(InputError(path, 0, "", "", f"cannot be read: {error}"))
        return content, unread

    def _tell(self, errors: Iterable[InputError]) -> None:
        standing = {str(error) for error in errors}
        for text in sorted(standing - self._told):
            _log.warning("%s", text)
        self._told = standing


def _versions(service_cidr: str) -> list[int]:
    return sorted({6 if ":" in each else 4 for each in service_cidr.split(",")})


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; return 1 when nginx has ended before."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    args = _parser().parse_args(argv)
    directories = [Path(each.removeprefix("manifests:")) for each in args.source]
    folders, versions = Folders(directories, args.service_cidr), _versions(args.service_cidr)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    wanted = seen = nginx.files(folders.site(), versions)
    if why := refused(args.folder / "draft", wanted):
        _log.error("nginx refuses its configuration: %s", why)
        wanted = nginx.files(Site(), versions)
    write(args.folder, wanted)
    process = subprocess.Popen(["nginx", "-p", str(args.folder), "-c", str(args.folder / nginx.MAIN)])
    try:
        due = 0.0
        for noticed in notices(directories, stop):
            if process.poll() is not None:
                _log.error("nginx has ended with code %d", process.returncode)
                return 1
            if not noticed and time.monotonic() < due:
                continue
            due = time.monotonic() + RESCAN_SECONDS
            wanted = nginx.files(folders.site(), versions)
            if wanted == seen:
                continue
            seen = wanted
            if why := refused(args.folder / "draft", wanted):
                _log.error("nginx refuses its configuration: %s", why)
                continue
            write(args.folder, wanted)
            process.send_signal(signal.SIGHUP)
            time.sleep(_PACE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGQUIT)
        process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
