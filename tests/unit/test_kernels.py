# SPDX-License-Identifier: Apache-2.0
"""What boots other kernels: its selection exists, and what it reads of a guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import __main__ as kernels
from tests.kernels import debian

REPORT = '<testsuites><testsuite errors="1" failures="2" skipped="3" tests="10"/></testsuites>'


@pytest.mark.parametrize("test", kernels.SELECTION)
def test_what_is_selected_exists(test: str) -> None:
    file, _, function = test.partition("::")
    assert (
        f"def {function}(" in (kernels.TREE / file).read_text()
        if function
        else (kernels.TREE / file).exists()
    )


def test_the_lab_there_has_its_fixtures() -> None:
    """No other test on this kernel has them."""
    argv = [sys.executable, "-m", "pytest", "--setup-plan", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*argv, "tests/kernels/lab.py"], cwd=kernels.TREE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_report_is_counted() -> None:
    assert kernels.counts(REPORT) == (4, 3, 3)


@pytest.mark.parametrize(("passed", "failed", "well"), [(5, 0, True), (5, 1, False), (0, 0, False)])
def test_a_kernel_is_well_when_something_passed_and_nothing_failed(
    passed: int, failed: int, well: bool
) -> None:
    assert kernels.Outcome("6.1", passed, 9, failed, 1, 2).well is well


def test_an_unknown_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["4.19"]) == 2
    assert "4.19" in capsys.readouterr().err


def test_a_kernel_that_is_there_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    image = tmp_path / "6.1" / "boot" / "vmlinuz-6.1.0-50-amd64"
    image.parent.mkdir(parents=True)
    image.touch()
    assert debian.kernel("6.1") == image


def test_two_kernels_in_one_place_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    (tmp_path / "6.1" / "boot").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "6.1" / "boot" / f"vmlinuz-6.1.{number}").touch()
    with pytest.raises(LookupError, match=r"vmlinuz-6\.1\.1.*vmlinuz-6\.1\.2"):
        debian.kernel("6.1")
