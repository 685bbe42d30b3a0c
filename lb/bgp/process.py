# SPDX-License-Identifier: Apache-2.0
"""The process that speaks BGP: its files, what it answers at a socket and to Prometheus, its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lb import memory
from lb.bgp.bird import Bird, program
from lb.bgp.peers import PeersFile
from lb.bgp.speaker import Memory, Speaker
from lb.bgp.status import SpeakerStatus
from lb.errors import ConfigError
from lb.folders import PRIVATE, make
from lb.rundir import RunDir
from lb.served.api import as_json
from lb.served.http import routes, serving
from lb.served.servable import SPEAKER_PATH, Asked
from lb.setting_forms import split_address
from lb.stop_event import stop_on_signals

_log = logging.getLogger(__name__)

STEP_SECONDS = 0.5
"""How often the agent is asked."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``lbctl announce bgp`` is told.

    instance: whose agent is asked. peers: the file of :mod:`lb.bgp.peers`.
    router_id: an IPv4 address; empty: the node's first, or one that follows from its name.
    metrics_address: see :func:`lb.setting_forms.split_address`.
    """

    instance: str
    peers: Path
    router_id: str = ""
    metrics_address: str = ""


def run(options: Options) -> None:
    """Tell routers until SIGTERM or SIGINT.

    Raises ConfigError: the options or the file of peers are wrong.
    LbError: another process speaks for the instance; BIRD is not installed.
    """
    memory.few_arenas()
    if options.router_id:
        try:
            IPv4Address(options.router_id)
        except ValueError as error:
            raise ConfigError(f"--router-id {options.router_id}: must look like an IPv4 address") from error
    program()
    peers = PeersFile(options.peers)
    run_dir = RunDir(options.instance)
    own = run_dir.speaker
    # The server is the last to end: it answers until the last session has ended.
    with own.lock_if_room(), serving() as server, stop_on_signals() as stop:
        folder = own.folder
        make(folder, mode=PRIVATE)
        status = SpeakerStatus()
        server.open(
            (str(own.socket_path), 0), routes({SPEAKER_PATH: as_json(lambda _: status.as_dict())}), "announce"
        )
        if address := split_address(options.metrics_address):
            from lb.bgp import metrics  # noqa: PLC0415  (prometheus_client)

            server.open(address, routes(metrics.answers(status)), "metrics")
        speaker = Speaker(
            peers,
            Bird(folder),
            Asked(run_dir).report,
            Memory(folder / "told.json"),
            status,
            unloaded=lambda: not run_dir.notes_path.exists(),
            router=options.router_id,
        )
        while not stop.is_set():
            speaker.step()
            stop.wait(STEP_SECONDS)
        _log.info("stopping: routers are told, or keep what they know")
        speaker.leave(_wait)


def _wait(seconds: float) -> None:
    """Wait; a second signal ends that."""
    with stop_on_signals() as stop:
        stop.wait(seconds)
