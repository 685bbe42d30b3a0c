# SPDX-License-Identifier: Apache-2.0
"""Packages without what their ``__init__`` would import, and classes imported when they are called."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
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


@contextlib.contextmanager
def late_classes(package: str, *names: str) -> Iterator[None]:
    """Give those who import these classes meanwhile something that imports the package when it is called.

    Where the package has been imported before, they get the classes themselves.
    """
    if package in sys.modules:
        yield
        return
    stand_in = ModuleType(package)
    for name in names:
        setattr(stand_in, name, functools.partial(_call, package, name))
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        del sys.modules[package]


def _call(package: str, name: str, *args: Any, **more: Any) -> Any:
    return getattr(import_module(package), name)(*args, **more)
