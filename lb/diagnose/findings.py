# SPDX-License-Identifier: Apache-2.0
"""What a check of ``lbctl doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How a check came out."""

    OK = "ok"
    LIMITED = "limited"
    """It works, but not all of it or not as well."""
    FAILS = "FAILS"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    check: what was looked at. found: what is there. broken: what will not work, and next: what to do; both
    are empty where the result is OK.
    """

    check: str
    result: Grade
    found: str
    broken: str = ""
    next: str = ""
