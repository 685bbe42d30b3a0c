# SPDX-License-Identifier: Apache-2.0
"""The command ``lbctl``: argument parsing, printing and exit codes; what it does is in the layers below.

Everything is imported inside of these, so that Ctrl-C is taken from the first moment on: the imports last
longer than many a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["complete_for_kubectl", "entry", "main"]


def main(argv: Sequence[str] | None = None, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Run one command and return its exit code, see :func:`lb.cli.command.main`."""
    from lb.cli import command  # noqa: PLC0415

    return command.main(argv, out=out, err=err)


def complete_for_kubectl() -> int:
    """Run the console script that kubectl asks for the words of ``kubectl lb`` when Tab is pressed."""
    from lb.cli import command, completion  # noqa: PLC0415

    return completion.for_kubectl(sys.argv[1:], command.parser_for, sys.stdout)


def entry() -> int:
    """Run the console script: ``lbctl … | head`` and Ctrl-C end without a traceback."""
    from lb import memory  # noqa: PLC0415

    memory.rare_collections()
    if "_ARGCOMPLETE" in os.environ:
        from lb.cli import command, completion  # noqa: PLC0415

        completion.complete(command.parser_for)
    try:
        return main()
    except BrokenPipeError:
        # Python flushes stdout once more on exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
