# SPDX-License-Identifier: Apache-2.0
"""What somebody types who follows the notes, and what comes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lb.cli import main
from lb.lab.lab import Lab

KUBECTL = Path(sys.executable).with_name("kubectl")


def typed(lab: Lab, where: str, *argv: str) -> str:
    """Return what a command prints at a place of the lab; it has to succeed."""
    done = lab.run(where, argv, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def curl(lab: Lab, where: str, url: str) -> str:
    """Return what an HTTP server answers."""
    return typed(lab, where, "curl", "-sS", "-m", "10", url)


def code(lab: Lab, where: str, url: str) -> int:
    """Return curl's exit code: 0 answered, 6 no such name, 7 refused, 28 silence."""
    return int(lab.run(where, ["curl", "-s", "-m", "5", "-o", "/dev/null", url]).returncode)


def answered(lab: Lab, where: str, url: str, count: int = 12) -> set[str]:
    """Return the pods that answer so many requests."""
    return {curl(lab, where, url).split()[2] for _ in range(count)}


def looked_up(lab: Lab, pod: str, name: str) -> set[str]:
    """Return the addresses that ``nslookup`` prints after those of the server."""
    done = lab.run(pod, ["nslookup", name], timeout=60)
    _, _, answer = done.stdout.partition("\n\n")
    return {line.split()[1] for line in answer.splitlines() if line.startswith("Address:")}


def addresses(lab: Lab, beginning: str) -> set[str]:
    """Return the addresses of the pods whose names begin so."""
    return {each["address"] for each in lab.pods() if each["name"].startswith(beginning)}


def lbctl(lab: Lab, *argv: str) -> str:
    """Return what lbctl says about node1."""
    out = io.StringIO()
    main([*argv, "--instance", lab.spec.instance("node1")], out=out, err=out)
    return out.getvalue()


def causes(lab: Lab, service: str) -> list[str]:
    """Return the causes that ``lbctl explain`` finds."""
    found: dict[str, Any] = json.loads(lbctl(lab, "explain", service, "-o", "json"))
    return list(found["causes"])


def in_ipvs(lab: Lab, place: str) -> list[str]:
    """Return what stands below a virtual server in the view of ipvsadm; nothing where there is none.

    place is ``-t 10.66.13.240:80``.
    """
    below: list[str] = []
    inside = False
    for line in lbctl(lab, "maps", "dump", "-o", "ipvsadm").splitlines():
        if line.startswith("-A "):
            inside = line.startswith(f"-A {place} ")
        elif inside:
            below.append(line.partition(" -r ")[2].split()[0])
    return below


def kubectl(lab: Lab, *words: str, given: str = "") -> str:
    """Return what kubectl prints; given is its standard input. It has to succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [str(KUBECTL), *words],
        env={**kept, "KUBECONFIG": str(lab.store.kubeconfig), "HOME": str(lab.store.base)},
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout
