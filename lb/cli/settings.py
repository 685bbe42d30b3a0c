# SPDX-License-Identifier: Apache-2.0
"""Reading :class:`lb.config.Config`: defaults, then a YAML file, then the environment, then flags.

Each layer replaces single settings of the one before. All of them give text, so a value is checked in one
place whatever its origin, and an error names the setting, the value, where it stands and what would be right.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from lb.cli.grammar.actions import CONFIG_VARIABLE
from lb.config import Config, Forward, Setting, settings
from lb.errors import ConfigError
from lb.folders import read_stream

_MOST_BYTES = 1 << 18  # of a file of settings; all of them take some kB

_PREFIX = "LBCTL_"
_OF_A_SERVICE = re.compile(
    r"LBCTL_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""The variables of a Service called lbctl (Kubernetes documentation, "Service", Discovering services)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """A setting's text as somebody wrote it; one text for each element of a list."""

    texts: tuple[str, ...]
    origin: str


Layer = dict[str, Given]
"""What one place says, by the settings' dotted names."""


def read(args: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Return the settings from ``--config`` or LBCTL_CONFIG, the environment and the flags.

    Raises ConfigError: a setting is unknown, has no such value, or the file cannot be read.
    """
    given: Layer = {}
    file = args.config or environ.get(CONFIG_VARIABLE)
    if file:
        given |= from_file(Path(file))
    given |= from_environment(environ)
    given |= from_flags(args)
    return build(given)


def from_flags(args: argparse.Namespace) -> Layer:
    """Return the settings that were given as flags."""
    layer = {}
    for item in settings():
        value = getattr(args, item.name)
        if value is not None:
            texts = tuple(value) if item.many else (value,)
            layer[item.name] = Given(texts, f"flag {item.flag}")
    return layer


def from_environment(environ: Mapping[str, str]) -> Layer:
    """Return the settings of the LBCTL_ variables; an empty variable is not given.

    An unknown LBCTL_ variable is logged and not refused: it may be somebody else's. Nothing is said of those
    that Kubernetes sets in the pods of a namespace that has a Service called lbctl.
    """
    by_variable = {item.variable: item for item in settings()}
    layer = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable == CONFIG_VARIABLE or not text:
            continue
        item = by_variable.get(variable)
        if item is None:
            if not _OF_A_SERVICE.fullmatch(variable):
                _log.warning("environment variable %s is no setting%s", variable, _meant_variable(variable))
            continue
        texts = tuple(part.strip() for part in text.split(",")) if item.many else (text,)
        layer[item.name] = Given(texts, f"environment variable {variable}")
    return layer


def from_file(path: Path) -> Layer:
    """Return the settings of a YAML file; a key without value is not given.

    Raises ConfigError: names the file and the line of what cannot be read, or is no setting.
    """
    try:
        text = read_stream(path, _MOST_BYTES).decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep") from error
    if root is None:
        return {}
    layer: Layer = {}
    _read_section(path, root, "", {item.name: item for item in settings()}, layer)
    return layer


def _read_section(
    path: Path, node: yaml.Node, prefix: str, known: Mapping[str, Setting], layer: Layer
) -> None:
    if not isinstance(node, yaml.MappingNode):
        what = f"setting {prefix.rstrip('.')}" if prefix else "the file"
        raise ConfigError(
            f"{_at(path, node)}: {what}: is {_shape(node)}, must be a mapping of settings to values"
        )
    children = {name.removeprefix(prefix).split(".")[0] for name in known if name.startswith(prefix)}
    seen = set()
    for key, value in node.value:
        word = str(key.value)
        name = prefix + word
        if word not in children:
            raise ConfigError(f"{_at(path, key)}: unknown setting {name}{_meant(word, children)}")
        if word in seen:
            raise ConfigError(f"{_at(path, key)}: setting {name} is given twice")
        seen.add(word)
        if value.tag == "tag:yaml.org,2002:null":
            continue
        if name in known:
            layer[name] = Given(_texts(path, value, known[name]), _at(path, value))
        else:
            _read_section(path, value, name + ".", known, layer)


def _texts(path: Path, node: yaml.Node, item: Setting) -> tuple[str, ...]:
    parts = node.value if item.many and isinstance(node, yaml.SequenceNode) else [node]
    for part in parts:
        if not isinstance(part, yaml.ScalarNode):
            wanted = f"{'a list of values' if item.many else 'a single value'}: {item.kind.right}"
            raise ConfigError(f"{_at(path, part)}: setting {item.name}: is {_shape(part)}, must be {wanted}")
    return tuple(part.value for part in parts)


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _yaml_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return f"{where}: not YAML: {' '.join(str(getattr(error, 'problem', None) or error).split())}"


def _meant(word: str, known: Iterable[str]) -> str:
    """Return a did-you-mean for the word, ``""`` when nothing known is like it."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _meant_variable(variable: str) -> str:
    """Return a did-you-mean for a variable; what all of them begin with makes none like another."""
    known = {item.variable.removeprefix(_PREFIX): item.variable for item in settings()}
    close = difflib.get_close_matches(variable.removeprefix(_PREFIX), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def build(given: Layer) -> Config:
    """Return the configuration that the texts describe.

    Raises ConfigError: names the first setting that is wrong, its text, its origin and what would be right.
    """
    values = {item.name: _parse(item, given[item.name]) for item in settings() if item.name in given}
    config: Config = _construct(Config, "", values)
    ports = config.snat_ports
    if ports.first > ports.last:
        said = [
            f"{name} from {given[name].origin}"
            for name in ("snat_ports.first", "snat_ports.last")
            if name in given
        ]
        raise ConfigError(
            f"settings snat_ports.first and snat_ports.last: {ports.first}-{ports.last} is no range"
            f" ({', '.join(said)}); first must not be above last"
        )
    if config.forward is not Forward.SNAT and not ports.first <= config.direct_port <= ports.last:
        raise ConfigError(
            f"setting direct_port: {config.direct_port} is not within snat_ports, {ports.first}-{ports.last}:"
            " only ports of that range are looked at for what other nodes send"
        )
    return config


def _parse(item: Setting, given: Given) -> Any:
    values = []
    for text in given.texts:
        try:
            values.append(item.kind.parse(text))
        except ValueError:
            raise ConfigError(
                f"{given.origin}: setting {item.name}: {text!r} is not {item.kind.right}"
            ) from None
    return tuple(values) if item.many else values[0]


def _construct(cls: type, prefix: str, values: Mapping[str, Any]) -> Any:
    types = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        name = prefix + item.name
        if dataclasses.is_dataclass(types[item.name]):
            fields[item.name] = _construct(types[item.name], name + ".", values)
        elif name in values:
            fields[item.name] = values[name]
    return cls(**fields)
