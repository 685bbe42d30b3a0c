# SPDX-License-Identifier: Apache-2.0
"""Folders as a source: what counts as a file, what is kept, what is reported, and what is emitted."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lb.errors import ConfigError, InputError
from lb.folders import read_file
from lb.manifests import ManifestSource, documents, library
from lb.model import Delete, EndpointSlice, Event, Node, ObjectKey, Resource, Service, Synced, Upsert
from lb.state import ClusterState

WAIT_SECONDS = 30
SETTLED = 1_000_000_000
"""A time stamp, in seconds, at which files have been at rest for long when the clock says NOW."""
NOW = 1_000_000_100.0


def service(name: str, port: int = 80, extra: str = "") -> str:
    head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  ports: [{{port: {port}}}]\n{extra}"


BROKEN = service("web", 0)
UNPARSABLE = "a: [\n"


class Folder:
    """A folder with a source on it; every write gets a time stamp of its own, all of them long ago."""

    def __init__(self, root: Path, others: Sequence[Path] = ()) -> None:
        self.root = root
        self.reports: list[InputError] = []
        self.now = NOW
        self._stamp = SETTLED
        self.source = ManifestSource(
            [root, *others],
            service_cidr="10.96.0.0/16",
            node_port_range="30000-32767",
            report=self.reports.append,
            clock=lambda: self.now,
        )
        self._state = ClusterState()

    def write(self, name: str, text: str, stamp: float | None = None) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._stamp += 1
        at = self._stamp if stamp is None else stamp
        os.utime(path, (at, at))
        return path

    def scan(self) -> list[Event]:
        events = self.source.scan()
        self._state.apply(events)
        return events

    def ports(self) -> dict[str, int]:
        """The port of every Service that has been emitted, after a scan."""
        self.scan()
        found = (self._state.service(key) for key in self._state.service_keys())
        return {each.key.name: each.ports[0].port for each in found if each is not None}

    def new_reports(self) -> list[str]:
        """What a scan reports, with the folder's own path left out."""
        self.reports.clear()
        self.scan()
        return [str(error).replace(f"{self.root}/", "") for error in self.reports]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def upserted(events: Sequence[Event]) -> list[Resource]:
    return [event.resource for event in events if isinstance(event, Upsert)]


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


class Running:
    """A source in its thread; what it emits is applied to a state as it comes."""

    def __init__(self, root: Path) -> None:
        self.state = ClusterState()
        self.batches: queue.Queue[list[Event]] = queue.Queue()
        self.source = ManifestSource(
            [root], service_cidr="10.96.0.0/16", node_port_range="30000-32767", report=lambda _: None
        )

    def emit(self, events: Sequence[Event]) -> None:
        self.batches.put(list(events))

    def until(self, reached: Callable[[ClusterState], bool]) -> None:
        """Wait for batches until the state is as wanted."""
        while not reached(self.state):
            self.state.apply(self.batches.get(timeout=WAIT_SECONDS))

    def until_port(self, name: str, port: int | None) -> None:
        def reached(state: ClusterState) -> bool:
            found = state.service(ObjectKey("default", name))
            return (found.ports[0].port if found is not None else None) == port

        self.until(reached)


@contextmanager
def running(root: Path) -> Iterator[Running]:
    one = Running(root)
    stop = threading.Event()
    thread = threading.Thread(target=one.source.run, args=(one.emit, stop), daemon=True)
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


def test_run_follows_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    with running(tmp_path) as one:
        one.until(lambda state: state.synced)
        one.until_port("a", 80)
        (tmp_path / "a.yaml").write_text(service("a", 81))
        one.until_port("a", 81)
        (tmp_path / "new" / "deep").mkdir(parents=True)
        (tmp_path / "new" / "deep" / "b.yaml").write_text(service("b"))
        one.until_port("b", 80)
        shutil.rmtree(tmp_path / "new")
        one.until_port("b", None)
        (tmp_path / ".a.tmp").write_text(service("a", 82))
        (tmp_path / ".a.tmp").rename(tmp_path / "a.yaml")
        one.until_port("a", 82)
        (tmp_path / "a.yaml").unlink()
        one.until_port("a", None)


def test_run_follows_a_folder_that_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    with running(root) as one:
        one.until(lambda state: state.synced)
        shutil.rmtree(root)
        root.mkdir()
        (root / "a.yaml").write_text(service("a"))
        one.until_port("a", 80)
        following = tmp_path / "next"
        following.mkdir()
        (following / "a.yaml").write_text(service("a", 81))
        root.rename(tmp_path / "old")
        following.rename(root)
        one.until_port("a", 81)
        (root / "a.yaml").write_text(service("a", 82))
        one.until_port("a", 82)


def test_run_without_notices_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_paths: Path, **_options: object) -> Iterator[set[tuple[int, str]]]:
        raise OSError(28, "OS file watch limit reached.")

    monkeypatch.setattr("lb.manifests.notices.watchfiles.watch", refuse)
    monkeypatch.setattr("lb.manifests.notices.RESCAN_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING), running(tmp_path) as one:
        one.until(lambda state: state.synced)
        (tmp_path / "a.yaml").write_text(service("a"))
        one.until_port("a", 80)
    assert len(caplog.messages) == 1
    assert "watch limit reached" in caplog.messages[0]
