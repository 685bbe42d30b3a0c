# SPDX-License-Identifier: Apache-2.0
"""requirements/: exact versions with hashes of all that pyproject.toml names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.conftest import ROOT

FOLDER = ROOT / "requirements"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+?))? \\")
_HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock: its version, for which environments, and how many files have a hash."""

    version: str
    here: bool
    hashes: int


def lines(name: str) -> list[str]:
    text = (FOLDER / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(name: str) -> dict[str, Pin]:
    """Return the packages of one lock; every line of it has to be understood."""
    found: dict[str, Pin] = {}
    package = ""
    for line in lines(name):
        if match := _PIN.fullmatch(line):
            package, marker = match["name"], match["marker"]
            here = not marker or Requirement(f"{package} ; {marker}").marker.evaluate()  # type: ignore[union-attr]
            assert package not in found, "one version for every Python"
            found[package] = Pin(match["version"], here, 0)
        else:
            assert _HASH.fullmatch(line), f"{name}.txt: {line}"
            pin = found[package]
            found[package] = Pin(pin.version, pin.here, pin.hashes + 1)
    return found


def group(name: str) -> Iterator[str]:
    for entry in PROJECT["dependency-groups"][name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from group(entry["include-group"])


WANTED: dict[str, list[str]] = {
    "build": PROJECT["build-system"]["requires"],
    "run": PROJECT["project"]["dependencies"],
    **{name: list(group(name)) for name in ("dev", "vm", "tools", "lock")},
}
"""What each lock is made from; the group bench is part of dev."""


def test_there_is_a_lock_of_everything() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(WANTED)
    assert set(PROJECT["dependency-groups"]) == {*WANTED, "bench"} - {"build", "run"}
    assert "optional-dependencies" not in PROJECT["project"]


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_covers_what_pyproject_names(name: str) -> None:
    locked = pins(name)
    for text in WANTED[name]:
        requirement = Requirement(text)
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin is not None, f"requirements/{name}.txt lacks {text}: run make lock"
        assert requirement.specifier.contains(pin.version), f"{text}, locked {pin.version}: run make lock"


@pytest.mark.parametrize("name", WANTED)
def test_every_version_has_hashes_and_no_line_names_a_registry(name: str) -> None:
    locked = pins(name)
    assert locked
    assert all(pin.hashes for pin in locked.values())
    assert "://" not in (FOLDER / f"{name}.txt").read_text()


def test_locks_that_are_installed_together_agree() -> None:
    versions: dict[str, str] = {}
    for name in ("build", "run", "dev", "vm"):
        for package, pin in pins(name).items():
            assert versions.setdefault(package, pin.version) == pin.version, package


@pytest.mark.parametrize("name", ["build", "run", "dev"])
def test_these_tests_run_with_what_is_locked(name: str) -> None:
    for package, pin in pins(name).items():
        if pin.here:
            assert metadata.version(package) == pin.version, f"{package}: run scripts/setup dev"


@pytest.mark.parametrize("text", WANTED["run"])
def test_what_the_wheel_needs_is_bounded_above(text: str) -> None:
    assert {each.operator for each in Requirement(text).specifier} == {">=", "<"}


PLACES = [
    "scripts/setup",
    "scripts/lock",
    "deploy/Containerfile",
    "vagrant/agent.sh",
    "docs/operations.md",
    "README.md",
    "CONTRIBUTING.md",
]
LOCKED = ("--require-hashes", "--no-deps --no-build-isolation", "dist/lbctl-", "/dist/lbctl-")
"""Either every file has to have a known hash, or nothing but lbctl itself is built or installed."""


@pytest.mark.parametrize("place", PLACES)
def test_nobody_installs_what_is_not_locked(place: str) -> None:
    path = Path(ROOT, place)
    text = path.read_text() if path.exists() else ""
    commands = re.findall(r"^.*\bpip (?:install|wheel|download)\b.*$", text.replace("\\\n", ""), re.MULTILINE)
    for command in commands:
        assert any(each in command for each in LOCKED), command
