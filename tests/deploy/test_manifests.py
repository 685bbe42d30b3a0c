# SPDX-License-Identifier: Apache-2.0
"""deploy/ as Kubernetes takes it: kustomize and Helm render the same, by schema, and what it says is true."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import lb
from lb import config, rundir
from lb.addresses.pool import parse
from lb.bgp.peers import parse as parse_peers
from lb.cli.command import parser
from lb.datapath.kernel import privileges
from lb.served.health import NodeHealth
from lb.served.http import Request
from tests.deploy import values_schema
from tests.deploy.conftest import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "lbctl"
SETTINGS = {each.variable for each in config.settings()}
VERSIONS = ("1.30", "1.33", "1.37")
"""The oldest that has every field (appArmorProfile), the newest that the schemas are there for."""

EXAMPLE = ("apiServer.host=192.0.2.10", "image.repository=registry.example/lbctl")
OVERLAYS: dict[str, Sequence[str]] = {
    "example": EXAMPLE,
    "canary": (*EXAMPLE, "nodeSelector.lbctl=on"),
    "cutover": (*EXAMPLE, "nodeSelector.lbctl=on", "settings.cutover=on"),
    "shadow": (*EXAMPLE, "nodeSelector.lbctl=on", "settings.shadow=on"),
    "addresses": (
        *EXAMPLE,
        "addressPools.pools[0].name=edge",
        "addressPools.pools[0].addresses={203.0.113.0/24,2001:db8:203::/112}",
        "addressPools.pools[0].avoid={first,last}",
    ),
    "bgp": (
        *EXAMPLE,
        "addressPools.pools[0].name=edge",
        "addressPools.pools[0].addresses={203.0.113.0/24,2001:db8:203::/112}",
        "addressPools.pools[0].avoid={first,last}",
        "bgp.asn=64512",
        "bgp.peers[0].name=tor-a",
        "bgp.peers[0].address=192.0.2.1",
        "bgp.peers[0].asn=64500",
        "bgp.peers[0].bfd=true",
        "bgp.advertise[0].addresses={203.0.113.0/24,2001:db8:203::/112}",
    ),
}
"""What Helm is told to render what the overlay does."""
ALL = (*OVERLAYS, "removal")

Object = dict[str, Any]


def tool(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run helm or kubectl as scripts/setup installed them."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{path} is not there: run scripts/setup dev"
    return subprocess.run([path, *argv], capture_output=True, text=True, check=False)


def rendered(done: subprocess.CompletedProcess[str]) -> list[Object]:
    """Return the objects of an output, in one order."""
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    for each in found:
        if each["kind"] == "ConfigMap":  # of files, what they say is compared
            each["data"] = {name: yaml.safe_load(text) for name, text in each["data"].items()}
    return sorted(found, key=lambda each: (each["kind"], each["metadata"]["name"]))


@functools.cache
def _kustomize(directory: str) -> subprocess.CompletedProcess[str]:
    return tool("kubectl", "kustomize", str(DEPLOY / directory))


def kustomized(overlay: str) -> list[Object]:
    return rendered(_kustomize(f"overlays/{overlay}"))


def helm(*values: str) -> subprocess.CompletedProcess[str]:
    flags = [part for value in values for part in ("--set", value)]
    return tool("helm", "template", "lbctl", str(CHART), "--namespace", "kube-system", *flags)


def daemon_set(objects: Sequence[Object]) -> Object:
    found = next(each for each in objects if each["kind"] == "DaemonSet" and not _speaks(each))
    return dict(found)


def _speaks(found: Object) -> bool:
    """Tell whether a DaemonSet is the one that tells routers."""
    return bool(found["metadata"]["name"] == "lbctl-bgp")


def pod(objects: Sequence[Object]) -> Object:
    spec: Object = daemon_set(objects)["spec"]["template"]["spec"]
    return spec


def container(objects: Sequence[Object]) -> Object:
    (found,) = pod(objects)["containers"]
    return dict(found)


def environment(objects: Sequence[Object]) -> dict[str, str | None]:
    return {each["name"]: each.get("value") for each in container(objects)["env"]}


def test_every_overlay_is_here() -> None:
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == set(ALL)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_and_kustomize_render_the_same(overlay: str) -> None:
    assert rendered(helm(*OVERLAYS[overlay])) == kustomized(overlay)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ALL)
def test_every_object_is_by_schema(overlay: str, version: str) -> None:
    objects = kustomized(overlay)
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"}
    if overlay in ("addresses", "bgp"):
        kinds |= {"Role", "RoleBinding", "Deployment", "ConfigMap"}
    assert {each["kind"] for each in objects} == kinds
    for each in objects:
        if each["kind"] == "ConfigMap":
            each["data"] = {name: yaml.safe_dump(found) for name, found in each["data"].items()}
        kubernetes_validate.validate(each, version, strict=True)


def test_the_pools_are_right_and_what_gives_them_out_is_called_as_it_takes_it() -> None:
    objects = kustomized("addresses")
    (config_map,) = (each for each in objects if each["kind"] == "ConfigMap")
    [found] = parse(yaml.safe_dump(config_map["data"]["pools.yaml"]), "pools.yaml").pools
    assert (found.name, found.size(4)) == ("edge", 254)
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = parser("addresses").parse_args(container["args"])
    [mount] = container["volumeMounts"]
    [volume] = spec["volumes"]
    assert str(args.pools) == f"{mount['mountPath']}/{next(iter(config_map['data']))}"
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert args.metrics_address.endswith(f":{container['ports'][0]['containerPort']}")
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["image"] == f"registry.example/lbctl:{lb.__version__}"


def test_the_peers_are_right_and_what_tells_them_is_called_as_it_takes_it() -> None:
    objects = kustomized("bgp")
    config_map = next(each for each in objects if each["metadata"]["name"] == "lbctl-peers")
    reading = parse_peers(yaml.safe_dump(config_map["data"]["peers.yaml"]), "peers.yaml")
    assert reading.errors == ()
    assert [peer.name for peer in reading.found.peers] == ["tor-a"]
    (found,) = (each for each in objects if each["kind"] == "DaemonSet" and _speaks(each))
    spec = found["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = parser("announce").parse_args(
        [each.replace("$(NODE_NAME)", "node1") for each in container["args"]]
    )
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert str(args.peers) == f"{mounts['peers']}/{next(iter(config_map['data']))}"
    assert mounts["run"] == str(rundir.ROOT)
    assert args.instance == "node1"  # what the agent calls its instance: the node's name
    assert args.metrics_address.endswith(f":{container['livenessProbe']['httpGet']['port']}")
    assert spec["terminationGracePeriodSeconds"] > 2 * reading.found.hold.drain_seconds
    assert spec["automountServiceAccountToken"] is False
    assert spec["hostNetwork"] is True
    assert container["image"] == f"registry.example/lbctl:{lb.__version__}"


def test_a_field_that_is_none_is_seen() -> None:
    objects = kustomized("example")
    pod(objects)["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworks"):
        kubernetes_validate.validate(daemon_set(objects), VERSIONS[-1], strict=True)


def test_the_base_alone_leads_nowhere() -> None:
    base = rendered(_kustomize("base"))
    assert str(environment(base)["KUBERNETES_SERVICE_HOST"]).endswith(".invalid")  # RFC 6761: never resolves


def test_helm_wants_the_api_server() -> None:
    done = helm()
    assert done.returncode != 0
    assert "set apiServer.host to an address of the API server" in done.stderr


def test_helm_finds_nothing_to_complain_of() -> None:
    done = tool("helm", "lint", "--strict", str(CHART), "--set", EXAMPLE[0])
    assert done.returncode == 0, done.stdout + done.stderr


def test_helm_turns_settings_into_variables(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    settings = {"uplink": "eth0", "limits_flows": 1000000, "timeouts_udp": 0.5, "announce": "arp"}
    values.write_text(yaml.safe_dump({"apiServer": {"host": "fd00::1"}, "settings": settings}))
    objects = rendered(tool("helm", "template", "lbctl", str(CHART), "--values", str(values)))
    found = environment(objects)
    assert found["KUBERNETES_SERVICE_HOST"] == "fd00::1"
    for name, value in settings.items():
        assert found[f"LBCTL_{name.upper()}"] == str(value)
    assert {name for name in found if name.startswith("LBCTL_")} <= SETTINGS
    [daemon] = [each for each in objects if each["kind"] == "DaemonSet"]
    [container] = daemon["spec"]["template"]["spec"]["containers"]
    assert "NET_RAW" in container["securityContext"]["capabilities"]["add"]  # it has to speak on the segment
    for each in objects:
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


def test_the_schema_of_the_values_is_that_of_the_settings() -> None:
    assert values_schema.FILE.read_text() == values_schema.text(), "run python -m tests.deploy.values_schema"
    assert environment(kustomized("example")).keys() >= {
        f"LBCTL_{name.upper()}" for name in values_schema.BY_THE_CHART
    }


REFUSED: dict[str, tuple[Object, str]] = {
    "a misspelt name": ({"imgae": {"repository": "x"}}, "imgae"),
    "a misspelt name below": ({"image": {"tags": "x"}}, "tags"),
    "a misspelt setting": ({"settings": {"uplinks": "eth0"}}, "uplinks"),
    "a setting of the chart": ({"settings": {"node_name": "n1"}}, "node_name"),
    "a setting that is no number": ({"settings": {"limits_flows": "many"}}, "limits_flows"),
    "a setting out of its range": ({"settings": {"snat_ports_first": 70_000}}, "snat_ports_first"),
    "on without quotes": ({"settings": {"redirect": True}}, "redirect"),
    "a mode that is none": ({"settings": {"uplink_mode": "xdp"}}, "uplink_mode"),
    "a port that is none": ({"apiServer": {"host": "192.0.2.10", "port": 0}}, "port"),
    "a share above all": ({"maxUnavailable": "ten"}, "maxUnavailable"),
    "a misspelt field of a pool": (
        {"addressPools": {"pools": [{"name": "a", "addresses": ["192.0.2.1"], "avoids": []}]}},
        "avoids",
    ),
    "a misspelt field of a router": (
        {"bgp": {"asn": 1, "peers": [{"name": "a", "address": "192.0.2.1", "asn": 2, "hold": 9}]}},
        "hold",
    ),
    "a limit in the wrong place": ({"resources": {"memory": "1Gi"}}, "memory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_helm_refuses(what: str, tmp_path: Path) -> None:
    values, named = REFUSED[what]
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"apiServer": {"host": "192.0.2.10"}, **values}))
    done = tool("helm", "template", "lbctl", str(CHART), "--values", str(file))
    assert done.returncode != 0
    assert named in done.stderr


def test_helm_takes_every_setting_with_its_default(tmp_path: Path) -> None:
    settings = {
        item.variable.removeprefix("LBCTL_").lower(): ",".join(item.default) if item.many else item.default
        for item in config.settings()
    }
    plain = {name: value for name, value in settings.items() if name not in values_schema.BY_THE_CHART}
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"apiServer": {"host": "192.0.2.10"}, "settings": plain}))
    found = environment(rendered(tool("helm", "template", "lbctl", str(CHART), "--values", str(file))))
    assert {name for name in found if name.startswith("LBCTL_")} == SETTINGS


def test_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (lb.__version__, lb.__version__)
    assert container(rendered(_kustomize("base")))["image"] == f"lbctl:{lb.__version__}"
    assert container(kustomized("example"))["image"] == f"registry.example/lbctl:{lb.__version__}"


def test_the_changelog_begins_with_this_version() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert f"This will be {lb.__version__}." in newest or newest.startswith(f"[{lb.__version__}]")


def test_variables_are_settings() -> None:
    found = environment(kustomized("example"))
    assert {name for name in found if name.startswith("LBCTL_")} <= SETTINGS


def test_the_api_server_is_reached_without_a_service() -> None:
    found = environment(kustomized("example"))
    assert (found["KUBERNETES_SERVICE_HOST"], found["KUBERNETES_SERVICE_PORT"]) == ("192.0.2.10", "6443")
    spec = pod(kustomized("example"))
    assert (spec["hostNetwork"], spec["dnsPolicy"], spec["enableServiceLinks"]) == (True, "Default", False)


def test_capabilities_are_those_that_the_agent_asks_for() -> None:
    context = container(kustomized("example"))["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert {f"CAP_{name}" for name in context["capabilities"]["add"]} == set(privileges.NEEDED)
    assert "privileged" not in context


def test_probes_ask_for_what_is_answered() -> None:
    found = container(kustomized("example"))
    answer = NodeHealth().answer()
    (port,) = found["ports"]
    assert config.Config().healthz_address == f"0.0.0.0:{port['containerPort']}"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = found[name]["httpGet"]
        assert asked["port"] == port["name"]
        assert answer(Request("GET", asked["path"], "", {})).status != 404


def test_an_update_takes_nodes_one_after_the_other() -> None:
    strategy = daemon_set(kustomized("example"))["spec"]["updateStrategy"]
    assert strategy["type"] == "RollingUpdate"
    assert "maxSurge" not in strategy["rollingUpdate"]  # two agents of one instance: the second is refused


def test_what_outlives_the_pod_is_the_host_s() -> None:
    paths = {each["hostPath"]["path"] for each in pod(kustomized("example"))["volumes"]}
    assert paths == {"/sys/fs/bpf", "/sys/fs/cgroup", "/var/cache/lbctl", "/run/lbctl"}


def test_the_removal_never_meets_the_agent() -> None:
    removal, agent = daemon_set(kustomized("removal")), daemon_set(kustomized("canary"))
    for each in (removal, agent):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert (
            each["spec"]["selector"]["matchLabels"]
            == labels
            == {"app.kubernetes.io/name": each["metadata"]["name"]}
        )
    assert removal["metadata"]["name"] != agent["metadata"]["name"]
    assert pod(kustomized("removal"))["nodeSelector"]["lbctl"] == "remove"
    assert pod(kustomized("canary"))["nodeSelector"]["lbctl"] == "on"
    assert pod(kustomized("removal"))["volumes"] == pod(kustomized("canary"))["volumes"]
    command = container(kustomized("removal"))["command"][-1]
    assert "cutover --back" in command
    assert "unload" in command
