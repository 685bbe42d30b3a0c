# SPDX-License-Identifier: Apache-2.0
"""``lbctl run``: the agent."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TextIO

from lb.cli import settings
from lb.serve import serve
from lb.words import in_line


class _OneLine(logging.Formatter):
    """Keeps a message in its line, whatever is in the names that it tells; a traceback has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's own name)
        """Return the line of a record."""
        record.message = in_line(record.message)
        return super().formatMessage(record)


def run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl run``."""
    handler = logging.StreamHandler(err)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("lb")  # what libraries have to say at these levels is not for operators
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        config = settings.read(args, os.environ)
        ours.setLevel(config.log_level.upper())
        serve(config)
    finally:
        ours.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
    return 0
