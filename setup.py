# SPDX-License-Identifier: Apache-2.0
"""Puts into a wheel what is not the package: folders that lie beside it in a checkout, and the manual page.

All else is in pyproject.toml.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MANUAL = Path("build", "man", "lbctl.1")
SHIPPED = ("bpf", "deploy", "examples", "examples-ipv6")
"""What :func:`lb.package_files.shipped` finds."""


class BuildWithFolders(build_py):
    """Builds the package with the folders in it as ``lb/_shipped/``, and the manual page beside it."""

    def run(self) -> None:
        """Build; an editable installation reads the folders where they are."""
        super().run()
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from lb.cli.manual import manual  # noqa: PLC0415  (imports nothing that has to be installed)

        MANUAL.parent.mkdir(parents=True, exist_ok=True)
        MANUAL.write_text(manual())
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "lb", "_shipped", name)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, whose files may have gone since
            shutil.copytree(name, target)


setup(cmdclass={"build_py": BuildWithFolders}, data_files=[("share/man/man1", [str(MANUAL)])])
