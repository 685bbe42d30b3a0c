# SPDX-License-Identifier: Apache-2.0
"""Which Service gets which load-balancer address: a pure function of pools, Services and their statuses.

The rules:

- What stands in a status is the truth. An address stays where it is, also when its pool shrinks or goes, when
  two Services turn out to have it, and whoever gives addresses next. There are three reasons to take one
  back, and all stand in the Services themselves: it names another address that can be had; it has given up
  the family (ipFamilies); or it shares the address with an older Service, and both have come to want one
  port. No writer of a status can exclude the latter, since users change ports meanwhile. Nodes serve the port
  for the older one; the other moves, unless it names the address or there is no other.
- What is promised, and not yet seen in a status, counts as if it stood there.
- Requests come first, then Services that come back to an address that rests, then the others; in each, the
  older Service comes first.
- Pools are used in their order, addresses from the lowest up. An address that became free rests: it goes to
  another Service only when no other is left, but to a Service of the former one's name at once.
- An address that is a clusterIP or an external address of another Service is taken, in whatever pool it is.
- A Node's own address is given to no Service, though a pool has it: its host answers for it.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from lb.addresses.claimant import Claimant
from lb.addresses.pool import Pool, Pools
from lb.addresses.sharing import age, gives_way, may_share
from lb.model import IPAddress, Namespace, ObjectKey
from lb.words import some


class Reason(enum.StrEnum):
    """What became of a Service's request for an address; a word for machines, as in conditions and Events."""

    GIVEN = "AddressGiven"
    POOL_FULL = "PoolFull"
    """Every address of the pools that it may have is in use."""
    NO_POOL = "NoPool"
    """No pool is for it, or none has an address of the family."""
    OUTSIDE = "OutsidePools"
    """The address that it names, or has, is in no pool."""
    REFUSED = "PoolRefuses"
    """The address that it names is in a pool that is not for it."""
    TAKEN = "AddressTaken"
    """The address that it names, or has, is another Service's."""
    OF_NODE = "AddressOfNode"
    """The address that it names, or has, is a Node's own."""
    UNREADABLE = "WishUnreadable"


@dataclass(frozen=True, slots=True)
class Rest:
    """An address that is free again: until when it rests, in seconds since the epoch, and whose it was."""

    until: float
    last: ObjectKey


