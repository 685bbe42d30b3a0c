# SPDX-License-Identifier: Apache-2.0
"""Packages without their ``__init__``, and an agent's imports without what it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lb.lazy_imports import bare_package


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_modules_are_imported_and_the_init_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavy_example"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not to be run')\n")
    (package / "one.py").write_text("class One: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "heavy_example", raising=False)
    bare_package("heavy_example", One="heavy_example.one")
    try:
        from heavy_example import One  # type: ignore[import-not-found]  # noqa: PLC0415

        assert One.__module__ == "heavy_example.one"
        with pytest.raises(ImportError, match="Two"):
            from heavy_example import Two  # noqa: F401, PLC0415
        with pytest.raises(AttributeError, match="heavy_example was imported without Two"):
            _ = sys.modules["heavy_example"].Two
    finally:
        for name in ("heavy_example", "heavy_example.one"):
            sys.modules.pop(name, None)


def test_what_is_missing_or_imported_stays_as_it_is() -> None:
    bare_package("no_such_package_example")
    assert "no_such_package_example" not in sys.modules
    bare_package("json", loads="nowhere")
    assert sys.modules["json"].loads("1") == 1


def test_an_agent_does_not_import_every_kind_of_object_there_is() -> None:
    code = """
import contextlib, sys
from lb.cli import main
with contextlib.suppress(SystemExit):
    main(["run", "--version"])
import lb.kube
print({"kubernetes.client.models", "requests", "bcc", "lb.lab", "lb.manifests"} & sys.modules.keys())
"""
    assert run(code).splitlines()[-1] == "set()"


def test_the_name_that_the_configuration_loader_wants_is_there() -> None:
    code = "import lb.kube; from kubernetes.client import ApiClient; print(type(ApiClient()).__module__)"
    assert run(code) == "kubernetes.client.api_client\n"


def test_a_class_is_imported_when_it_is_called() -> None:
    code = """
import sys
import lb.kube.access
from lb.kube.access import kube_config
assert "requests_oauthlib" not in sys.modules
print(type(kube_config.OAuth2Session(client_id="x")).__module__)
"""
    assert run(code) == "requests_oauthlib.oauth2_session\n"
