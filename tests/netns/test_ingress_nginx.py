# SPDX-License-Identifier: Apache-2.0
"""What real nginx does with the configuration of an Ingress: hosts, paths, headers, bodies, TLS, WebSocket.

Without a lab: nginx and its endpoints are processes of one network namespace.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.ingress import nginx
from lb.ingress.plan import ours, plan
from lb.lab import namespaces, pod
from lb.model import EndpointSlice
from tests.netns.conftest import fresh_id
from tests.netns.waiting import eventually
from tests.unit.ingress_objects import endpoints, good, ingress, rule, secret, service

NAMES = ("a", "b", "c")
NUMBERS = {name: 8001 + at for at, name in enumerate(NAMES)}
ECHO = 8010

UPGRADES = f"""
import socket
listener = socket.create_server(("127.0.0.1", {ECHO}))
while True:
    line, _ = listener.accept()
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n") and (data := line.recv(1)):
        head += data
    if b"upgrade: websocket" not in head.lower():
        line.close()
        continue
    line.sendall(b"HTTP/1.1 101 Upgrade\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
    while data := line.recv(100):
        line.sendall(data.upper())
"""

KUBIA = ("Prefix / a:80", "Prefix /foo b:80", "Exact /foo/x c:80", "Exact /bar/ c:80")
MANIFESTS = (
    ingress(
        "  tls:\n  - {hosts: [kubia.example.com], secretName: tls-secret}\n  rules:\n"
        + rule("kubia.example.com", *KUBIA)
        + rule("paths.example.com", "Prefix /aaa/bbb/ a:80", "Prefix /aaa b:80", "Exact /Foo c:80")
        + rule("odd.example.com", "Prefix /%22%20%7B b:80", "Prefix /%C3%A4 c:80", "Prefix /$a;b a:80")
        + rule("*.example.com", "Prefix / c:80")
        + rule("ws.example.com", "Prefix / ws:80", "Prefix /none none:80")
    ),
    secret(),
)  # fmt: skip


def configuration() -> dict[str, str]:
    content = good(*MANIFESTS)
    slices: list[EndpointSlice] = [
        endpoints("127.0.0.1", of=name, number=number) for name, number in {**NUMBERS, "ws": ECHO}.items()
    ]
    taken, errors = ours(content.ingresses.values(), content.classes)
    services = [service(name) for name in (*NAMES, "ws", "none")]
    site, more = plan(taken, services, slices, content.certificates)
    assert not errors + more
    return nginx.files(site, (4, 6))


class Proxy:
    """nginx in a network namespace of its own."""

    def __init__(self, folder: Path) -> None:
        self.netns = fresh_id()
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        namespaces.create(self.netns)
        self.run("ip", "link", "set", "lo", "up")
        for name, number in NUMBERS.items():
            self.spawn(sys.executable, str(pod.__file__), name, "127.0.0.1", f"tcp:{number}:http", "--")
        self.spawn(sys.executable, "-c", UPGRADES)
        for name, text in configuration().items():
            (self.folder / name).write_text(text)
        self.spawn("nginx", "-p", str(self.folder), "-c", str(self.folder / nginx.MAIN))
        health = f"http://127.0.0.1:{nginx.HEALTH_PORT}{nginx.HEALTH_PATH}"
        for url in (health, *(f"http://127.0.0.1:{number}/" for number in NUMBERS.values())):
            eventually(lambda url=url: self.curl(url) is not None, f"{url} answers")  # type: ignore[misc]
        eventually(self._echoes, "the server of WebSockets listens")

    def _echoes(self) -> bool:
        with namespaces.inside(self.netns), socket.socket() as line:
            return line.connect_ex(("127.0.0.1", ECHO)) == 0

    def spawn(self, *argv: str) -> None:
        self.processes.append(
            subprocess.Popen(namespaces.command(self.netns, argv), stdout=subprocess.DEVNULL)
        )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        done = namespaces.command(self.netns, argv)
        return subprocess.run(
            done, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )

    def curl(self, url: str, *options: str) -> str | None:
        """Return the body of an answer, None when there is none."""
        done = self.run("curl", "-sSk", "-m", "10", *options, url)
        return done.stdout if done.returncode == 0 else None

    def get(self, host: str, path: str, *options: str, scheme: str = "http") -> str:
        """Ask nginx for a path of a host; return the body of the answer."""
        port = 443 if scheme == "https" else 80
        resolve = ("--resolve", f"{host}:{port}:127.0.0.1", "--path-as-is")
        body = self.curl(f"{scheme}://{host}{path}", *resolve, *options)
        assert body is not None
        return body

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(20)
        namespaces.delete(self.netns)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("nginx"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("kubia.example.com", "/", "a"),
        ("kubia.example.com", "/fool", "a"),
        ("kubia.example.com", "/foo", "b"),
        ("kubia.example.com", "/foo/", "b"),
        ("kubia.example.com", "/foo/y?x=/", "b"),
        ("kubia.example.com", "/foo/x", "c"),
        ("kubia.example.com", "/foo/x/", "b"),
        ("kubia.example.com", "/bar/", "c"),
        ("kubia.example.com", "/bar", "a"),
        ("KUBIA.example.com", "/", "a"),
        ("kubia.example.com:80", "/", "a"),
        # the table of the documentation of Kubernetes, "Ingress", Examples
        ("paths.example.com", "/aaa/bbb", "a"),
        ("paths.example.com", "/aaa/bbb/", "a"),
        ("paths.example.com", "/aaa/bbb/ccc", "a"),
        ("paths.example.com", "/aaa/bbbxyz", "b"),
        ("paths.example.com", "/aaa", "b"),
        ("paths.example.com", "/ccc", "404"),
        ("paths.example.com", "/Foo", "c"),
        ("paths.example.com", "/Foo/", "404"),
        ("paths.example.com", "/foo", "404"),
        ("odd.example.com", "/%22%20%7B/x", "b"),
        ("odd.example.com", "/%c3%a4", "c"),
        ("odd.example.com", "/$a;b", "a"),
        ("bar.example.com", "/", "c"),
        ("baz.bar.example.com", "/", "404"),
        ("example.com", "/", "404"),
        ("ws.example.com", "/none", "503"),
    ],
)
def test_hosts_and_paths(proxy: Proxy, host: str, path: str, name: str) -> None:
    name_of_host = host.partition(":")[0]
    body = proxy.get(name_of_host, path, "-H", f"Host: {host}", "-w", "%{http_code}")
    if name.isdigit():
        assert body.endswith(name), body
    else:
        assert body == f"You've hit {name} on http\n200"


def test_the_endpoint_is_told_who_asks(proxy: Proxy) -> None:
    lies = (
        "-H",
        "X-Forwarded-For: 1.2.3.4",
        "-H",
        "X-Forwarded-Proto: gopher",
        "-H",
        "Connection: x-real-ip",
    )
    told = proxy.get("kubia.example.com", "/headers?a=%20b", *lies, scheme="https").splitlines()
    assert told[0] == "GET /headers?a=%20b HTTP/1.1"
    assert {
        "Host: kubia.example.com",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: kubia.example.com",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Proto: https",
        "Connection: close",
    } <= set(told)
    assert not [each for each in told if "1.2.3.4" in each or "gopher" in each or each.startswith("Upgrade")]


def test_an_answer_of_500_is_the_endpoints_own(proxy: Proxy) -> None:
    body = proxy.get("kubia.example.com", "/foo/fail", "-w", "%{http_code}")
    assert body == "b fails, as it was asked to\n500"


def test_https_by_name(proxy: Proxy) -> None:
    for version in ("1.1", "2"):
        option = "--http2" if version == "2" else "--http1.1"
        said = proxy.get("kubia.example.com", "/foo", option, "-w", "%{http_version}", scheme="https")
        assert said == f"You've hit b on http\n{version}"
    shown = proxy.run(
        *("openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", "kubia.example.com")
    ).stdout
    assert "subject=CN = kubia.example.com" in shown.replace("CN=", "CN = ")
    for other in ("paths.example.com", "nobody.org"):
        resolve = ("--resolve", f"{other}:443:127.0.0.1")
        assert proxy.curl(f"https://{other}/", *resolve) is None, "no certificate, no connection"


def test_bodies_of_any_size_pass(proxy: Proxy, tmp_path: Path) -> None:
    size = 20_000_000
    large = proxy.get("kubia.example.com", f"/large?bytes={size}", "-o", str(tmp_path / "got"))
    assert large == ""
    assert (tmp_path / "got").stat().st_size == size
    said = proxy.get("kubia.example.com", "/up", "-X", "POST", "--data-binary", f"@{tmp_path / 'got'}")
    assert said == f"a received {size} bytes\n"
    left = [
        each for each in (*proxy.folder.rglob("body/*"), *proxy.folder.rglob("proxy/*")) if each.is_file()
    ]
    assert not left, "bodies are not written down"


def upgraded(proxy: Proxy) -> socket.socket:
    """Return a connection that is a WebSocket's."""
    with namespaces.inside(proxy.netns):
        line = socket.create_connection(("127.0.0.1", 80), timeout=20)
    for each in ("GET / HTTP/1.1", "Host: ws.example.com", "Connection: Upgrade", "Upgrade: WebSocket", ""):
        line.sendall(f"{each}\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += line.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return line


def test_a_websocket_passes(proxy: Proxy) -> None:
    with upgraded(proxy) as line:
        for text in (b"abc", b"defg"):
            line.sendall(text)
            assert line.recv(100) == text.upper()


def test_what_is_open_outlasts_a_change(proxy: Proxy) -> None:
    with upgraded(proxy) as line:
        main = proxy.folder / nginx.MAIN
        main.write_text(main.read_text().replace("return 404;", "return 410;"))
        proxy.processes[-1].send_signal(signal.SIGHUP)
        code = ("-o", "/dev/null", "-w", "%{http_code}")
        eventually(lambda: proxy.get("example.com", "/", *code) == "410", "new requests meet the new one")
        line.sendall(b"old")
        assert line.recv(100) == b"OLD"
