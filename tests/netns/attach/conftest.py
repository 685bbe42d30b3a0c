# SPDX-License-Identifier: Apache-2.0
"""Programs that pass everything, and a network namespace with pods and uplinks, for each test anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lb.datapath.kernel import tcx
from lb.datapath.kernel.pins import Pins
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from tests.namespaces import NetworkNamespace
from tests.netns.attach.bench import (
    NODE,
    NODE_SECOND,
    PASS_ALL,
    PEER,
    SOCK_NAMES,
    TC_NAMES,
    XDP_NAMES,
    add_pod,
    index_of,
)
from tests.unit.pins_bench import LIMITS, own_pins, tiny_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the real programs' names and nothing in them: attaching is what is tested."""
    tree = tiny_tree(tmp_path_factory.mktemp("tree"))
    tc = "".join(PASS_ALL.format(name=name, ctx="struct __sk_buff", verdict=-1) for name in TC_NAMES)
    xdp = "".join(PASS_ALL.format(name=name, ctx="struct xdp_md", verdict="XDP_PASS") for name in XDP_NAMES)
    (tree / "tc_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{tc}')
    (tree / "xdp_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{xdp}')
    sock = "".join(PASS_ALL.format(name=name, ctx="struct bpf_sock_addr", verdict=1) for name in SOCK_NAMES)
    (tree / "sock_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{sock}')
    return tree


@pytest.fixture(scope="module")
def pins() -> Iterator[Pins]:
    with own_pins() as own:
        yield own


@pytest.fixture(scope="module")
def loaded(pins: Pins, tree: Path) -> Loaded:
    """The programs, built once: each test attaches them in a namespace of its own."""
    return loader.load(pins, LIMITS, bpf_dir=tree)


@pytest.fixture
def maps(pins: Pins, loaded: Loaded) -> Iterator[KernelMaps]:
    maps = KernelMaps(pins.maps)
    for name in ("ifaces4", "ifaces6"):
        maps.delete(name, maps.read(name)[0])
    yield maps
    maps.close()


@pytest.fixture
def another(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree whose programs differ from the first one's."""
    copy = tmp_path / "bpf"
    shutil.copytree(tree, copy)
    for source in ("tc_lb.c", "xdp_lb.c"):
        text = (copy / source).read_text()
        changed = text.replace("return", "int result =").replace(";\n}", ";\n\treturn result;\n}")
        (copy / source).write_text(changed)
    return copy


@pytest.fixture
def pods() -> Iterator[NetworkNamespace]:
    """Where the other ends of pods' interfaces are."""
    namespace = NetworkNamespace()
    yield namespace
    namespace.close()


@pytest.fixture
def route(pods: NetworkNamespace) -> Iterator[IPRoute]:
    """A node: ``up0`` with the default route, ``vx0``, a pod's ``pod1`` and a bystander, ``br0``."""
    namespace = NetworkNamespace()
    with namespace.entered(), IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname="up0", kind="veth", peer={"ifname": "up0-peer"})
        route.link("add", ifname="br0", kind="bridge")
        up = index_of("up0")
        route.link("add", ifname="vx0", kind="vxlan", vxlan_id=7, vxlan_link=up, vxlan_port=4789)
        for name in ("up0", "up0-peer", "vx0", "br0"):
            route.link("set", index=index_of(name), state="up")
        route.addr("add", index=up, address=NODE, prefixlen=24)
        route.addr("add", index=up, address=NODE_SECOND, prefixlen=24)
        route.addr("add", index=index_of("br0"), address="198.51.100.1", prefixlen=24)
        route.route("add", dst="0.0.0.0/0", gateway=PEER)
        add_pod(route, "pod1", pods)
        yield route
    namespace.close()


@pytest.fixture(params=["tcx", "clsact"])
def tc_hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tc programs are: at the hook itself, or, as before Linux 6.6, in a qdisc's filter."""
    if request.param == "clsact":
        monkeypatch.setattr(tcx, "programs", lambda *_: None)
    elif tcx.programs(1, Direction.INGRESS) is None:
        pytest.skip("this kernel, older than 6.6, has no tcx")
    return str(request.param)
