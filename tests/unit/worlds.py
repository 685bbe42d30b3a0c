# SPDX-License-Identifier: Apache-2.0
"""A node of manifests, with maps in Python's memory, for tests of what commands tell about it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lb.config import Config
from lb.diagnose import audit
from lb.diagnose.audit import Comparison
from lb.diagnose.facts import Facts
from lb.diagnose.gather import targets
from lb.diagnose.probe import Outcome
from lb.diagnose.snapshot import ManifestReader, Snapshot
from lb.model import ObjectKey
from lb.plan.types import Topology
from tests.fake_maps import FakeMaps

NODE_ADDRESS = ip_address("192.168.77.11")
HERE = Topology(
    node_name="node1",
    node_port_addresses=(NODE_ADDRESS,),
    node_addresses=frozenset({NODE_ADDRESS}),
)
WEB = ObjectKey("default", "web")
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: web}}
spec: {nodeName: NODE, containers: [{name: main, ports: [{name: http, containerPort: 8080}]}]}
status:
  phase: Running
  podIP: ADDRESS
  conditions: [{type: ContainersReady, status: "True"}, {type: Ready, status: "True"}]
---
"""
ONE = POD.replace("NAME", "one").replace("NODE", "node1").replace("ADDRESS", "10.244.1.2")
TWO = POD.replace("NAME", "two").replace("NODE", "node2").replace("ADDRESS", "10.244.2.2")
WELL = SERVICE + ONE + TWO


@dataclass(slots=True)
class World:
    """A folder of manifests, and maps that were in step with it once."""

    reader: ManifestReader
    maps: FakeMaps

    def snapshot(self) -> Snapshot:
        return self.reader.snapshot()

    def compare(self) -> Comparison:
        return audit.compare(self.maps, self.snapshot().state, HERE)

    def facts(self, key: ObjectKey = WEB, **outcomes: str) -> Facts:
        """Return what gather() would, when every target answers but those whose kind has an outcome."""
        snapshot, compared = self.snapshot(), self.compare()
        service = self.reader.service(key)
        errors = [str(one) for one in snapshot.errors if one.object == f"Service {key}"]
        facts = Facts(key, service, errors=errors, topology=HERE, clients={4: NODE_ADDRESS})
        facts.pods = self.reader.pods(key.namespace)
        facts.slices = snapshot.state.slices(key)
        facts.plan = compared.plans.get(key)
        facts.failed = compared.failed.get(key, "")
        facts.conflicts = [one for one in compared.conflicts if one.loser == key]
        facts.differences = [one for one in compared.differences if one.service == str(key)]
        if facts.plan:
            straight, through = targets(facts.plan)
            facts.outcomes = [
                Outcome(one, outcomes.get("endpoint" if one.kind == "endpoint" else "vip", "answers"))
                for one in (*straight, *through)
            ]
        return facts


def world(folder: Path, text: str = WELL) -> World:
    """Return a world with these manifests, its maps in step."""
    (folder / "all.yaml").write_text(text)
    made = World(ManifestReader(Config(sources=(f"manifests:{folder}",))), FakeMaps())
    audit.bring_in_step(made.maps, made.snapshot().state, HERE)
    return made
