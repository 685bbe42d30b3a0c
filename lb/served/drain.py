# SPDX-License-Identifier: Apache-2.0
"""Whether an operator has the node drained: ``lbctl node drain`` leaves a mark that agents look for.

The mark is a file in the run directory. So it outlives an agent that is replaced, works while none runs, and
is gone after a reboot, as are the connections.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from lb.folders import replace_file
from lb.rundir import RunDir
from lb.served.problems import time_text


@dataclass(frozen=True, slots=True)
class DrainMark:
    """The mark of one instance; may be asked from any thread."""

    run_dir: RunDir

    def is_set(self) -> bool:
        """Tell whether the node is to be left."""
        return self.since() is not None

    def since(self) -> float | None:
        """Return since when, in seconds since the epoch; None: it is not drained, or nobody can tell."""
        try:
            return self.run_dir.drain_path.stat().st_mtime
        except OSError:
            return None

    def since_text(self) -> str | None:
        """Return the same as ISO 8601 text in UTC."""
        since = self.since()
        return None if since is None else time_text(since)

    def put(self) -> None:
        """Set the mark; the time of one that is there stays.

        Raises OSError: there is no room for it, or no run directory.
        """
        if not self.is_set():
            replace_file(self.run_dir.drain_path, f"{time.time():.0f}\n".encode())

    def take_away(self) -> None:
        """Remove the mark; there need not be one.

        Raises OSError: it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            self.run_dir.drain_path.unlink()
