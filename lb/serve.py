# SPDX-License-Identifier: Apache-2.0
"""``lbctl run``: complete the settings, build the agent's parts, run the loop; the data plane stays."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lb
from lb import memory
from lb.agent import Agent
from lb.attachments import Attachments
from lb.config import Announce, Config, Forward, Switch
from lb.cutover.beginning import beside_kube_proxy
from lb.cutover.first_start import FirstStart
from lb.datapath.attach.hooks import may_run_xdp
from lb.datapath.attach.netlink import InterfaceWatcher
from lb.datapath.attach.roles import without_effect
from lb.datapath.kernel.grace import GracePeriods
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps.fill import evictions
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.sync.direct_return import DirectReturn, clear_direct_return
from lb.datapath.sync.reconcile import Reconciler
from lb.errors import ConfigError, LbError
from lb.inbox import Inbox, InterfacesChanged, Settled, SourceEvents, StopNow, stop_signals, threads
from lb.model import ObjectKey
from lb.rundir import RunDir
from lb.served import servable, takeover
from lb.served.api import OWNERS, SHADOW, as_json
from lb.served.drain import DrainMark
from lb.served.health import open_health
from lb.served.history import History, history_answer
from lb.served.http import Answer, HttpServer, Request, Response, routes
from lb.served.missing_nodes import MissingNodes
from lb.served.notes import Notes
from lb.served.pages import Views, shown
from lb.served.pressure import Pressure
from lb.served.problems import NEXT, Problem
from lb.served.state_view import StateView
from lb.served.supervisor import Supervisor
from lb.setting_forms import NODE_NAME, split_address
from lb.shadow import mode
from lb.sources import Source, build_source
from lb.state import ClusterState
from lb.stop_event import StopEvent
from lb.upkeep import Upkeep, build_watches

if TYPE_CHECKING:
    from lb.segment.speaker import Speaker
    from lb.shadow.watcher import Watcher

_log = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """Run the agent until SIGTERM or SIGINT; the data plane goes on without it.

    Raises ConfigError: a setting is missing or does not fit this node.
    Raises LbError: another agent runs for the instance, or the kernel or a source failed.
    """
    memory.few_arenas()
    config = complete(config)
    if config.shadow is Switch.ON:
        config = mode.as_shadow(config)
    source = build_source(config)
    run_dir = RunDir(config.instance)
    with contextlib.suppress(StopNow), contextlib.ExitStack() as stack:
        inbox: Inbox = queue.SimpleQueue()
        runs = stack.enter_context(stop_signals(inbox))
        stack.enter_context(run_dir.lock_if_room())
        with nothing_left(Pins(config.instance), run_dir):
            refuse_beside_another(run_dir)
        if config.ready_file:
            ready = Path(config.ready_file)
            _remove(ready)
            stack.callback(_remove, ready)
        mode.prepare(config)
        supervisor = Supervisor()
        supervisor.starting()
        with nothing_left(Pins(config.instance), run_dir):
            agent = startup(config, source, run_dir, inbox, stack, tell=supervisor)
        stack.callback(supervisor.stopping)
        runs()
        agent.run()
    _log.info("stopping; the data plane stays as it is")


def refuse_beside_another(run_dir: RunDir) -> None:
    """Raise LbError if the agent of another instance runs in this network namespace."""
    if other := run_dir.neighbour():
        raise LbError(
            f"the agent of instance {other} runs in this network namespace: two would take each other's"
            f" hooks; stop it first, or start this one as --instance {other} when that has ended"
        )


@contextlib.contextmanager
def nothing_left(pins: Pins, run_dir: RunDir) -> Iterator[None]:
    """Remove the pins and run files of a new instance if its start fails; one that was there before stays."""
    new = not pins.base.exists()
    try:
        yield
    except BaseException:
        if new:
            unload(pins)
            run_dir.remove()
        raise


def _remove(path: Path) -> None:
    """Remove a file; when that fails, nobody waits for it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.error("%s cannot be removed: %s", path, error.strerror)


