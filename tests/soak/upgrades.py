# SPDX-License-Identifier: Apache-2.0
"""``make test-upgrades``: to every version and back, under traffic, with nothing lost.

``python -m tests.soak.upgrades [REVISION …]``: git revisions, oldest first; without any, the newest tags, or
where there is none :data:`MILESTONES`, and ``layout``, the working tree with another struct. The working tree
is always the last one. Each revision is unpacked in a folder of its own, and its agent runs on one node of a
lab of this tree. The way goes from the working tree to each revision and back: ten seconds a change when
everything is compiled.

During each change: new connections one after another, one connection that is kept, and what is the node's own
(ARP, neighbour discovery, pings, a server that no Service leads to). Ends with 1 when anything was lost.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.errors import LbError
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.processes import environment, spawn
from lb.lab.removal import down
from tests.netns.test_changes import kept_connection, steady_client
from tests.netns.test_fail_open import NODE, NODE_PORT, check_node, plain_server

ROOT = Path(__file__).resolve().parents[2]
MILESTONES = ("3aca03b", "9eb1f74", "b10589e")
"""Before there were tags: the last one with filters alone, the first one with tcx, the end of 0.1.0."""
NEWEST_TAGS = 3
START_SECONDS = 300.0  # of a version that compiles on a busy machine


@dataclass(frozen=True, slots=True)
class Version:
    """A version: its name, and the folder that holds it."""

    name: str
    tree: Path

    def environment(self) -> dict[str, str]:
        """Return the environment in which Python imports this version."""
        return {**environment(), "PYTHONPATH": str(self.tree)}

    def flags(self) -> set[str]:
        """Return the flags that the version's agent knows; other settings have their defaults in a lab."""
        argv = [sys.executable, "-P", "-m", "lb", "run", "--help"]
        done = subprocess.run(argv, env=self.environment(), check=True, capture_output=True, text=True)
        return set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))

    def check(self) -> None:
        """Make sure that it is this version that Python imports."""
        argv = [sys.executable, "-P", "-c", "import lb; print(lb.__file__)"]
        done = subprocess.run(argv, env=self.environment(), check=True, capture_output=True, text=True)
        assert Path(done.stdout.strip()).is_relative_to(self.tree), done.stdout


def git(*words: str) -> str:
    """Return what git prints about this tree."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout


def revisions(given: Sequence[str]) -> list[str]:
    """Return the revisions to test beside the working tree, oldest first."""
    if given:
        return list(given)
    tags = git("tag", "--sort=-creatordate").split()[:NEWEST_TAGS]
    return [*(tags[::-1] or MILESTONES), LAYOUT]


def unpacked(revision: str, folder: Path) -> Version:
    """Unpack a revision below a folder."""
    tree = folder / revision.replace("/", "-")
    tree.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return Version(revision, tree)


LAYOUT = "layout"
"""In a revision's place: the working tree with other structs."""
_PATCHES = (
    ("\tu32 generation; /* of the backend slot when the flow was made */\n", "\tu64 extra;\n", True),
    ("[FAMILY == 6 ? 24 : 8]; /* to whole cache lines */", "[FAMILY == 6 ? 16 : 0];", False),
)
"""A flow with a field more: where in bpf/types.h, what, and whether behind it or in its place."""


def with_other_layout(folder: Path) -> Version:
    """Copy the working tree, and add a field to flows."""
    tree = folder / LAYOUT
    for part in ("lb", "bpf", "deploy"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    types = tree / "bpf" / "types.h"
    text = types.read_text()
    for old, new, behind in _PATCHES:
        assert old in text, old
        text = text.replace(old, f"{old}{new}" if behind else new, 1)
    types.write_text(text)
    return Version("the same with a field more in flows", tree)


def tour(count: int) -> Iterator[int]:
    """Yield the numbers of versions: the last one before and after each other one.

    What the others do among themselves cannot be mended any more: on the way from 0.1.0 to a version that
    attaches in filters alone, the node's network ends.
    """
    yield count - 1
    for number in range(count - 1):
        yield from (number, count - 1)


def start(lab: Lab, version: Version) -> None:
    """Start the agent of a version on the node and wait until it serves."""
    lab.store.ready_file(NODE).unlink(missing_ok=True)
    known = version.flags()
    words = [
        each for each in lab.agent_command(NODE) if not each.startswith("--") or each.split("=")[0] in known
    ]
    argv = lab.command(NODE, ["env", "--chdir=/", *words])  # Python looks there first
    lab.store.write_process(NODE, spawn(argv, lab.store.log(NODE), version.environment()))
    lab.wait_agent(NODE, START_SECONDS)


def change(lab: Lab, to: Version) -> list[str]:
    """Put the agent of a version in the place of the one that runs; return what was lost."""
    with steady_client(lab, "client", NODE_PORT) as result, kept_connection(lab, "client", NODE_PORT) as ask:
        name = ask()
        lab.stop_agent(NODE)
        start(lab, to)
        time.sleep(2.0)  # what is left to be removed goes now
        try:
            check_node(lab)
            lost = []
        except AssertionError as error:
            lost = [f"the node's own network: {error}"]
        if ask() != name:
            lost.append("the kept connection")
    return lost + [f"a new connection: {text}" for text in result["failures"]]


def campaign(given: Sequence[str]) -> int:
    """Run all changes; return how many lost something."""
    bad = 0
    with tempfile.TemporaryDirectory(prefix="lbctl-upgrades-") as folder:
        versions = [
            with_other_layout(Path(folder)) if revision == LAYOUT else unpacked(revision, Path(folder))
            for revision in revisions(given)
        ]
        versions.append(Version("working tree", ROOT))
        for version in versions:
            version.check()
        manifests = Path(folder) / "manifests"
        shutil.copytree(ROOT / "examples", manifests)
        spec = LabSpec(id=f"up{os.getpid()}", manifests=str(manifests))
        try:
            lab = Lab.up(spec, lambda line: print(f"lab: {line}", flush=True))
            way = list(tour(len(versions)))
            with plain_server(lab):
                for before, after in itertools.pairwise(way):
                    began = time.monotonic()
                    try:
                        lost = change(lab, versions[after])
                    except LbError as error:
                        lost = [str(error)]
                    words = (
                        f"{versions[before].name} → {versions[after].name}, {time.monotonic() - began:.0f} s"
                    )
                    print(f"{words}: {'; '.join(lost[:5]) or 'nothing lost'}", flush=True)
                    bad += bool(lost)
        finally:
            down(spec.id, lambda _line: None)
    return bad


if __name__ == "__main__":
    sys.exit(1 if campaign(sys.argv[1:]) else 0)
