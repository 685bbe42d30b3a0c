# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest: a module's text is another file's, as the variable ``MUTANT=module=file`` says.

pytest imports it before anything of lb.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType


class Instead:
    """Finds the one module, under its own name."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Be a finder of sys.meta_path."""
        if name != self._name:
            return None
        assert PathFinder.find_spec(name, path, target), f"there is no module {name}"
        return spec_from_file_location(name, self._path, loader=SourceFileLoader(name, self._path))


if "MUTANT" in os.environ:
    _name, _, _path = os.environ["MUTANT"].partition("=")
    assert _name not in sys.modules, f"{_name} is imported already"
    sys.meta_path.insert(0, Instead(_name, _path))
