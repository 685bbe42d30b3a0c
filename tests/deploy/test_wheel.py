# SPDX-License-Identifier: Apache-2.0
"""The wheel is whole: installed and away from the checkout, it compiles, loads, and a Service answers."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import lb
from lb.cli.manual import manual
from tests.deploy.conftest import ROOT, Installed
from tests.deploy.test_requirements import pins
from tests.netns.conftest import fresh_id

_LAB = """
mount -t tmpfs none /var/cache/lbctl  # hides what this machine has compiled before
trap 'lbctl lab down --id "$1" >&2' EXIT
lbctl lab up --id "$1" --nodes 1 >&2
lbctl lab exec --id "$1" client -- curl -sm 3 http://192.168.77.11:30123
lbctl maps dump -o ipvsadm --instance "$1.node1"
ls /var/cache/lbctl
"""
"""All in one mount namespace, because a lab keeps its namespaces by mounts."""


def _files(folder: str) -> set[str]:
    """Return the files of a folder of the checkout by their path in it."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    shipped = ("bpf", "deploy", "examples", "examples-ipv6")
    beside = {f"lb/_shipped/{name}" for folder in shipped for name in _files(folder)}
    assert names == _files("lb") | beside | {f"lbctl-{lb.__version__}.data/data/share/man/man1/lbctl.1"}


def test_man_finds_the_page(installed: Installed) -> None:
    page = installed.bin.parent / "share" / "man" / "man1" / "lbctl.1"
    assert page.read_text() == manual()


def test_the_command_runs_from_the_wheel(installed: Installed) -> None:
    assert "usage: lbctl" in installed.run("lbctl", "--help")
    assert "usage: kubectl lb" in installed.run("kubectl-lb", "--help")
    assert installed.run("kubectl_complete-lb", "hist") == "history\n:4\n"
    where = installed.run("python", "-c", "import lb.datapath.maps.layouts as it; print(it.BPF_DIR)").strip()
    assert Path(where).is_relative_to(installed.bin.parent)
    assert _files("bpf") == {f"bpf/{path.relative_to(where)}" for path in Path(where).rglob("*.*")}


def test_the_wheel_says_what_pyproject_does(installed: Installed) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        found = email.message_from_string(archive.read(name).decode())
        licences = {Path(each).name for each in archive.namelist() if ".dist-info/licenses/" in each}
    assert (found["Name"], found["Version"]) == ("lbctl", lb.__version__)
    assert found["Requires-Python"] == project["requires-python"]
    assert found["License-Expression"] == project["license"]
    assert licences == {"LICENSE", "Apache-2.0.txt", "BSD-2-Clause.txt", "GPL-2.0-only.txt"}
    assert found.get_all("Classifier") == project["classifiers"]
    assert found["Keywords"].split(",") == project["keywords"]
    assert len(found.get_all("Requires-Dist", [])) == len(project["dependencies"])
    assert "Project-URL" not in found
    assert found.get_payload() == (ROOT / "README.md").read_text()


def test_pipx_installs_the_command(installed: Installed, tmp_path: Path) -> None:
    """As docs/operations.md says, with bcc of the distribution, and packages of the locked versions."""
    locked = tmp_path / "locked"
    locked.write_text("".join(f"{name}=={pin.version}\n" for name, pin in pins("run").items() if pin.here))
    environment = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    environment["PIPX_MAN_DIR"] = str(tmp_path / "man")
    pipx = f"{sys.executable} -m pipx install --quiet --skip-maintenance"
    argv = [*pipx.split(), "--system-site-packages", "--python", "/usr/bin/python3", str(installed.wheel)]
    done = subprocess.run(
        [*argv, f"--pip-args=--no-compile --constraint {locked}"],
        env=installed.environment() | environment,
        cwd=installed.elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "bin").iterdir()} == {
        "lbctl",
        "kubectl-lb",
        "kubectl_complete-lb",
    }
    assert (tmp_path / "man" / "man1" / "lbctl.1").exists()
    assert installed.run(str(tmp_path / "bin" / "lbctl"), "version").startswith(f"lbctl {lb.__version__}\n")
    python = tmp_path / "home" / "venvs" / "lbctl" / "bin" / "python"
    assert installed.run(str(python), "-c", "import bcc; print(bcc.__name__)") == "bcc\n"


def test_a_lab_from_the_wheel_compiles_and_serves(installed: Installed) -> None:
    Path("/var/cache/lbctl").mkdir(mode=0o700, exist_ok=True)
    said = installed.run("unshare", "--mount", "sh", "-euc", _LAB, "sh", fresh_id())
    assert "You've hit kubia-" in said
    assert "-t 192.168.77.11:30123" in said
    assert re.search(r"^[0-9a-f]{16}-tc_lb-4\.json$", said, re.MULTILINE)
