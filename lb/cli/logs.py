# SPDX-License-Identifier: Apache-2.0
"""The log of a command that runs on: lines of text, or objects."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from typing import TextIO

from lb.errors import LbError
from lb.words import in_line


class OneLine(logging.Formatter):
    """Keeps a message in its line, whatever is in the names that it tells; a traceback has its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatTime(self, record: logging.LogRecord, _datefmt: str | None = None) -> str:  # noqa: N802
        """Return a record's date, time and zone, as RFC 3339 has them."""
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's own names)
        """Return the line of a record."""
        record.message = in_line(record.message)
        return super().formatMessage(record)


class JsonLine(logging.Formatter):
    """Makes an object in a line of each record: time, level, logger, message and, if there is one, error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, in ASCII: a terminal that shows it obeys nothing in it."""
        found = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found)


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def logged(args: argparse.Namespace, err: TextIO, work: Callable[[], None]) -> int:
    """Do what runs on, with its log on a stream in the form that the flags say; return the exit code.

    Raises LbError: see :func:`log_to`.
    """
    with log_to(err) as do:
        return do(args.log_level, args.log_format, work)


@contextlib.contextmanager
def log_to(err: TextIO) -> Iterator[Callable[[str, str, Callable[[], None]], int]]:
    """Log to a stream, and give a function that does what runs on and returns the exit code.

    It takes the log's level and format and the work. What is logged before it is called waits until then.

    Raises LbError: the work did, and the log is text; an object has it otherwise.
    """
    handler = logging.StreamHandler(err)
    handler.setFormatter(OneLine())
    ours = logging.getLogger("lb")  # what libraries have to say at these levels is not for operators
    held = MemoryHandler(10_000, flushLevel=logging.CRITICAL, target=handler)
    ours.addHandler(held)
    ours.setLevel(logging.INFO)

    def do(level: str, form: str, work: Callable[[], None]) -> int:
        ours.setLevel(level.upper())
        if form == "json":
            handler.setFormatter(JsonLine())
        held.close()
        ours.removeHandler(held)
        ours.addHandler(handler)
        try:
            work()
        except LbError as error:
            if form == "text":
                raise
            ours.error("%s", error)
            return 1
        return 0

    try:
        yield do
    finally:
        held.close()
        ours.removeHandler(held)
        ours.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
