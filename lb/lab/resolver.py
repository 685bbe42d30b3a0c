# SPDX-License-Identifier: Apache-2.0
"""How a pod finds names: the files that the kubelet writes for it, pure.

After the Kubernetes documentation, "DNS for Services and Pods": a Pod's DNS Policy, DNS Config, hostname and
subdomain fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lb.manifests import syntax
from lb.manifests.fields import Fields
from lb.names import ZONE

POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_MOST_SERVERS, _MOST_SEARCHES = 3, 32


@dataclass(frozen=True, slots=True)
class PodDns:
    """What the spec of a pod says about names.

    servers, searches and options are those of ``dnsConfig``; an option is its text in resolv.conf.
    """

    policy: str = "ClusterFirst"
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hostname: str = ""
    subdomain: str = ""


CLUSTER_FIRST = PodDns()
"""What a pod has that says nothing."""


def read_dns(spec: Fields) -> PodDns:
    """Read the fields of a pod's spec; what is wrong is noted at its field."""
    policy, config = spec["dnsPolicy"], spec["dnsConfig"].fields()
    if policy.text("ClusterFirst") not in POLICIES:
        policy.error(f"must be one of {', '.join(POLICIES)}, is {policy.text()!r}")
    servers = config["nameservers"].items()
    if len(servers) > _MOST_SERVERS:
        config["nameservers"].error(f"has {len(servers)} addresses, at most {_MOST_SERVERS} count")
    searches = config["searches"].items()
    if len(searches) > _MOST_SEARCHES:
        config["searches"].error(f"has {len(searches)} domains, at most {_MOST_SEARCHES} count")
    if policy.text() == "None" and not servers:
        config["nameservers"].error("is missing: dnsPolicy None has no others")
    options = []
    for place in config["options"].items():
        entry = place.fields()
        if not entry["name"].text():
            entry["name"].error("is missing")
        options.append(":".join(filter(None, (entry["name"].text(), entry["value"].text()))))
    for name in ("hostname", "subdomain"):
        if spec[name].text():
            spec[name].check(syntax.dns_label(spec[name].text()))
    addresses = [place.address() for place in servers]
    return PodDns(
        policy=policy.text("ClusterFirst"),
        servers=tuple(str(each) for each in addresses if each is not None),
        searches=tuple(place.text() for place in searches),
        options=tuple(options),
        hostname=spec["hostname"].text(),
        subdomain=spec["subdomain"].text(),
    )


def resolv_conf(
    dns: PodDns, namespace: str, cluster: Sequence[str], node: Sequence[str], *, host_network: bool
) -> str:
    """Return a pod's /etc/resolv.conf.

    cluster: the addresses of the cluster's DNS, node: those of the servers that the node itself asks. A pod
    with the node's network has the node's, unless its policy says ClusterFirstWithHostNet.
    """
    with_cluster = ["ClusterFirstWithHostNet", *([] if host_network else ["ClusterFirst"])]
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    if dns.policy in with_cluster:
        servers += cluster
        searches += (f"{namespace}.svc.{ZONE}", f"svc.{ZONE}", ZONE)
        options.append("ndots:5")
    elif dns.policy != "None":
        servers += node
    chosen = {each.partition(":")[0]: each for each in (*options, *dns.options)}
    lines = [
        *(f"nameserver {each}" for each in _first((*servers, *dns.servers), _MOST_SERVERS)),
        *_line("search", _first((*searches, *dns.searches), _MOST_SEARCHES)),
        *_line("options", chosen.values()),
    ]
    return "".join(f"{line}\n" for line in lines)


def _first(texts: Sequence[str], most: int) -> list[str]:
    return list(dict.fromkeys(texts))[:most]


def _line(name: str, words: Iterable[str]) -> list[str]:
    text = " ".join(words)
    return [f"{name} {text}"] if text else []


def hosts(dns: PodDns, namespace: str, host_name: str, addresses: Sequence[str]) -> str:
    """Return a pod's /etc/hosts: the loopback, and its own name, in full where it has a subdomain."""
    full = f"{host_name}.{dns.subdomain}.{namespace}.svc.{ZONE} " if dns.subdomain else ""
    lines = [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        *(f"{address} {full}{host_name}" for address in addresses),
    ]
    return "".join(f"{line}\n" for line in lines)


NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
"""A pod's /etc/nsswitch.conf: no service of the machine is asked for names."""


def of_a_host(servers: Sequence[str]) -> dict[str, str]:
    """Return the files below /etc by which the client and the nodes find names, by asking these servers."""
    asked = resolv_conf(PodDns(policy="Default"), "", (), servers, host_network=True)
    return {"resolv.conf": asked, "nsswitch.conf": NSSWITCH}
