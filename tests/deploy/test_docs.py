# SPDX-License-Identifier: Apache-2.0
"""What docs/operations.md and its neighbours say, held against the kernel, the metrics and the manifests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lb.config import Limits
from lb.datapath.kernel.bpf import possible_cpus
from lb.datapath.maps.fill import map_fill
from lb.datapath.maps.layouts import FAMILIES, REASONS
from lb.datapath.maps.map_pins import create_map
from lb.datapath.maps.map_table import MAPS, MapSpec
from tests.deploy.conftest import ROOT
from tests.fake_maps import FakeMaps

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def _bytes(text: str) -> int:
    """Return a number of bytes, which may be one for each CPU."""
    number, _, factor = text.partition(" \N{MULTIPLICATION SIGN} ")
    assert factor in ("", "CPUs")
    return int(number) * (possible_cpus() if factor else 1)


RULES = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yaml").read_text())["groups"][0]["rules"]
SIZES = {
    name: {version: _bytes(text) for version, text in ((4, four), (6, six)) if text != "\N{EN DASH}"}
    for name, four, six in re.findall(
        r"^\| `\w+` \| `(\w+)`[^|]* \| [^|]*(?:hash|array)[^|]* \| ([^|]+) \| ([^|]+) \|$", OPERATIONS, re.M
    )
}
"""Bytes of each entry by a map's name in C and IP version."""
LIMITS = Limits().as_dict()
ENTRIES = 1 << 15


def memory(spec: MapSpec, entries: int) -> int:
    """Return the bytes that the kernel takes for such a map: what it tells in the descriptor's fdinfo."""
    with create_map(spec, entries) as fd:
        told = re.search(r"^memlock:\s+(\d+)$", Path(f"/proc/self/fdinfo/{fd.fileno()}").read_text(), re.M)
    assert told is not None
    return int(told[1])


def test_every_map_that_takes_its_memory_at_once_has_its_size_stated() -> None:
    assert set(SIZES) == {spec.c_name for spec in MAPS if spec.limit and not spec.flags & 1}


@pytest.mark.parametrize("spec", [spec for spec in MAPS if spec.c_name in SIZES], ids=lambda spec: spec.name)
def test_the_size_of_an_entry_is_what_the_kernel_takes(spec: MapSpec) -> None:
    stated = SIZES[spec.c_name][spec.version or 4] * spec.per_entry
    assert memory(spec, ENTRIES) / ENTRIES == pytest.approx(stated, rel=0.02)


def test_the_formula_gives_what_the_default_limits_take() -> None:
    taken = sum(memory(spec, spec.max_entries(LIMITS)) for spec in MAPS) / 1e6
    limits = {spec.c_name: LIMITS[spec.limit] for spec in MAPS if spec.limit}
    formula = sum(limits[name] * sum(each.values()) for name, each in SIZES.items()) / 1e6
    assert formula == pytest.approx(taken, rel=0.025)
    stated = re.search(r"all maps together take (\d+) MB, and ([\d.]+) MB more for each CPU", OPERATIONS)
    assert stated is not None
    assert float(stated[1]) + float(stated[2]) * possible_cpus() == pytest.approx(taken, abs=1)


def test_every_limit_is_counted() -> None:
    for name in LIMITS:
        assert re.search(rf"`{name}` ≥", OPERATIONS), name


def test_alerts_are_those_of_the_table() -> None:
    assert [rule["alert"] for rule in RULES] == re.findall(r"^\| (Lbctl\w+) \|", OPERATIONS, re.M)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_alerts_ask_for_metrics_and_reasons_that_there_are() -> None:
    files = ("served/metrics.py", "served/service_metrics.py", "bgp/metrics.py", "addresses/metrics.py")
    source = "".join((ROOT / "lb" / name).read_text() for name in files)
    families = set(re.findall(r'"(lbctl_\w+)"', source))
    reasons = {name for name, _ in REASONS}
    maps = {fill.name for fill in map_fill(FakeMaps())}
    for rule in RULES:
        for name in re.findall(r"lbctl_\w+", rule["expr"]):
            known = name.removesuffix("_total") in families
            assert known or name.removeprefix("lbctl_source_") in source, name
        for matched in re.findall(r'reason=~"([^"]*)"', rule["expr"]):
            assert set(matched.split("|")) <= reasons
        for matched in re.findall(r'map!~"([^"]*)"', rule["expr"]):
            left = {name for name in maps if not re.fullmatch(matched, name)}
            assert {f"vips{version}" for version in FAMILIES} <= left
            assert not [spec for spec in MAPS if spec.name in left and spec.limit and spec.writer == "kernel"]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_files_that_contributors_are_sent_to_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:bpf|lb|tests|docs|deploy|examples|requirements|scripts)/[\w./*-]*)`", text)
    assert len(named) > 40
    assert not [path for path in named if not list(ROOT.glob(path))]


def test_the_architecture_names_every_package_and_no_module_that_is_gone() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    modules = {path.with_suffix("") for path in ROOT.glob("lb/**/*.py")}
    for path in {each.parent if each.name == "__init__" else each for each in modules}:
        place = path.relative_to(ROOT)
        if len(place.parts) == 2 and place.name != "__main__":
            assert f"`lb.{place.name}" in text, f"{place} has no row among the layers"
    for name in re.findall(r"`(lb(?:\.[a-z_]+)+)`", text):
        place = ROOT / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), name
    for name in re.findall(r"`((?:bpf|lb|tests|docs)/[\w./*-]*)`", text):
        assert list(ROOT.glob(name)), name


def test_the_first_page_of_the_programs_names_every_file() -> None:
    text = (ROOT / "bpf" / "README.md").read_text()
    for path in (*ROOT.glob("bpf/*.h"), *ROOT.glob("bpf/*.c")):
        assert f"`{path.name}`" in text, path.name
