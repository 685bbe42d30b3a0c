# SPDX-License-Identifier: Apache-2.0
"""Folders as a source: what counts as a file, what is read again, and what is emitted."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from lb.manifests import documents, library
from lb.model import Delete, EndpointSlice, Node, ObjectKey, Service, Synced, Upsert
from tests.unit.folder_bench import NOW, UNPARSABLE, Folder, service, upserted


def test_the_first_scan_lists_everything_in_order_and_then_says_so(folder: Folder) -> None:
    folder.write(
        "all.yaml",
        service("web", extra="  selector: {app: web}\n") + "---\n"
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\nspec: {nodeName: n1}\n"
        'status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}\n---\n'
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n",
    )
    events = folder.scan()
    assert events[-1] == Synced("manifests")
    node, found, one = upserted(events)
    assert node == Node("n1", zone="z1", labels={"topology.kubernetes.io/zone": "z1"})
    assert isinstance(found, Service)
    assert found.cluster_ips
    assert isinstance(one, EndpointSlice)
    assert one.service == found.key
    assert [(end.target, end.node, end.zone) for end in one.endpoints] == [("default/p", "n1", "z1")]


def test_an_empty_folder_is_synced(folder: Folder) -> None:
    assert folder.scan() == [Synced("manifests")]
    assert folder.scan() == []


def test_only_differences_are_emitted(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    folder.write("b.yaml", service("b"))
    folder.scan()
    folder.write("a.yaml", "# moved down a line\n" + service("a"))
    assert folder.scan() == []
    folder.write("b.yaml", service("b", 81))
    (event,) = folder.scan()
    assert isinstance(event, Upsert)
    assert isinstance(event.resource, Service)
    assert event.resource.ports[0].port == 81
    (folder.root / "b.yaml").unlink()
    assert folder.scan() == [Delete(Service, ObjectKey("default", "b"))]
    assert folder.scan() == []


def test_a_change_of_a_pod_is_a_change_of_its_slice_only(folder: Folder) -> None:
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\n"
        'status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "%s"}]}\n'
    )
    folder.write("web.yaml", service("web", extra="  selector: {app: web}\n"))
    folder.write("p.yaml", pod % "True")
    folder.scan()
    folder.write("p.yaml", pod % "False")
    (event,) = folder.scan()
    assert isinstance(event, Upsert)
    assert isinstance(event.resource, EndpointSlice)
    assert not event.resource.endpoints[0].ready
    (folder.root / "p.yaml").unlink()
    assert folder.scan() == [Delete(EndpointSlice, event.resource.key)]


def test_which_files_count(folder: Folder) -> None:
    for number, name in enumerate(
        [
            "a.yaml",
            "b.yml",
            "c.json",
            "sub/deep/d.yaml",
            ".hidden.yaml",
            ".git/e.yaml",
            "f.yaml~",
            "g.yaml.swp",
            "h.txt",
        ]
    ):
        folder.write(name, service(f"s{number}", number + 1))
    os.mkfifo(folder.root / "pipe.yaml")
    (folder.root / "nowhere.yaml").symlink_to("missing")
    (folder.root / "loop").symlink_to(folder.root)
    assert folder.ports() == {"s0": 1, "s1": 2, "s2": 3, "s3": 4}
    assert folder.reports == []


def test_several_folders_also_one_within_the_other(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "web.yaml").write_text(service("web"))
    main = tmp_path / "main"
    (main / "sub").mkdir(parents=True)
    folder = Folder(main, [other, main / "sub"])
    folder.write("sub/dns.yaml", service("dns"))
    assert folder.ports() == {"web": 80, "dns": 80}
    assert folder.reports == []


def test_a_config_map_volume(folder: Folder) -> None:
    # As the kubelet lays it out: files are links through a hidden link to a hidden folder, which it swaps.
    folder.write("..one/web.yaml", service("web", 80))
    folder.write("..two/web.yaml", service("web", 81))
    (folder.root / "..data").symlink_to("..one")
    (folder.root / "web.yaml").symlink_to("..data/web.yaml")
    assert folder.ports() == {"web": 80}
    (folder.root / "..next").symlink_to("..two")
    (folder.root / "..next").rename(folder.root / "..data")
    assert folder.ports() == {"web": 81}


def test_unchanged_files_are_not_read_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(path: str, text: str, node_ports: range) -> documents.Content:
        read.append(Path(path).name)
        return documents.read(path, text, node_ports)

    monkeypatch.setattr(library, "read", counting)
    folder.write("a.yaml", service("a"))
    folder.write("b.yaml", UNPARSABLE)
    folder.scan()
    folder.scan()
    assert read == ["a.yaml", "b.yaml"]
    folder.write("a.yaml", service("a"))
    folder.scan()
    assert read == ["a.yaml", "b.yaml", "a.yaml"]
    copy = folder.root / "a.tmp"
    shutil.copy2(folder.root / "a.yaml", copy)
    copy.rename(folder.root / "a.yaml")  # the same time and size, another inode
    folder.scan()
    assert read == ["a.yaml", "b.yaml", "a.yaml", "a.yaml"]


def test_a_file_that_changed_just_now_is_read_once_more(folder: Folder) -> None:
    folder.write("a.yaml", service("a", 80), stamp=NOW)
    assert folder.ports() == {"a": 80}
    folder.write("a.yaml", service("a", 81), stamp=NOW)  # within the same tick of the file system's clock
    assert folder.ports() == {"a": 81}


def test_a_file_that_became_empty_just_now_is_being_written(folder: Folder) -> None:
    folder.write("a.yaml", service("a"))
    folder.scan()
    folder.write("a.yaml", "", stamp=NOW)
    assert folder.ports() == {"a": 80}
    folder.now += 5
    assert folder.ports() == {}
    assert folder.reports == []


def test_one_object_in_two_files(folder: Folder) -> None:
    folder.write("b.yaml", service("web", 81))
    folder.write("a.yaml", service("web", 80))
    told = "b.yaml:1: Service default/web: is already defined in a.yaml:1; that one is used"
    assert folder.new_reports() == [told]
    assert folder.ports() == {"web": 80}
    (folder.root / "a.yaml").unlink()
    assert folder.ports() == {"web": 81}
    assert folder.new_reports() == []


@pytest.mark.parametrize("later", ["a", "z"])
def test_one_object_in_two_folders_is_the_later_folders(tmp_path: Path, later: str) -> None:
    for name in ("m", later):
        (tmp_path / name).mkdir()
    folder = Folder(tmp_path / "m", [tmp_path / later])
    folder.write("b.yaml", service("web", 80))
    folder.write(f"../{later}/c.yaml", service("web", 81))
    assert folder.ports() == {"web": 81}
    (tmp_path / later / "c.yaml").unlink()
    assert folder.ports() == {"web": 80}
    assert folder.reports == []


def test_kinds_that_are_not_read_are_told_once(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
    folder.write("a.yaml", f"{deployment}---\n{deployment}---\nkind: Sevice\n")
    with caplog.at_level(logging.INFO, logger="lb.manifests.source"):
        folder.scan()
        folder.write("b.yaml", service("web", 80))
        folder.scan()
    (message,) = [each for each in caplog.messages if "not read" in each]
    assert message.endswith(
        "not read: 2 Deployment (apps/v1), 1 Sevice (no apiVersion);"
        " what is read: Service, Pod, Node, Endpoints, EndpointSlice"
    )


def test_what_is_given_is_logged_once(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.write("a.yaml", service("kubia", extra="  type: NodePort\n"))
    with caplog.at_level(logging.INFO, logger="lb"):
        folder.scan()
        folder.write("b.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
        folder.scan()
    (message,) = caplog.messages
    assert message.startswith("Service default/kubia is given clusterIP 10.96.59.88, nodePort 3")
    assert message.endswith(" for 80/TCP")
