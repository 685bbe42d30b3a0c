# SPDX-License-Identifier: Apache-2.0
"""An agent whose /run is full: notes are optional, the data plane is not."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.datapath.kernel.pins import Pins, unload
from lb.lab.lab import Lab
from lb.lab.processes import environment
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually

NODE = "node1"
FIRST, SECOND, THIRD = (f"10.96.0.{last}" for last in (101, 102, 103))
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node1, containers: [{ports: [{containerPort: 8080}]}]}
"""
FULL = """\
mount --bind /run/lbctl/lab /mnt
mount -t tmpfs -o "mode=0700,$1" none /run/lbctl
mkdir /run/lbctl/lab
mount --move /mnt /run/lbctl/lab
cat /dev/zero >/run/lbctl/filler
shift
exec "$@"
"""
"""What belongs to the lab stays where it is; of the rest of /run/lbctl the agent sees a full file system."""


def service(address: str) -> str:
    name = f"web-{address.rpartition('.')[2]}"
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: {address}, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
    )


@pytest.fixture
def bare(make_lab: MakeLab, tmp_path: Path) -> Iterator[Lab]:
    """A lab of one node without an agent."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "all.yaml").write_text(POD + service(FIRST))
    lab = make_lab(manifests=tmp_path / "manifests", nodes=1, agents=False)
    yield lab
    unload(Pins(lab.spec.instance(NODE)))
    remove(lab.spec.id)


@contextlib.contextmanager
def agent(lab: Lab, options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the node's agent meanwhile; its /run/lbctl is a full tmpfs of its own, mounted with options."""
    argv = ["unshare", "--mount", "sh", "-c", FULL, "sh", options, *lab.agent_command(NODE)]
    with (
        log.open("w") as words,
        subprocess.Popen(lab.command(NODE, argv), env=environment(), stdout=words, stderr=words) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def answers(lab: Lab, address: str) -> bool:
    return lab.run(NODE, ["curl", "-sf", "-m", "2", f"http://{address}/hostname"]).stdout.strip() == "web"


def test_a_full_run_costs_neither_a_change_nor_a_restart(bare: Lab, tmp_path: Path) -> None:
    manifest, served = Path(bare.spec.manifests) / "all.yaml", [FIRST]
    ready = bare.store.ready_file(NODE)
    for options, new in (
        ("size=64k", SECOND),
        ("size=64k,nr_inodes=3", THIRD),
    ):  # no room for contents; for a name
        log = tmp_path / options
        ready.unlink(missing_ok=True)
        with agent(bare, options, log) as process:
            eventually(lambda: ready.exists() or process.poll() is not None, "the agent", seconds=200)
            assert all(answers(bare, one) for one in served), log.read_text()
            served.append(new)
            manifest.write_text(POD + "".join(map(service, served)))
            eventually(lambda: all(answers(bare, one) for one in served), "the change", seconds=10)
            assert process.poll() is None, log.read_text()
        assert process.returncode == 0, log.read_text()
        assert "No space left on device" in log.read_text()
