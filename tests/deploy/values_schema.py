# SPDX-License-Identifier: Apache-2.0
"""The schema of the Helm chart's values, ``python -m tests.deploy.values_schema`` writes it.

The part about settings follows from lb.config: names, types, bounds and texts. Helm refuses a name that is
misspelt and a value of the wrong type; what a text may hold is left to the agent.
"""

from __future__ import annotations

import enum
import json
from typing import Any

from lb import config, setting_forms
from tests.deploy.conftest import ROOT

FILE = ROOT / "deploy" / "helm" / "lbctl" / "values.schema.json"
BY_THE_CHART = {"source", "node_name", "cgroup"}
"""Settings that templates/daemonset.yaml gives."""

Schema = dict[str, Any]


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


KINDS: dict[setting_forms.Form, Schema] = {
    setting_forms.ENTRIES: _whole(1, 2**31 - 1),
    setting_forms.COUNT: _whole(0, 1_000_000),
    setting_forms.RATE: _whole(0, 1_000_000),
    setting_forms.PORT: _whole(1, 65_535),
    setting_forms.SECONDS: {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9},
    setting_forms.LEVEL: {"type": "string", "enum": ["debug", "info", "warning", "error"]},
}


def _of_setting(item: config.Setting) -> Schema:
    if isinstance(item.kind.parse, type) and issubclass(item.kind.parse, enum.Enum):
        schema: Schema = {"type": "string", "enum": [each.value for each in item.kind.parse]}
    else:
        whole: Schema = {"type": "integer", "minimum": 0}
        schema = KINDS.get(item.kind, whole if isinstance(item.default, int) else {"type": "string"})
    return schema | {"description": item.help + ("; several are separated by commas" if item.many else "")}


def _closed(description: str = "", /, **properties: Schema) -> Schema:
    """Return the schema of a mapping that has these names and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {"description": description} | schema if description else schema


def _pool() -> Schema:
    labels: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
    texts: Schema = {"type": "array", "items": {"type": "string"}}
    pool = _closed(
        "",
        name={"type": "string", "minLength": 1},
        addresses=texts | {"minItems": 1},
        avoid=texts,
        automatic={"type": "boolean"},
        namespaces=texts,
        namespace_labels=labels,
        labels=labels,
    )
    return pool | {"required": ["name", "addresses"]}


def _bgp() -> Schema:
    """Return the schema of the file of peers."""
    texts: Schema = {"type": "array", "items": {"type": "string"}}
    text: Schema = {"type": "string", "minLength": 1}
    labels: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
    asn = _whole(1, 2**32 - 1)
    peer = _closed(
        "",
        name=text,
        address=text,
        asn=asn,
        local_asn=asn,
        port=_whole(1, 65_535),
        source=text,
        password_file=text,
        multihop=_whole(0, 255),
        hold_seconds=_whole(3, 65_535),
        bfd={"type": "boolean"},
        bfd_interval_ms=_whole(10, 10_000),
        bfd_multiplier=_whole(2, 50),
        graceful_restart_seconds=_whole(0, 4095),
        families={"type": "array", "minItems": 1, "items": {"enum": ["ipv4", "ipv6"]}},
        nodes=labels,
    )
    entry = _closed(
        "",
        addresses=texts | {"minItems": 1},
        external_ips={"type": "boolean"},
        namespaces=texts,
        peers=texts,
        communities=texts,
        large_communities=texts,
        local_pref=_whole(0, 2**32 - 1),
        labels=labels,
        nodes=labels,
        aggregate=_whole(0, 32),
        aggregate_ipv6=_whole(0, 128),
    )
    return _closed(
        "Routers that `lbctl announce bgp` tells which addresses a node serves",
        asn=asn,
        peers={"type": "array", "items": peer | {"required": ["name", "address", "asn"]}},
        advertise={"type": "array", "items": entry | {"required": ["addresses"]}},
        withdraw_seconds=_whole(0, 3600),
        announce_seconds=_whole(0, 3600),
        drain_seconds=_whole(0, 3600),
        silent_seconds=_whole(0, 3600),
    )


def schema() -> Schema:
    """Return the schema of all values."""
    settings = {item.variable.removeprefix("LBCTL_").lower(): _of_setting(item) for item in config.settings()}
    amounts = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart lbctl",
        **_closed(
            apiServer=_closed(
                "Where the API server itself is, required: not the address of the Service kubernetes.default",
                host={"type": "string"},
                port=_whole(1, 65_535),
            ),
            image=_closed(
                "",
                repository={"type": "string", "minLength": 1},
                tag={"type": "string", "description": "Default: the chart's appVersion"},
            ),
            settings=_closed(
                "Settings of `lbctl run`, by the names of their environment variables without LBCTL_",
                **{name: each for name, each in settings.items() if name not in BY_THE_CHART},
            ),
            addressPools=_closed(
                "What `lbctl addresses run` gives Services of type LoadBalancer addresses out of",
                pools={"type": "array", "items": _pool()},
                load_balancer_class={"type": "string", "minLength": 1},
                without_class={"type": "boolean"},
                rest_seconds=_whole(0, 2_592_000),
            ),
            bgp=_bgp(),
            nodeSelector={"type": "object", "additionalProperties": {"type": "string"}},
            maxUnavailable={
                "description": "How many nodes an update may have at once: a number, or a share such as 10%",
                "oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[1-9][0-9]*%$"}],
            },
            resources=_closed("", requests=amounts, limits=amounts),
            **{"global": {"type": "object", "description": "What Helm gives to every chart of a larger one"}},
        ),
    }


def text() -> str:
    """Return what stands in the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
