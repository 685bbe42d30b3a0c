# SPDX-License-Identifier: Apache-2.0
"""From YAML to the maps' dump, with no kernel: one folder for each row of the Service contract.

``manifests/`` is what a user applies. ``expected.ipvsadm`` and ``expected.json`` are what ``lbctl maps dump
vips`` then shows on node1; ``expected.said`` is what is reported, and missing when that is nothing. To write
them anew after a change, and then read the difference: ``LB_UPDATE_GOLDEN=1 pytest tests/golden``.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.cli.forms import as_ipvsadm, as_objects
from lb.cli.output import formatted
from lb.config import Limits
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.view.dump import dump
from lb.errors import InputError
from lb.manifests import ManifestSource
from lb.model import Protocol
from lb.plan import plan_service
from lb.plan.types import Topology, VipKey
from lb.state import ClusterState
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import RememberedClaims

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/manifests"))
ADDRESSES = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
SOCKETS = frozenset(VipKey(ADDRESSES[0], port, Protocol.TCP) for port in (22, 8080))
NODE1 = Topology(
    "node1",
    zone="east",
    node_port_addresses=ADDRESSES,
    node_addresses=frozenset(ADDRESSES),
    sockets=SOCKETS,
)
LIMITS = Limits(vips=64, backends=256, table_rows=65_536, flows=16, affinity=16, services=64)


def outcome(case: Path) -> dict[str, str]:
    """Run the control plane over a case and return the text of each file expected."""
    errors: list[InputError] = []
    source = ManifestSource(
        [case / "manifests"],
        service_cidr="10.96.0.0/16,fd00:10:96::/108",
        node_port_range="30000-32767",
        report=errors.append,
    )
    state = ClusterState()
    state.apply(source.scan())
    assert state.synced
    state.settle()
    plans = {}
    for key in state.service_keys():
        service = state.service(key)
        assert service is not None
        plans[key] = plan_service(service, state.slices(key), NODE1, state.overlaps(key))
    decision = RememberedClaims().update(plans)
    maps = FakeMaps(LIMITS)
    assert not Reconciler(maps, lambda: 0.0).sync(decision.plans).errors
    shown = dump(maps, now_ns=0, sections=["vips", "addresses"])
    said = [str(error).replace(f"{case}{os.sep}manifests{os.sep}", "") for error in errors]
    said += [str(conflict) for conflict in decision.conflicts]
    said += [f"{key}: {one}" for key, plan in sorted(plans.items()) for one in plan.refusals]
    return {
        "expected.ipvsadm": as_ipvsadm(shown),
        "expected.json": formatted("json", as_objects(shown)),
        "expected.said": "".join(line + "\n" for line in said),
    }


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    for name, text in outcome(HERE / case).items():
        path = HERE / case / name
        if os.environ.get("LB_UPDATE_GOLDEN"):
            path.unlink(missing_ok=True)
            if text or name != "expected.said":
                path.write_text(text)
        assert text == (path.read_text() if path.exists() else ""), f"{path} differs"


def test_every_row_of_the_contract_that_the_plan_decides_is_here() -> None:
    assert set(CASES) >= {
        "affinity",
        "claims",
        "cluster-ip",
        "conflicts",
        "dual-stack",
        "external-ips",
        "external-name",
        "external-policy-local",
        "headless",
        "internal-policy-local",
        "load-balancer",
        "multi-port",
        "named-target-port",
        "node-port",
        "ping",
        "readiness",
        "sctp",
        "selectorless",
        "skip-labels",
        "source-ranges",
        "terminating",
        "topology",
    }
