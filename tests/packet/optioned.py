# SPDX-License-Identifier: Apache-2.0
"""The programs on a bench, to which every packet comes with options: tests about plain packets run on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from tests import options
from tests.options import Options
from tests.packet.harness import DROP, TAKEN, Datapath, Result


class _Optioned:
    """A datapath whose frames get options on their way in, and lose them on their way out."""

    def __init__(self, bare: Datapath, extra: Options) -> None:
        self._bare, self._extra = bare, extra

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bare, name)

    def run(self, program: str, frame: bytes, **context: Any) -> Result:
        """Run the frame with options, an ICMP error about a packet with the same; return the result without.

        That they are the same afterwards, and the checksums right, is asserted here.
        """
        error = options.is_error(frame)
        sent = options.into(options.into_quote(frame, self._extra) if error else frame, self._extra)
        result = self._bare.run(program, sent, **context)
        if result.verdict in (DROP, TAKEN):
            return result
        plain, _ = options.out_of(result.packet)
        if options.is_error(plain):
            plain, _ = options.out_of_quote(plain)
        assert options.answer_with(plain, frame, self._extra) == result.packet
        return replace(result, packet=plain)


def with_options(bare: Datapath, extra: Options) -> Datapath:
    """Return the same programs, for packets with options."""
    return cast("Datapath", _Optioned(bare, extra))
