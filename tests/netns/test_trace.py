# SPDX-License-Identifier: Apache-2.0
"""``lbctl trace`` on a node, before the connection: it names the backend that the connection then gets."""

from __future__ import annotations

import io
import json
from ipaddress import ip_address
from typing import Any

import pytest

from lb.cli import main
from lb.lab.addressing import clients
from lb.lab.lab import Lab
from lb.model import socket_text
from tests.netns.waiting import dumped


def trace(lab: Lab, *words: str) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    code = main(["trace", "--instance", lab.spec.instance("node1"), "-o", "json", *words], out=out, err=err)
    assert code == 0, err.getvalue()
    (found,) = json.loads(out.getvalue())["packets"]
    return dict(found)


@pytest.mark.parametrize("version", [4, 6])
def test_the_connection_gets_the_backend_that_the_trace_named(lab: Lab, version: int) -> None:
    vips = dumped(lab, "node1", "vips")["vips"]
    node_ports = (one for one in vips if one["kind"] == "nodePort" and one["protocol"] == "TCP")
    vip = next(one for one in node_ports if ip_address(one["address"]).version == version)
    there = socket_text(ip_address(vip["address"]), vip["port"])
    backends, address = set(), clients(version)[0]
    first = 41_000 + 100 * version  # a port of the other family, just closed, would be taken
    for port in range(first, first + 4):
        found = trace(lab, socket_text(address, port), there, "--reply")
        done = lab.run("client", ["curl", "-sgf", "-m", "5", "--local-port", str(port), f"http://{there}/"])
        assert done.returncode == 0, done.stderr
        ours = socket_text(address, port)
        (flow,) = [one for one in dumped(lab, "node1", "flows")["flows"] if one["client"] == ours]
        assert (found["packet"]["source"], found["packet"]["destination"]) == (ours, there)
        assert found["flow_after"]["backend"]["address"] == flow["backend"]
        assert found["flow_before"] is None
        assert found["reply"]["reason"] == "REPLY"
        assert found["reply"]["sent"]["source"] == there
        backends.add(flow["backend"])
    assert backends <= {socket_text(ip_address(b["address"]), b["port"]) for b in vip["backends"]}


def test_what_cannot_be_traced_is_one_line(lab: Lab) -> None:
    out, err = io.StringIO(), io.StringIO()
    instance = lab.spec.instance("node1")
    words = ["trace", "--instance", instance, "--in", "pod:default/nobody", "10.0.0.1", "10.0.0.2:80"]
    assert main(words, out=out, err=err) == 1
    assert "--in pod:default/nobody: there is no such pod in manifests:" in err.getvalue()
    assert err.getvalue().count("\n") == 1
