# SPDX-License-Identifier: Apache-2.0
"""Habits of kubectl: svc/NAME, -n and -A, -o yaml."""

from __future__ import annotations

import argparse
import io
import json
from typing import Any

import pytest
import yaml

from lb.cli import command, kubectl, output
from lb.cli.forms import as_objects
from lb.cli.nodes import selected
from lb.cli.service import collect, render
from lb.datapath.view.dump import VipEntry, dump
from lb.errors import UsageError
from lb.model import ObjectKey
from tests.unit.reconcile_bench import A, B, Bench, web

OF_ONE = ("history", "explain", "service show")
BY_SERVICE = ("flows", "maps dump", "monitor")
IN_NAMESPACE = ("service list", "top")
WITH_YAML = (
    "status", "service list", "service show web", "maps dump", "flows", "top", "monitor", "history web",
    "trace", "explain web", "audit", "plan -f x", "doctor", "lab status",
)  # fmt: skip


def parsed(line: str) -> argparse.Namespace:
    words = line.split()
    args = command.parser(words[0]).parse_args(words)
    kubectl.settle(args)
    return args


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("web", "web"),
        ("shop/web", "shop/web"),
        ("svc/web", "web"),
        ("service/web", "web"),
        ("services/web", "web"),
        ("svc/shop/web", "shop/web"),
        ("web -n shop", "shop/web"),
        ("svc/web -n shop", "shop/web"),
        ("shop/web -n shop", "shop/web"),
        ("web -n svc", "svc/web"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_a_service_may_be_named_as_kubectl_names_it(words: str, meant: str) -> None:
    for name in OF_ONE:
        assert parsed(f"{name} {words}").service == meant
    for name in BY_SERVICE:
        assert parsed(f"{name} --service {words}").service == meant
    port = words.replace("web", "web:http"), meant.replace("web", "web:http")
    assert parsed(f"monitor --service {port[0]}").service == port[1]


def test_two_namespaces_for_one_service_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="svc/a/web: is in namespace a, and -n says b"):
        parsed("explain svc/a/web -n b")
    err = io.StringIO()
    assert command.main(["explain", "a/web", "-n", "b"], err=err) == 2
    assert err.getvalue() == "lbctl: a/web: is in namespace a, and -n says b\n"


def test_a_namespace_chooses_what_is_shown() -> None:
    for name in BY_SERVICE:
        assert selected(parsed(f"{name} -n shop")) == ObjectKey("shop", "")
        assert selected(parsed(f"{name} -A")) is None
        assert selected(parsed(f"{name} --service web")) == ObjectKey("default", "web")
    for name in IN_NAMESPACE:
        assert parsed(f"{name} -n shop").namespace == "shop"
        assert parsed(f"{name} -A").namespace is None
    assert ObjectKey("shop", "").covers("shop/web")
    assert not ObjectKey("shop", "").covers("shopping/web")
    assert not ObjectKey("shop", "web").covers("shop/web2")


def test_a_dump_of_a_namespace() -> None:
    bench = Bench()
    bench.apply(web(A, B))
    found = dump(bench.maps, 0, ("vips",))
    vip = found["vips"][0]
    assert isinstance(vip, VipEntry)
    assert dump(bench.maps, 0, ("vips",), ObjectKey(vip.service.partition("/")[0], "")) == found
    assert dump(bench.maps, 0, ("vips",), ObjectKey("elsewhere", "")) == {"vips": []}


@pytest.mark.parametrize("line", WITH_YAML)
def test_what_is_shown_as_json_is_shown_as_yaml_as_well(line: str) -> None:
    assert parsed(f"{line} -o json").output == "json"
    args = parsed(f"{line} -o yaml")
    found, out = {"b": [{"text": "é: \x1b"}], "a": None}, io.StringIO()
    output.write(args, out, found, lambda: "for people")
    assert out.getvalue().isascii()
    assert list(yaml.safe_load(out.getvalue()).items()) == list(found.items())


def test_a_dump_as_yaml_is_that_as_json() -> None:
    bench = Bench()
    bench.apply(web(A, B))
    found = dump(bench.maps, 0)
    texts = {form: output.formatted(form, as_objects(found)) for form in ("json", "yaml")}
    assert yaml.safe_load(texts["yaml"]) == json.loads(texts["json"])


@pytest.mark.parametrize(("flags", "programs"), [([], False), (["--programs"], True), (["-o", "wide"], True)])
def test_a_wide_status_has_programs(
    flags: list[str], programs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.cli.instances.choose", lambda _args: "n1")
    well = {"problems": [], "agent": {"running": True, "silent_seconds": None}}
    monkeypatch.setattr("lb.cli.status.collect", lambda _name, _run_dir: well)
    monkeypatch.setattr("lb.cli.status.render", lambda _status, **given: f"programs: {given['programs']}")
    out = io.StringIO()
    assert command.main(["status", *flags], out=out) == 0
    assert out.getvalue() == f"programs: {programs}"


def test_a_wide_list_has_backends_on_their_way_out() -> None:
    one: dict[str, Any] = {
        "service": "default/web", "port_name": "", "family": "IPv4", "protocol": "TCP", "backends": 3,
        "local": 1, "terminating": 2, "affinity_seconds": 0, "vips": [],
    }  # fmt: skip
    found = collect(Bench().maps, {}, running=True) | {"services": [one]}
    assert "TERMINATING" not in render(found)
    assert render(found, wide=True).splitlines()[0].split()[-2:] == ["TERMINATING", "VIPS"]
