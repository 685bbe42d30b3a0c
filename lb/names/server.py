# SPDX-License-Identifier: Apache-2.0
"""Becomes a DNS server of a cluster that has no CoreDNS: ``python -m lb.names.server --address ADDRESS …``.

For nodes without Kubernetes. It starts with empty zones; ``python -m lb.names`` fills them and keeps them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from lb.model import IPAddress
from lb.names import ZONE, named


def prepare(
    settings: named.Settings, conf: Path, work: Path, server: str, addresses: Sequence[IPAddress] = ()
) -> None:
    """Write what named starts with, into the file conf and the folder work; both are there for root alone.

    server is the name of the zones' server without final dot; addresses are its own, where it is in the
    first zone.
    """
    conf.touch(mode=0o600)
    conf.write_text(named.named_conf(settings))
    for number, zone in enumerate(settings.zones):
        text = named.empty_zone(zone, server, () if number else addresses)
        path = work / named.zone_file(zone)
        path.write_text(text)
        path.with_name(f"{path.name}.jnl").unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lb.names.server", description=__doc__)
    parser.add_argument("--address", action="append", required=True, help="where to listen, again")
    parser.add_argument("--service-cidr", required=True, help="networks of clusterIPs, with commas between")
    parser.add_argument("--pod-cidr", required=True, help="networks of pods, with commas between")
    parser.add_argument("--resolver", action="append", default=[], help="who knows all other names, again")
    parser.add_argument("--secret-file", type=Path, required=True, help="secret of the TSIG key, in base64")
    parser.add_argument("--conf", type=Path, default=Path("/etc/bind/lbctl.conf"), help="the file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write what named starts with, and become named."""
    args = _parser().parse_args(argv)
    addresses = [ip_address(each) for each in args.address]
    zones = [ZONE, *named.reverse_zones([*args.service_cidr.split(","), *args.pod_cidr.split(",")])]
    settings = named.Settings(addresses, zones, args.resolver, args.secret_file.read_text().strip())
    prepare(settings, args.conf, Path(named.WORK), named.SERVER, addresses)
    os.execvp("named", ["named", "-g", "-n", "1", "-c", str(args.conf)])  # noqa: S606


if __name__ == "__main__":
    main()
