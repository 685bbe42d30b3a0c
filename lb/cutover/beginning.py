# SPDX-License-Identifier: Apache-2.0
"""What an agent does for connections that are open when its programs are attached first."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections.abc import Callable

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import Cutover
from lb.datapath.programs import features
from lb.diagnose import kube_proxy
from lb.errors import LbError

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 60.0


def beside_kube_proxy(maps: Maps, instance: str, *, new: bool) -> Callable[[], None]:
    """Prepare the first attaching where kube-proxy serves; return what is to be called before each.

    new: the instance's maps are; else its programs have served before, and nothing is to be done.

    Raises BpfError: the map could not be mapped into memory.
    """
    if not new:
        return lambda: None
    _spare_open_connections(maps)
    return functools.cache(functools.partial(_keep_backends, maps, instance))


def _spare_open_connections(maps: Maps) -> None:
    """Where kube-proxy has rules, have the programs leave to netfilter what it has begun (CUTOVER_TAKE).

    It stays so until ``lbctl cutover`` has moved the connections. A kernel that does not tell, or whose
    conntrack programs may not ask, is no reason not to start.

    Raises BpfError: the map could not be mapped into memory.
    """
    try:
        traces = kube_proxy.find()
    except LbError as error:
        _log.warning("open connections may break: whether kube-proxy serves here is not known: %s", error)
        return
    if not traces:
        return
    maps.array("cutover")[0] = Cutover.TAKE
    with features.kernel_functions() as functions:
        may_ask = functions.may_ask
    if may_ask:
        _log.info("%s: its open connections are left to netfilter until lbctl cutover", traces[0])
    else:
        _log.warning(
            "%s: its open connections break, as programs may not ask conntrack about them: that takes Linux"
            " 6.0, and CAP_SYS_ADMIN where conntrack is a module (docs/migration.md)",
            traces[0],
        )


def _keep_backends(maps: Maps, instance: str) -> None:
    """Let clients keep the backends that kube-proxy remembers, before the first program is attached.

    A process of its own does it (:mod:`lb.cutover.affinity`). What fails is logged: those clients are chosen
    for anew.

    Raises BpfError: the map could not be mapped into memory.
    """
    if int(maps.array("cutover")[0]) != Cutover.TAKE:
        return
    argv = [sys.executable, "-m", "lb.cutover.affinity", instance]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("clients with affinity do not keep the backends that kube-proxy gave them: %s", error)
        return
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        _log.warning("clients with affinity do not keep the backends that kube-proxy gave them: %s", words)
    else:
        _log.info("affinity: %s", done.stdout.strip())
