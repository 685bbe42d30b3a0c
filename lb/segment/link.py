# SPDX-License-Identifier: Apache-2.0
"""An interface of the caller's network namespace, where frames go out and come in (packet(7))."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator

from lb.segment.heartbeats import ETHERTYPE

_SIOCGIFFLAGS = 0x8913
_IFF_RUNNING = 0x40  # netdevice(7): operational; it has a carrier
_MOST_BYTES = 65536
_RECEIVE_BYTES = 4 << 20
"""Room for whole beats of a hundred nodes at once, 1,000 addresses in each."""
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; as SO_RCVBUF, beyond net.core.rmem_max, with CAP_NET_ADMIN


class Link:
    """Sends any frames by an interface, and gets those of our own kind.

    Raises OSError: there is no such interface, or CAP_NET_RAW is missing.
    """

    def __init__(self, interface: str) -> None:
        self.interface = interface
        # Protocol 0: nothing is received before it is bound to the one interface.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        try:
            self._socket.bind((interface, ETHERTYPE))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, readable when there are frames."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def running(self) -> bool:
        """Tell whether the interface is up and its cable plugged in."""
        request = struct.pack("16sh14x", self.interface.encode(), 0)
        try:
            (flags,) = struct.unpack_from("H", fcntl.ioctl(self._socket, _SIOCGIFFLAGS, request), 16)
        except OSError:
            return False
        return bool(flags & _IFF_RUNNING)

    def send(self, frame: bytes) -> None:
        """Send a frame.

        Raises OSError: it cannot go out.
        """
        self._socket.send(frame)

    def received(self) -> Iterator[bytes]:
        """Yield the frames that have come.

        Raises OSError: the interface is down or gone.
        """
        while True:
            try:
                yield self._socket.recv(_MOST_BYTES)
            except BlockingIOError:
                return
