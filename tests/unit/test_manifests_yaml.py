# SPDX-License-Identifier: Apache-2.0
"""YAML text to trees with line numbers: documents, scalars as Kubernetes reads them, faults."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.manifests.yamldoc import MAX_DEPTH, Document, Fault, YamlNode, load


def only(text: str) -> YamlNode:
    (document,) = load(text)
    assert document.faults == ()
    assert document.root is not None
    return document.root


def only_fault(text: str) -> Fault:
    (document,) = load(text)
    (fault,) = document.faults
    return fault


def plain(node: YamlNode) -> Any:
    """The value that a tree stands for; a fractional number stays text."""
    match node.kind:
        case "mapping":
            return {key: plain(value) for key, (_, value) in node.entries.items()}
        case "list":
            return [plain(item) for item in node.items]
        case "number":
            return node.as_int()
        case "boolean":
            return node.as_bool()
        case "null":
            return None
        case _:
            return node.text


SCALARS = [
    ("80", 80),
    ("-5", -5),
    ("+5", 5),
    ("0", 0),
    ("010", 8),
    ("0o17", 15),
    ("0x1F", 31),
    ("0b101", 5),
    ("1_000", 1000),
    ("yes", True),
    ("Off", False),
    ("y", True),
    ("true", True),
    ("~", None),
    ("null", None),
    ("", None),
    ("Null", None),
    ("12:30", "12:30"),
    ("2021-03-26", "2021-03-26"),
    ("2021-03-26T03:15:18Z", "2021-03-26T03:15:18Z"),
    ("'80'", "80"),
    ('"yes"', "yes"),
    ("''", ""),
    ("!!str 80", "80"),
    ("10.96.0.1", "10.96.0.1"),
    ("v1", "v1"),
    ("fd00::1", "fd00::1"),
    ("0x", "0x"),
    ("0b_", "0b_"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_mean_what_they_mean_to_kubernetes(text: str, value: object) -> None:
    (entry,) = plain(only(f"a: {text}")).values()
    assert entry == value
    assert type(entry) is type(value)


@pytest.mark.parametrize("text", ["1.5", "1e3", "08", ".inf", "-.5", "12.", "9" * 5000])
def test_other_numbers_are_neither_strings_nor_whole_numbers(text: str) -> None:
    assert only(f"a: {text}").entries["a"][1].kind == "float"


def test_lines_are_those_of_the_file() -> None:
    documents = list(load("# head\n---\na: 1\n--- # second\nb:\n  - x\n  - {c: 2}\n"))
    roots = [document.root for document in documents]
    assert [root.line for root in roots if root] == [3, 5]
    assert roots[1] is not None
    key_line, value = roots[1].entries["b"]
    assert key_line == 5
    assert [item.line for item in value.items] == [6, 7]


def test_empty_documents_are_left_out() -> None:
    assert list(load("")) == []
    assert list(load("---\n# nothing\n---\n\n...\n")) == []
    assert len(list(load("---\n---\na: 1\n---\n"))) == 1


def test_a_directive_before_the_first_document_is_no_fault() -> None:
    assert plain(only("%YAML 1.1\n---\na: 1\n")) == {"a": 1}


def test_a_separator_inside_a_block_scalar_is_text() -> None:
    assert plain(only("a: |\n  ---\n  b\nc: 1\n")) == {"a": "---\nb\n", "c": 1}


def test_windows_line_ends() -> None:
    documents = list(load("a: 1\r\n---\r\nb: 2\r\n"))
    assert [plain(document.root) for document in documents if document.root] == [{"a": 1}, {"b": 2}]
    assert documents[1].root is not None
    assert documents[1].root.line == 3


def test_anchors_and_merge_keys() -> None:
    root = only("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nagain: *b\nboth:\n  <<: [*b, {z: 4}]\n")
    assert plain(root) == {
        "base": {"x": 1, "y": 2},
        "use": {"x": 1, "y": 3},
        "again": {"x": 1, "y": 2},
        "both": {"x": 1, "y": 2, "z": 4},
    }


def test_json_indented_by_tabs() -> None:
    assert plain(only('{\n\t"a": [\n\t\t1,\n\t\t"x"\n\t]\n}')) == {"a": [1, "x"]}


def test_a_document_that_does_not_parse_leaves_the_others() -> None:
    good, bad, last = load("a: 1\n---\nb: [\n---\nc: 3\n")
    assert good.root is not None
    assert last.root is not None
    assert last.root.line == 5
    assert bad.root is None
    assert bad.faults[0].line == 4
    assert "does not parse as YAML" in bad.faults[0].message


FAULTS = [
    ("tab", "a:\n\tb: 1\n", 2, "a tab indents this line"),
    ("colon", "a: 1\nb: c: d\n", 2, "does not parse as YAML"),
    ("control character", "a: 1\nb: \x01\n", 2, "does not parse as YAML"),
    ("no such anchor", "a: *b\n", 1, "*b refers to no anchor"),
    ("a value within itself", "a: 1\nb: &b [*b]\n", 2, "contains it"),
    ("a list as a key", "a: 1\n? [x]\n: 2\n", 2, "cannot be a key"),
    ("too deep in brackets", "[" * 100_000, 1, "nested deeper"),
    ("too deep in braces", "{a: " * 100_000, 1, "nested deeper"),
    ("too deep below a key", "a: 1\nb: " + "[" * 100_000, 2, "nested deeper"),
    ("too deep, and closed", "[" * 5000 + "]" * 5000, 1, "nested deeper"),
    ("too deep in dashes", "- " * (MAX_DEPTH + 1) + "x", 1, "nested deeper"),
    ("a scalar to merge", "a:\n  <<: 5\n", 2, "only mappings can be merged"),
    ("open quote", "a: 'x\n", 2, "does not parse as YAML"),
]


@pytest.mark.parametrize(
    ("text", "line", "words"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_faults_name_their_line(text: str, line: int, words: str) -> None:
    fault = only_fault(text)
    assert fault.line == line
    assert words in fault.message


def test_a_key_given_twice() -> None:
    fault = only_fault("spec:\n  ports:\n  - port: 1\n    a.b/c:\n      x: 1\n      x: 2\n")
    assert fault == Fault(6, "spec.ports[0]['a.b/c'].x", "given twice; first in line 5")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text(st.characters(categories=["L", "N", "P"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc.<-/ ", max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text("abcxyz", min_size=1), JSON_VALUES, min_size=1), st.sampled_from([None, 2, "\t"])
)
def test_json_reads_as_json(value: dict[str, Any], indent: int | str | None) -> None:
    assert plain(only(json.dumps(value, indent=indent, ensure_ascii=False))) == value


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%#,?\n\t 1.~<"), max_size=60))
def test_any_text_gives_documents_or_faults(text: str) -> None:
    for document in load(text):
        assert isinstance(document, Document)
        assert document.root is not None or len(document.faults) == 1
        for fault in document.faults:
            assert 1 <= fault.line <= text.count("\n") + 2


ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"


def test_aliases_that_stand_for_a_little_are_read() -> None:
    (document,) = load(ALIASES)
    assert document.root is not None
    assert not document.faults
    assert len(document.root.entries["b"][1].items) == 10


@pytest.mark.parametrize(
    "text",
    [
        ALIASES + "c: &c [" + "*b, " * 100 + "]\nd: [" + "*c, " * 100 + "]\n",
        ALIASES + "c:\n" + "- *b\n" * 1000,
        "a: &a {" + ", ".join(f"k{i}: 1" for i in range(1000)) + "}\nb:\n" + "- {<<: *a}\n" * 200,
    ],
    ids=["within each other", "in a row", "merged"],
)
def test_aliases_that_stand_for_more_than_anybody_means(text: str) -> None:
    fault = only_fault(text)
    assert "its aliases stand for more than 100000 values" in fault.message
