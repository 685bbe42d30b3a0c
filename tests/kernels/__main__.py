# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernels [--all] [VERSION …] [-- ARGUMENT …]``: tests on Debian's kernels, in turn.

They are those of SELECTION; with --all every packet test; and after ``--`` what pytest is to run instead.

virtme-ng boots each one with this machine's root file system: the guest sees all of it, and what it writes is
gone with it. No hardware virtualisation is in it, so it runs wherever the tests do, only slower. The programs
are compiled here and loaded there.

Exit code: 0 when every test of every kernel passed, else 1.
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
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.datapath.programs import build, loader
from tests.kernels import debian

TREE = Path(__file__).resolve().parents[2]

PACKETS = (
    "test_paths.py",
    "test_connections.py::test_affinity_keeps_the_backend",
    "test_connection_life.py::test_connection_life_a_half_closed_connection_keeps_its_backend",
    "test_fragments.py::test_fragments_atomic",
    "test_hairpin.py::test_hairpin_only_to_itself",
    "test_icmp_errors.py::test_icmp_errors_about_udp_without_checksum",
    "test_icmp_errors.py::test_icmp_errors_of_a_pod_that_reaches_itself",
    "test_own_connections.py::test_own_connections_of_a_pod_that_the_node_masquerades",
    "test_overlay.py::test_overlay_client_outside_backend_behind_the_tunnel",
    "test_path_mtu.py::test_icmp_errors_tell_the_mtu_of_the_route",
    "test_ping.py::test_ping_honours_source_ranges",
    "test_redirect.py::test_redirect_both_ways_for_clients_outside_and_in_pods",
    "test_reject.py::test_ttl_runs_out_where_we_forward",
    "test_reject.py::test_what_was_sent_to_many_is_not_answered",
    "test_sctp.py::test_cluster_ip_sctp_keeps_a_wrong_checksum_wrong",
    "test_snat_ports.py::test_snat_ports_of_two_clients_with_one_source_port_differ",
    "test_source_ranges.py::test_source_ranges_come_before_the_question_for_endpoints",
    "test_stale_udp.py::test_stale_udp_a_late_reply_of_the_old_backend_is_not_the_new_ones",
    "test_capture.py::test_the_bytes_before_and_after",
    "test_monitor.py::test_what_there_is_no_room_for_is_counted",
)
"""Of the packet tests, some for each program, step and map. ``--all`` runs all of them, which takes hours."""

SELECTION = (
    "tests/unit/test_features.py::test_this_kernel_has_all_that_is_needed",
    "tests/unit/test_features.py::test_conntrack_can_be_asked_where_the_kernel_has_the_functions",
    "tests/unit/test_loops.py",
    "tests/kernels/lab.py",
    *(f"tests/packet/{name}" for name in PACKETS),
)
"""What runs on every kernel. The other tests are about Python, or about what one kernel shows for all."""

_MINUTES = 60
_TIMEOUT = 1200  # s, for each test: the first one waits until all programs are loaded


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one kernel did: counts of tests, seconds until it ran something, and until it was gone."""

    kernel: str
    passed: int
    skipped: int
    failed: int
    boot: float
    seconds: float

    @property
    def well(self) -> bool:
        """Whether something passed and nothing failed."""
        return bool(self.passed) and not self.failed


def main(words: Sequence[str]) -> int:
    """Run, and return the exit code; words: versions, ``--all``, and arguments of pytest after ``--``."""
    before = list(words).index("--") if "--" in words else len(words)
    versions = [word for word in words[:before] if word != "--all"]
    tests = words[before + 1 :] or ((*SELECTION[:4], "tests/packet") if "--all" in words else SELECTION)
    unknown = sorted(set(versions) - set(debian.SUITES))
    if unknown:
        print(f"no such kernel: {', '.join(unknown)}; there are {', '.join(debian.SUITES)}", file=sys.stderr)
        return 2
    loader.compile_ahead()
    outcomes = []
    for version in versions or debian.SUITES:
        image = debian.kernel(version)
        print(f"== Linux {version} ({image.name}), Debian's {debian.SUITES[version]}", flush=True)
        outcomes.append(run(image, tests))
    for one in outcomes:
        print(
            f"{'ok  ' if one.well else 'FAIL'} {one.kernel}: {one.passed} passed, {one.skipped} skipped,"
            f" {one.failed} failed; boot {one.boot:.0f} s, in all {one.seconds:.0f} s"
        )
    return 0 if outcomes and all(one.well for one in outcomes) else 1


def run(image: Path, tests: Sequence[str]) -> Outcome:
    """Boot a kernel, run tests in it, and return what became of them; one failed if it came to none."""
    with tempfile.TemporaryDirectory(prefix="lbctl-kernel-") as directory:
        results = Path(directory)
        shutil.copytree(build.CACHE, results / "cache")
        (results / "run").write_text(script(results, tests))
        began = time.time()
        _emulate(command(image, results))
        seconds = time.time() - began
        begun, report = results / "begun", results / "report.xml"
        boot = begun.stat().st_mtime - began if begun.exists() else seconds
        passed, skipped, failed = counts(report.read_text()) if report.exists() else (0, 0, 1)
    return Outcome(image.name.removeprefix("vmlinuz-"), passed, skipped, failed, boot, seconds)


def _emulate(argv: Sequence[str]) -> None:
    """Run the emulator until it ends or its time is over; it is gone afterwards, whatever happens here."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0) as running:
        try:
            running.wait(_MINUTES * 60)
        except subprocess.TimeoutExpired:
            print(f"not done after {_MINUTES} minutes", file=sys.stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGTERM)


def script(results: Path, tests: Sequence[str]) -> str:
    """Return what the guest runs."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-o", f"timeout={_TIMEOUT}"]
    return "\n".join(
        (
            "set -e",
            f"touch {results}/begun",
            "modprobe -a tun nf_conntrack_netlink",
            f"mkdir -p {build.CACHE}",
            f"cp {results}/cache/* {build.CACHE}",
            f"cd {shlex.quote(str(TREE))}",
            f"export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH={shlex.quote(str(TREE))}",
            shlex.join([*pytest, f"--junit-xml={results}/report.xml", *tests]),
        )
    )


def command(image: Path, results: Path) -> list[str]:
    """Return the command that boots a kernel and has it run the script. The guest may write to results."""
    return [
        *("nice", "-n", "10"),
        str(Path(sys.executable).with_name("vng")),
        *("--run", str(image), "--disable-kvm", "--disable-microvm", "--cpus", "1", "--memory", "2G"),
        *("--user", "root", "--rwdir", str(results), "--exec", f"sh {results}/run"),
    ]


def counts(report: str) -> tuple[int, int, int]:
    """Return how many tests passed, were skipped and failed, from the text of a JUnit report."""
    suite = ElementTree.fromstring(report).find("testsuite")
    if suite is None:
        return 0, 0, 1
    skipped = int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return int(suite.attrib["tests"]) - skipped - failed, skipped, failed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.exit(main(sys.argv[1:]))
