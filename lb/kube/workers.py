# SPDX-License-Identifier: Apache-2.0
"""The threads that speak to the API server, beside the one that uses what they find."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lb.kube.availability import Availability, HangDetector
from lb.kube.events import EventWriter
from lb.kube.reflector import Reflector

Worker = Reflector[Any] | HangDetector | EventWriter

_JOIN_SECONDS = 2.0


@contextlib.contextmanager
def running(
    workers: Sequence[Worker], availability: Availability, failed: Callable[[Worker, Exception], None]
) -> Iterator[None]:
    """Run each worker in a thread of its own until the context ends.

    availability: what they wait by. failed: called, in the worker's thread, with the exception that ended it.
    """
    halt = threading.Event()

    def guarded(worker: Worker) -> None:
        try:
            worker.run(halt)
        except Exception as error:
            failed(worker, error)

    threads = [
        threading.Thread(target=guarded, args=(each,), name=f"kubernetes {each.resource}", daemon=True)
        for each in workers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        halt.set()
        availability.wake()
        for worker in workers:
            worker.interrupt()
        # One that waits for an answer to begin ends with that, or with the process.
        for thread in threads:
            thread.join(_JOIN_SECONDS)
