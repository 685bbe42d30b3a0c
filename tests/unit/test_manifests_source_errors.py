# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a folder: it is reported once, and what was good before stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lb.errors import ConfigError, InputError
from lb.folders import read_file
from lb.manifests import ManifestSource
from lb.model import Service
from tests.unit.folder_bench import BROKEN, SETTLED, UNPARSABLE, Folder, service, upserted


def test_an_error_is_reported_once_while_it_stands(folder: Folder) -> None:
    folder.write("web.yaml", BROKEN)
    told = ["web.yaml:5: Service default/web: spec.ports[0].port: must be from 1 to 65535, is 0"]
    assert folder.new_reports() == told
    assert folder.new_reports() == []
    folder.write("other.yaml", service("other"))
    assert folder.new_reports() == []
    folder.write("web.yaml", BROKEN + "# touched\n")
    assert folder.new_reports() == []
    folder.write("web.yaml", service("web"))
    assert folder.new_reports() == []
    folder.write("web.yaml", BROKEN)
    assert folder.new_reports() == told


def test_all_errors_of_all_files_are_reported(folder: Folder) -> None:
    folder.write("a.yaml", UNPARSABLE)
    folder.write("b.yaml", BROKEN + "  type: x\n")
    assert [line.split(": ")[0] for line in folder.new_reports()] == ["a.yaml:2", "b.yaml:5", "b.yaml:6"]


def test_a_broken_object_stays_as_it_was_and_others_carry_on(folder: Folder) -> None:
    folder.write("all.yaml", service("web", 80) + "---\n" + service("dns", 53))
    assert folder.ports() == {"web": 80, "dns": 53}
    folder.write("all.yaml", BROKEN + "---\n" + service("dns", 54) + "---\n" + service("new", 1))
    assert folder.ports() == {"web": 80, "dns": 54, "new": 1}
    folder.write("all.yaml", BROKEN + "# still\n---\n" + service("dns", 55))
    assert folder.ports() == {"web": 80, "dns": 55}
    folder.write("all.yaml", service("web", 81) + "---\n" + service("dns", 54))
    assert folder.ports() == {"web": 81, "dns": 54}


def test_a_broken_object_that_never_was_good_is_not_there(folder: Folder) -> None:
    folder.write("all.yaml", BROKEN + "---\n" + service("dns", 53))
    assert folder.ports() == {"dns": 53}


def test_a_broken_object_that_is_taken_out_goes(folder: Folder) -> None:
    folder.write("all.yaml", service("web") + "---\n" + service("dns"))
    folder.scan()
    folder.write("all.yaml", BROKEN + "---\n" + service("dns"))
    folder.scan()
    folder.write("all.yaml", service("dns"))
    assert folder.ports() == {"dns": 80}


@pytest.mark.parametrize(
    "text",
    [
        UNPARSABLE,
        service("dns", 54) + "---\n" + UNPARSABLE,
        service("dns", 54) + "---\napiVersion: v1\nkind: Service\nmetadata: {}\nspec: {ports: [{port: 1}]}\n",
    ],
    ids=["unparsable", "unparsable in part", "no name"],
)
def test_a_file_of_which_not_all_is_known_keeps_its_objects(folder: Folder, text: str) -> None:
    folder.write("all.yaml", service("web", 80) + "---\n" + service("dns", 53))
    folder.scan()
    folder.write("all.yaml", text)
    assert folder.ports() == {"web": 80, "dns": 54 if "dns" in text else 53}
    assert len(folder.reports) == 1


def test_a_removed_file_takes_also_what_was_kept(folder: Folder) -> None:
    folder.write("web.yaml", service("web"))
    folder.scan()
    folder.write("web.yaml", UNPARSABLE)
    assert folder.ports() == {"web": 80}
    (folder.root / "web.yaml").unlink()
    assert folder.ports() == {}


