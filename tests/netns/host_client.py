# SPDX-License-Identifier: Apache-2.0
"""A client that runs wherever the lab lets it: questions on stdin, answers on stdout.

Questions are JSON: ``{"do": "tcp" | "udp" | "connected", "host", "port", "socket"}``. A UDP socket of one
name is made by its first question and used again by later ones. Answers: ``{"pod", "peer"}``, who answered
and whom the process takes that for; or ``{"error"}``: the name of an errno, ``"timeout"``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

CLIENT = r"""
import errno, json, socket, sys
SOCKETS = {}

def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET

def tcp(host, port, **_):
    with socket.socket(family(host)) as stream:
        stream.settimeout(2)
        stream.connect((host, port))
        stream.sendall(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        peer, answer = stream.getpeername(), b""
        while part := stream.recv(4096):
            answer += part
    return answer.split()[-1], peer

def udp(host, port, socket_):
    if socket_ not in SOCKETS:
        SOCKETS[socket_] = socket.socket(family(host), socket.SOCK_DGRAM)
        SOCKETS[socket_].settimeout(2)
    SOCKETS[socket_].sendto(b"who?", (host, port))
    answer, peer = SOCKETS[socket_].recvfrom(100)
    return answer.split()[0], peer

def connected(host, port, socket_):
    if socket_ not in SOCKETS:
        SOCKETS[socket_] = socket.socket(family(host), socket.SOCK_DGRAM)
        SOCKETS[socket_].settimeout(2)
        SOCKETS[socket_].connect((host, port))
    SOCKETS[socket_].send(b"who?")
    return SOCKETS[socket_].recv(100).split()[0], SOCKETS[socket_].getpeername()

for line in sys.stdin:
    question = json.loads(line)
    question["socket_"] = question.pop("socket")
    try:
        pod, peer = {"tcp": tcp, "udp": udp, "connected": connected}[question.pop("do")](**question)
        answer = {"pod": pod.decode(), "peer": peer[:2]}
    except TimeoutError:
        answer = {"error": "timeout"}
    except OSError as error:
        answer = {"error": errno.errorcode.get(error.errno, str(error))}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """The client's process; command is how it is started, with the interpreter and its arguments to come."""

    def __init__(self, command: Sequence[str], stack: ExitStack) -> None:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(process)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        stack.callback(self._stdin.close)

    def ask(self, do: str, host: str, port: int, name: str = "") -> dict[str, Any]:
        """Ask once and return the answer; name is that of a UDP socket, by default one for each address."""
        question = {"do": do, "host": host, "port": port, "socket": f"{do} {name or (host, port)}"}
        self._stdin.write(json.dumps(question) + "\n")
        self._stdin.flush()
        answer: dict[str, Any] = json.loads(self._stdout.readline())
        return answer


ARGV = [sys.executable, "-I", "-S", "-c", CLIENT]