def complete(config: Config) -> Config:
    """Return the settings with node name and instance filled in.

    Raises ConfigError: no source is given, or the host name is no node name.
    """
    if not config.sources:
        raise ConfigError(
            "setting sources: none given; say where Services come from:"
            " --source manifests:DIR or --source kubernetes"
        )
    for network in without_effect(config.node_port_addresses):
        _log.warning(
            "setting node_port_addresses: %s has no effect: NodePorts answer neither on loopback addresses"
            " nor on link-local ones",
            network,
        )
    node_name = config.node_name
    if not node_name:
        node_name = socket.gethostname().lower()
        try:
            NODE_NAME.parse(node_name)
        except ValueError:
            raise ConfigError(
                f"setting node_name: not given, and the host name {node_name!r} is not {NODE_NAME.right}"
            ) from None
        _log.info("node name: %s, from the host name", node_name)
    return replace(config, node_name=node_name, instance=config.instance or node_name)


def startup(
    config: Config,
    source: Source,
    run_dir: RunDir,
    inbox: Inbox,
    stack: contextlib.ExitStack,
    *,
    tell: Supervisor,
) -> Agent:
    """Load programs and maps, read what the maps hold, start the threads; stack takes what is to be closed.

    Raises LbError: see :func:`serve`.
    """
    pins = Pins(config.instance)
    loaded = load_programs(config, pins)
    maps = stack.enter_context(KernelMaps(pins.maps))
    first = beginning(config, maps, new="vips4" in loaded.fresh)
    announce = _to_nobody if config.shadow is Switch.ON else source.announce
    grace = GracePeriods(lambda: inbox.put(Settled()))
    history = History()
    state = ClusterState([source.name])
    direct = direct_return(config, maps, state)
    reconciler = Reconciler(maps, time.monotonic, begin=grace.begin, tell=history.wrote, direct=direct)
    reconciler.recover()
    attachments = Attachments(config, pins, loaded, maps, first=first)
    stack.callback(attachments.close)
    raise_file_limit()
    health = open_health(
        config,
        stack,
        failed=lambda key, text: announce(
            key, reason="FailedToStartServiceHealthcheck", action="Listen", note=text
        ),
    )
    pressure = Pressure(functools.partial(evictions, maps))
    watches = {"pressure": pressure, **build_watches(maps, attachments)}
    missing_nodes = MissingNodes(state, source.lacks_node)
    problems: dict[str, Callable[[], Sequence[Problem]]] = {
        **{kind: one.problems for kind, one in watches.items()},
        "node": missing_nodes.problems,
        "input": functools.partial(refused_objects, source),
    }
    notes = Notes(
        run_dir,
        config,
        programs=loaded.fingerprint,
        hooks=attachments.notes,
        source_health=source.health,
        checks=health.checks,
        healthz=health.bound,
        evicted=lambda: pressure.seen,
        others=problems,
    )
    looks: list[Callable[[], None]] = []
    # Listen before looking: what changes in between is seen twice, not never.
    watcher = InterfaceWatcher(functools.partial(tell_of_interfaces, inbox, looks))
    stack.callback(watcher.close)
    upkeep = Upkeep(maps, health, notes, list(watches.values()), tell)
    agent = Agent(
        inbox=inbox,
        state=state,
        node_name=config.node_name,
        attachments=attachments,
        reconciler=reconciler,
        serving="vips4" not in loaded.fresh,
        checks=health.checks,
        history=history,
        announce=lambda key, note: announce(key, reason=note.reason, action=note.action, note=note.text),
        synced=upkeep.synced,
        beat=upkeep.beat,
        drained=DrainMark(run_dir).is_set,
    )
    health.node.watch(agent)
    opened = functools.partial(KernelMaps, pins.maps)  # for whoever looks, apart from the agent's own
    if speaker := build_speaker(config, source, state, agent, opened):
        looks.append(speaker.look)
        problems["announce"] = speaker.problems
    compared = build_shadow(config, opened, history)
    # A server of its own: its answers take longer than a health check may wait.
    answers = HttpServer()
    stack.callback(answers.shut)
    queries = answers_of(
        config,
        run_dir,
        state,
        agent,
        history=history,
        started=notes.started,
        opened=opened,
        speaker=speaker,
        compared=compared,
    )
    answers.open((str(run_dir.socket_path), 0), routes(queries), "lbctl")
    if address := split_address(config.metrics_address):
        metrics_answer = measure(
            config,
            source,
            agent,
            history=history,
            opened=opened,
            programs=loaded.fingerprint,
            after_sync=upkeep.after_sync,
            more_problems={**problems, "cutover": functools.partial(takeover.look, opened)},
            speaker=speaker,
            compared=compared,
        )
        names = {config.node_name.lower(), socket.gethostname().lower()}
        answers.open(
            address,
            routes(shown({"/metrics": metrics_answer, "/proxyMode": _proxy_mode, **queries}, names)),
            "metrics",
        )
    bodies: dict[str, Callable[[StopEvent], None]] = {
        f"source {source.name}": lambda stop: source.run(
            lambda events: inbox.put(SourceEvents(events, time.monotonic())), stop
        ),
        "interface watcher": watcher.run,
        "grace periods": grace.run,
        "health": health.server.run,
        "http": answers.run,
        "missing nodes": missing_nodes.run,
        **({"announce": speaker.run} if speaker else {}),
        **({"shadow": compared.run} if compared else {}),
    }
    if config.cutover is Switch.ON and config.shadow is Switch.OFF:
        bodies["cutover"] = FirstStart(
            config.instance, opened, lambda: agent.in_step and agent.in_service
        ).run
    stack.enter_context(threads(inbox, bodies))
    stack.callback(notes.ended, agent)
    return agent


