# SPDX-License-Identifier: Apache-2.0
"""From which network a command asks the Kubernetes API."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.config import Config
from lb.datapath.kernel import netns
from lb.diagnose.snapshot import ApiReader
from lb.kube import ApiError
from lb.model import ObjectKey
from tests.kube.double import ApiDouble
from tests.kube.objects import NAMESPACE, NODE, service
from tests.kube.test_client import kubeconfig
from tests.namespaces import NetworkNamespace

WEB = ObjectKey(NAMESPACE, "web")


@pytest.fixture
def node() -> Iterator[NetworkNamespace]:
    """A network that does not reach the double on the machine's loopback."""
    with contextlib.closing(NetworkNamespace()) as namespace:
        yield namespace


def config(tmp_path: Path, double: ApiDouble) -> Config:
    """Return settings with a kubeconfig whose server is the machine's loopback, as a lab prints it."""
    path = kubeconfig(tmp_path, double.url, {})
    return Config(sources=("kubernetes",), kubeconfig=path, context="right", node_name=NODE)


def test_a_kubeconfig_of_the_command_is_used_from_where_the_command_was_started(
    tmp_path: Path, node: NetworkNamespace
) -> None:
    with ApiDouble() as double, netns.present() as caller:
        double.put(service())
        settings = config(tmp_path, double)
        with node.entered():
            reader = ApiReader(settings, caller)
            assert set(reader.snapshot().state.service_keys()) == {WEB}
            with pytest.raises(ApiError):
                ApiReader(settings).snapshot()


def test_one_that_works_inside_of_the_node_alone_works_as_well(
    tmp_path: Path, node: NetworkNamespace
) -> None:
    with netns.present() as caller, node.entered():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with ApiDouble() as double:
            double.put(service())
            reader = ApiReader(config(tmp_path, double), caller)
            for _ in range(2):
                assert set(reader.snapshot().state.service_keys()) == {WEB}
