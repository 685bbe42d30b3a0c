# SPDX-License-Identifier: Apache-2.0
"""Puts the folders that lie beside the package in a checkout into a wheel; all else is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("bpf", "deploy", "examples")
"""What :func:`lb.shipped.shipped` finds."""


class BuildWithFolders(build_py):
    """Builds the package, and copies the folders into it as ``lb/_shipped/``."""

    def run(self) -> None:
        """Build; an editable installation reads the folders where they are."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "lb", "_shipped", name)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, whose files may have gone since
            shutil.copytree(name, target)


setup(cmdclass={"build_py": BuildWithFolders})
