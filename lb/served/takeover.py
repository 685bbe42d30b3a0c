# SPDX-License-Identifier: Apache-2.0
"""Services that are between kube-proxy and us: for as long as map ``cutover`` says so, it is a problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import Cutover
from lb.errors import BpfError
from lb.served.problems import Problem, as_note, time_text

_PROBLEMS = {
    Cutover.TAKE: Problem(
        "Services are not taken over from kube-proxy yet: connections that netfilter knows stay with it,"
        " where programs may ask it",
        "once kube-proxy itself does not run here any more: lbctl cutover moves connections and removes its"
        " rules, and with the setting cutover the agent does that; docs/migration.md",
    ),
    Cutover.LEAVE: Problem(
        "lbctl cutover --back did not come to its end: new connections to Services are left to netfilter",
        "stop the agent and call lbctl cutover --back again; lbctl cutover, to keep the Services here",
    ),
}


def problems(maps: Maps) -> list[Problem]:
    """Return what is wrong: at most one problem.

    Raises BpfError: the map could not be read.
    """
    what = int(maps.array("cutover")[0])
    return [_PROBLEMS[Cutover(what)]] if what in _PROBLEMS else []


def is_shadow(maps: Maps) -> bool:
    """Tell whether the programs are those of shadow mode, which serve nobody.

    Raises BpfError: the map could not be read.
    """
    return int(maps.array("cutover")[0]) == Cutover.SHADOW


def look(opened: Callable[[], AbstractContextManager[Maps]]) -> list[Problem]:
    """Open the maps and return what is wrong; may be called from any thread.

    Nothing where they cannot be opened or read: the metrics of maps tell that, and other problems are told.
    """
    with contextlib.suppress(BpfError), opened() as maps:
        return problems(maps)
    return []


def noted(maps: KernelMaps) -> Iterator[dict[str, Any]]:
    """Yield what is wrong as JSON has it; it is so since the map was made, or written by ``lbctl cutover``.

    Raises BpfError: the map could not be read.
    """
    for one in problems(maps):
        yield as_note(one, time_text((maps.pin_dir / "cutover").stat().st_mtime))
