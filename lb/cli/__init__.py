"""The command ``lbctl``: argument parsing, printing and exit codes; what it does is in the layers below."""

from lb.cli.command import entry, main

__all__ = ["entry", "main"]
