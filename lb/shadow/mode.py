# SPDX-License-Identifier: Apache-2.0
"""What an agent in shadow mode does otherwise, and how an instance comes into that mode and out of it."""

from __future__ import annotations

import logging
from dataclasses import replace

from lb.config import Announce, Config, SocketMode, Switch, UplinkMode
from lb.datapath.attach import hooks, sockets
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import Cutover
from lb.errors import ConfigError
from lb.served import takeover

_log = logging.getLogger(__name__)


def as_shadow(config: Config) -> Config:
    """Return the settings of an agent that touches nothing, and takes nothing that kube-proxy has.

    tc sees every packet, XDP would only see some of them earlier. Nothing is announced, no port is listened
    to that kube-proxy listens to.
    """
    return replace(
        config,
        uplink_mode=UplinkMode.TC,
        socket_lb=SocketMode.HOST,
        redirect=Switch.OFF,
        announce=Announce.OFF,
        healthz_address="off",
    )


def is_shadow(pins: Pins) -> bool:
    """Tell whether the instance's programs are those of shadow mode.

    Raises BpfError: the map could not be read.
    """
    if not (pins.maps / "cutover").exists():
        return False
    with KernelMaps(pins.maps) as maps:
        return takeover.is_shadow(maps)


def prepare(config: Config) -> None:
    """Make room for an agent in the mode that its settings ask for.

    What shadow mode has left goes before an agent that serves: no packet depends on it, and its flows are of
    decisions alone.

    Raises ConfigError: shadow mode is asked for where this instance serves. LbError: the kernel refused.
    """
    pins = Pins(config.instance)
    if not pins.base.exists():
        return
    before, wanted = is_shadow(pins), config.shadow is Switch.ON
    if before == wanted:
        return
    if wanted and hooks.attached():
        raise ConfigError(
            f"setting shadow: instance {config.instance} serves Services here; give them back first"
            " (lbctl cutover --back), or remove its programs (lbctl unload)"
        )
    if before:
        _log.info("shadow mode ends: its programs and maps go, and the agent begins with new ones")
    hooks.detach_all()
    sockets.detach(pins)
    unload(pins)


def enter(maps: KernelMaps) -> None:
    """Say in the maps that their programs serve nobody; before any is attached.

    Raises BpfError: the map could not be mapped into memory.
    """
    maps.array("cutover")[0] = Cutover.SHADOW
