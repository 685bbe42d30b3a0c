# SPDX-License-Identifier: Apache-2.0
"""What an agent does for connections that are open when its programs are attached first."""

from __future__ import annotations

import logging

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import Cutover
from lb.diagnose import kube_proxy
from lb.errors import LbError

_log = logging.getLogger(__name__)


def spare_open_connections(maps: Maps) -> None:
    """Where kube-proxy has rules, have the programs leave to netfilter what it has begun (CUTOVER_TAKE).

    It stays so until ``lbctl cutover`` has moved the connections. A kernel that does not tell is no reason
    not to start.

    Raises BpfError: the map could not be mapped into memory.
    """
    try:
        traces = kube_proxy.find()
    except LbError as error:
        _log.warning("open connections may break: whether kube-proxy serves here is not known: %s", error)
        return
    if traces:
        maps.array("cutover")[0] = Cutover.TAKE
        _log.info("%s: its open connections are left to netfilter until lbctl cutover", traces[0])
