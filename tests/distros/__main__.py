# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.distros [SUITE] [-- PYTEST_ARGS …]``: both commands of the README on another Debian.

debootstrap makes a root of the suite (``trixie``, which is Debian 13, when none is named) in a temporary
directory, from the archive that this machine has its own packages from. A copy of this tree goes in. There
``make lab``, ``lbctl lab down`` and ``make test`` run, on this kernel, with that Debian's bcc and Python.

Processes, mounts, pins and network namespaces end with the namespaces that all of it runs in; the directory
is removed whatever happens.

Exit code: 0 when all three commands succeeded, else 1; 2 for a suite that debootstrap does not know.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kernels.debian import archive

TREE = Path(__file__).resolve().parents[2]
DEFAULT_SUITE = "trixie"
INSIDE = "root/lbctl"
"""Where the tree is, in the other root."""

_SCRIPTS = Path("/usr/share/debootstrap/scripts")
_PACKAGES = "ca-certificates,git,make"
_OF_THIS_MACHINE = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
"""Files by which this machine reaches its packages, where it has them."""
_ROOMY = "/var/tmp"  # a root with everything in it takes 4 GB, too much for a /tmp in memory

_ENTER = """\
set -e
mount --bind "$ROOT" "$ROOT"
cd "$ROOT"
mount -t proc proc proc
mount --rbind /sys sys
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/lock run/before
pivot_root . run/before
umount --lazy run/before
exec /bin/bash -ec "$COMMANDS"
"""


def commands(pytest_args: Sequence[str]) -> str:
    """Return what the other root runs, as lines for a shell."""
    return "\n".join(
        (
            f"cd /{INSIDE}",
            "make lab",
            ".venv/bin/lbctl lab down",
            f"make test PYTEST_ARGS={shlex.quote(shlex.join(pytest_args))}",
        )
    )


def make_root(suite: str, root: Path) -> None:
    """Fill an empty directory with a small Debian, and a copy of what git knows of this tree.

    Raises
    ------
    subprocess.CalledProcessError: debootstrap or git failed, and has said why.
    """
    argv = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(root), archive()]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    for name in _OF_THIS_MACHINE:
        if Path("/", name).exists():
            (root / name).unlink(missing_ok=True)
            shutil.copy(Path("/", name), root / name)
    known = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(known, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, files.split("\0")):
        if (TREE / name).exists():
            (root / INSIDE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, root / INSIDE / name, follow_symlinks=False)


def run_in(root: Path, lines: str) -> int:
    """Run commands with another root, in namespaces of their own, to their end; return the exit code."""
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))
    }
    own |= {
        "ROOT": str(root),
        "COMMANDS": lines,
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    with subprocess.Popen([*alone, "/bin/sh", "-c", _ENTER], env=own, stdin=subprocess.DEVNULL) as running:
        try:
            return running.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                running.kill()


def main(words: Sequence[str]) -> int:
    """Run, and return the exit code; words: a suite or none, then ``--`` and arguments for pytest or none."""
    before = list(words[: words.index("--")] if "--" in words else words)
    suite = before[0] if before else DEFAULT_SUITE
    if len(before) > 1 or not (_SCRIPTS / suite).exists():
        print(
            f"usage: python -m tests.distros [SUITE] [-- PYTEST_ARGS …]; no such suite: {before}",
            file=sys.stderr,
        )
        return 2
    root = Path(tempfile.mkdtemp(prefix=f"lbctl-{suite}-", dir=_ROOMY))
    began = time.monotonic()
    try:
        print(f"== a root of {suite} in {root}: one to four minutes", flush=True)
        make_root(suite, root)
        print("== make lab, lbctl lab down, make test in there", flush=True)
        code = run_in(root, commands(words[len(before) + 1 :]))
    finally:
        shutil.rmtree(root)
    print(f"{'FAIL' if code else 'ok  '} {suite}: {time.monotonic() - began:.0f} s")
    return 1 if code else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