@dataclass(frozen=True, slots=True)
class Past:
    """What the statuses of now do not tell: whose each address was at the last look, and which ones rest."""

    holders: Mapping[IPAddress, ObjectKey] = field(default_factory=dict)
    resting: Mapping[IPAddress, Rest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a Service should have.

    Attributes
    ----------
    addresses: those that its status has or should have, in the order of its families.
    reason: the first thing that is wrong, or GIVEN.
    note: all of it in words for people.
    satisfied: it has an address, and one of each family if it requires that.
    fault: somebody should look: it is not satisfied, or what it has is not as it should be.
    """

    claimant: Claimant
    addresses: tuple[IPAddress, ...]
    reason: Reason
    note: str
    satisfied: bool
    fault: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """verdicts: of the Services that are ours. past: for the next time."""

    verdicts: Mapping[ObjectKey, Verdict]
    past: Past


def allocate(
    pools: Pools,
    claimants: Iterable[Claimant],
    now: float,
    *,
    promised: Mapping[ObjectKey, tuple[IPAddress, ...]] | None = None,
    past: Past = Past(),
    namespaces: Mapping[str, Namespace] | None = None,
    nodes: Mapping[IPAddress, str] | None = None,
) -> Outcome:
    """Return what every Service that is ours should have.

    claimants: all Services, of whatever type. now: seconds since the epoch. promised: addresses that are on
    their way into a status. namespaces: by name; one that is missing has no labels. nodes: the names of Nodes
    by their addresses.
    """
    allocation = _Allocation(
        pools,
        list(claimants),
        now,
        promised=promised or {},
        past=past,
        namespaces=namespaces or {},
        nodes=nodes or {},
    )
    return allocation.run()


class _RefusedError(Exception):
    """A Service is not given an address of a family; text says why."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Allocation:
    """One run; occupants says of each address who has it now."""

    def __init__(
        self,
        pools: Pools,
        claimants: list[Claimant],
        now: float,
        *,
        promised: Mapping[ObjectKey, tuple[IPAddress, ...]],
        past: Past,
        namespaces: Mapping[str, Namespace],
        nodes: Mapping[IPAddress, str],
    ) -> None:
        self._pools = pools
        self._namespaces = namespaces
        self._nodes = nodes
        self._claimants = sorted(claimants, key=age)
        self._now = now
        self._past = past
        self._has: dict[ObjectKey, list[IPAddress]] = {}
        self._occupants: defaultdict[IPAddress, dict[ObjectKey, Claimant]] = defaultdict(dict)
        self._freed: set[IPAddress] = set()
        self._parted: dict[tuple[ObjectKey, int], IPAddress] = {}
        self._next: dict[tuple[str, int], Iterator[IPAddress]] = {}
        for each in self._claimants:
            has = [*each.standing, *(promised.get(each.key, ()) if each.balanced else ())]
            self._has[each.key] = list(dict.fromkeys(has))
            for address in {*has, *each.external_ips, *each.cluster_ips}:
                self._occupants[address][each.key] = each
        self._resting = self._now_resting()

    def run(self) -> Outcome:
        ours = [each for each in self._claimants if self._is_ours(each)]
        verdicts: dict[ObjectKey, Verdict] = {}
        for each in reversed(ours):
            self._part(each)
        came_back = {rest.last for rest in self._resting.values()}
        for each in sorted(ours, key=lambda one: (not one.request.addresses, one.key not in came_back)):
            verdicts[each.key] = self._decide(each)
        return Outcome(verdicts, self._leave())

    def _is_ours(self, each: Claimant) -> bool:
        return each.balanced and not each.elsewhere and self._pools.ours(each.load_balancer_class)

    def _leave(self) -> Past:
        """Return what is to be remembered."""
        return Past(self._holders(), self._now_resting())

    def _holders(self) -> dict[IPAddress, ObjectKey]:
        return {address: each.key for each in self._claimants for address in self._has[each.key]}

    def _now_resting(self) -> dict[IPAddress, Rest]:
        """Return what rests: it was somebody's at the last look or rested then, and is nobody's now."""
        holders = self._holders()
        until = self._now + self._pools.rest_seconds
        freed = {
            address: Rest(until, key)
            for address, key in self._past.holders.items()
            if self._pools.of(address) is not None
        }
        return {
            address: rest
            for address, rest in {**self._past.resting, **freed}.items()
            if rest.until > self._now and address not in holders
        }

    # one Service

    def _part(self, each: Claimant) -> None:
        """Take back what a Service shares with an older one that has come to want the same port."""
        if each.request.error:
            return
        for address in list(self._has[each.key]):
            if each.request.addresses.get(address.version) != address and any(
                one.balanced and gives_way(each, one) for one in self._others(each, address)
            ):
                self._release(each, [address])
                self._parted[each.key, address.version] = address

    def _decide(self, each: Claimant) -> Verdict:
        refusals: list[_RefusedError] = []
        if each.request.error:
            refusals.append(_RefusedError(Reason.UNREADABLE, each.request.error))
        else:
            for version in each.families:
                try:
                    self._provide(each, version)
                except _RefusedError as error:
                    refusals.append(error)
            for version in each.request.addresses.keys() - set(each.families):
                text = f"it names {each.request.addresses[version]}, but is not served in IPv{version}"
                refusals.append(_RefusedError(Reason.REFUSED, text))
            self._give_up(each)
        has = sorted(self._has[each.key], key=lambda one: _order(each, one.version))
        faults = list(self._standing_faults(each, has))
        versions = {address.version for address in has}
        satisfied = bool(has) and (not each.requires_all or versions >= set(each.families))
        named = [f"{address} from pool {pool.name}" for address in has if (pool := self._pools.of(address))]
        texts = [", ".join(named), *(str(one) for one in (*refusals, *faults))]
        reason = (*(one.reason for one in (*refusals, *faults)), Reason.GIVEN)[0]
        wrong = bool(faults) or any(one.reason is not Reason.NO_POOL for one in refusals)
        return Verdict(
            each,
            tuple(has),
            reason,
            "; ".join(filter(None, texts)),
            satisfied=satisfied,
            fault=wrong or not satisfied,
        )

    def _standing_faults(self, each: Claimant, has: Iterable[IPAddress]) -> Iterator[_RefusedError]:
        for address in has:
            if self._pools.of(address) is None:
                yield _RefusedError(Reason.OUTSIDE, f"{address} is in no pool, and stays all the same")
            elif address in self._nodes:
                text = f"{address} is Node {self._nodes[address]}'s own, and stays all the same"
                yield _RefusedError(Reason.OF_NODE, text)
            others = [one for one in self._others(each, address) if not may_share(each, one)]
            if others:
                names = some(one.key for one in others)
                yield _RefusedError(Reason.TAKEN, f"{address} is {names}'s as well")

    def _provide(self, each: Claimant, version: int) -> None:
        """See that a Service has an address of a family, the one that it names if it names one."""
        has = [address for address in self._has[each.key] if address.version == version]
        requested = each.request.addresses.get(version)
        if requested is not None:
            if requested not in has:
                self._check(each, requested)
                self._take(each, requested)
            self._release(each, [address for address in has if address != requested])
        elif not has:
            try:
                self._take(each, self._find(each, version))
            except _RefusedError:
                if (parted := self._parted.get((each.key, version))) is not None:
                    self._take(each, parted)
                raise

    def _give_up(self, each: Claimant) -> None:
        """Take back what is of a family that a Service is no longer served in."""
        lost = [one for one in self._has[each.key] if one.version not in each.families]
        self._release(each, [one for one in lost if self._pools.of(one) is not None])

    def _release(self, each: Claimant, addresses: Iterable[IPAddress]) -> None:
        for address in addresses:
            self._has[each.key].remove(address)
            if address not in (*each.external_ips, *each.cluster_ips):
                del self._occupants[address][each.key]
                self._freed.add(address)

    def _take(self, each: Claimant, address: IPAddress) -> None:
        self._has[each.key].append(address)
        self._occupants[address][each.key] = each

    def _others(self, each: Claimant, address: IPAddress) -> list[Claimant]:
        return [one for key, one in self._occupants.get(address, {}).items() if key != each.key]

    # which address

    def _check(self, each: Claimant, address: IPAddress) -> None:
        """See whether a Service may have the address that it names.

        Raises _RefusedError: the Service may not have it.
        """
        holding = [pool for pool in self._pools.pools if pool.holds(address)]
        if not holding:
            raise _RefusedError(Reason.OUTSIDE, f"{address}, which it names, is in no pool")
        names = each.request.pools
        if not any(self._serves(pool, each) and (not names or pool.name in names) for pool in holding):
            pools = some(pool.name for pool in holding)
            why = "it asks for another pool" if names else "which is for other namespaces or labels"
            raise _RefusedError(Reason.REFUSED, f"{address}, which it names, is in pool {pools}: {why}")
        if address in self._nodes:
            text = f"{address}, which it names, is Node {self._nodes[address]}'s own"
            raise _RefusedError(Reason.OF_NODE, text)
        if others := [one for one in self._others(each, address) if not may_share(each, one)]:
            text = f"{address}, which it names, is {some(one.key for one in others)}'s"
            raise _RefusedError(Reason.TAKEN, text)

    def _find(self, each: Claimant, version: int) -> IPAddress:
        """Return the address of a family that a Service should be given.

        Raises _RefusedError: no pool has one.
        """
        pools = [pool for pool in self._candidates(each) if pool.size(version)]
        if not pools:
            asked = f"pool {some(each.request.pools)}" if each.request.pools else "automatic pool"
            text = f"no {asked} with IPv{version} addresses is for its namespace and labels"
            raise _RefusedError(Reason.NO_POOL, text)
        for found in (self._shared(each, version, pools), self._former(each, version, pools)):
            if found is not None:
                return found
        for pool in pools:
            if (free := self._free(pool, version)) is not None:
                return free
        rested = [
            (rest.until, address)
            for address, rest in self._resting.items()
            if address.version == version and self._is_free(address) and _in(pools, address)
        ]
        if not rested:
            names = some(pool.name for pool in pools)
            raise _RefusedError(Reason.POOL_FULL, f"no IPv{version} address is left in pool {names}")
        return min(rested, key=lambda one: (one[0], int(one[1])))[1]

    def _candidates(self, each: Claimant) -> list[Pool]:
        names = each.request.pools
        return [
            pool
            for pool in self._pools.pools
            if self._serves(pool, each) and (pool.name in names if names else pool.automatic)
        ]

    def _serves(self, pool: Pool, each: Claimant) -> bool:
        name = each.key.namespace
        return pool.serves(self._namespaces.get(name) or Namespace(name), each.labels)

    def _is_free(self, address: IPAddress) -> bool:
        return not self._occupants.get(address) and address not in self._nodes

    def _shared(self, each: Claimant, version: int, pools: list[Pool]) -> IPAddress | None:
        """Return the lowest address of Services that all share with this one."""
        if not each.request.sharing_key:
            return None
        partners = chain.from_iterable(
            self._has[one.key]
            for one in self._sharers.get(each.request.sharing_key, ())
            if one.key != each.key
        )
        found = [
            address
            for address in partners
            if address.version == version
            and _in(pools, address)
            and address not in self._nodes
            and all(may_share(each, one) for one in self._others(each, address))
        ]
        return min(found, key=int, default=None)

    @cached_property
    def _sharers(self) -> dict[str, list[Claimant]]:
        found: defaultdict[str, list[Claimant]] = defaultdict(list)
        for each in self._claimants:
            if each.balanced and each.request.sharing_key:
                found[each.request.sharing_key].append(each)
        return found

    def _former(self, each: Claimant, version: int, pools: list[Pool]) -> IPAddress | None:
        """Return an address that a Service of this name had until a moment ago."""
        found = [
            address
            for address in self._rests_of.get(each.key, ())
            if address.version == version and self._is_free(address) and _in(pools, address)
        ]
        return min(found, key=int, default=None)

    @cached_property
    def _rests_of(self) -> dict[ObjectKey, list[IPAddress]]:
        found: defaultdict[ObjectKey, list[IPAddress]] = defaultdict(list)
        for address, rest in self._resting.items():
            found[rest.last].append(address)
        return found

    def _free(self, pool: Pool, version: int) -> IPAddress | None:
        """Return the lowest address of a pool that nobody has and that does not rest.

        Within a run an address that was passed over is not looked at again: what becomes free, rests.
        """
        upwards = self._next.setdefault((pool.name, version), pool.addresses(version))
        for address in upwards:
            if self._is_free(address) and address not in self._resting and address not in self._freed:
                return address
        return None


def _in(pools: Iterable[Pool], address: IPAddress) -> bool:
    return any(pool.holds(address) for pool in pools)


def _order(each: Claimant, version: int) -> int:
    """Return where a family stands among a Service's, those that it has given up last."""
    return each.families.index(version) if version in each.families else len(each.families)
