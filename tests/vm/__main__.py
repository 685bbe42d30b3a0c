# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.vm``: the standalone lab of the Vagrantfile in emulated machines.

Two nodes and a client boot Debian's own kernel (see :mod:`tests.vm.image`), get the tree, and are provisioned
by the scripts of ``vagrant/`` as Vagrant would have it; ``vagrant/smoke.sh`` then asks. Exit code: 0 when
every step did what it should, else 1; what the machines said stays in the directory that is named then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lb.datapath.programs import build, loader
from tests.vm.image import TREE, image
from tests.vm.machines import BootError, Machine, Machines

NODES = ("node1", "node2")
_MACHINES = (
    Machine("node1", "02:77:00:00:00:01", 1024),
    Machine("node2", "02:77:00:00:00:02", 1024),
    Machine("client", "02:77:00:00:00:64", 512),
)
T = TypeVar("T")

_BOOT_SECONDS = 1200
_HAND_OVER_SECONDS = 60
_INGRESS = "--resolve kubia.example.com:80:[2001:db8:203::80] http://kubia.example.com/"
_ANNOUNCED = ((4, "203.0.113.22", "http://203.0.113.22/"), (6, "2001:db8:203::80", _INGRESS))
"""Family and address of which nodes tell the segment, and what the client asks there."""
_PROVIDERS = ("libvirt",)
"""Those whose part of the Vagrantfile can be validated here; Debian has no package of the others."""


def main() -> int:
    """Run all steps; return the exit code."""
    logs = Path(tempfile.mkdtemp(prefix="lbctl-vm-"))
    try:
        step("vagrant validate", validate)
        found = step("image", image)
        loader.compile_ahead()  # minutes under emulation; machines of one bcc may share what it made
        with Machines(found, _MACHINES, logs) as machines:
            steps(machines)
    except (subprocess.CalledProcessError, BootError, AssertionError) as error:
        said = getattr(error, "output", None) or ""
        print(f"{said[-4000:]}\nFAIL {error}\nlogs: {logs}", file=sys.stderr)
        return 1
    return 0


def steps(machines: Machines) -> None:
    """Take machines that boot from there to a lab that was asked everything, twice."""
    step("boot", lambda: machines.wait(_BOOT_SECONDS))
    step("provision", lambda: provision(machines))
    for node in NODES:
        print(machines.run(node, "/opt/lbctl/bin/lbctl status"))
        assert list(uplink_modes(machines, node)) == ["xdp-native"], f"no native XDP on {node}"
    step("smoke", lambda: smoke(machines))
    for node in NODES:
        assert answered_by_xdp(machines, node), f"no packet of a Service passed XDP on {node}"
    print(machines.run("node1", "systemd-analyze security --no-pager lbctl | tail -n 1"))
    step("owner of an address killed", lambda: hand_over(machines))
    step("agents killed", lambda: survive(machines))
    step("provision again", lambda: provision(machines))
    step("smoke again", lambda: smoke(machines))


def step(name: str, run: Callable[[], T]) -> T:
    """Run a step; say how many seconds it took."""
    began = time.monotonic()
    print(f"== {name}", flush=True)
    result = run()
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return result


def validate() -> None:
    """Have Vagrant look at the Vagrantfile, for both labs."""
    for lab in ("kubernetes", "standalone"):
        for provider in _PROVIDERS:
            variables = {**os.environ, "LAB": lab, "VAGRANT_DEFAULT_PROVIDER": provider}
            subprocess.run(["vagrant", "validate"], cwd=TREE, env=variables, check=True)


def provision(machines: Machines) -> None:
    """Give every machine the tree, and run there what the Vagrantfile says, on all of them at once."""

    def one(name: str) -> None:
        machines.sync(name)
        machines.copy(name, build.CACHE, "/var/cache/lbctl")
        command = f"/vagrant/vagrant/provision.sh {name} {len(NODES)} standalone"
        machines.run(name, command, log=f"{name}.provision")

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, machines.machines))


def smoke(machines: Machines) -> None:
    """Run the checks of both labs."""
    variables = {
        **os.environ,
        "LAB_SSH_CONFIG": str(machines.ssh_config),
        "NODES": str(len(NODES)),
        "LAB": "standalone",
    }
    subprocess.run([TREE / "vagrant" / "smoke.sh"], env=variables, check=True)


def hand_over(machines: Machines) -> None:
    """Kill the agent that answers for load-balancer addresses: the client finds the other node by itself."""
    for family, address, url in _ANNOUNCED:
        first = owner(machines, family, address, url)
        stop(machines, first)
        until = time.monotonic() + _HAND_OVER_SECONDS
        while (second := owner(machines, family, address, url)) == first:
            assert time.monotonic() < until, f"{first} is dead, and its address {address} still leads there"
            time.sleep(1)
        print(f"{address}: {first} answered, then {second}")
        machines.run(first, "systemctl start lbctl")


def owner(machines: Machines, family: int, address: str, url: str) -> str:
    """Ask a load-balancer address from the client; return the node that its frames go to."""
    said = machines.run("client", f"curl -sg -m 60 {url}")
    assert said.startswith("You've hit kubia-"), (url, said)
    noted = machines.run("client", f"ip -{family} neigh show to {address}")
    return next(name for name in NODES if machines.machines[name].mac in noted)


def stop(machines: Machines, node: str) -> None:
    """Kill a node's agent and keep it from starting."""
    machines.run(node, "systemctl kill --signal KILL lbctl")
    machines.run(node, "systemctl stop lbctl")


def survive(machines: Machines) -> None:
    """Kill the agents and keep them from starting: the data plane goes on; then start them.

    Load-balancer addresses are not asked: with no agent left, nobody answers for them on the segment.
    """
    for node in NODES:
        stop(machines, node)
    for address in ("192.168.77.11:30123", "192.168.77.12:30123"):
        said = machines.run("client", f"curl -s -m 20 http://{address}/")
        assert said.startswith("You've hit kubia-"), said
    for node in NODES:
        machines.run(node, "systemctl start lbctl")


def uplink_modes(machines: Machines, node: str) -> dict[str, str]:
    """Return the XDP hooks of the node, and why the agent chose them."""
    status = json.loads(machines.run(node, "/opt/lbctl/bin/lbctl status -o json"))
    return {row["hook"]: row["why"] for row in status["hooks"] if row["hook"].startswith("xdp")}


def answered_by_xdp(machines: Machines, node: str) -> bool:
    """Tell whether XDP has translated packets on the node."""
    counters = json.loads(machines.run(node, "/opt/lbctl/bin/lbctl maps dump counters -o json"))["counters"]
    return any(row["hook"] == "XDP_UPLINK" and row["reason"] == "FLOW_HIT" for row in counters)


if __name__ == "__main__":
    sys.exit(main())
