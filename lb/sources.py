# SPDX-License-Identifier: Apache-2.0
"""What tells the agent of Services: the Kubernetes API, or directories of manifests, as the settings say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from lb.config import Config
from lb.errors import ConfigError, InputError
from lb.model import Event, ObjectKey
from lb.stop_event import StopEvent

if TYPE_CHECKING:
    from lb.kube import reflector

_log = logging.getLogger(__name__)

KUBERNETES = "kubernetes"


class Source(Protocol):
    """What tells of Services, endpoints and nodes; runs in a thread of its own."""

    name: str

    @property
    def lacks_node(self) -> Callable[[str], bool] | None:
        """What asks whether there is no Node of a name; None: the events tell of every Node."""
        ...

    def health(self) -> Sequence[reflector.Health]:
        """Return how far each kind of object is in step; empty for a source that is never out of step."""
        ...

    def refused(self) -> Sequence[str]:
        """Return what is wrong with objects that cannot be used, or only in part; from any thread."""
        ...

    def announce(self, service: ObjectKey, *, reason: str, action: str, note: str) -> None:
        """Tell whoever looks at the Service in the source what is wrong; never waits, never fails."""
        ...

    def run(self, emit: Callable[[Sequence[Event]], None], stop: StopEvent) -> None:
        """Emit events, :class:`lb.model.Synced` after the first listing, until stop is set."""
        ...


def build_source(config: Config) -> Source:
    """Return the source that the settings name.

    Raises ConfigError: a directory of manifests does not exist, the sources do not go together, or there is
    no access to the Kubernetes API.
    """
    if KUBERNETES in config.sources:
        if len(config.sources) > 1:
            raise ConfigError(f"setting sources: {KUBERNETES} and another; it must be the only one")
        return _kubernetes(config)
    if config.kubeconfig or config.context:
        raise ConfigError(f"settings kubeconfig and context: they need --source {KUBERNETES}")
    from lb.manifests import ManifestSource  # noqa: PLC0415  (an agent of an API server does without)

    return ManifestSource(
        config.sources,
        service_cidr=config.service_cidr,
        node_port_range=config.node_port_range,
        report=_report_input,
    )


def _kubernetes(config: Config) -> Source:
    """Return the Kubernetes API as the source."""
    from lb.kube import client, source  # noqa: PLC0415  (large; an agent of manifests does without)

    api = client.by_kubeconfig_or_pod(config.kubeconfig, config.context)
    return source.KubernetesSource(
        api, node_name=config.node_name, report=_report_input, every_node=config.every_node
    )


def _report_input(error: InputError) -> None:
    _log.error("%s", error)
