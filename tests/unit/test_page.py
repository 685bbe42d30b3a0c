# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: what it shows, whom it asks, at which widths; hostile names do nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from lb.config import Config
from lb.datapath.sync.ledger import read_names
from lb.datapath.view import catalogue, figures
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
    Upsert,
)
from lb.rundir import RunDir
from lb.served.failing_services import WINDOW_SECONDS, FailingServices, without_backend
from lb.served.history import history_answer
from lb.served.http import HttpServer, Request, Response, routes
from lb.served.pages import FRESH_SECONDS, Views, by_own_name, page, shown
from lb.served.state_view import StateView
from tests.fake_maps import FakeMaps
from tests.unit.agent_bench import SYNCED, Bench
from tests.unit.figures_bench import Node
from tests.unit.http_bench import LOOPBACK, PATIENCE, ask, bound, serving, url_of

HOSTILE = "<img src=x onerror=alert(1)>"
SHOP = ObjectKey("shop", "checkout")
OWNER = {"address": "203.0.113.10", "interface": "eth0", "owner": HOSTILE, "here": False, "why": "cordoned"}
STATUS: dict[str, Any] = {
    "instance": "n1",
    "node": "node1",
    "agent": {
        "running": True,
        "pid": 7,
        "started": "2026-11-22T10:00:00+00:00",
        "last_sync": "2026-11-22T10:00:05+00:00",
        "services": 3,
    },
    "problems": [{"text": f"service default/{HOSTILE}: backends is full", "next": HOSTILE, "since": None}],
    "source": [],
    "hooks": [
        {
            "interface": interface,
            "role": role,
            "hook": hook,
            "program": program,
            "program_id": 40 + at,
            "why": "as configured" if at == 0 else "",
        }
        for at, (interface, role, hook, program) in enumerate(
            [
                ("eth0", "uplink", "xdp-native", "lb_xdp_uplink"),
                ("eth0", "uplink", "tc ingress", "lb_tc_uplink_in"),
                ("eth0", "uplink", "tc egress", "lb_tc_uplink_out"),
                ("veth1", "pod", "tc ingress", "lb_tc_pod_in"),
                ("veth1", "pod", "tc egress", "lb_tc_pod_out"),
                ("lo", "loopback", "tc egress", "lb_tc_loopback"),
                ("/sys/fs/cgroup", "sockets", "connect4", "lb_sock_connect"),
            ]
        )
    ],
    "maps": [
        {"name": "vips4", "entries": 9, "capacity": 64, "when_full": "the Service is refused, logged"},
        {"name": "flows4", "entries": 1_234_567, "capacity": 2_000_000, "when_full": "the first to end goes"},
    ],
}


def shop() -> Service:
    return Service(
        SHOP,
        type=ServiceType.LOAD_BALANCER,
        ports=(ServicePort("http", Protocol.TCP, 80, 8080, 30080),),
        cluster_ips=(ip_address("10.96.0.10"), ip_address("fd00:96::10")),
        load_balancer_ips=(ip_address("203.0.113.10"),),
        balancer_note="203.0.113.10 from pool edge",
        external_policy=TrafficPolicy.LOCAL,
        affinity_seconds=600,
    )


def piece(key: ObjectKey, number: int, *addresses: str, node: str = "node1", **fields: Any) -> EndpointSlice:
    return EndpointSlice(
        ObjectKey(key.namespace, f"{key.name}-{number}"),
        key,
        (EndpointPort("http", Protocol.TCP, 8080),),
        tuple(Endpoint(ip_address(address), node=node, **fields) for address in addresses),
    )


def filled() -> Bench:
    """Return an agent whose maps hold a Service with everything, one without endpoints, and a hostile one."""
    bench = Bench()
    empty = Service(
        ObjectKey("default", "empty"),
        ports=(ServicePort("", Protocol.UDP, 53, 53),),
        cluster_ips=(ip_address("10.96.0.53"),),
    )
    hostile = replace(
        empty,
        key=ObjectKey("default", HOSTILE),
        ports=(ServicePort(HOSTILE, Protocol.TCP, 80, 80),),
        cluster_ips=(ip_address("10.96.0.66"),),
    )
    of_hostile = replace(
        piece(hostile.key, 1, "10.244.2.66", node=HOSTILE),
        ports=(EndpointPort(HOSTILE, Protocol.TCP, 80),),
    )
    bench.tell(
        Upsert(shop()),
        Upsert(piece(SHOP, 1, "10.244.1.4", "10.244.1.5")),
        Upsert(piece(SHOP, 2, "10.244.2.7", "10.244.2.8", node="node2")),
        Upsert(piece(SHOP, 3, "fd00:244:1::4")),
        Upsert(empty),
        Upsert(hostile),
        Upsert(of_hostile),
        SYNCED,
    )
    bench.tell(Upsert(piece(SHOP, 4, "10.244.2.9", node="node2", ready=False, terminating=True)))
    carry(bench)
    return bench


class Counting(Node):
    """The counters of maps that are there already."""

    def __init__(self, maps: FakeMaps) -> None:
        self.maps = maps


def carry(bench: Bench) -> None:
    """Let the Service have carried something: 30 connections to its first backend, 10 to its second."""
    names = {port: name for port, name in read_names(bench.maps).items() if name[0] == str(SHOP)}
    port = next(one for one in catalogue.ports(bench.maps, names) if one.version == 4)
    first, second, *_ = port.backends
    counting = Counting(bench.maps)
    counting.count(first.id, traffic=(200, 20_000, 180, 900_000), connections=(30, 0, 0))
    counting.count(second.id, traffic=(100, 10_000, 90, 400_000), connections=(10, 2, 1))
    counting.of_service(port.id, {3: 30, 9: 7}, dropped={"SOURCE_NOT_ALLOWED": 5})


@contextlib.contextmanager
def serving_page(bench: Bench, run_dir: RunDir) -> Iterator[HttpServer]:
    views = Views(
        run_dir,
        Config(),
        lambda: contextlib.nullcontext(bench.maps),
        bench.history,
        StateView(bench.state),
        owners=lambda: [OWNER],
        collect=lambda _instance, _run_dir: json.loads(json.dumps(STATUS)),
    )
    answers = {"/": page(), "/api/history": history_answer(bench.history, "n1", "now"), **views.answers()}
    with serving() as server:
        server.open(
            (LOOPBACK, 0), routes({path: by_own_name(each) for path, each in answers.items()}), "page"
        )
        yield server


@pytest.fixture(scope="module")
def bench() -> Bench:
    return filled()


