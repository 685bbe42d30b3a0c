# SPDX-License-Identifier: Apache-2.0
"""The benches work: tiny sizes, no word about the figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_control_plane(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    tiny = ["--services", "20", "--endpoints", "2", "--changes", "3", "--seconds", "0.2"]
    argv = [sys.executable, "-m", "bench.control_plane", *tiny, "--dual-stack", "--output", str(output)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    names = {figure["name"] for figure in found["figures"]}
    assert {"start to complete maps", "one change, event to map, p50", "CPU idle"} <= names
    for figure in found["figures"]:
        assert figure["name"] in done.stdout
        assert figure["unit"] in ("s", "ms", "MB", "% of a core")
