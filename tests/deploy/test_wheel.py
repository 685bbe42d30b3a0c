# SPDX-License-Identifier: Apache-2.0
"""The wheel is whole: installed and away from the checkout, it compiles, loads, and a Service answers."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from tests.deploy.conftest import ROOT, Installed
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
    beside = {f"lb/_shipped/{name}" for folder in ("bpf", "deploy", "examples") for name in _files(folder)}
    assert names == _files("lb") | beside


def test_the_command_runs_from_the_wheel(installed: Installed) -> None:
    assert "usage: lbctl" in installed.run("lbctl", "--help")
    assert "usage: kubectl lb" in installed.run("kubectl-lb", "--help")
    assert installed.run("kubectl_complete-lb", "hist") == "history\n:4\n"
    where = installed.run("python", "-c", "import lb.datapath.maps.layouts as it; print(it.BPF_DIR)").strip()
    assert Path(where).is_relative_to(installed.bin.parent)
    assert _files("bpf") == {f"bpf/{path.relative_to(where)}" for path in Path(where).rglob("*.*")}


def test_a_lab_from_the_wheel_compiles_and_serves(installed: Installed) -> None:
    Path("/var/cache/lbctl").mkdir(mode=0o700, exist_ok=True)
    said = installed.run("unshare", "--mount", "sh", "-euc", _LAB, "sh", fresh_id())
    assert "You've hit kubia-" in said
    assert "-t 192.168.77.11:30123" in said
    assert re.search(r"^[0-9a-f]{16}-tc_lb-4\.json$", said, re.MULTILINE)
