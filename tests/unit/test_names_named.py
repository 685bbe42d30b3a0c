# SPDX-License-Identifier: Apache-2.0
"""What named is told: which zones addresses are in, and files that BIND's own checkers take."""

import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.names import named

ZONE = "cluster.local"
SERVER = f"ns.dns.{ZONE}"


@pytest.mark.parametrize(
    ("network", "zone"),
    [
        ("10.66.0.0/16", "66.10.in-addr.arpa"),
        ("10.96.0.0/12", "10.in-addr.arpa"),  # between two octets: the wider zone
        ("192.168.77.8/32", "8.77.168.192.in-addr.arpa"),
        ("fd00:244::/48", "0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa"),
        ("fd00:66::/110", "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.6.0.0.0.0.d.f.ip6.arpa"),
    ],
)
def test_a_network_is_in_the_zone_of_its_whole_octets_or_digits(network: str, zone: str) -> None:
    assert named.reverse_zones([network]) == [zone]


def test_networks_of_one_zone_make_it_once() -> None:
    assert named.reverse_zones(["10.96.0.0/12", "10.112.0.0/12"]) == ["10.in-addr.arpa"]


@pytest.mark.parametrize("addresses", [("10.244.1.2",), ("fd00::2",), ("10.244.1.2", "fd00::2")])
@pytest.mark.parametrize("secret", ["", "c2VjcmV0"])
@pytest.mark.parametrize("resolvers", [(), ("192.168.77.200", "fd00::1 port 5353")])
def test_bind_takes_the_configuration(
    addresses: tuple[str, ...], secret: str, resolvers: tuple[str, ...], tmp_path: Path
) -> None:
    settings = named.Settings([ip_address(each) for each in addresses], [ZONE], resolvers, secret)
    text = named.named_conf(settings).replace(named.WORK, str(tmp_path))
    (tmp_path / "named.conf").write_text(text)
    done = subprocess.run(
        ["/usr/bin/named-checkconf", tmp_path / "named.conf"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert ("allow-update" in text) is bool(secret)


@pytest.mark.parametrize("zone", [ZONE, "66.10.in-addr.arpa"])
def test_bind_takes_the_zones(zone: str, tmp_path: Path) -> None:
    own = [ip_address("10.66.0.10"), ip_address("fd00:66::10")] if zone == ZONE else []
    (tmp_path / "zone").write_text(named.empty_zone(zone, SERVER, own))
    done = subprocess.run(
        ["/usr/bin/named-checkzone", zone, tmp_path / "zone"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
