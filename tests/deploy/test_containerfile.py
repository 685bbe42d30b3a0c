# SPDX-License-Identifier: Apache-2.0
"""The container file: a linter has nothing to say, and what it copies and installs is there.

It is not built here: that takes an image of Debian.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import lb
from tests.deploy.conftest import ROOT, SOURCES

FILE = ROOT / "deploy" / "Containerfile"
TEXT = FILE.read_text()


def test_the_linter_is_content() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_installs_what_setup_installs() -> None:
    setup = (ROOT / "scripts" / "setup").read_text()
    packages = re.search(r"\bpackages=\(([^)]*)\)", setup, re.MULTILINE)
    assert packages is not None
    installed = set(re.findall(r"[\w-]+", TEXT.rpartition("--no-install-recommends ")[2].partition("\\")[0]))
    of_the_lab = {"curl", '"${SERVERS[@]}"', "bind9-dnsutils", "iputils-ping"}
    assert set(packages[1].split()) - installed == of_the_lab


def test_it_names_the_version() -> None:
    assert f"lbctl:{lb.__version__}" in TEXT


def test_every_base_is_named_by_a_digest_that_must_be_given() -> None:
    assert set(re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)) == {"debian:bookworm-slim@${BASE_DIGEST}"}
    assert set(re.findall(r"^ARG BASE_DIGEST.*$", TEXT, re.MULTILINE)) == {"ARG BASE_DIGEST"}, "no default"


def test_labels_say_what_pyproject_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', TEXT))
    assert found == {
        "title": project["name"],
        "description": project["description"],
        "version": lb.__version__,
        "revision": "${REVISION}",
        "licenses": project["license"],
        "base.name": "debian:bookworm-slim",
        "base.digest": "${BASE_DIGEST}",
    }


def test_what_is_left_out_is_no_source() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert not set(left_out) & set(SOURCES)
