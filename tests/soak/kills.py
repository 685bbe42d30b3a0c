# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.kills [SECONDS [SEED]]``: agents killed at random moments, under change and load.

A lab of two nodes; its agents get SIGKILL after a random part of a second of life or of ten, and are started
again, while replicas come and go, readiness changes and Services are edited; what the dead agent has left in
/run/lbctl is damaged before every other start. Meanwhile new connections are
opened one after another and one is kept, from outside and from a pod, through the node whose agent dies.
After the last start an audit compares the maps with the manifests. Ends with 1 when a connection was lost or
something differs.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from lb.cli import main as cli
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.removal import down
from lb.rundir import RunDir
from tests.netns.test_changes import SPREAD, kept_connection, kubia, steady_client
from tests.netns.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
NODE = "node1"
CLUSTER_IP = ("10.66.5.6", 80)  # examples/kubia-nodeport.yaml
REPLICAS = 4


@dataclass(slots=True)
class Campaign:
    """What was tried and what was lost, in words."""

    seed: int
    kills: int = 0
    changes: int = 0
    damaged: int = 0
    connections: int = 0
    lost: list[str] = field(default_factory=list)


def change(lab: Lab, manifests: Path, chance: random.Random, keep: str) -> None:
    """Change something that leaves the pod that is kept ready: a pod's readiness, or a Service's ports."""
    others = [pod["name"] for pod in lab.pods() if pod["name"].startswith("kubia") and pod["name"] != keep]
    kind = chance.choice(("readiness", "service"))
    if kind == "readiness" and others:
        lab.ask_kubelet(chance.choice(("ready", "unready")), pod=chance.choice(others))
        return
    extra = manifests / "kills.yaml"
    port = chance.randrange(1000, 2000)
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: kills}\nspec:\n  selector: {app: kubia}\n"
        f"  ports: [{{port: {port}, targetPort: 8080}}]\n"
    )
    other = extra.with_suffix(".new")
    other.write_text(text)
    other.replace(extra)


def damage(run_dir: RunDir, chance: random.Random) -> None:
    """Put something else in the place of a file that an agent has left."""
    path = chance.choice((run_dir.notes_path, run_dir.lock_path, run_dir.socket_path))
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if chance.random() < 0.2:
        return
    if path != run_dir.lock_path and chance.random() < 0.5:
        path.symlink_to("nowhere") if chance.random() < 0.5 else os.mkfifo(path)
        return
    path.write_bytes(chance.choice((b"", content[: len(content) // 2], chance.randbytes(4096))))
    if chance.random() < 0.2:
        os.truncate(path, 1 << 40)


def campaign(seconds: float, seed: int) -> Campaign:
    """Kill and change for so long; return what was lost."""
    chance, done = random.Random(seed), Campaign(seed)
    with tempfile.TemporaryDirectory(prefix="lbctl-kills-") as folder:
        manifests = Path(folder) / "manifests"
        shutil.copytree(ROOT / "examples", manifests)
        spec = LabSpec(id=f"kill{os.getpid()}", manifests=str(manifests), replicas=REPLICAS)
        try:
            lab = Lab.up(spec, lambda line: print(f"lab: {line}", flush=True))
            _run(lab, manifests, chance, done, time.monotonic() + seconds)
        finally:
            down(spec.id, lambda _line: None)
    return done


def in_step(lab: Lab) -> bool:
    """Does ``lbctl audit`` find no difference on the node?"""
    words = ["audit", "--instance", lab.spec.instance(NODE)]
    return cli(words, out=io.StringIO(), err=io.StringIO()) == 0


def _run(lab: Lab, manifests: Path, chance: random.Random, done: Campaign, end: float) -> None:
    pod = kubia(lab)[0]["name"]
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(steady_client(lab, "client", SPREAD))
        inside = stack.enter_context(steady_client(lab, pod, CLUSTER_IP))
        ask = stack.enter_context(kept_connection(lab, "client", SPREAD))
        keep = ask()
        while time.monotonic() < end:
            lab.stop_agent(NODE, signal.SIGKILL)
            done.kills += 1
            for _ in range(chance.randrange(3)):
                change(lab, manifests, chance, keep)
                done.changes += 1
            if done.kills % 2:
                damage(RunDir(lab.spec.instance(NODE)), chance)
                done.damaged += 1
            lab.start_agent(NODE)
            time.sleep(chance.choice((0.0, chance.random(), chance.random() * 10)))
            if ask() != keep:
                done.lost.append(f"the kept connection, at kill {done.kills}")
                break
        lab.wait_agent(NODE)
    for where, result in (("outside", outside), ("pod", inside)):
        done.connections += sum(result["answers"].values())
        done.lost += [f"a connection from {where}: {text}" for text in result["failures"]]
    eventually(lambda: in_step(lab), "the maps are as the manifests say")


def main(seconds: float = 60.0, seed: int | None = None) -> int:
    """Run the campaign; return the exit code."""
    done = campaign(seconds, random.SystemRandom().randrange(1 << 32) if seed is None else seed)
    lost = "; ".join(done.lost[:5]) or "nothing"
    tried = (
        f"{done.kills} kills, {done.damaged} files damaged, {done.changes} changes,"
        f" {done.connections} connections"
    )
    print(f"kills: seed {done.seed}: {tried}, lost: {lost}")
    return bool(done.lost)


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False))))
