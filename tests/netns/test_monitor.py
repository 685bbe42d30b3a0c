# SPDX-License-Identifier: Apache-2.0
"""``lbctl monitor`` on a node, while real connections come, are refused, and end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapReader

from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.lab.addressing import clients
from lb.lab.lab import Lab
from lb.model import socket_text
from tests.netns.waiting import dumped


@contextmanager
def monitor(lab: Lab, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command for node1, from when it watches on."""
    command = [sys.executable, "-m", "lb", "monitor", "--instance", lab.spec.instance("node1"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "watching" in process.stderr.readline()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def asked(lab: Lab) -> int:
    """Return what is asked of the programs at present."""
    maps = KernelMaps(Pins(lab.spec.instance("node1")).maps)
    try:
        return int(maps.array("watch")["what"][0])
    finally:
        maps.close()


def node_port(lab: Lab, version: int) -> str:
    """Return a TCP NodePort of node1."""
    vips = dumped(lab, "node1", "vips")["vips"]
    found = (one for one in vips if one["kind"] == "nodePort" and one["protocol"] == "TCP")
    vip = next(one for one in found if ip_address(one["address"]).version == version)
    return socket_text(ip_address(vip["address"]), vip["port"])


def curl(lab: Lab, there: str, port: int) -> None:
    command = ["curl", "-sgf", "-m", "5", "-o", "/dev/null", "--local-port", str(port), f"http://{there}/"]
    done = lab.run("client", command)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_is_told_from_its_first_packet_to_its_last(
    lab: Lab, version: int, tmp_path: Path
) -> None:
    there, port, capture = node_port(lab, version), 42_000 + 10 * version, tmp_path / "nat.pcapng"
    ours = socket_text(clients(version)[0], port)
    events: list[dict[str, Any]] = []
    with monitor(lab, "-o", "json", "--pcap", str(capture)) as process:
        curl(lab, there, port)
        assert process.stdout is not None
        while not events or events[-1]["what"] != "closed":
            one = json.loads(process.stdout.readline())
            if one["client"] == ours:
                events.append(one)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert [events[0]["what"], events[0]["flags"]] == ["new", "S"]
    assert [events[1]["reason"], events[1]["flags"]] == ["REPLY", "SA"]
    assert {one["vip"] for one in events} == {there}
    assert len({one["backend"] for one in events}) == 1
    assert {one["service"].partition("/")[0] for one in events} == {"default"}
    with RawPcapReader(str(capture)) as reader:
        comments = [meta.comments[0].decode() for _, meta in reader]
    told = [one for one in comments if ours in one]
    assert len(told) >= 2 * len(events)  # those that came meanwhile are not all in events
    assert told[0].startswith("before: new NEW_")
    assert told[1].startswith("after: new")
    assert asked(lab) == 0


def test_it_ends_by_ctrl_c_and_by_a_closed_pipe_and_leaves_nothing_asked_for(lab: Lab) -> None:
    with monitor(lab, "--drops") as process:
        assert asked(lab)
        other = [sys.executable, "-m", "lb", "monitor", "--instance", lab.spec.instance("node1")]
        second = subprocess.run(other, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"already watched by process {process.pid}" in second.stderr
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "lbctl: 0 events, 0 lost\n")
    assert asked(lab) == 0
    with monitor(lab) as process:
        assert process.stdout is not None
        process.stdout.close()
        curl(lab, node_port(lab, 4), 42_099)
        assert process.wait() == 1
    assert asked(lab) == 0
