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

_DESCRIPTION = """\
Run the agent of this node: watch Services, keep the kernel's maps in step, attach programs to interfaces.
It runs in the foreground, logs to stderr, and stops on SIGTERM or SIGINT. The data plane goes on without it;
'lbctl unload' removes the data plane.

A setting may stand in a YAML file (--config), in the environment, or be a flag; the later of these wins.
"""

_EPILOG = """\
examples:
  lbctl run --source kubernetes --node-name node1 --uplink eth0
  lbctl run --source manifests:/etc/lbctl/manifests --node-name node1 --uplink eth0

the latter as a file, for lbctl run --config FILE; nested settings are indented, lists may be lists:
  sources: [manifests:/etc/lbctl/manifests]
  node_name: node1
  uplinks: [eth0]
  limits:
    flows: 1000000
  timeouts:
    udp: 60
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="run the agent of this node",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    settings.add_flags(parser)
    parser.set_defaults(handler=_run)


class _OneLine(logging.Formatter):
    """Keeps a message in its line, whatever is in the names that it tells; a traceback has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's own name)
        """Return the line of a record."""
        record.message = in_line(record.message)
        return super().formatMessage(record)


def _run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
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
