# SPDX-License-Identifier: Apache-2.0
"""examples-ipv6 is examples/ in the other family, and the show asks each for what it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lb.errors import LabError
from lb.lab.addressing import Family, LabSpec, like
from lb.lab.demo import ROWS, rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, IN_IPV6 = ROOT / "examples", ROOT / "examples-ipv6"
OF_BOTH_FAMILIES = "kubia-dual-stack.yaml"
_IPV4 = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b")


def objects(text: str) -> list[object]:
    return [each for each in yaml.safe_load_all(text) if each]


def test_each_example_is_there_in_ipv6_with_its_like_of_every_address() -> None:
    here, there = ({path.name for path in folder.glob("*.yaml")} for folder in (EXAMPLES, IN_IPV6))
    assert there == here - {OF_BOTH_FAMILIES}
    for name in there:
        lines = (EXAMPLES / name).read_text().splitlines()
        plain = "\n".join(line for line in lines if not line.startswith("#"))
        text = _IPV4.sub(lambda found: str(like(found[0], 6)), plain)
        assert objects((IN_IPV6 / name).read_text()) == objects(text), name


def test_an_address_keeps_its_last_digits() -> None:
    assert str(like("10.66.13.240", 6)) == "fd00:66::240"
    assert str(like("192.168.77.11", 6)) == "fd00:77::11"
    assert str(like("198.51.100.7", 4)) == "198.51.100.7"
    with pytest.raises(LabError, match="10\\.0\\.0\\.1 is no address of a lab"):
        like("10.0.0.1", 6)


@pytest.mark.parametrize("family", list(Family))
def test_the_show_has_a_row_for_every_service(family: Family) -> None:
    folder = IN_IPV6 if family is Family.IPV6 else EXAMPLES
    found = rows(LabSpec("x", str(folder), family=family))
    both = {"clusterIP over IPv6, from a pod", "NodePort on node1 over IPv6"}
    titles = {row.title for row in ROWS}
    assert {row.title for row in found} == (titles if family is Family.DUAL else titles - both)
    versions = {6 if ":" in row.address else 4 for row in found}
    assert versions == set(family.versions)
    assert all((":" in row.source) == (":" in row.address) for row in found if row.source)
