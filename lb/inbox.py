# SPDX-License-Identifier: Apache-2.0
"""Messages to the agent's loop, the signals and threads that send them, and notes about Services."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lb.model import Event
from lb.stop_event import StopEvent, on_signals

_log = logging.getLogger(__name__)
_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class InterfacesChanged:
    """Links, addresses or default routes of these interfaces (by ifindex) have changed."""

    indexes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Failed:
    """A thread ended by an exception: the agent must not go on as if nothing were."""

    what: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Settled:
    """What :class:`lb.datapath.kernel.grace.GracePeriods` waited for is over."""


@dataclass(frozen=True, slots=True)
class Reread:
    """Compare everything in the maps with the source again: somebody else may have written to them."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave; the data plane stays."""


@dataclass(frozen=True, slots=True)
class SourceEvents:
    """What a source has told, and when it came: seconds of the agent's clock."""

    events: Sequence[Event]
    arrived: float


Message = SourceEvents | InterfacesChanged | Failed | Settled | Reread | Stop
Inbox = queue.SimpleQueue[Message]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A note about a Service, which a source may publish as an Event.

    reason and action are CamelCase words for machines, text is for people.
    """

    reason: str
    action: str
    text: str


class StopNow(BaseException):
    """A signal that ends the agent came where nobody reads the inbox."""


@contextlib.contextmanager
def stop_signals(inbox: Inbox) -> Iterator[Callable[[], None]]:
    """Turn SIGTERM and SIGINT into :class:`Stop`, SIGHUP into :class:`Reread`.

    Gives what is to be called when the agent's loop begins. Before, while a start waits for a lock or a
    compiler, and when a second signal shows that the first was of no use, the signal raises StopNow.
    """
    told: dict[int, Stop | Reread] = {signal.SIGTERM: Stop(), signal.SIGINT: Stop(), signal.SIGHUP: Reread()}
    patient = False

    def tell(number: int, _frame: object) -> None:
        nonlocal patient
        message = told[number]
        if isinstance(message, Stop):
            if not patient:
                raise StopNow
            patient = False
        inbox.put(message)

    def runs() -> None:
        nonlocal patient
        patient = True

    with on_signals(tell, *told):
        yield runs


@contextlib.contextmanager
def threads(inbox: Inbox, bodies: dict[str, Callable[[StopEvent], None]]) -> Iterator[None]:
    """Run each body in a thread until the context ends; one that raises sends :class:`Failed`."""
    stop = StopEvent()

    def guarded(name: str, body: Callable[[StopEvent], None]) -> None:
        try:
            body(stop)
        except Exception as error:
            _log.debug("%s", name, exc_info=True)
            inbox.put(Failed(name, error))

    running = [
        threading.Thread(target=guarded, args=item, name=item[0], daemon=True) for item in bodies.items()
    ]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join(_JOIN_SECONDS)