def test_text_in_another_encoding(folder: Folder) -> None:
    path = folder.write("web.yaml", service("web"))
    folder.scan()
    path.write_bytes(b"a: 1\nb: \xff\n")
    os.utime(path, (SETTLED, SETTLED))
    assert folder.new_reports() == ["web.yaml:2: is not UTF-8 text"]
    assert folder.ports() == {"web": 80}
    path.write_bytes(b"\xef\xbb\xbf" + service("web", 81).encode())
    assert folder.ports() == {"web": 81}


def test_an_unreadable_file_keeps_its_objects(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("web.yaml", service("web"))
    folder.scan()
    folder.write("web.yaml", service("web", 81))

    def refuse(_path: Path, _most: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("lb.manifests.library.read_file", refuse)
        assert folder.new_reports() == ["web.yaml: cannot be read: Permission denied"]
        assert folder.ports() == {"web": 80}
    assert folder.ports() == {"web": 81}


def test_a_file_that_turns_into_a_fifo_is_not_waited_for(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder.write("web.yaml", service("web"))
    folder.scan()
    path = folder.write("web.yaml", service("web", 81))

    def too_late(found: Path, most: int) -> bytes:
        found.unlink()
        os.mkfifo(found)
        return read_file(found, most)

    with monkeypatch.context() as patch:
        patch.setattr("lb.manifests.library.read_file", too_late)
        assert folder.new_reports() == ["web.yaml: cannot be read: is no regular file"]
    assert folder.ports() == {}
    path.unlink()


def test_a_file_that_no_memory_holds(folder: Folder) -> None:
    path = folder.write("web.yaml", service("web"))
    folder.scan()
    os.truncate(path, 1 << 40)
    os.utime(path, (SETTLED, SETTLED))
    assert folder.new_reports() == ["web.yaml: cannot be read: is larger than 67108864 bytes"]
    assert folder.ports() == {"web": 80}


def test_a_good_definition_goes_before_a_kept_one(folder: Folder) -> None:
    folder.write("a.yaml", service("web", 80))
    folder.scan()
    folder.write("a.yaml", BROKEN)
    folder.write("b.yaml", service("web", 81))
    assert folder.ports() == {"web": 81}
    assert len(folder.reports) == 1


def test_a_folder_that_goes_away_is_a_fault_and_no_removal(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    folder = Folder(root)
    folder.write("web.yaml", service("web"))
    folder.write("sub/dns.yaml", service("dns"))
    folder.scan()
    shutil.rmtree(root / "sub")
    assert folder.ports() == {"web": 80}
    shutil.rmtree(root)
    assert folder.new_reports() == [f"{root}: cannot be read, what it held stays: No such file or directory"]
    assert folder.new_reports() == []
    assert folder.ports() == {"web": 80}
    root.mkdir()
    assert folder.ports() == {}


def test_errors_that_only_all_files_together_show(tmp_path: Path) -> None:
    reports: list[InputError] = []
    source = ManifestSource(
        [tmp_path], service_cidr="10.0.0.0/30", node_port_range="1-1", report=reports.append
    )
    (tmp_path / "all.yaml").write_text(service("a") + "---\n" + service("b"))
    events = source.scan()
    assert [each.key.name for each in upserted(events) if isinstance(each, Service)] == ["a"]
    assert [(error.line, error.object) for error in reports] == [(7, "Service default/b")]
    assert source.scan() == []
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("cidr", "ports", "name", "words"),
    [
        ("10.96.0.0/16", "30000-32767", "missing", "no such directory"),
        ("10.96.0.0/16", "30000-32767", "file", "no such directory"),
        ("10.96.0.0", "oops", ".", "node_port_range 'oops'"),
        ("oops", "30000-32767", ".", "service_cidr 'oops'"),
    ],
)
def test_wrong_settings(tmp_path: Path, cidr: str, ports: str, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    cidr = cidr if "/" in cidr or cidr == "oops" else f"{cidr}/16"
    with pytest.raises(ConfigError, match=words):
        ManifestSource([tmp_path / name], service_cidr=cidr, node_port_range=ports, report=lambda _: None)
