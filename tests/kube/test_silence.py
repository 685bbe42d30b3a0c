# SPDX-License-Identifier: Apache-2.0
"""A server that says nothing: because it hangs, or because it was restored from a backup."""

from __future__ import annotations

import pytest

from lb.kube import availability
from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.harness import ALL, Running, client_of, fill, running, settle, whole_lists
from tests.kube.objects import BACKEND_A, endpoint, endpoint_slice, node, service


def go(run: Running, double: ApiDouble) -> None:
    """Stop the double and wait until it is missed by all."""
    run.waits.threads.clear()
    double.stop()
    run.wait(lambda: {f"kubernetes {resource}" for resource in ALL} <= run.waits.threads)


def add_after_a_backup(run: Running, double: ApiDouble) -> None:
    """Bring the source to versions that the restored server has not reached, and restore it."""
    backup = double.backup()
    double.remove(service("old"))
    double.put(service("lost", "10.96.0.11"))
    for i in range(5):
        double.put(service("lost", "10.96.0.11", labels={"turn": str(i)}))
    run.wait(lambda: run.services() == {"web", "lost"})
    run.wait(lambda: run.source.health()[0].resource_version == str(double.version))
    double.restore(backup)


def test_a_restored_server_is_listed_anew_when_its_watch_says_nothing(double: ApiDouble) -> None:
    """The outage was not seen, as there are other servers at the address."""
    fill(double)
    double.put(service("old", "10.96.0.12"))
    with running(client_of(double), silence=0.3) as run:
        settle(run, double)
        add_after_a_backup(run, double)
        double.disturb("services", faults.end)
        run.wait(lambda: run.services() == {"web", "old"})
        run.wait(lambda: double.watching(*ALL))
        double.put(service("new", "10.96.0.13"))
        run.wait(lambda: run.services() == {"web", "old", "new"})


def test_a_restored_server_is_listed_anew_when_it_comes_back(double: ApiDouble) -> None:
    fill(double)
    double.put(service("old", "10.96.0.12"))
    with running(client_of(double)) as run:
        settle(run, double)
        add_after_a_backup(run, double)
        go(run, double)
        double.restart()
        run.wait(lambda: run.services() == {"web", "old"})


def test_a_quiet_kind_is_not_listed_again(double: ApiDouble) -> None:
    """A server sends no bookmark of the version that a watch begins with."""
    fill(double)
    with running(client_of(double), silence=0.05) as run:
        settle(run, double)
        run.wait(lambda: len(double.asked("watch", "services")) > 5)
        double.put(node("node2"))
        run.wait(lambda: len(double.asked("watch", "services")) > 10)
        assert whole_lists(double) == 1
        assert run.waits.seconds == []


def test_a_server_that_goes_right_after_a_list_is_listed_at_once_when_it_is_back(double: ApiDouble) -> None:
    """It answers 410 to the watches; after a young list that would be a failure, followed by a wait."""
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        go(run, double)
        double.restart()
        run.wait(lambda: all(whole_lists(double, resource) == 2 for resource in ALL))
        run.wait(lambda: double.watching(*ALL) and not any(health.error for health in run.source.health()))
        assert [health.errors for health in run.source.health()] == [1, 1, 1], "the break of each watch"


def test_a_server_may_say_that_a_version_is_too_large(double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.disturb("services", faults.end)
        double.fault("watch", "services", faults.answer(504, "Timeout", causes=("ResourceVersionTooLarge",)))
        run.wait(lambda: len(double.asked("list", "services")) == 2)
        run.wait(lambda: double.watching("services"))
        assert run.deletes() == []


def test_a_server_that_hangs_is_noticed_and_its_return_as_well(
    double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections stay up meanwhile, so nothing breaks."""
    monkeypatch.setattr(availability, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(availability, "PATIENCE_SECONDS", 0.2)
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        before = double.probes
        run.wait(lambda: double.probes > before + 1)
        assert len(double.asked("watch", "services")) == 1, "who is quiet and answers is left in peace"
        double.hang()
        run.wait(lambda: all("said nothing for" in health.error for health in run.source.health()))
        double.hang(False)
        double.put(endpoint_slice("web-1", endpoint(BACKEND_A), endpoint("10.0.0.99")))
        run.wait(lambda: len(run.endpoints()) == 2)
        run.wait(lambda: not any(health.error for health in run.source.health()))
        assert run.deletes() == []
