# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import yaml

from lb.lab.probes import Probe, ProbeKind, ProbeState, read_probe
from lb.manifests.fields import Field, Problems
from lb.manifests.yamldoc import load

PORTS = {"http": 8080}


def read(text: str) -> tuple[Probe, list[str]]:
    document = next(load(text))
    problems = Problems("m.yaml")
    probe = read_probe(Field(problems, "readinessProbe", 1, document.root), PORTS)
    return probe, [f"{line} {field}: {message}" for line, field, message in problems.noted]


def states(success_threshold: int, failure_threshold: int, outcomes: str) -> str:
    """Return R or n after each outcome: + for a success, - for a failure."""
    probe = Probe(ProbeKind.TCP, 80, success_threshold=success_threshold, failure_threshold=failure_threshold)
    state = ProbeState(probe)
    seen = ""
    for outcome in outcomes:
        before = state.ready
        assert state.record(outcome == "+") is (state.ready is not before)
        seen += "R" if state.ready else "n"
    return seen


@pytest.mark.parametrize(
    ("success", "failure", "outcomes", "expected"),
    [
        (1, 3, "+", "R"),
        (1, 3, "----+", "nnnnR"),
        (1, 3, "+---", "RRRn"),
        (1, 3, "+--+--+", "RRRRRRR"),
        (1, 1, "+-+-", "RnRn"),
        (3, 1, "++-+++-", "nnnnnRn"),
        (2, 2, "+-+-++--", "nnnnnRRn"),
    ],
)
def test_thresholds_count_outcomes_in_a_row(success: int, failure: int, outcomes: str, expected: str) -> None:
    assert states(success, failure, outcomes) == expected


def test_defaults_are_those_of_kubernetes() -> None:
    assert read("tcpSocket: {port: 8080}") == (Probe(ProbeKind.TCP, 8080), [])
    default = Probe(ProbeKind.TCP)
    assert (default.initial_delay, default.period, default.timeout) == (0, 10, 1)
    assert (default.success_threshold, default.failure_threshold) == (1, 3)


def test_everything_a_manifest_can_say_is_read() -> None:
    given = {
        "httpGet": {"path": "/healthz", "port": "http", "httpHeaders": [{"name": "X-A", "value": "b"}]},
        "initialDelaySeconds": 5,
        "periodSeconds": 2,
        "timeoutSeconds": 3,
        "successThreshold": 4,
        "failureThreshold": 6,
    }
    http = Probe(ProbeKind.HTTP, 8080, "/healthz", (("X-A", "b"),), (), 5, 2, 3, 4, 6)
    assert read(yaml.safe_dump(given)) == (http, [])
    command = Probe(ProbeKind.EXEC, command=("ls", "/var/ready"))
    assert read("exec: {command: [ls, /var/ready]}") == (command, [])
    assert read("httpGet: {port: 80}") == (replace(Probe(ProbeKind.HTTP), port=80), [])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("periodSeconds: 1", "1 readinessProbe: must have one of"),
        ("tcpSocket: {port: 1}\nexec: {command: [ls]}", "1 readinessProbe: must have one of"),
        ("grpc: {port: 80}", "1 readinessProbe: must have one of"),
        ("httpGet: {port: web}", "1 readinessProbe.httpGet.port: 'web' is not the name of a port"),
        ("httpGet: {path: /}", "1 readinessProbe.httpGet.port: is missing"),
        ("httpGet: {port: 70000}", "1 readinessProbe.httpGet.port: must be from 1 to 65535"),
        ("httpGet: {port: 80, scheme: HTTPS}", "1 readinessProbe.httpGet.scheme: must be HTTP"),
        ("exec: {command: []}", "1 readinessProbe.exec.command: is missing or empty"),
        ("tcpSocket: {port: 80}\nperiodSeconds: 0", "2 readinessProbe.periodSeconds: must be from 1"),
    ],
)
def test_what_cannot_be_played_is_named(text: str, complaint: str) -> None:
    _, complaints = read(text)
    assert len(complaints) == 1
    assert complaints[0].startswith(complaint)
