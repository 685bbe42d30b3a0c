# SPDX-License-Identifier: Apache-2.0
"""``lbctl run``: the agent."""

from __future__ import annotations

import argparse
import logging
import os
from logging.handlers import MemoryHandler
from typing import TextIO

from lb.cli import settings
from lb.cli.logs import JsonLine, OneLine
from lb.errors import LbError
from lb.serve import serve


def run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl run``."""
    handler = logging.StreamHandler(err)
    handler.setFormatter(OneLine())
    ours = logging.getLogger("lb")  # what libraries have to say at these levels is not for operators
    # What is said of the settings waits until they say how.
    held = MemoryHandler(10_000, flushLevel=logging.CRITICAL, target=handler)
    ours.addHandler(held)
    ours.setLevel(logging.INFO)
    try:
        config = settings.read(args, os.environ)
        ours.setLevel(config.log_level.upper())
        if config.log_format == "json":
            handler.setFormatter(JsonLine())
        held.close()
        ours.removeHandler(held)
        ours.addHandler(handler)
        try:
            serve(config)
        except LbError as error:
            if config.log_format == "text":
                raise
            ours.error("%s", error)
            return 1
    finally:
        held.close()
        ours.removeHandler(held)
        ours.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
    return 0
