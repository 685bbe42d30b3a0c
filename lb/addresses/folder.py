# SPDX-License-Identifier: Apache-2.0
"""Addresses for the Services of manifests; what was given stands in a file (:mod:`lb.manifests.addresses`).

The file is the truth, as a status is in a cluster: no manifest is rewritten. Agents read it like any manifest
if its folder is one of their sources. One process at a time writes it; another waits for the lock beside it.
While something in the folders cannot be read, nothing goes back: a Service that is missed may be there.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from lb.addresses.allocate import Outcome, Past, Rest, allocate
from lb.addresses.claimant import Claimant
from lb.addresses.pool import PoolsFile
from lb.addresses.request import read_request
from lb.addresses.telemetry import Telemetry
from lb.errors import InputError, LbError
from lb.folders import read_file, replace_file
from lb.manifests import documents
from lb.manifests.addresses import to_object
from lb.manifests.complete import Pools as Networks
from lb.manifests.complete import ip_families
from lb.manifests.library import MOST_BYTES, Library, folders
from lb.manifests.notices import RESCAN_SECONDS, notices
from lb.manifests.objects import ServiceAddresses, ServiceRequest
from lb.model import IPAddress, Namespace, Node, ObjectKey, ServiceType

_log = logging.getLogger(__name__)

_ANY_PORT = range(1, 65536)
_LOCK_SECONDS = 0.5
_HEADER = """\
# Written by `lbctl addresses run`, which goes by what stands here: the load-balancer addresses of Services.
"""
State = dict[ObjectKey, ServiceAddresses]


class FolderAllocator:
    """Gives addresses to the Services of some directories of manifests.

    state: the file. networks: those of cluster IPs, which say of which families a Service is. clock: seconds
    since the epoch.

    Raises ConfigError: a directory is none.
    """

    def __init__(
        self,
        directories: Sequence[str | Path],
        state: Path,
        pools: PoolsFile,
        telemetry: Telemetry,
        *,
        networks: Networks,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directories = folders(directories)
        self._path = state
        self._pools = pools
        self._networks = networks
        self._telemetry = telemetry
        self._clock = clock
        self._library = Library(self._directories, _ANY_PORT, clock)
        self._state: State = {}
        self._past = Past()
        self._told: dict[ObjectKey, str] = {}
        self._errors: set[str] = set()
        self._again = True

    def run(self, stop: threading.Event) -> None:
        """Give addresses, and follow what changes, until stop is set.

        Raises LbError: the state cannot be read, or its folder not be written to.
        """
        with self._locked(stop):
            if stop.is_set():
                return
            self.load()
            self._telemetry.leading = True
            due = 0.0
            for noticed in notices(self._directories, stop):
                now = time.monotonic()
                if noticed or now >= due:
                    due = now + RESCAN_SECONDS
                    self.step()

    @contextlib.contextmanager
    def _locked(self, stop: threading.Event) -> Iterator[None]:
        """Hold the lock, or return without it once stop is set."""
        path = self._path.with_name(f".{self._path.name}.lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LbError(f"{path}: {error.strerror}") from error
        try:
            told = False
            while not stop.is_set():
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        _log.info("%s: another process gives addresses; waiting", self._path)
                    told = True
                    stop.wait(_LOCK_SECONDS)
            yield
        finally:
            os.close(fd)

    def load(self) -> None:
        """Read what was given.

        Raises LbError: the file is there and cannot be read; nothing is given then, for it may have been
        given.
        """
        path = str(self._path)
        try:
            text = read_file(self._path, MOST_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise LbError(f"{path}: cannot be read, so what was given is not known: {error}") from error
        content = documents.read(path, text, _ANY_PORT)
        if content.errors:
            raise LbError(f"{content.errors[0]}; so what was given is not known: mend or remove the file")
        found = [each for each in content.objects.values() if isinstance(each, ServiceAddresses)]
        self._state = {each.key: each for each in found}
        self._past = Past(
            {address: each.key for each in found for address in each.addresses},
            {address: Rest(until, each.key) for each in found for address, until in each.resting.items()},
        )

    def step(self) -> None:
        """Look at the folders and the pools, and give what is to be given."""
        changed = self._library.refresh()
        changed |= self._pools.refresh()
        self._telemetry.pools, self._telemetry.pools_error = self._pools.pools, self._pools.error
        now = self._clock()
        rested = any(rest.until <= now for rest in self._past.resting.values())
        if not (changed or rested or self._again):
            return
        objects, errors = self._library.contents()
        requests = [each for each in objects if isinstance(each, ServiceRequest)]
        claimants = {each.service.key: self._claimant(each) for each in requests}
        if errors:
            self._report(errors)
            for key, given in self._state.items():
                if key not in claimants and given.addresses:
                    claimants[key] = _unseen(given)
        promised = {key: each.addresses for key, each in self._state.items()}
        nodes = {one: each.name for each in objects if isinstance(each, Node) for one in each.addresses}
        outcome = allocate(
            self._pools.pools,
            claimants.values(),
            now,
            promised=promised,
            past=self._past,
            namespaces={each.name: each for each in objects if isinstance(each, Namespace)},
            nodes=nodes,
        )
        self._again = not self._write(_state_of(outcome, claimants, self._state))
        if not self._again:
            self._past = outcome.past
            self._telemetry.outcome, self._telemetry.nodes = outcome, nodes
            self._tell(outcome)

    def _claimant(self, request: ServiceRequest) -> Claimant:
        service = request.service
        return Claimant(
            key=service.key,
            type=service.type,
            ports=service.ports,
            selector=service.selector,
            external_policy=service.external_policy,
            cluster_ips=service.cluster_ips,
            external_ips=service.external_ips,
            load_balancer_ips=service.load_balancer_ips,
            labels=service.labels,
            created=service.created,
            families=ip_families(request, self._networks),
            requires_all=request.requires_dual,
            load_balancer_class=request.load_balancer_class,
            request=read_request(request.annotations, request.load_balancer_ip),
        )

    def _write(self, state: State) -> bool:
        """Write the file if it is to say something else, or is not there; return whether it says that."""
        if state == self._state and self._path.exists():
            return True
        items = [to_object(state[key]) for key in sorted(state)]
        text = _HEADER + yaml.safe_dump_all(items, sort_keys=False, width=110)
        try:
            replace_file(self._path, text.encode())
        except OSError as error:
            self._telemetry.failures += 1
            _log.error("%s: cannot be written: %s; trying again", self._path, error.strerror)
            return False
        self._state = state
        return True

    def _report(self, errors: Sequence[InputError]) -> None:
        standing = {str(error) for error in errors}
        for text in sorted(standing - self._errors):
            _log.warning("%s; no address goes back while something cannot be read", text)
        self._errors = standing

    def _tell(self, outcome: Outcome) -> None:
        """Log what is news of a Service."""
        for key, verdict in outcome.verdicts.items():
            if self._told.get(key) != verdict.note:
                tell = _log.warning if verdict.fault else _log.info
                tell("Service %s: %s", key, verdict.note)
        self._told = {key: verdict.note for key, verdict in outcome.verdicts.items()}


def _unseen(given: ServiceAddresses) -> Claimant:
    """Return what holds the addresses of a Service that cannot be read at present."""
    return Claimant(given.key, ServiceType.LOAD_BALANCER, load_balancer_ips=given.addresses, elsewhere=True)


def _state_of(outcome: Outcome, claimants: dict[ObjectKey, Claimant], before: State) -> State:
    """Return what the file should say: of each Service what its manifest does not say already."""
    found: State = {}
    for key, verdict in outcome.verdicts.items():
        own = [one for one in verdict.addresses if one not in verdict.claimant.standing]
        found[key] = ServiceAddresses(key, tuple(own), verdict.note)
    for key, each in claimants.items():
        if each.elsewhere and key in before:
            found[key] = before[key]
    resting: defaultdict[ObjectKey, dict[IPAddress, float]] = defaultdict(dict)
    for address, rest in sorted(outcome.past.resting.items(), key=lambda one: str(one[0])):
        resting[rest.last][address] = float(int(rest.until))
    for key, each_rests in resting.items():
        known = found.get(key, ServiceAddresses(key))
        found[key] = ServiceAddresses(key, known.addresses, known.note, each_rests)
    return found
