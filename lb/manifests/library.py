# SPDX-License-Identifier: Apache-2.0
"""Folders of manifest files: what they hold now, with the last good version of what is broken.

The rules:

- Files end in .yaml, .yml or .json; hidden ones and editors' backups (``~``) do not count. Folders are read
  with all that is below them, hidden ones excepted.
- A file is read again only when its modification time, size or inode changed.
- A broken object, or a file that does not parse, leaves what was good as it was. A removed file takes its
  objects with it. A folder that is missing or unreadable, or a file that is unreadable, is a fault, not a
  removal.
- An object in two files of a folder is an error: the first path in sort order has it. Of two folders the
  later one has it, and that is none: so a folder of what is wanted (Pods) and one of what has come of it (the
  same Pods with their status) go together. A good version goes before a kept one.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lb.errors import ConfigError, InputError
from lb.folders import read_file
from lb.manifests.documents import Content, read
from lb.manifests.objects import ObjectId, Parsed, origin_of

SUFFIXES = (".yaml", ".yml", ".json")

RACY_SECONDS = 0.02
"""A file that changed less than this ago may change again within one time stamp; it is read again."""

EMPTY_SECONDS = 1.0
"""A file emptied less than this ago is being written (``kubectl get … > file``); it is left as it was."""

MOST_BYTES = 64 << 20
"""Size of a file that is read; Kubernetes takes objects of 1.5 MB."""

_Signature = tuple[int, int, int]


@dataclass(slots=True)
class _File:
    signature: _Signature | None = None
    objects: dict[ObjectId, Parsed] = field(default_factory=dict)
    kept: set[ObjectId] = field(default_factory=set)
    errors: list[InputError] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def folders(sources: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the folders of manifests that sources name, as ``manifests:DIR`` or as they are.

    Raises ConfigError: there is no such directory.
    """
    found = tuple(Path(str(source).removeprefix("manifests:")) for source in sources)
    for folder in found:
        if not folder.is_dir():
            raise ConfigError(f"source manifests:{folder}: there is no such directory")
    return found


class Library:
    """The files of some folders.

    clock gives seconds since the epoch, as files' time stamps do.
    """

    def __init__(self, directories: Sequence[Path], node_ports: range, clock: Callable[[], float]) -> None:
        self._directories = directories
        self._prefixes = [os.path.join(directory, "") for directory in directories]
        self._node_ports = node_ports
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._faults: list[InputError] = []

    def refresh(self) -> bool:
        """Look at the folders again; return whether anything was read or went away."""
        faults: list[InputError] = []
        found = dict(walk(self._directories, faults))
        changed = False
        for path, status in found.items():
            changed |= self._refresh_file(path, status)
        unreadable = tuple(fault.path for fault in faults)
        for path in self._files.keys() - found.keys():
            if not any(path == bad or path.startswith(bad.rstrip("/") + "/") for bad in unreadable):
                del self._files[path]
                changed = True
        changed |= [str(fault) for fault in faults] != [str(fault) for fault in self._faults]
        self._faults = faults
        return changed

    def _refresh_file(self, path: str, status: os.stat_result) -> bool:
        known = self._files.get(path)
        signature: _Signature | None = (status.st_mtime_ns, status.st_size, status.st_ino)
        if known is not None and known.signature == signature:
            return False
        age = self._clock() - status.st_mtime
        if known is not None and status.st_size == 0 and 0 <= age < EMPTY_SECONDS:
            return False
        if abs(age) < RACY_SECONDS:
            signature = None
        previous = known or _File()
        try:
            content = read(path, _text(path), self._node_ports)
        except FileNotFoundError:
            return False  # gone since the folder was listed; the next look sees that
        except InputError as error:
            content = Content(unnamed=True, errors=[error])
        except OSError as error:
            signature = None  # permissions change without a trace in the signature
            problem = InputError(path, 0, "", "", f"cannot be read: {error.strerror}")
            content = Content(unnamed=True, errors=[problem])
        kept = {
            identity: parsed
            for identity, parsed in previous.objects.items()
            if identity not in content.objects and (content.unnamed or identity in content.broken)
        }
        self._files[path] = _File(
            signature, {**content.objects, **kept}, set(kept), content.errors, content.passed_over
        )
        return True

    def contents(self) -> tuple[list[Parsed], list[InputError]]:
        """Return every object once, and all errors that stand."""
        chosen: dict[ObjectId, Parsed] = {}
        errors = [*self._faults]
        for path in sorted(self._files):
            errors.extend(self._files[path].errors)
        rank = {path: self._rank(path) for path in self._files}
        in_order = sorted(self._files, key=lambda path: (-rank[path], path))
        for wanted_kept in (False, True):
            for path in in_order:
                file = self._files[path]
                for identity, parsed in file.objects.items():
                    if (identity in file.kept) is not wanted_kept:
                        continue
                    first = chosen.setdefault(identity, parsed)
                    same_folder = rank[origin_of(first).path] == rank[path]
                    if first is not parsed and same_folder and not wanted_kept:
                        errors.append(_duplicate(identity, parsed, first))
        return list(chosen.values()), errors

    def passed_over(self) -> Counter[str]:
        """Return how many objects there are of each kind that is not read."""
        return sum((file.passed_over for file in self._files.values()), Counter[str]())

    def _rank(self, path: str) -> int:
        """Return which of the folders the file is in: the number of the last one that holds it."""
        return max(i for i, prefix in enumerate(self._prefixes) if path.startswith(prefix))


def _duplicate(identity: ObjectId, parsed: Parsed, first: Parsed) -> InputError:
    kind, key = identity
    origin = origin_of(parsed)
    words = f"is already defined in {origin_of(first)}; that one is used"
    return InputError(origin.path, origin.line, f"{kind} {key}", "", words)


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(path, 0, "", "", f"cannot be read, what it held stays: {error.strerror}")


def _text(path: str) -> str:
    data = read_file(Path(path), MOST_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(path, line, "", "", "is not UTF-8 text") from error


def walk(directories: Sequence[Path], faults: list[InputError]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of every manifest file, each once, and note what cannot be looked at."""
    seen: set[tuple[int, int]] = set()
    roots = sorted({str(directory) for directory in directories}, reverse=True)
    pending = [*roots]
    while pending:
        directory = pending.pop()
        try:
            status = os.stat(directory)
            names = sorted(os.listdir(directory))
        except OSError as error:
            if directory in roots or not isinstance(error, FileNotFoundError):
                faults.append(_unreadable(directory, error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = os.path.join(directory, name)
            if name.startswith(".") or name.endswith("~"):
                continue
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # removed meanwhile, or a link to nowhere
            except OSError as error:
                faults.append(_unreadable(path, error))
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode) and name.endswith(SUFFIXES):
                yield path, status
