# SPDX-License-Identifier: Apache-2.0
"""A small lab for kernels that are emulated: two nodes, Services of one backend each, in each uplink mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.config import UplinkMode
from lb.datapath.attach.sockets import netns_cookie
from lb.datapath.maps.layouts import WatchFlag
from lb.datapath.programs import features
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, lab, make_lab, remove
from tests.netns.pinned import Cluster, bring_up, check_answers, check_sources
from tests.netns.waiting import calls_told, dumped

__all__ = ["lab", "make_lab"]


_LOADED_WITHIN = 1200  # s: an emulated CPU takes minutes for what takes a second
_WITHIN = {"kubelet_within": 600.0, "pods_within": 600.0}


@pytest.fixture(scope="module")
def make_patient_lab(make_lab: MakeLab) -> MakeLab:
    """Bring labs up as make_lab does, and wait for all of their processes longer."""

    def make(**fields: Any) -> Lab:
        made = make_lab(agents=False, within=_WITHIN, **fields)
        for node in made.spec.node_names:
            made.start_agent(node)
        for node in made.spec.node_names:
            made.wait_agent(node, _LOADED_WITHIN)
        return made

    return make


@pytest.fixture(scope="module", params=[UplinkMode.TC, UplinkMode.XDP_NATIVE], ids=lambda mode: mode.value)
def cluster(
    request: pytest.FixtureRequest, make_patient_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    found = bring_up(make_patient_lab, tmp_path_factory.mktemp("kernel"), uplink_mode=request.param)
    yield found
    remove(found.lab.spec.id)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("client", ["outside", "pod", "same pod"])
def test_the_backend_answers(cluster: Cluster, client: str, where: str, version: int) -> None:
    check_answers(cluster, client, where, version)


@pytest.mark.parametrize("version", [4, 6])
def test_sources_are_kept_where_they_can_be(cluster: Cluster, version: int) -> None:
    check_sources(cluster, version)


def test_a_process_of_the_node_is_served(cluster: Cluster) -> None:
    """At the socket, which whoever watches is told, or by tc where the kernel has no such hooks."""
    hooks = netns_cookie() != 0
    with calls_told(cluster.lab, "node1", WatchFlag.FLOWS) as told:
        for target in cluster.targets.values():
            vip = target.cluster_ips[4]
            assert cluster.ask("node1", [("tcp", vip, 80)]) == [str(target.pod["name"])]
            assert [one.vip for one in told()] == ([f"{vip}:80"] if hooks else [])


def test_programs_that_carried_it_are_those_of_the_mode(cluster: Cluster) -> None:
    counters = dumped(cluster.lab, "node1")["counters"]
    translated = {row["hook"] for row in counters if row["reason"] in ("NEW_LOCAL", "FLOW_HIT")}
    assert ("XDP_UPLINK" in translated) == (cluster.lab.spec.uplink_mode is UplinkMode.XDP_NATIVE)


def test_the_kernel_is_not_older_than_the_floor() -> None:
    release = Path("/proc/sys/kernel/osrelease").read_text()
    assert tuple(int(number) for number in release.split("-")[0].split(".")[:2]) >= features.FLOOR
