# SPDX-License-Identifier: Apache-2.0
"""An event that ends threads, also threads that wait for something else; and handlers of signals.

A thread without work sleeps until there is some. It need not wake twice a second to look whether it is to
end, which was a third of what an agent without work cost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator


class StopEvent(threading.Event):
    """An event to set once. Its descriptor is readable from then on, for select() and epoll."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []
        self._fd = os.eventfd(0)
        weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """Return the descriptor; it closes with this object."""
        return self._fd

    def then(self, call: Callable[[], object]) -> None:
        """Call something, in whichever thread sets the event, once it is set; at once if it is."""
        with self._lock:
            if not self.is_set():
                self._calls.append(call)
                return
        call()

    def set(self) -> None:
        """Set the event, and wake all that wait."""
        with self._lock:
            super().set()
            calls, self._calls = self._calls, []
        os.eventfd_write(self._fd, 1)
        for call in calls:
            call()


@contextlib.contextmanager
def on_signals(handler: Callable[[int, object], None], *numbers: int) -> Iterator[None]:
    """Have a function called at these signals meanwhile; for the main thread."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopEvent]:
    """Give an event that SIGTERM and SIGINT set."""
    stop = StopEvent()
    with on_signals(lambda *_: stop.set(), signal.SIGTERM, signal.SIGINT):
        yield stop