def refused_objects(source: Source) -> list[Problem]:
    """Return what the source has that cannot be used; may be called from any thread."""
    return [Problem(text, NEXT["input"]) for text in source.refused()]


def load_programs(config: Config, pins: Pins) -> loader.Loaded:
    """Load and pin programs and maps, or take those that are pinned: those of shadow mode, if asked for.

    Raises AttachError: the kernel refused to list interfaces.
    Raises CompileError, BpfError: clang or the kernel refused.
    """
    if config.shadow is Switch.ON:
        programs = loader.SHADOW_PROGRAMS
    else:
        xdp = may_run_xdp(config.uplink_mode)
        programs = loader.serving(direct=config.forward is not Forward.SNAT, xdp=xdp)
    loaded = loader.load(
        pins, config.limits, traffic_counters=config.traffic_counters is Switch.ON, programs=programs
    )
    how = "compiled" if loaded.compiled else "as pinned, nothing to compile"
    _log.info("programs %s: %s", loaded.fingerprint, how)
    return loaded


def beginning(config: Config, maps: KernelMaps, *, new: bool) -> Callable[[], None]:
    """Prepare the first attaching; return what is to be called before each. new: the maps are.

    Raises BpfError: a map could not be mapped into memory.
    """
    if config.shadow is Switch.ON:
        mode.enter(maps)
    return beside_kube_proxy(maps, config.instance, new=new and config.shadow is Switch.OFF)


def answers_of(
    config: Config,
    run_dir: RunDir,
    state: ClusterState,
    agent: Agent,
    *,
    history: History,
    started: str,
    opened: Callable[[], contextlib.AbstractContextManager[Maps]],
    speaker: Speaker | None,
    compared: Watcher | None,
) -> dict[str, Answer]:
    """Return what the agent answers over HTTP, by path, but for health checks and metrics."""
    view, owners = StateView(state), speaker.owners if speaker else None
    return {
        "/api/history": history_answer(history, config.instance, started),
        "/api/agent": as_json(lambda _query: {"beat": agent.last_beat}),
        **view.answers(),
        servable.PATH: servable.Servables(state, agent, config.node_name, quiet=bool(compared)).answer(),
        OWNERS: as_json(
            lambda _query: {"announce": config.announce, "addresses": owners() if owners else []}
        ),
        **Views(run_dir, config, opened, history, view, owners=owners).answers(),
        **({SHADOW: as_json(lambda _query: compared.report())} if compared else {}),
    }


