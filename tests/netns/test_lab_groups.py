# SPDX-License-Identifier: Apache-2.0
"""The control groups of a lab's nodes, on the machine's real cgroup v2."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from lb.errors import LabError
from lb.lab import cgroups
from lb.lab.processes import ProcessRef, kill


@pytest.fixture
def lab() -> Iterator[str]:
    name = f"u{os.getpid()}"
    yield name
    cgroups.remove_lab(name)


def test_a_process_is_in_its_group_under_its_own_id(lab: str) -> None:
    node = cgroups.of_node(lab, "node1")
    pod = node / "pod"
    cgroups.create(pod)
    with subprocess.Popen(
        cgroups.command(pod, ["cat"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"x")
        cat.stdin.flush()
        assert cat.stdout.read(1) == b"x"  # cat runs
        assert cgroups.pids(node) == cgroups.pids(pod) == {cat.pid}
        with pytest.raises(LabError, match=r"control group .*/pod: Device or resource busy"):
            cgroups.remove(node)
        ref = ProcessRef.of(cat.pid)
        assert ref is not None
        assert kill([ref]) == []
    cgroups.remove(node)
    assert not node.exists()
    assert cgroups.pids(node) == set()


def test_a_command_that_cannot_enter_its_group_does_not_run(lab: str) -> None:
    done = subprocess.run(
        cgroups.command(cgroups.of_node(lab, "no"), ["echo", "ran"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "ran" not in done.stdout
