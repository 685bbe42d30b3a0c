# SPDX-License-Identifier: Apache-2.0
"""The log of a command that runs on: lines of text, or objects."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
from collections.abc import Callable
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

    Raises LbError: the work did, and the log is text; an object has it otherwise.
    """
    handler = logging.StreamHandler(err)
    handler.setFormatter(OneLine() if args.log_format == "text" else JsonLine())
    ours = logging.getLogger("lb")
    ours.addHandler(handler)
    ours.setLevel(args.log_level.upper())
    try:
        work()
    except LbError as error:
        if args.log_format == "text":
            raise
        ours.error("%s", error)
        return 1
    finally:
        ours.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
    return 0
