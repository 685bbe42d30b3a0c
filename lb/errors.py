# SPDX-License-Identifier: Apache-2.0
"""The one exception tree of the project.

::

    LbError                     anything that lbctl itself reports; never a bug's traceback
    ├── ConfigError             a setting is wrong: names the setting and where it came from
    │   └── UsageError          a word of the command line is wrong: exit code 2
    ├── InputError              a Kubernetes object is wrong: names file or API path, line, object, field
    ├── CapacityError           a map or a pool has no room: names the map, the room and the demand
    ├── DatapathError           the kernel side failed
    │   ├── BpfError            a bpf() call failed: names the command, the map or program, the errno
    │   ├── CompileError        clang or the verifier refused a program: carries their words
    │   └── AttachError         a program could not be attached: names the interface and the hook
    └── LabError                the namespace lab could not do what was asked
"""

from __future__ import annotations

import os
from dataclasses import dataclass


class LbError(Exception):
    """Base of every error that is reported to a person in one line."""


class ConfigError(LbError):
    """A setting is wrong. The message names the setting and its origin."""


class UsageError(ConfigError):
    """A word of the command line is wrong in a way that needs no look at this machine to be seen."""


@dataclass(eq=False)
class InputError(LbError):
    """A Kubernetes object that cannot be used, or a part of it that cannot.

    path: file path or API path of the object.
    line: 1-based line in that file; 0 when there is none (API objects).
    object: ``"Service default/web"``; empty when the document could not be parsed so far.
    field: dotted path, ``"spec.ports[0].targetPort"``; empty when the whole object is meant.
    message: what is wrong and what would be right.
    used: whether the object is used all the same, so that this is a warning.
    """

    path: str
    line: int
    object: str
    field: str
    message: str
    used: bool = False

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        parts = [where, *(part for part in (self.object, self.field) if part)]
        return ("warning: " if self.used else "") + ": ".join((*parts, self.message))


@dataclass(eq=False)
class CapacityError(LbError):
    """A kernel map or a pool is full.

    resource: the map's or the pool's name, for example ``"tables"``.
    capacity: entries that it can hold.
    wanted: entries that would have been needed.
    setting: the setting that raises the capacity.
    """

    resource: str
    capacity: int
    wanted: int
    setting: str

    def __str__(self) -> str:
        return (
            f"{self.resource} is full: {self.wanted} entries wanted, {self.capacity} possible;"
            f" raise the setting {self.setting}"
        )


class DatapathError(LbError):
    """The kernel side failed."""


@dataclass(eq=False)
class BpfError(DatapathError):
    """A bpf() system call failed.

    command: the bpf() command, for example ``"MAP_UPDATE_BATCH"``.
    subject: the map, the program or the path that it was about.
    errno: the kernel's error number.
    """

    command: str
    subject: str
    errno: int

    def __str__(self) -> str:
        return f"bpf({self.command}) on {self.subject}: {os.strerror(self.errno)}"


class CompileError(DatapathError):
    """clang or the kernel's verifier refused a program; the message carries their words."""


class AttachError(DatapathError):
    """A program could not be attached; the message names the interface and the hook.

    errno is the kernel's error number; 0 when the reason is not the kernel's.
    """

    errno: int = 0


class LabError(LbError):
    """The namespace lab could not do what was asked."""