def direct_return(config: Config, maps: Maps, state: ClusterState) -> DirectReturn | None:
    """Return what writes where the other nodes are; None without direct return.

    Raises BpfError: the kernel refused to forget what an agent with direct return has written.
    """
    if config.forward is Forward.SNAT:
        clear_direct_return(maps)
        return None
    return DirectReturn(maps, lambda: [node for node in state.nodes() if node.name != config.node_name])


def tell_of_interfaces(inbox: Inbox, looks: Sequence[Callable[[], None]], indexes: set[int]) -> None:
    """Tell the agent, and whoever else looks at them, which interfaces have changed."""
    inbox.put(InterfacesChanged(frozenset(indexes)))
    for look in looks:
        look()


def build_speaker(
    config: Config,
    source: Source,
    state: ClusterState,
    agent: Agent,
    opened: Callable[[], contextlib.AbstractContextManager[Maps]],
) -> Speaker | None:
    """Return what finds owners for addresses on the node's segments; None when it is not asked for."""
    if config.announce is Announce.OFF:
        return None
    from lb.segment.speaker import Speaker, lag  # noqa: PLC0415  (most agents do without)

    able = servable.Servables(state, agent, config.node_name)
    return Speaker(config, able.report, opened, lambda: lag(source.health()))


def build_shadow(
    config: Config, opened: Callable[[], contextlib.AbstractContextManager[KernelMaps]], history: History
) -> Watcher | None:
    """Return what compares decisions with what netfilter did; None unless in shadow mode."""
    if config.shadow is Switch.OFF:
        return None
    from lb.shadow.watcher import Watcher  # noqa: PLC0415  (an agent that serves does without)

    return Watcher(opened, history.seconds_since)


def _to_nobody(_service: ObjectKey, *, reason: str, action: str, note: str) -> None:
    """Tell nobody what is wrong with a Service: in shadow mode it is kube-proxy's to serve it."""


def measure(
    config: Config,
    source: Source,
    agent: Agent,
    *,
    history: History,
    opened: Callable[[], contextlib.AbstractContextManager[Maps]],
    programs: str,
    after_sync: list[Callable[[Agent], None]],
    more_problems: Mapping[str, Callable[[], Sequence[Problem]]],
    speaker: Speaker | None,
    compared: Watcher | None = None,
) -> Answer:
    """Return what answers ``/metrics``; durations are noted after each sync and each programmed change.

    more_problems: by kind, what gives those that the agent's own loop does not meet.
    """
    from lb.served import metrics  # noqa: PLC0415  (prometheus_client: other commands do without)
    from lb.served.exposition import exposition  # noqa: PLC0415
    from lb.served.service_metrics import service_metrics  # noqa: PLC0415

    syncs, programming = metrics.Syncs(), metrics.Programming()
    after_sync.append(lambda agent: syncs.note(agent.sync_seconds))
    history.measured = programming.note
    parts: dict[str, metrics.Part] = {
        "build": lambda: metrics.build_metrics(lb.__version__, programs),
        "agent": lambda: metrics.agent_metrics(
            agent.service_count(),
            {**agent.problem_counts(), **{kind: len(each()) for kind, each in more_problems.items()}},
            agent.busy_seconds(),
        ),
        "repairs": lambda: metrics.repair_metrics(agent.repairs.count),
        "audit": lambda: metrics.audit_metrics(agent.drift),
        "syncs": syncs.metrics,
        "programming": programming.metrics,
        "source": lambda: metrics.source_metrics(source.health()),
        "maps": lambda: metrics.map_metrics(opened),
        **({"announce": lambda: metrics.announce_metrics(asdict(speaker.figures()))} if speaker else {}),
        **({"shadow": lambda: metrics.shadow_metrics(compared.report())} if compared else {}),
        "figures": lambda: service_metrics(opened, config.metrics_services, config.metrics_backends),
    }
    return exposition(metrics.Metrics(parts))


def _proxy_mode(_request: Request) -> Response:
    """Answer ``/proxyMode``, where kube-proxy names its mode, and where tools ask for it."""
    return Response(200, b"ebpf")


def raise_file_limit() -> None:
    """Take what the system allows: each health-check port takes a file for each address."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
