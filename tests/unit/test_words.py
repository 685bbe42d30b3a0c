# SPDX-License-Identifier: Apache-2.0
"""What strangers have written, on its way to a terminal: nothing is obeyed, whichever command shows it."""

from __future__ import annotations

import argparse
import io
import json
import logging
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.cli import command, main
from lb.cli.colours import Shown, painted
from lb.cli.logs import JsonLine, OneLine
from lb.cli.tables import table
from lb.errors import InputError
from lb.manifests.documents import read
from lb.words import by_number, in_line, several, shown

HOSTILE = "a\x1b[2J\x1b]0;x\x07\x9b31m\r\u202eb\u2066\u200b\ufeff\u2028\x00\x7fc"
ESCAPED = "a\\x1b[2J\\x1b]0;x\\x07\\x9b31m\\r\\u202eb\\u2066\\u200b\\ufeff\\u2028\\x00\\x7fc"


def obeyed(text: str) -> list[str]:
    """Return the characters of a text that a terminal would obey, or not show."""
    return [
        one
        for one in text
        if one not in "\n\t" and (category(one)[0] == "C" or category(one) in ("Zl", "Zp"))
    ]


def test_what_is_not_visible_is_escaped() -> None:
    assert shown(HOSTILE) == in_line(HOSTILE) == ESCAPED
    assert in_line("a\nb\tc") == "a\\nb\\tc"
    assert shown("a\nb\tc") == "a\nb\tc"
    assert shown("Zürich, 東京, é, 🙂") == "Zürich, 東京, é, 🙂"


@given(st.text())
def test_nothing_of_any_text_is_obeyed(text: str) -> None:
    assert not obeyed(shown(text))
    assert "\n" not in in_line(text)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_no_command_shows_a_terminal_what_it_would_obey(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command writes to the streams that it is given, and these escape: errors as well."""
    arguments: list[str] = [name]

    def hostile(_args: argparse.Namespace, out: io.StringIO, err: io.StringIO) -> int:
        print(HOSTILE, file=out)
        out.write(table(("name", "other"), [[HOSTILE + "\nforged", 1]]))
        print(HOSTILE, file=err)
        raise InputError(HOSTILE, 1, HOSTILE, HOSTILE, HOSTILE)

    parsed = argparse.Namespace(handler="command.version")
    monkeypatch.setattr(command, "version", hostile)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda _self, _words: parsed)
    out, err = io.StringIO(), io.StringIO()
    assert main(arguments, out=out, err=err) == 1
    for text in (out.getvalue(), err.getvalue()):
        assert ESCAPED in text
        assert not obeyed(text)
    assert "\\nforged" in out.getvalue()


def test_commands_that_paint_still_do() -> None:
    out = io.StringIO()
    Shown(out).write(painted(HOSTILE, "1;31"))
    assert out.getvalue().startswith("\x1b[1;31ma\\x1b[2J")
    assert out.getvalue().endswith("c\x1b[0m")


def test_a_log_line_stays_one() -> None:
    record = logging.LogRecord(
        "lb", logging.ERROR, __file__, 1, "node %s", (HOSTILE + "\nERROR forged",), None
    )
    line = OneLine().format(record)
    assert line.partition(" ")[2] == f"ERROR   node {ESCAPED}\\nERROR forged"
    found = JsonLine().format(record)
    assert not obeyed(found)
    assert json.loads(found)["message"] == f"node {HOSTILE}\nERROR forged"


SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.0.0.1], FIELD}]
"""


@pytest.mark.parametrize(
    "field",
    [
        'nodeName: "a\\eb"',
        'zone: "a\\nb"',
        'targetRef: {kind: Pod, name: "a\\u202eb", namespace: c}',
        'targetRef: {kind: Pod, name: a, namespace: "\\eb"}',
        'hints: {forZones: [{name: "a b"}]}',
        'hints: {forNodes: [{name: "A"}]}',
    ],
)
def test_a_name_that_is_none_does_not_get_into_the_maps(field: str) -> None:
    """Nor do those of nodes, zones and pods get into logs, dumps, metrics and file names."""
    content = read("a.yaml", SLICE.replace("FIELD", field), range(30000, 32768))
    assert content.objects == {}
    (error,) = content.errors
    assert error.field.startswith("endpoints[0].")
    assert not obeyed(str(error))


def test_a_number_has_its_noun() -> None:
    assert [several(count, "entry", "entries") for count in (0, 1, 2)] == [
        "0 entries",
        "1 entry",
        "2 entries",
    ]
    assert several(3, "hook") == "3 hooks"


def test_numbers_within_texts_sort_by_value() -> None:
    texts = [
        "#10",
        "#9",
        "rows 32 to 33",
        "rows 4 to 7",
        "10.0.0.10:80/TCP",
        "10.0.0.9:80/TCP",
        "cluster_net",
    ]
    assert sorted(texts, key=by_number) == [
        "#9", "#10", "cluster_net", "rows 4 to 7", "rows 32 to 33", "10.0.0.9:80/TCP", "10.0.0.10:80/TCP",
    ]  # fmt: skip
