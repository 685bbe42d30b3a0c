# SPDX-License-Identifier: Apache-2.0
"""The systemd unit: without mistakes, as closed as is documented, and for the agent that there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lb.agent import BEAT_SECONDS
from lb.cli.settings import from_file
from lb.datapath.kernel import privileges
from lb.served.health import STALE_SECONDS
from tests.deploy.conftest import ROOT

UNIT = ROOT / "deploy" / "systemd" / "lbctl.service"
SPEAKER = UNIT.with_name("lbctl-bgp.service")
ALLOCATOR = UNIT.with_name("lbctl-addresses.service")
MOST = 20
"""Tenths of the exposure level that it may have with any version of systemd; lower is less exposed."""


def analyze(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", [UNIT, SPEAKER, ALLOCATOR], ids=lambda path: path.name)
def test_systemd_finds_no_mistake(path: Path, tmp_path: Path) -> None:
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/lbctl/bin/lbctl", "/bin/true"))
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_its_exposure_is_as_documented() -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST}", str(UNIT))
    assert done.returncode == 0, done.stdout
    for path in (SPEAKER, ALLOCATOR):
        other = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST}", str(path))
        assert other.returncode == 0, other.stdout
    found = re.search(r"exposure level for lbctl\.service: ([0-9.]+)", done.stdout)
    stated = re.search(r"`systemd-analyze security` gives it ([0-9.]+)", operations())
    assert found is not None
    assert stated is not None
    assert abs(float(found[1]) - float(stated[1])) < 0.15, done.stdout  # versions of systemd differ a little


def test_it_has_the_capabilities_that_the_agent_asks_for() -> None:
    found = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    assert set(found[1].split()) == set(privileges.NEEDED)


def directive(name: str) -> str:
    """Return the value of a directive that stands once in the unit."""
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def test_the_settings_as_they_come_name_a_folder_that_is_there() -> None:
    """Without it the agent ends, and systemd starts it again for ever."""
    settings = from_file(UNIT.with_name("lbctl.yaml"))
    folders = {f"manifests:/etc/{each}" for each in directive("ConfigurationDirectory").split()}
    assert set(settings["sources"].texts) <= folders


def test_it_waits_for_the_first_sync_and_then_for_beats() -> None:
    assert (directive("Type"), directive("TimeoutStartSec")) == ("notify", "infinity")
    assert float(directive("WatchdogSec")) > STALE_SECONDS + BEAT_SECONDS


def operations() -> str:
    return (ROOT / "docs" / "operations.md").read_text()
