# SPDX-License-Identifier: Apache-2.0
"""``lbctl run``: the agent."""

from __future__ import annotations

import argparse
import os
from typing import TextIO

from lb.cli import settings
from lb.cli.logs import log_to
from lb.serve import serve


def run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl run``."""
    with log_to(err) as do:  # what is said of the settings waits until they say how
        config = settings.read(args, os.environ)
        return do(config.log_level, config.log_format, lambda: serve(config))
