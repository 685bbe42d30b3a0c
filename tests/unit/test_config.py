# SPDX-License-Identifier: Apache-2.0
"""Settings: the four layers, and what a wrong setting is told."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from lb import folders
from lb.cli import settings
from lb.cli.grammar import actions
from lb.config import SWITCH, Config, Limits, UplinkMode
from lb.config import settings as all_settings
from lb.errors import ConfigError
from lb.setting_forms import split_address


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    actions.add_settings(parser)
    return parser.parse_args(argv)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lbctl.yaml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert settings.read(parse(), {}) == Config()


def test_each_layer_replaces_single_settings_of_the_one_before(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "node_name: from-file\nuplinks: [eth0, eth1]\nuplink_mode: tc\nlimits:\n  flows: 1000\n  vips: 10\n",
    )
    environ = {
        "LBCTL_NODE_NAME": "from-env",
        "LBCTL_LIMITS_FLOWS": "2000",
        "LBCTL_POD_INTERFACE": "veth*, cali*",
    }
    config = settings.read(parse("--config", str(path), "--limits-flows", "3000"), environ)
    assert config == Config(
        node_name="from-env",
        uplinks=("eth0", "eth1"),
        uplink_mode=UplinkMode.TC,
        pod_interfaces=("veth*", "cali*"),
        limits=Limits(flows=3000, vips=10),
    )


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "node_name: n1\n")
    assert settings.read(parse(), {"LBCTL_CONFIG": str(path)}).node_name == "n1"


def test_repeated_flags_make_a_list() -> None:
    config = settings.read(parse("--uplink", "eth0", "--uplink", "eth1", "--source", "manifests:/a"), {})
    assert (config.uplinks, config.sources) == (("eth0", "eth1"), ("manifests:/a",))


def test_what_is_empty_is_not_given(tmp_path: Path) -> None:
    assert settings.read(parse("--config", str(write(tmp_path, "# nothing\n"))), {}) == Config()
    path = write(tmp_path, "node_name:\nlimits:\n")
    assert settings.read(parse("--config", str(path)), {"LBCTL_UPLINK": ""}) == Config()


def test_numbers_that_yaml_would_read_as_something_else_stay_names(tmp_path: Path) -> None:
    assert settings.read(parse("--config", str(write(tmp_path, "node_name: 007\n"))), {}).node_name == "007"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("limits:\n  flows: many\n", 2, ["limits.flows", "'many'", "whole number of entries"]),
        ("limits:\n  flows: 0\n", 2, ["limits.flows", "'0'"]),
        ("timeouts: {udp: -1}\n", 1, ["timeouts.udp", "'-1'", "seconds above 0"]),
        ("uplink_mode: xdp\n", 1, ["uplink_mode", "'xdp'", "auto, xdp-native, xdp-generic, tc"]),
        ("\nuplink: eth0\n", 2, ["unknown setting uplink", "did you mean uplinks?"]),
        ("limits: {flow: 1}\n", 1, ["unknown setting limits.flow", "did you mean flows?"]),
        ("limits: 3\n", 1, ["limits", "is a single value, must be a mapping"]),
        ("- a\n", 1, ["the file", "is a list, must be a mapping"]),
        ("node_name: [a]\n", 1, ["node_name", "is a list, must be a single value"]),
        ("uplinks: [{}]\n", 1, ["uplinks", "is a mapping, must be a list of values"]),
        ("node_name: a\nnode_name: b\n", 2, ["node_name is given twice"]),
        ("node_name: Upper_Case\n", 1, ["node_name", "lower-case"]),
        ("uplinks:\n- eth0\n- name with space\n", 2, ["uplinks", "'name with space'", "interface"]),
        ("service_cidr: 10.0.0.1/8\n", 1, ["service_cidr", "without host bits"]),
        ("node_port_range: 9-1\n", 1, ["node_port_range", "30000-32767"]),
        ("sources: [/etc/manifests]\n", 1, ["sources", "manifests:DIR"]),
        ("a: [\n", 2, ["not YAML"]),
    ],
)
def test_an_error_in_the_file_names_line_setting_value_and_what_is_right(
    tmp_path: Path, text: str, line: int, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        settings.read(parse("--config", str(path)), {})
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_an_error_names_the_flag_or_the_variable() -> None:
    with pytest.raises(
        ConfigError, match=r"^flag --snat-ports-first: setting snat_ports.first: '0' is not a port"
    ):
        settings.read(parse("--snat-ports-first", "0"), {})
    with pytest.raises(
        ConfigError, match=r"^environment variable LBCTL_UPLINK_MODE: setting uplink_mode: 'x'"
    ):
        settings.read(parse(), {"LBCTL_UPLINK_MODE": "x"})


def test_a_range_that_two_settings_make_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"62000-61999 .*first from flag .*last from environment"):
        settings.read(parse("--snat-ports-first", "62000"), {"LBCTL_SNAT_PORTS_LAST": "61999"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        settings.read(parse("--config", str(tmp_path / "none.yaml")), {})
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary.yaml: not UTF-8"):
        settings.read(parse("--config", str(path)), {})
    path.write_bytes(b"node_name: \0")
    with pytest.raises(ConfigError, match=r"binary.yaml: not YAML: unacceptable character [^\n]*$"):
        settings.read(parse("--config", str(path)), {})


def test_a_file_that_has_no_end_or_no_bottom_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "x: " + "[" * 5_000)
    with pytest.raises(ConfigError, match=f"{path}: nested too deep"):
        settings.read(parse("--config", str(path)), {})
    with pytest.raises(ConfigError, match=f"/dev/zero: is larger than {1 << 18} bytes"):
        settings.read(parse("--config", "/dev/zero"), {})


def test_a_file_may_be_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"node_name: n1\n")
    os.close(writes)
    assert settings.read(parse("--config", f"/dev/fd/{reads}"), {}).node_name == "n1"
    os.close(reads)
    monkeypatch.setattr(folders, "SILENCE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match=r"fifo: nothing came from it for 0.05 seconds"):
        settings.read(parse("--config", str(tmp_path / "fifo")), {})


def test_an_unknown_variable_is_told_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"LBCTL_NODENAME": "n1", "LBCTL_SERVICE_HOST": "10.0.0.1"}
    assert settings.read(parse(), environ) == Config()
    assert "LBCTL_NODENAME is no setting; did you mean LBCTL_NODE_NAME?" in caplog.text


def test_a_variable_like_no_other_is_named_alone_and_those_of_a_service_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = "SERVICE_HOST SERVICE_PORT SERVICE_PORT_METRICS PORT PORT_1_TCP PORT_1_TCP_PROTO PORT_1_TCP_ADDR"
    of_service = {f"LBCTL_{part}": "x" for part in parts.split()}
    settings.from_environment({"LBCTL_FOO": "1", "LBCTL_SERVICE_CIDRS": "2", **of_service})
    assert [one.getMessage() for one in caplog.records] == [
        "environment variable LBCTL_FOO is no setting",
        "environment variable LBCTL_SERVICE_CIDRS is no setting; did you mean LBCTL_SERVICE_CIDR?",
    ]


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    for item in all_settings():
        for value in item.default if item.many else [item.default]:
            if value != "":  # "" is: not given
                assert item.kind.parse(str(value)) == value, item.name


def test_every_setting_has_help_a_unit_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for item in all_settings():
        value = f"[{item.kind.metavar}]" if item.kind is SWITCH else item.kind.metavar
        assert f"{item.flag} {value}" in text
        assert item.help.replace("-", "") in text.replace("- ", "-").replace("-", "")  # lines end at hyphens
        assert f"env {item.variable}" in text
        if item.default not in ("", ()):
            assert f"default {item.default}" in text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10249", ("127.0.0.1", 10249)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:10249", ("::1", 10249)),
        ("off", None),
        ("", None),
    ],
)
def test_an_address_to_listen_on(text: str, address: tuple[str, int] | None) -> None:
    config = settings.read(parse("--metrics-address", text), {})
    assert split_address(config.metrics_address) == address


@pytest.mark.parametrize(
    "text", ["10249", ":10249", "localhost:1", "127.0.0.1", "::1:1", "[127.0.0.1]:1", "127.0.0.1:0"]
)
def test_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(ConfigError, match=r"flag --metrics-address: .* is not an IP address and a port"):
        settings.read(parse("--metrics-address", text), {})
