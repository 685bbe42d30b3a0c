"""Packages without what their ``__init__`` would import."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import Any


def bare_package(name: str, **members: str) -> None:
    """Make a package importable whose ``__init__`` is not run; its modules are imported as usual.

    Some packages import all that they have, tens of megabytes, for the one module that we use. members: what
    others look for in the package itself, and the module that each of these names is taken from. Where the
    package has been imported before, it stays as it is; where it is missing, importing it says so.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    bare = ModuleSpec(name, None, origin=spec.origin, is_package=True)
    bare.submodule_search_locations = spec.submodule_search_locations
    module: Any = module_from_spec(bare)

    def member(wanted: str) -> Any:
        if wanted not in members:
            raise AttributeError(f"{name} was imported without {wanted}")
        return getattr(import_module(members[wanted]), wanted)

    module.__getattr__ = member
    sys.modules[name] = module
