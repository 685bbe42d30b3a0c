# SPDX-License-Identifier: Apache-2.0
"""A folder with a configuration of nginx: replacing it, and asking nginx what it thinks of it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from lb.ingress import nginx


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Make a folder hold these files, each whole, what they name first; only root may read them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in sorted(files, key=lambda each: each == nginx.MAIN):
        draft = folder / f".{name}"
        draft.touch(mode=0o600)
        draft.write_text(files[name])
        draft.rename(folder / name)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".conf", ".pem") and path.name not in files:
            path.unlink()


def refused(draft: Path, files: Mapping[str, str]) -> str:
    """Write a configuration into a folder of its own; return why nginx refuses it, ``""`` if it does not.

    nginx opens the ports to see whether it can, so it looks in a network of its own.
    """
    write(draft, files)
    command = ["unshare", "--net", "nginx", "-t", "-q", "-p", str(draft), "-c", str(draft / nginx.MAIN)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""
