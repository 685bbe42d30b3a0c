# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.twin [SECONDS [FIRST SEED [OVERLAY [UPLINK MODE]]]]``: as through netfilter.

Runs tests/twin on seed after seed for so long. A seed fails when a client saw something else beside
kube-proxy's rules and docs/differences.md has no row for it; its small program is printed, and the campaign
ends with 1.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from lb.config import UplinkMode
from lb.lab.addressing import Overlay
from tests.twin.campaign import run
from tests.twin.pair import Pair


def main(
    seconds: float = 60.0,
    first: int | None = None,
    overlay: Overlay = Overlay.NONE,
    uplink: UplinkMode = UplinkMode.AUTO,
) -> int:
    """Run the campaign; return the exit code."""
    first = random.SystemRandom().randrange(1 << 32) if first is None else first
    with (
        tempfile.TemporaryDirectory(prefix="lbctl-twin-") as folder,
        Pair(f"twin{os.getpid()}", Path(folder), overlay, uplink) as pair,
    ):
        end = time.monotonic() + seconds
        done = run(
            pair,
            itertools.count(first),
            enough=lambda: time.monotonic() > end,
            report=lambda text: print(f"twin: FAULT: {text}", flush=True),
        )
    print(f"twin: from seed {first}, {seconds:.0f} s: {done}")
    return bool(done.faults)


if __name__ == "__main__":
    kinds = (float, int, Overlay, UplinkMode)
    sys.exit(main(*(kind(text) for kind, text in zip(kinds, sys.argv[1:], strict=False))))
