# SPDX-License-Identifier: Apache-2.0
"""The node that a command is about: its instance, maps, source, network namespace and agent's notes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lb.cli import instances
from lb.cli.settings import Given, build
from lb.config import Config
from lb.datapath.attach.roles import standing
from lb.datapath.kernel import netns, pins
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.diagnose.snapshot import Snapshot, SourceReader, open_source
from lb.errors import ConfigError, UsageError
from lb.model import ObjectKey
from lb.plan.types import Topology
from lb.rundir import RunDir


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as commands see it. The command is in its network namespace for as long as this is open.

    maps: None where nothing is pinned, and only the source is looked at. agent: its pid, None: it is not
    there.
    """

    name: str
    config: Config
    maps: KernelMaps | None
    notes: Mapping[str, Any]
    agent: int | None
    source: SourceReader

    def topology(self, snapshot: Snapshot) -> Topology:
        """Return where the node stands."""
        return standing(self.config, snapshot.state.node(self.config.node_name), snapshot.state.claims)


@contextlib.contextmanager
def opened(args: argparse.Namespace, *, needs_maps: bool = True) -> Iterator[NodeView]:
    """Give the node that the flags mean, from within its network namespace.

    needs_maps: nothing to look at without them; else ``--source`` alone will do.

    Raises ConfigError: there is no such node, or nothing says where its Services come from.
    """
    existing = pins.instances()
    alone = not needs_maps and args.source and not (args.instance or args.node) and len(existing) != 1
    name = "" if alone else instances.choose(args, existing)
    run_dir = RunDir(name) if name else None
    notes = run_dir.notes() if run_dir else {}
    config = _config(args, notes, str(run_dir.notes_path) if run_dir else "")
    config = _of_node(config, name, notes)
    with contextlib.ExitStack() as stack:
        caller = stack.enter_context(netns.present()) if args.kubeconfig else None
        if name:
            stack.enter_context(entered(name))
        maps = stack.enter_context(KernelMaps(Pins(name).maps)) if name else None
        yield NodeView(
            name, config, maps, notes, run_dir.holder() if run_dir else None, open_source(config, caller)
        )


def noted_config(name: str, notes: Mapping[str, Any], origin: str) -> Config:
    """Return the settings that an instance's agent noted; origin: where, for error messages.

    Raises ConfigError: one of them is of another version, which this one does not know.
    """
    given = {key: Given(tuple(words), origin) for key, words in notes.get("settings", {}).items()}
    return _of_node(build(given), name, notes)


def _of_node(config: Config, name: str, notes: Mapping[str, Any]) -> Config:
    return replace(config, instance=name, node_name=config.node_name or notes.get("node", "") or name)


def _config(args: argparse.Namespace, notes: Mapping[str, Any], origin: str) -> Config:
    given = {name: Given(tuple(texts), origin) for name, texts in notes.get("settings", {}).items()}
    if args.source:
        for name in ("kubeconfig", "context"):
            given.pop(name, None)
    for name, flag in (("sources", "source"), ("kubeconfig", "kubeconfig"), ("context", "context")):
        value = getattr(args, flag)
        if value:
            given[name] = Given(tuple(value) if isinstance(value, list) else (value,), f"flag --{flag}")
    return build(given)


@contextlib.contextmanager
def entered(instance: str) -> Iterator[None]:
    """Be in the network namespace of an instance's hooks.

    Raises ConfigError: the namespace is gone. DatapathError: it cannot be entered.
    """
    run_dir = RunDir(instance)
    if not run_dir.elsewhere():
        yield
        return
    notes = run_dir.notes()
    place = netns.find(notes["network_namespace"], notes.get("pid"))
    if place is None:
        raise ConfigError(
            f"instance {instance}: its agent's network namespace is gone, or not to be seen from here"
        )
    with netns.entered(place):
        yield


def selected(args: argparse.Namespace) -> ObjectKey | None:
    """Return what ``--service`` and ``-n`` choose, without a name for all of a namespace; None: everything.

    Raises UsageError: the text names no Service.
    """
    if args.service:
        return service_key(args.service)
    return ObjectKey(args.namespace, "") if args.namespace else None


def service_key(text: str) -> ObjectKey:
    """Return the Service that a word means: NAMESPACE/NAME, or NAME in the namespace default.

    Raises UsageError: the word is neither.
    """
    namespace, slash, name = text.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        raise UsageError(f"{text!r} is no Service: say NAMESPACE/NAME, or NAME in the namespace default")
    return ObjectKey(namespace or "default", name)
