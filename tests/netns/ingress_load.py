# SPDX-License-Identifier: Apache-2.0
"""A load of HTTP requests, for a lab's client: ``python ingress_load.py ADDRESS HOST`` until stdin ends.

Half of the threads open a connection for each request, the others keep theirs. A request on a kept
connection that the server ends before any byte of the answer is sent again, once, on a fresh one, as RFC 9112
9.5 has it.
Prints, as JSON, how many requests were answered by 200 and the failures of all others.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time

THREADS = 4
PAUSE_SECONDS = 0.005


def ask(line: http.client.HTTPConnection, host: str) -> str:
    """Return what is wrong with an answer, ``""`` for nothing."""
    line.request("GET", "/", headers={"Host": host})
    answer = line.getresponse()
    body = answer.read()
    return "" if answer.status == 200 and body.startswith(b"You've hit ") else f"{answer.status} {body!r}"


def one(line: http.client.HTTPConnection, host: str, *, kept: bool) -> str:
    """Send a request; return what is wrong, ``""`` for nothing."""
    fresh = line.sock is None
    try:
        return ask(line, host)
    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
        line.close()
        return repr(error) if fresh else ask(line, host)
    finally:
        if not kept:
            line.close()


def main(address: str, host: str) -> None:
    """Run the load."""
    stop = threading.Event()
    answered, failed = [0] * THREADS, list[str]()

    def work(number: int) -> None:
        line = http.client.HTTPConnection(address, 80, timeout=30)
        while not stop.is_set():
            try:
                wrong = one(line, host, kept=number % 2 == 1)
            except (OSError, http.client.HTTPException) as error:
                line.close()
                wrong = repr(error)
            if wrong:
                failed.append(wrong)
            else:
                answered[number] += 1
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    json.dump({"answered": answered, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
