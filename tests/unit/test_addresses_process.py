# SPDX-License-Identifier: Apache-2.0
"""``lbctl addresses run`` as a process: what it answers over HTTP, and its end."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

POOLS = "pools: [{name: edge, addresses: [203.0.113.0/24]}]\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(port: int, path: str, process: subprocess.Popen[str]) -> str:
    """Return what is answered, once the process listens."""
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as found:
                return str(found.read().decode())
        except urllib.error.URLError:
            assert process.poll() is None
            time.sleep(0.05)


def test_it_is_alive_has_metrics_and_ends(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "pools.yaml").write_text(POOLS)
    port = free_port()
    argv = [
        *("--source", f"manifests:{tmp_path / 'm'}", "--pools", str(tmp_path / "pools.yaml")),
        *("--state", str(tmp_path / "given.yaml"), "--metrics-address", f"127.0.0.1:{port}"),
    ]
    command = [sys.executable, "-m", "lb", "addresses", "run", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert answer(port, "/livez", process) == "ok\n"
            assert 'lbctl_pool_addresses{family="IPv4",pool="edge"} 256.0' in answer(
                port, "/metrics", process
            )
        finally:
            process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) == 0, said
    assert "Traceback" not in said
