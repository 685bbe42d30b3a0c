# SPDX-License-Identifier: Apache-2.0
"""Where the files are that are no Python: programs in C, examples, what a cluster must allow.

In a checkout they lie beside the package, each in its folder; a wheel has them inside of it, where
``setup.py`` puts them.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """Return the directory of one of the folders bpf, deploy, examples and examples-ipv6."""
    installed = _PACKAGE / "_shipped" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder
