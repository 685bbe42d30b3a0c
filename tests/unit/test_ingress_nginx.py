# SPDX-License-Identifier: Apache-2.0
"""The text of nginx's configuration; what real nginx makes of it is in tests/netns/test_ingress_nginx.py."""

from __future__ import annotations

from lb.ingress.nginx import MAIN, files
from lb.ingress.plan import Location, Server, Site, Upstream

KUBIA = Upstream("default.kubia.80", ("10.0.0.1:8080", "[fd00::1]:8080"))


def blocks(text: str, kind: str) -> list[str]:
    """Return the texts of the blocks of a kind at the level of servers."""
    return [each.partition("\n    }\n")[0] for each in text.split(f"\n    {kind}")[1:]]


def test_one_upstream_for_each_service_port_with_endpoints() -> None:
    locations = (Location("/", False, KUBIA), Location("/b", True, Upstream("default.none.80", ())))
    text = files(Site((Server("", locations), Server("a.org", locations))), (4,))[MAIN]
    [upstream] = blocks(text, "upstream")
    assert upstream.split("\n        ") == [
        " default.kubia.80 {",
        "server 10.0.0.1:8080 max_fails=0;",
        "server [fd00::1]:8080 max_fails=0;",
    ]
    assert text.count("proxy_pass http://default.kubia.80;") == 2
    assert text.count("return 503;") == 2


def test_families_are_those_of_the_lab() -> None:
    assert "listen [::]" not in files(Site(), (4,))[MAIN]
    assert "listen 80" not in files(Site(), (6,))[MAIN]
    both = files(Site(), (4, 6))[MAIN]
    for each in ("listen 80 default_server;", "listen [::]:80 default_server;"):
        assert both.count(each) == 1


def test_a_wildcard_stands_for_one_label() -> None:
    text = files(Site((Server("", ()), Server("*.example.com", ()))), (4,))[MAIN]
    assert 'server_name "~^[^.]+\\.example\\.com$";' in text


def test_certificates_are_files_named_by_their_contents() -> None:
    site = Site(
        (
            Server("", ()),
            Server("a.org", (), "one\n"),
            Server("b.org", (), "two\n"),
            Server("c.org", (), "one\n"),
        )
    )
    found = files(site, (4,))
    pems = {text: name for name, text in found.items() if name != MAIN}
    assert pems.keys() == {"one\n", "two\n"}
    name = pems["one\n"]
    assert found[MAIN].count(f"ssl_certificate {name};") == 2
    assert "one" not in found[MAIN]


def test_a_host_without_certificate_has_no_https() -> None:
    servers = blocks(files(Site((Server("", ()), Server("a.org", ()))), (4,))[MAIN], "server {")
    default, named = servers[-2:]
    assert "ssl_reject_handshake on;" in default
    assert "443" not in named
