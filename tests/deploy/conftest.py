# SPDX-License-Identifier: Apache-2.0
"""The wheel, built once and installed into an environment of its own, as docs/operations.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("bpf", "deploy", "examples", "examples-ipv6", "lb", "LICENSES"),
    *("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"),
)


@dataclass(frozen=True, slots=True)
class Installed:
    """A wheel, and the environment that it is installed in; every command runs outside of the checkout."""

    wheel: Path
    bin: Path
    elsewhere: Path

    def environment(self) -> dict[str, str]:
        """Return this process's variables without those that would lead back to the checkout."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LBCTL_"))
        }
        return {**kept, "PATH": f"{self.bin}:{kept['PATH']}"}

    def run(self, *argv: str) -> str:
        """Run a command, which must succeed; return its output."""
        done = subprocess.run(
            argv, cwd=self.elsewhere, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout


def checkout(target: Path) -> None:
    """Copy what a wheel is built from: building leaves files behind."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel beside Debian's packages; what it depends on is lent by the tests' environment."""
    base = tmp_path_factory.mktemp("installed")
    sources, elsewhere, venv = base / "sources", base / "elsewhere", base / "venv"
    sources.mkdir()
    elsewhere.mkdir()
    checkout(sources)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", base, sources], check=True
    )
    (wheel,) = base.glob("lbctl-*.whl")
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", venv], check=True)
    (site,) = venv.glob("lib/*/site-packages")
    (site / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    result = Installed(wheel, venv / "bin", elsewhere)
    result.run(str(venv / "bin" / "pip"), "--quiet", "install", "--no-index", "--no-deps", str(wheel))
    return result