@pytest.fixture(scope="module")
def server(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with serving_page(bench, RunDir("n1", tmp_path_factory.mktemp("run"))) as server:
        yield server


# What is told -------------------------------------------------------------------------------------------


def got(server: HttpServer, path: str) -> tuple[int, dict[str, str], bytes]:
    return ask(bound(server, (LOOPBACK, 0)), path)


def told(server: HttpServer, path: str) -> Any:
    status, headers, body = got(server, path)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    return json.loads(body)


def test_services_with_trouble_come_first_then_those_without_a_backend() -> None:
    bench, now = filled(), [0.0]
    names = {port: name for port, name in read_names(bench.maps).items() if name[0] == str(SHOP)}
    port = next(one for one in catalogue.ports(bench.maps, names) if one.version == 4)
    counting, trouble = Counting(bench.maps), FailingServices()

    def look(seconds: float) -> list[str]:
        now[0] += seconds
        sample = figures.sample(bench.maps)
        trouble.note(now[0], sample)
        services = {f"{one.namespace}/{one.service}" for one in sample.ports}
        return trouble.in_order(services, without_backend(sample))

    # What was before is no trouble of now.
    assert look(0) == ["default/empty", f"default/{HOSTILE}", str(SHOP)]
    counting.count(port.backends[0].id, traffic=(0, 0, 0, 0), connections=(50, 5, 0))
    counting.of_service(port.id, {}, dropped={"SOURCE_NOT_ALLOWED": 500, "NO_ROUTE": 2})
    assert look(5)[0] == str(SHOP)
    assert trouble.lately() == {str(SHOP): 7}  # what a Service's own fields ask for is no trouble
    look(WINDOW_SECONDS)
    assert look(WINDOW_SECONDS)[0] == "default/empty"  # it is over


def test_more_services_are_listed_when_asked_for(server: HttpServer) -> None:
    found = told(server, "/api/services?limit=1&sort=name")
    assert (found["matching"], found["listed"]) == (3, 1)
    assert {one["service"] for one in found["ports"]} == {f"default/{HOSTILE}"}
    assert got(server, "/api/services?limit=x")[0] == 400


def test_services_are_found_by_a_part_of_their_name(server: HttpServer) -> None:
    found = told(server, "/api/services?q=HECK")
    assert (found["matching"], found["listed"]) == (1, 1)
    (port,) = found["ports"]
    assert (port["service"], port["protocol"], port["backends"], port["local"], port["terminating"]) == (
        "shop/checkout", "TCP", 6, 3, 1,
    )  # fmt: skip
    assert port["vips"] == [
        "clusterIP 10.96.0.10:80", "nodePort 192.0.2.11:30080", "loadBalancer 203.0.113.10:80",
        "clusterIP [fd00:96::10]:80",
    ]  # fmt: skip
    assert (port["figures"]["opened"], port["figures"]["refused"], port["figures"]["packets"]) == (40, 2, 300)
    assert port["dropped"] == {"SOURCE_NOT_ALLOWED": 5}
    assert told(server, "/api/services")["matching"] == 3
    assert told(server, "/api/services?q=nothing") | {"time": 0} == {
        "matching": 0, "listed": 0, "ports": [], "unserved": [], "counts_traffic": True, "time": 0,
    }  # fmt: skip


def test_one_service_has_its_ways_by_vip_and_client(server: HttpServer) -> None:
    found = told(server, "/api/service?service=shop/checkout")
    v4 = found["ports"][0]
    ways = {
        (path["vip"], path["client"]): {
            way["backend"]["address"]: (round(way["share"], 2), way["there"], way["back"])
            for way in path["ways"]
        }
        for of_vip in v4["paths"]
        for path in of_vip
    }
    outside = ways["loadBalancer 203.0.113.10:80/TCP", "outside"]
    back = "translated back by lb_tc_uplink_out at eth0, tc egress"
    here = (0.5, "this node: through the host's stack", back)
    assert outside == {"10.244.1.4:8080": here, "10.244.1.5:8080": here}
    inside = ways["loadBalancer 203.0.113.10:80/TCP", "pod"]
    assert {share for share, _, _ in inside.values()} == {0.25}
    assert inside["10.244.2.7:8080"][1:] == (
        "node node2: through the host's stack",
        "translated back by lb_tc_pod_out at 1 pod interface",
    )
    host = ways["clusterIP 10.96.0.10:80/TCP", "host"]
    assert host["10.244.2.7:8080"][1] == "node node2: connected straight to it, no NAT"
    (from_outside,) = [one for one in v4["paths"][2] if one["client"] == "outside"]
    assert from_outside["policy"] == [
        "Local: endpoints of this node alone", "a client keeps its backend for 600 s",
    ]  # fmt: skip
    assert "10.244.2.9:8080: terminating; connections that it has go on" in from_outside["resting"]
    assert found["changes"][-1]["causes"] == ["EndpointSlice checkout-4"]


def test_a_service_without_endpoints_says_what_clients_get(server: HttpServer) -> None:
    port = told(server, "/api/service?service=default/empty")["ports"][0]
    assert {one["refused"] for one in port["paths"][0]} == {
        "rejected with an ICMP port unreachable: there is no endpoint"
    }


@pytest.mark.parametrize("query", ["", "?service=web", "?service=default/none", "?service=a/b/c"])
def test_a_service_that_is_not_there_is_an_error_in_words(server: HttpServer, query: str) -> None:
    status, _, body = got(server, f"/api/service{query}")
    assert status == 400
    assert set(json.loads(body)) == {"error"}


def test_the_page_may_load_and_ask_nobody_else(server: HttpServer) -> None:
    status, headers, body = got(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert b"page.js */" not in body
    for word in (b"src=", b"url(", b"@import", b"innerHTML", b"insertAdjacent"):
        assert word not in body, word


HOSTS = {
    "127.0.0.1:10249": 200,
    "[::1]:10249": 200,
    "192.0.2.1": 200,
    "localhost:10249": 200,
    "Node1:10249": 200,
    "node1.evil.example:10249": 403,
    "evil.example:10249": 403,
    "": 403,
    "[": 403,
}
"""Names in a request for node1, and what it is answered."""


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/state"])
def test_another_sites_name_for_this_machine_gets_nothing(path: str) -> None:
    """Wherever the node is asked, and whatever for: the metrics as well name every Service."""
    answers = shown({"/metrics": lambda _request: Response(200, b""), "/api/state": page()}, {"node1"})
    asked = {host: answers[path](Request("GET", path, "", {"host": host})).status for host in HOSTS}
    assert asked == HOSTS
    assert answers[path](Request("GET", path, "", {})).status == 403


# In a browser -------------------------------------------------------------------------------------------


class Browser:
    """Chromium without a window, at the page."""

    def __init__(self, url: str, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        self.url = url

    def open(self, path: str = "/", width: int = 1280, *, dark: bool = False) -> None:
        """Open the page and wait until it has looked once."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")
        self.driver.get(self.url + path)
        self.until("document.body.dataset.looks")

    def until(self, script: str) -> Any:
        """Wait until a JavaScript expression is true; return it."""
        return WebDriverWait(self.driver, PATIENCE, 0.02).until(
            lambda one: one.execute_script(f"return {script}")
        )

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        text: str = self.driver.execute_script(f"return document.querySelector('{selector}').textContent")
        return text

    def complaints(self) -> list[str]:
        """Return what the browser's console has at the levels warning and above."""
        log: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [one["message"] for one in log if one["level"] != "INFO"]


@pytest.fixture(scope="module")
def browser(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(url_of(server, (LOOPBACK, 0)), tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.driver.quit()


def test_the_page_shows_the_node(browser: Browser) -> None:
    browser.open()
    assert browser.driver.title == "lbctl node1"
    rows = [row.text for row in browser.driver.find_elements(By.CSS_SELECTOR, "#services tbody tr")]
    assert len(rows) == 3
    assert any("shop/checkout" in row and "6 (3 on this node, 1 terminating)" in row for row in rows)
    assert "none: refused" in browser.text("#services")
    assert "lb_xdp_uplink (40)" in browser.text("#hooks")
    assert "1\u202f234\u202f567 of 2\u202f000\u202f000" in browser.text("#maps")
    assert browser.complaints() == []


def test_a_service_is_chosen_by_keyboard_and_drawn(browser: Browser) -> None:
    browser.open()
    button = browser.find('button[data-key="shop/checkout http TCP"]')
    button.send_keys(Keys.ENTER)
    browser.until("document.querySelector('#picture svg')")
    assert browser.driver.current_url.endswith("#shop%2Fcheckout")
    assert browser.until("document.activeElement.id") == "service"
    assert browser.find('tr[aria-current="true"] button').text == "shop/checkout"
    drawn = browser.text("#picture svg")
    assert "40 connections; 3 failed; handshake " in browser.text("#so-far")
    assert "went nowhere: 5 packets SOURCE_NOT_ALLOWED" in browser.text("#so-far")
    first = browser.find("#backends tbody tr").text.split()
    assert first[:7] == ["10.244.1.4:8080", "node1", "(this", "node)", "active", "25", "%"]
    assert first[7:10] == ["30", "0", "0"]
    for word in ("CLIENT", "HOOK", "VIP", "POLICY", "lb_xdp_uplink", "10.96.0.10:80/TCP", "25 %"):
        assert word in drawn, word
    browser.find("#vip").send_keys("loadBalancer")
    browser.find('input[value="outside"]').send_keys(Keys.SPACE)
    assert "50 %" in browser.text("#picture svg")
    assert "Local: endpoints of this" in browser.text("#picture svg")
    words = browser.text("#words")
    assert "50 % of new connections go to 10.244.1.4:8080, this node: through the host's stack" in words
    assert "10.244.2.9:8080: terminating; connections that it has go on" in words
    assert "EndpointSlice checkout-4" in browser.text("#changes")
    found_by = "from pool edge", f"eth0: node {HOSTILE} answers, since here cordoned", "announce bgp"
    assert [word for word in found_by if word not in browser.text("#found-by")] == []
    browser.find('input[value="host"]').send_keys(Keys.SPACE)
    assert "lb_sock_connect at the" in browser.text("#picture svg")
    assert browser.complaints() == []


def test_the_search_narrows_the_list(browser: Browser) -> None:
    browser.open()
    browser.find("#search").send_keys("empty")
    browser.until("document.querySelectorAll('#services tbody tr').length === 1")
    assert browser.text("#found") == "1 Service"


@pytest.mark.parametrize("width", [360, 768, 1160, 1280, 2560])
def test_nothing_is_cut_at_any_width(browser: Browser, width: int) -> None:
    browser.open("/#shop%2Fcheckout", width)
    browser.until("document.querySelector('#picture svg')")
    room = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.driver.execute_script(f"return {room}") == 0
    escaped = """
        const view = document.querySelector('#picture svg').getBoundingClientRect();
        return [...document.querySelectorAll('#picture text')].filter((each) => {
            const box = each.getBoundingClientRect();
            return box.right > view.right + 1 || box.bottom > view.bottom + 1 || box.left < view.left - 1;
        }).map((each) => each.textContent)"""
    assert browser.driver.execute_script(escaped) == []


def test_rates_are_those_between_two_looks(bench: Bench, browser: Browser) -> None:
    browser.open("/#shop%2Fcheckout")
    cells = "[...document.querySelectorAll('#services tr[aria-current] td')].map((one) => one.textContent)"
    assert browser.driver.execute_script(f"return {cells}[5]") in ("…", "0")  # "0" on a machine so slow
    carry(bench)
    rate = browser.until(f"look() && Number({cells}[5]) > 0 && {cells}[5]")
    assert float(rate) <= 40 / FRESH_SECONDS
    assert browser.driver.execute_script(f"return {cells}")[4] == "80"


def test_light_and_dark(browser: Browser) -> None:
    grounds = []
    for dark in (False, True):
        browser.open(dark=dark)
        colour = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))))
    assert grounds[0] > 600 > 150 > grounds[1]


def test_a_hostile_name_is_shown_and_does_nothing(browser: Browser) -> None:
    name = f"default/{HOSTILE}"
    browser.open("/#default%2F%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    browser.until("document.querySelector('#picture svg')")
    assert browser.text("#service-title") == name
    assert name in browser.text("#services")
    assert HOSTILE in browser.text("#backends")
    assert HOSTILE in browser.text("#problems")
    assert browser.driver.find_elements(By.TAG_NAME, "img") == []
    assert browser.complaints() == []
    injected = """
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        return window.ran === true"""
    assert browser.driver.execute_script(injected) is False
    assert any("Content Security Policy" in one for one in browser.complaints())


def test_an_agent_that_is_gone_is_said_to_be(bench: Bench, browser: Browser, tmp_path: Path) -> None:
    with serving_page(bench, RunDir("n1", tmp_path)) as short:
        url = url_of(short, (LOOPBACK, 0))
        browser.driver.get(url)
        browser.until("document.querySelector('#services tbody tr')")
    browser.driver.execute_script("look()")
    browser.until("!document.querySelector('#silent').hidden")
    assert "The agent does not answer" in browser.text("#silent")
    assert "shop/checkout" in browser.text("#services")
    browser.complaints()
