# SPDX-License-Identifier: Apache-2.0
"""Load-balancer addresses out of a lab's pool: connections from outside arrive, over both families."""

from __future__ import annotations

import functools
import io
import json
import signal
from pathlib import Path
from typing import Any

import yaml

from lb.cli import main
from lb.lab import balancer
from lb.lab.lab import Lab
from lb.lab.processes import kill
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {{app: kubia}}
  ports: [{{port: 80, targetPort: 8080}}]
"""


def answers(lab: Lab, address: str) -> bool:
    """Tell whether a pod answers the client at an address."""
    host = f"[{address}]" if ":" in address else address
    done = lab.run("client", ["curl", "-s", "-m", "5", f"http://{host}/"])
    return done.stdout.startswith("You've hit")


def given(lab: Lab) -> dict[str, list[str]]:
    """Return the addresses by Service, as the file says."""
    objects = yaml.safe_load_all(lab.store.addresses.read_text())
    return {each["metadata"]["name"]: each.get("addresses", []) for each in objects if each}


def said(lab: Lab, *argv: str) -> dict[str, Any]:
    """Run a command about node1 and return what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    main([*argv, "--instance", lab.spec.instance("node1"), "-o", "json"], out=out, err=err)
    found: dict[str, Any] = json.loads(out.getvalue() or "{}")
    assert found, err.getvalue()
    return found


def test_address_pool_answers_in_both_families(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=2, replicas=2)
    manifests = Path(lab.spec.manifests)
    assert answers(lab, "203.0.113.22"), "the example, which names its address"

    (manifests / "edge.yaml").write_text(SERVICE.format(name="edge"))
    eventually(lambda: len(given(lab).get("edge", ())) == 2, "edge has two addresses")
    before = given(lab)
    assert before["edge"] == ["203.0.113.1", "2001:db8:203::1"]
    for address in before["edge"]:
        eventually(functools.partial(answers, lab, address), f"{address} answers")
    note = "203.0.113.1 from pool lab, 2001:db8:203::1 from pool lab"
    [shown] = said(lab, "service", "show", "edge")["balanced"]
    assert shown == {"service": "default/edge", "addresses": before["edge"], "note": note}

    full = SERVICE.format(name="refused").replace(
        "{name: refused}", '{name: refused, annotations: {lbctl/addresses: "198.51.100.99"}}'
    )
    (manifests / "refused.yaml").write_text(full)
    why = "198.51.100.99, which it names, is in no pool"
    eventually(lambda: why in str(said(lab, "service", "list")["balanced"]), "service list says why not")
    report = said(lab, "explain", "refused", "--no-probes")
    (manifests / "refused.yaml").unlink()
    [found] = [each for each in report["findings"] if each["step"] == "load balancer"]
    assert (found["result"], found["cause"]) == ("ok", "")  # it has its address of the other family
    assert why in found["found"]

    # Whoever gives addresses is killed; the next one begins where that ended.
    process = lab.store.process(balancer.NAME)
    assert process is not None
    assert not kill([process], signal.SIGKILL)
    eventually(
        lambda: lab.store.running(balancer.NAME) not in (None, process), "it is started anew by itself"
    )
    eventually(lambda: not lab.status()["errors"], "and status is content")
    (manifests / "a-new-one.yaml").write_text(SERVICE.format(name="a-new-one"))
    eventually(lambda: len(given(lab).get("a-new-one", ())) == 2, "the new one has two addresses")
    assert {name: given(lab)[name] for name in before} == before
    for address in given(lab)["a-new-one"]:
        eventually(functools.partial(answers, lab, address), f"{address} answers")
