# SPDX-License-Identifier: Apache-2.0
"""Two Services that claim one external address and port: who serves it, and who is named."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.cli import main
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.pinned import url
from tests.netns.waiting import eventually

NODES = ("node1", "node2")
SHARED = {4: "203.0.113.60", 6: "2001:db8:203::60"}
MANIFEST = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{nodeName: {node}, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, creationTimestamp: "{created}"}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {name}}}
  externalIPs: ["{shared[4]}", "{shared[6]}"]
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: own, port: {own}, targetPort: 8080}}]
"""


@pytest.fixture
def lab(make_lab: MakeLab, tmp_path: Path) -> Iterator[Lab]:
    """The younger Service is the first by name and in its file, so that only its age can decide."""
    rows = (
        ("a-younger", "node1", "2026-02-02T00:00:00Z", 81),
        ("b-older", "node2", "2026-01-01T00:00:00Z", 82),
    )
    for name, node, created, own in rows:
        text = MANIFEST.format(name=name, node=node, created=created, own=own, shared=SHARED)
        (tmp_path / f"{name}.yaml").write_text(text)
    lab = make_lab(manifests=tmp_path)
    yield lab
    remove(lab.spec.id)


def answers(lab: Lab, port: int) -> set[str]:
    """Return who answers the client on the shared addresses."""
    done = [
        lab.run("client", ["curl", "-sS", "-m", "5", f"{url((address, port))}/hostname"])
        for address in SHARED.values()
        for _ in range(3)
    ]
    return {one.stdout.strip() or one.stderr for one in done}


def listed(lab: Lab, node: str, *options: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    argv = ["service", "list", "--instance", lab.spec.instance(node), *options]
    assert main(argv, out=out, err=err) == 0, err.getvalue()
    return out.getvalue()


def holders(lab: Lab, node: str) -> dict[str, str]:
    """Return which Service is listed with each shared VIP on port 80."""
    rows: list[dict[str, Any]] = json.loads(listed(lab, node, "-o", "json"))["services"]
    return {
        vip["address"]: row["service"]
        for row in rows
        for vip in row["vips"]
        if vip["kind"] == "externalIP" and vip["port"] == 80
    }


def test_conflicts_the_older_service_keeps_the_address_and_the_other_is_named(lab: Lab) -> None:
    said = [
        f"{place}:80/TCP belongs to the older Service default/b-older; default/a-younger claims it too"
        for place in (SHARED[4], f"[{SHARED[6]}]")
    ]
    assert answers(lab, 80) == {"b-older"}
    assert (answers(lab, 81), answers(lab, 82)) == ({"a-younger"}, {"b-older"}), "other ports are no conflict"
    for node in NODES:
        assert holders(lab, node) == dict.fromkeys(SHARED.values(), "default/b-older")
        log = lab.store.log(node).read_text()
        assert [log.count(f"WARNING {line}\n") for line in said] == [1, 1], log
        assert listed(lab, node).endswith("\n\n" + "".join(f"conflict: {line}\n" for line in said))

    (Path(lab.spec.manifests) / "b-older.yaml").unlink()
    for node in NODES:
        eventually(
            lambda node=node: (  # type: ignore[misc]
                holders(lab, node) == dict.fromkeys(SHARED.values(), "default/a-younger")
            ),
            f"{node} gives it to the other",
        )
    assert answers(lab, 80) == {"a-younger"}
    for node in NODES:
        log = lab.store.log(node).read_text()
        assert [log.count(f"no longer: {line}\n") for line in said] == [1, 1], log
        eventually(lambda node=node: "conflict" not in listed(lab, node), f"{node} lists none")  # type: ignore[misc]
