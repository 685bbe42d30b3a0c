# SPDX-License-Identifier: Apache-2.0
"""The node's interfaces as the agent's loop sees them, and the programs attached there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from lb.config import Config, Switch
from lb.datapath.attach.hooks import Hooks, LostHook, Role
from lb.datapath.attach.keeper import Keeper
from lb.datapath.attach.roles import selection, standing
from lb.datapath.attach.settings import write_settings
from lb.datapath.attach.sockets import SocketHooks
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.interface import Maps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from lb.diagnose import attachment, host
from lb.diagnose.findings import Check
from lb.model import IPAddress, Node
from lb.plan.types import Topology

_log = logging.getLogger(__name__)


class Attachments:
    """The kernel around the agent: the node's interfaces and the programs on them.

    first: what is called each time before all programs are attached, with the maps written.
    """

    def __init__(
        self,
        config: Config,
        pins: Pins,
        loaded: Loaded,
        maps: Maps,
        *,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        self._first = first
        self._config = config
        self._pins = pins
        self._loaded = loaded
        self._maps = maps
        self._hooks = Hooks(
            loaded.programs,
            maps,
            selection(config),
            config.uplink_mode,
            redirect=config.redirect is Switch.ON,
        )
        self._sockets = SocketHooks(pins, loaded.sockets, loaded.refused, config.cgroup, config.socket_lb)
        self._keeper = Keeper(pins, pins.programs(loaded.fingerprint))
        self._pruned = False
        self._own: tuple[IPAddress, ...] = ()
        self._node_addresses: frozenset[IPAddress] = frozenset()

    def close(self) -> None:
        """Close the programs and what is held; what is attached and pinned stays so."""
        self._hooks.close()
        self._keeper.close()

    def topology(self, node: Node | None, claims: Callable[[IPAddress], bool]) -> Topology:
        """Return where the agent stands.

        node is what Kubernetes says of it, None while that is unknown. claims: see
        :func:`lb.datapath.attach.roles.standing`.
        """
        topology = standing(self._config, node, claims)
        self._node_addresses = topology.node_addresses
        before, self._own = self._own, topology.internal_addresses
        elsewhere = [str(address) for address in self._own if address not in topology.node_addresses]
        if elsewhere and before != self._own:
            _log.warning(
                "Node %s: InternalIP %s is on no interface here, so NodePorts and SNAT do without it",
                topology.node_name,
                ", ".join(elsewhere),
            )
        return topology

    def attach(self, changed: frozenset[int] | None) -> Sequence[str]:
        """Attach programs to the interfaces (by ifindex; None: all) and return what failed.

        None also has written anew what the programs know of the node and its configuration.
        """
        if changed is None:
            write_settings(self._maps, self._config)
            self._first()
        report = self._hooks.sync(changed, self._own)
        if changed is None:
            sockets = self._sockets.sync()
            report.attached += sockets.attached
            report.detached += sockets.detached
            report.errors += sockets.errors
        for what in report.attached:
            _log.info("attached: %s", what)
        for what in report.detached:
            _log.info("detached: %s", what)
        if not self._pruned and not report.errors:
            loader.prune(self._pins, self._loaded)
            self._pruned = True
        return [str(error) for error in report.errors]

    def faces_outside(self) -> bool:
        """Tell whether there is an uplink; may be called from any thread."""
        return self._hooks.outward

    def host_checks(self) -> list[Check]:
        """Look at the kernel's settings that packets of Services depend on; any tool may change them."""
        names = [name for name, role in self._hooks.places.items() if role is not Role.LOOPBACK]
        versions = sorted({address.version for address in self._node_addresses})
        return host.settings(names, versions, self._config.snat_ports)

    def uplinks(self) -> list[str]:
        """Return the names of the uplinks."""
        return [name for name, role in self._hooks.places.items() if role is Role.UPLINK]

    def lost(self) -> Sequence[LostHook]:
        """Return the hooks that should have a program of ours and have none.

        Raises LbError: the kernel refused to tell.
        """
        return [*self._hooks.lost(), *self._sockets.lost()]

    def mend(self) -> int:
        """Pin again what somebody unpinned, and return how much that was.

        Raises LbError, OSError: it could not be pinned.
        """
        return len(self._keeper.mend())

    def drift(self) -> dict[str, int]:
        """Return by map how many entries about the node and its configuration are not as they should be."""
        return attachment.drift(self._maps, self._config, self._own)

    def notes(self) -> dict[str, Any]:
        """Return, for the agent's notes, each uplink's mode and why, and why there are no socket hooks."""
        modes = {name: (mode.value, why) for name, (mode, why) in self._hooks.modes.items()}
        return {"uplink_modes": modes, "no_socket_hooks": self._sockets.failed}
