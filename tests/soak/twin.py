# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.twin [SECONDS [FIRST SEED]]``: what works through netfilter works here.

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

from tests.twin.campaign import run
from tests.twin.pair import Pair


def main(seconds: float = 60.0, first: int | None = None) -> int:
    """Run the campaign; return the exit code."""
    first = random.SystemRandom().randrange(1 << 32) if first is None else first
    with (
        tempfile.TemporaryDirectory(prefix="lbctl-twin-") as folder,
        Pair(f"twin{os.getpid()}", Path(folder)) as pair,
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
    sys.exit(main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False))))
