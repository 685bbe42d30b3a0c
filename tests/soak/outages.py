# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.outages [SECONDS …]``: how soon a source is in step after outages of its API server.

For each kind of outage and each length (8, 30 and 100 s by default), all at one time: a source with its real
waits, and the tests' double over TLS; where KUBEBUILDER_ASSETS names one, also a kube-apiserver, with one
outage after the other. At its end something is changed. Prints after how many seconds all watches had told
that something was wrong, and how long after the server's return the change was known and all watches were
open. Ends with 1 when that was more than LATE_SECONDS.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from lb.kube import Client, KubernetesSource
from lb.kube.timing import Timing
from lb.lab.certificates import issue, make_authority
from lb.stop_event import StopEvent
from tests.kube.double import ApiDouble
from tests.kube.envtest import ApiServer, why_not
from tests.kube.harness import DoubleCluster, Running, client_of
from tests.kube.objects import BACKEND_A, BACKEND_B, NODE, endpoint, endpoint_slice, node, service

LATE_SECONDS = 2.0
_AGAIN_SECONDS = 5.0
"""From one outage of a real server to the next."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one outage was like, in seconds; noticed is None when it was over before."""

    kind: str
    outage: float
    noticed: float | None
    late: float

    def __str__(self) -> str:
        noticed = "not noticed" if self.noticed is None else f"noticed after {self.noticed:.2f} s"
        return f"{self.kind}, {self.outage:g} s: {noticed}; in step {self.late:.2f} s after the return"


@contextlib.contextmanager
def following(client: Client) -> Iterator[Running]:
    """Run a source with its real waits, synced."""
    run, stop = Running(), StopEvent()
    run.source = KubernetesSource(client, node_name=NODE, report=run.report, timing=Timing())
    thread = threading.Thread(target=run.source.run, args=(run.emit, stop))
    thread.start()
    try:
        run.wait(lambda: run.synced)
        yield run
    finally:
        stop.set()
        thread.join()


def outage(
    run: Running, put: Callable[[str], object], kind: str, seconds: float, end: Callable[[], None]
) -> Result:
    """See an outage that has just begun to its end; put makes an address the only endpoint."""
    begun, noticed = time.monotonic(), None
    while (passed := time.monotonic() - begun) < seconds:
        if noticed is None and all(health.error for health in run.source.health()):
            noticed = passed
        time.sleep(0.02)
    wanted = BACKEND_B if run.endpoints() == {BACKEND_A} else BACKEND_A
    end()
    back = time.monotonic()
    put(wanted)
    run.wait(lambda: run.endpoints() == {wanted})
    run.wait(lambda: not any(health.error for health in run.source.health()))
    return Result(kind, seconds, noticed, time.monotonic() - back)


def of_the_double(kind: str, seconds: float) -> Result:
    """Run a double of its own through one outage."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        make_authority(Path(folder))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*issue(Path(folder), "apiserver"))
        double = stack.enter_context(ApiDouble(tls))
        fill(DoubleCluster(double))
        run = stack.enter_context(following(client_of(double, ssl_ca_cert=f"{folder}/ca.crt")))
        end: Callable[[], None]
        if kind == "hangs":
            double.hang()
            end = partial(double.hang, False)
        else:
            double.stop()
            end = double.restart
        if kind == "is another that says nothing":
            end = stack.enter_context(mute(int(double.url.rpartition(":")[2]), double.restart))
        return outage(run, partial(put_endpoint, double), f"the double {kind}", seconds, end)


@contextlib.contextmanager
def mute(port: int, then: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Have connections to a loopback port taken, and nothing said; yield what ends that and does the next."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(1000)

        def end() -> None:
            listening.close()  # and with it all connections, which nobody has accepted
            then()

        yield end


def of_a_real_server(lengths: list[float]) -> Iterator[Result]:
    """Kill and stop one kube-apiserver for so many seconds, one time after the other."""
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder)) as server:
        fill(server)
        with following(server.client()) as run:
            for kind, number in (("is killed", signal.SIGKILL), ("hangs", signal.SIGSTOP)):
                end = server.restart if number == signal.SIGKILL else partial(server.signal, signal.SIGCONT)
                for seconds in lengths:
                    server.signal(number)
                    yield outage(run, partial(put_endpoint, server), f"kube-apiserver {kind}", seconds, end)
                    time.sleep(_AGAIN_SECONDS)


def fill(cluster: DoubleCluster | ApiServer) -> None:
    """Put a Service, its endpoint and the node there."""
    cluster.put(service())
    put_endpoint(cluster, BACKEND_A)
    cluster.put(node())


def put_endpoint(cluster: DoubleCluster | ApiServer | ApiDouble, address: str) -> None:
    """Make an address the Service's only endpoint."""
    cluster.put(endpoint_slice("web-1", endpoint(address)))


def main(arguments: list[str]) -> int:
    """Run the command."""
    logging.disable(logging.WARNING)
    lengths = [float(each) for each in arguments] or [8.0, 30.0, 100.0]
    kinds = ("refuses", "is another that says nothing", "hangs")
    late = 0
    with ThreadPoolExecutor(len(kinds) * len(lengths)) as pool:
        pending = [pool.submit(of_the_double, kind, seconds) for kind in kinds for seconds in lengths]
        real = iter(()) if why_not() else of_a_real_server(lengths)
        for result in chain((each.result() for each in pending), real):
            print(result, flush=True)
            late += result.late > LATE_SECONDS
    if reason := why_not():
        print(reason)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
