# SPDX-License-Identifier: Apache-2.0
"""``lbctl doctor``: each planted fault is named, with what breaks and what to do."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from lb.cli import main
from lb.cli.doctor import render
from lb.datapath.attach.netlink import Interface
from lb.datapath.programs import features
from lb.datapath.programs.features import Need
from lb.diagnose import doctor
from lb.diagnose.doctor import Probes
from lb.diagnose.findings import Check, Grade
from lb.diagnose.host import HostProbes
from lb.diagnose.kube_proxy import Trace
from lb.errors import LbError

ETH0 = Interface(2, "eth0", "physical", mtu=1500)
VETH = Interface(5, "veth1", "veth", mtu=1450, foreign_peer=True)
SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/eth0/rp_filter": "2",
    "ipv4/ip_local_port_range": "32768\t60999",
}


def host(*, sysctls: dict[str, str] | None = None, **others: Any) -> HostProbes:
    """Return a host that is well but for what is given."""
    settings = SYSCTLS | (sysctls or {})
    well = HostProbes(
        kube_proxy=list,
        sysctl=settings.get,
        interfaces=lambda: ([ETH0, VETH], [2]),
        driver=lambda name: "virtio_net" if name == "eth0" else "",
    )
    return replace(well, **others)


def refused() -> list[Trace]:
    raise LbError("listing the rules of nftables: Operation not permitted")


BPFFS = "30 22 0:27 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n"
WELL = Probes(
    release=lambda: "6.1.0-50-amd64",
    missing_privileges=list,
    required=lambda: [Need("hash map", "3.19", 0), Need("tc helper redirect_neigh", "5.10", 0)],
    at_sockets=lambda: [Need("programs at connect()", "4.17", 0)],
    optional=lambda: {"SET_RETVAL": True},
    netns_cookie=lambda: 1,
    mountinfo=lambda: BPFFS,
    mounts=lambda: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
    bpffs_possible=lambda: True,
    jit=lambda: "1\n",
    bcc=lambda: "__version__ = '0.26.0'\n",
    host=host(),
)
LACKING = [Need("hash map", "3.19", 0), Need("tc helper redirect_neigh", "5.10", errno.EINVAL)]
FAULTS: dict[str, tuple[dict[str, Any], str, Grade, str, str]] = {
    "kernel": ({"release": lambda: "5.9.16"}, "kernel", Grade.FAILS, "5.9.16", "boot a kernel of 5.10"),
    "rights": ({"missing_privileges": lambda: ["CAP_BPF"]}, "capabilities", Grade.FAILS, "CAP_BPF", "root"),
    "helper": ({"required": lambda: LACKING}, "kernel feature", Grade.FAILS, "redirect_neigh: Inv", "5.10"),
    "connect": (
        {"at_sockets": lambda: [Need("programs at connect()", "4.17", errno.EINVAL)]},
        "socket hooks", Grade.LIMITED, "programs at connect()", "socket_lb",
    ),
    "cookie": ({"netns_cookie": lambda: 0}, "socket hooks", Grade.LIMITED, "SO_NETNS_COOKIE", "5.14"),
    "retval": (
        {"optional": lambda: {"SET_RETVAL": False}}, "socket hooks", Grade.LIMITED, "set_retval", "EPERM",
    ),
    "no /sys": (
        {"mountinfo": str, "bpffs_possible": lambda: False},
        "bpffs", Grade.FAILS, "does not exist", "/sys/fs/bpf",
    ),
    "cgroup": ({"mounts": lambda: "t / tmpfs rw 0 0\n"}, "cgroup v2", Grade.LIMITED, "not mounted", "mount"),
    "jit": ({"jit": lambda: "0\n"}, "JIT", Grade.LIMITED, "interpreted", "bpf_jit_enable=1"),
    "no uplink": (
        {"host": host(interfaces=lambda: ([ETH0, VETH], []))},
        "uplink", Grade.LIMITED, "no default route", "--uplink",
    ),
    "uplink down": (
        {"host": host(interfaces=lambda: ([replace(ETH0, up=False), VETH], [2]))},
        "uplink", Grade.LIMITED, "eth0: virtio_net, xdp-native", "ip link set eth0 up",
    ),
    "mtu": (
        {"host": host(interfaces=lambda: ([ETH0, replace(VETH, mtu=9000)], [2]))},
        "MTU", Grade.LIMITED, "larger than eth0's 1500: veth1 9000", "1500 or less",
    ),
    "forwarding": (
        {"host": host(sysctls={"ipv4/ip_forward": "0"})},
        "forwarding", Grade.LIMITED, "net.ipv4.ip_forward off", "sysctl -w net.ipv4.ip_forward=1",
    ),
    "rp_filter": (
        {"host": host(sysctls={"ipv4/conf/veth1/rp_filter": "1"})},
        "rp_filter", Grade.LIMITED, "strict (1) on veth1", "rp_filter=2",
    ),
    "rp_filter of all": (
        {"host": host(sysctls={"ipv4/conf/all/rp_filter": "1"})},
        "rp_filter", Grade.LIMITED, "strict (1) on veth1", "rp_filter=2",  # eth0's own 2 is more
    ),
    "SNAT ports": (
        {
            "host": host(
                sysctls={
                    "ipv4/ip_local_port_range": "29000\t60999",
                    "ipv4/ip_local_reserved_ports": "29000,29990-30500",
                }
            )
        },
        "SNAT ports", Grade.LIMITED, "989 of 1024 to 29999 are in", "ip_local_reserved_ports=1024-29999",
    ),
    "kube-proxy": (
        {"host": host(kube_proxy=lambda: [Trace("nftables", "table ip kube-proxy")])},
        "kube-proxy", Grade.LIMITED, "nftables: table ip kube-proxy", "docs/migration.md",
    ),
    "kube-proxy unknown": (
        {"host": host(kube_proxy=refused)},
        "kube-proxy", Grade.LIMITED, "not permitted", "root",
    ),
    "bcc": ({"bcc": str}, "bcc", Grade.FAILS, "no module bcc", "python3-bpfcc"),
}  # fmt: skip


def test_a_machine_that_is_well() -> None:
    findings = doctor.examine(WELL)
    assert {one.result for one in findings} == {Grade.OK}
    assert doctor.healthy(findings)
    assert all(not one.broken and not one.next for one in findings)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_else(fault: str) -> None:
    change, check, result, found, next_step = FAULTS[fault]
    findings = doctor.examine(replace(WELL, **change))
    (bad,) = (one for one in findings if one.result is not Grade.OK)
    assert (bad.check, bad.result) == (check, result)
    assert found in bad.found
    assert next_step in bad.next
    assert bad.broken
    assert doctor.healthy(findings) == (result is Grade.LIMITED)


def test_without_rights_the_kernel_is_not_asked() -> None:
    def asked() -> list[Need]:
        raise AssertionError("asked")

    doctor.examine(replace(WELL, missing_privileges=lambda: ["CAP_BPF"], required=asked, at_sockets=asked))


@pytest.mark.parametrize(
    ("release", "well"), [("5.10.0-32-amd64", True), ("5.4.0", False), ("10.0-rc1", True)]
)
def test_the_floor(release: str, well: bool) -> None:
    assert features.FLOOR == (5, 10)
    assert (doctor.kernel(release).result is Grade.OK) == well


def test_what_is_mounted_on_demand_is_no_fault() -> None:
    assert doctor.bpffs("", possible=True).result is Grade.OK


def test_a_kernel_whose_jit_cannot_be_switched_off() -> None:
    assert doctor.jit(None).result is Grade.OK


def test_the_table_says_what_to_do() -> None:
    text = render([Check("a", Grade.OK, "fine"), Check("b", Grade.FAILS, "gone", "no c", "get it")])
    assert text == (
        "CHECK  RESULT  FOUND\na      ok      fine\nb      FAILS   gone\n\nb: gone\n  no c\n  to do: get it\n"
    )


def test_this_machine() -> None:
    out = io.StringIO()
    assert main(["doctor", "-o", "json"], out=out) == 0
    found = {one["check"]: one["result"] for one in json.loads(out.getvalue())}
    assert found["kernel"] == found["kernel features"] == found["bcc"] == found["bpffs"] == "ok"


def test_a_failure_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [Check("bcc", Grade.FAILS, "none", "all", "install it")]
    monkeypatch.setattr(doctor, "examine", lambda: fails)
    out = io.StringIO()
    assert main(["doctor"], out=out) == 1
    assert "to do: install it" in out.getvalue()
