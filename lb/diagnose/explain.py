# SPDX-License-Identifier: Apache-2.0
"""Why a Service does not answer: the list that operators work through by hand, in its order.

Each step is a pure function of :class:`Facts` and gives findings; :mod:`lb.diagnose.gather` finds those out.
A cause is told once: what only follows from an earlier cause is a note.

The order is that of Kubernetes' "Debug Services": the Service, its selector, pods, endpoints and ports; then
what the node makes of it: policies, source ranges, maps, hooks; then real connections, first straight to each
endpoint, then through the VIPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lb.annotations import WEIGHT, WEIGHTS
from lb.diagnose.endpoints import examine
from lb.diagnose.facts import Facts, Finding, Result, causes
from lb.diagnose.names import resolves
from lb.diagnose.outside import routers
from lb.diagnose.probe import text
from lb.model import Pod, Service, ServiceType, TrafficPolicy
from lb.plan.types import PortPlan, VipKind
from lb.words import several, some

NO_LOCAL_ENDPOINT = "no-local-endpoint"


def explain(facts: Facts) -> list[Finding]:
    """Go through the list; it ends early where nothing after it has any meaning."""
    found: list[Finding] = []
    for step in _STEPS:
        findings = list(step(facts, bool(causes(found))))
        found += findings
        if facts.service is None or any(one.cause in _LAST for one in findings):
            break
    return [*found, *resolves(facts.naming)]


def exists(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether there is such a Service, and whether it is for us to serve."""
    step, service, key = "Service", facts.service, facts.key
    if service is None:
        if facts.errors:
            found, then = facts.errors[0], "put right what is wrong there; nothing of it is served till then"
            yield Finding(step, Result.CAUSE, found, "service-unusable", then)
            return
        there = f"; there is {some(facts.near)}" if facts.near else ""
        then = "look at namespace and spelling: kubectl get service --all-namespaces"
        yield Finding(step, Result.CAUSE, f"there is no Service {key}{there}", "no-such-service", then)
        return
    for error in facts.errors:
        then = "the last good version stays in use until it is put right"
        yield Finding(step, Result.CAUSE, error, "service-unusable", then)
    if not service.proxied:
        yield Finding(
            step,
            Result.CAUSE,
            "a label gives it to another proxy: service-proxy-name or headless of service.kubernetes.io",
            "not-ours",
            "remove the label, or look at the proxy that it names",
        )
    elif service.type is ServiceType.EXTERNAL_NAME:
        found = f"ExternalName: an alias in DNS (CNAME) for {service.external_name}; nothing is translated"
        yield Finding(
            step, Result.NOTE, found, "external-name", f"see whether {service.external_name} resolves"
        )
    elif service.headless:
        found = "headless: DNS gives the pods' addresses, there is no VIP and nothing is translated"
        then = "resolve its name; clients connect to the pods themselves, on the target port"
        yield Finding(step, Result.NOTE, found, "headless", then)
    else:
        ports = some(f"{port.port}/{port.protocol.name}" for port in service.ports)
        where = some(service.cluster_ips) or "no clusterIP"
        yield Finding(step, Result.OK, f"{key}, {service.type}, {where}, ports {ports}")
        if service.type is ServiceType.LOAD_BALANCER:
            yield from _balanced(service)


def _balanced(service: Service) -> Iterator[Finding]:
    """See whether a Service of type LoadBalancer has an address, and what is said of that."""
    step, note = "load balancer", service.balancer_note
    if service.load_balancer_ips:
        if note:
            yield Finding(step, Result.OK, note)
        return
    missing, meanwhile = "no-load-balancer-address", "NodePorts and clusterIP work meanwhile"
    if note:
        then = f"change what it asks for, or the pools (lbctl addresses run --help); {meanwhile}"
        yield Finding(step, Result.CAUSE, f"LoadBalancer without an address: {note}", missing, then)
    else:
        found = "LoadBalancer without an address: status.loadBalancer has none (or one of ipMode Proxy)"
        then = f"whoever provides load balancers has to assign one: lbctl addresses run does; {meanwhile}"
        yield Finding(step, Result.NOTE, found, missing, then)


def selector(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether the selector matches pods."""
    step, service = "selector", facts.service
    assert service is not None
    if not service.selector:
        if facts.slices:
            found = f"none: endpoints are given by hand, {len(facts.endpoints())} of them"
            yield Finding(step, Result.OK, found)
        else:
            found = "none, and there are neither EndpointSlices nor Endpoints of its name"
            then = f"write Endpoints named {facts.key.name}, an EndpointSlice with its label, or a selector"
            yield Finding(step, Result.CAUSE, found, "no-endpoints-given", then)
        return
    wanted = ",".join(f"{name}={value}" for name, value in service.selector.items())
    if facts.pods is None:
        yield Finding(
            step, Result.NOTE, f"{wanted}; pods cannot be looked at: {facts.pods_error}", "pods-unread"
        )
        return
    matching = facts.selected()
    if matching:
        pods = some(pod.key.name for pod in matching)
        yield Finding(step, Result.OK, f"{wanted} matches {len(matching)}: {pods}")
        return
    if facts.endpoints():
        found = f"{wanted} matches no pod here; its endpoints come from elsewhere"
        yield Finding(step, Result.NOTE, found, "endpoints-by-hand")
        return
    near = [
        f"{pod.key.name} ({','.join(f'{n}={pod.labels[n]}' for n in service.selector if n in pod.labels)})"
        for pod in facts.pods
        if not pod.finished and not pod.labels.keys().isdisjoint(service.selector)
    ]
    like = f"; there is {some(near)}" if near else ""
    found = f"{wanted} matches no pod of namespace {facts.key.namespace}{like}"
    then = "make labels and selector agree; a selector reaches its own namespace alone"
    yield Finding(step, Result.CAUSE, found, "selector-matches-nothing", then)


def _state(pod: Pod) -> str:
    return f"{pod.key.name}: {'terminating' if pod.terminating else pod.trouble or 'not Ready'}"


def readiness(facts: Facts, known: bool) -> Iterator[Finding]:
    """See whether the pods are ready, and if not, which condition fails."""
    step, service, pods = "pods", facts.service, facts.selected()
    assert service is not None
    if not pods:
        return
    ready = [pod for pod in pods if pod.ready and not pod.terminating]
    others = [pod for pod in pods if pod not in ready]
    ending = [pod for pod in others if pod.terminating]
    if not others:
        yield Finding(step, Result.OK, f"{len(ready)} of {len(pods)} ready")
    told = some(map(_state, others))
    then = "kubectl describe pod: its events say which probe fails and with which words"
    if others and service.publish_not_ready:
        found = f"{len(ready)} of {len(pods)} ready; the others count too (publishNotReadyAddresses); {told}"
        yield Finding(step, Result.NOTE, found, "pods-not-ready", then)
    elif others and ready:
        found = f"{len(ready)} of {len(pods)} ready; {told}"
        yield Finding(step, Result.NOTE, found, "some-pods-not-ready", then)
    elif others and any(pod.ready for pod in ending):
        found = f"all that are ready are terminating, and serve on for want of others; {told}"
        yield Finding(step, Result.NOTE, found, "pods-terminating", then)
    elif others and not known:
        yield Finding(step, Result.CAUSE, f"none of {len(pods)} is ready; {told}", "pods-not-ready", then)
    for pod in ready:
        if not pod.addresses:
            yield Finding(step, Result.NOTE, f"{pod.key.name} has no address yet", "pod-without-address")


def target_ports(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether each named target port resolves in each pod, and whether numbers look mixed up."""
    step, service, pods = "target ports", facts.service, facts.selected()
    assert service is not None
    for port in service.ports:
        name = f"port {port.name or port.port}"
        if isinstance(port.target_port, str):
            lacking = [
                pod
                for pod in pods
                if not any(
                    (each.name, each.protocol) == (port.target_port, port.protocol)
                    for each in pod.container_ports
                )
            ]
            if lacking:
                declared = sorted({each.name for pod in lacking for each in pod.container_ports if each.name})
                found = (
                    f"{name}: targetPort {port.target_port}/{port.protocol.name} is no port name of"
                    f" {some(pod.key.name for pod in lacking)}; there is {some(declared) or 'no named port'}"
                )
                then = "name the container port so, or give targetPort its name or number; protocols count"
                yield Finding(step, Result.CAUSE, found, "target-port-unresolved", then)
            elif pods:
                numbers = sorted(
                    {e.port for pod in pods for e in pod.container_ports if e.name == port.target_port}
                )
                yield Finding(step, Result.OK, f"{name}: {port.target_port} is {some(numbers)}")
            continue
        declared_numbers = sorted(
            {each.port for pod in pods for each in pod.container_ports if each.protocol is port.protocol}
        )
        if declared_numbers and port.target_port not in declared_numbers:
            swapped = "; port and targetPort look mixed up" if port.port in declared_numbers else ""
            found = f"{name}: pods declare {some(declared_numbers)}, not {port.target_port}{swapped}"
            then = "a declaration binds nobody: whether somebody listens there is tried below"
            yield Finding(step, Result.NOTE, found, "target-port-undeclared", then)
        else:
            yield Finding(step, Result.OK, f"{name}: leads to {port.target_port}")


def endpoints(facts: Facts, known: bool) -> Iterator[Finding]:
    """See whether there are endpoints, for each port."""
    step, service = "endpoints", facts.service
    assert service is not None
    if service.headless or facts.plan is None:
        every = facts.endpoints()
        usable = [one for one in every if one.ready]
        if usable or known:
            yield Finding(step, Result.OK if usable else Result.NOTE, f"{len(usable)} of {len(every)} ready")
        else:
            then = "DNS gives no address: compare selector and pods above"
            yield Finding(step, Result.CAUSE, "none is ready", "no-endpoints", then)
        return
    for port in facts.ports():
        numbers = [p.port for p in service.ports if (p.name, p.protocol) == (port.port_name, port.protocol)]
        name = f"port {port.port_name or some(numbers)} (IPv{port.version})"
        if port.cluster:
            here = f", {len(port.local)} on this node" if port.local else ", none on this node"
            far = f"; {len(port.backends) - len(port.cluster)} others get no new connections"
            rest = far if len(port.backends) > len(port.cluster) else ""
            yield Finding(step, Result.OK, f"{name}: {len(port.cluster)}{here}{rest}{_weights(port)}")
            continue
        offered = {(p.name, p.protocol.name) for piece in facts.slices for p in piece.ports}
        ready = [one for one in facts.endpoints() if one.ready and one.address.version == port.version]
        if ready and (port.port_name, port.protocol.name) not in offered:
            names = some(sorted(f"{name or 'unnamed'}/{protocol}" for name, protocol in offered))
            found = f"{name}: endpoints are there, but their ports are {names}: the names must be equal"
            then = "give the ports of Service and EndpointSlice (or Endpoints) the same name and protocol"
            result, cause = Result.CAUSE, "endpoint-port-mismatch"
        elif ready and not any(one.weight for one in ready):
            found = f"{name}: {several(len(ready), 'endpoint')}, all of weight 0; connections are rejected"
            then = f"give one a weight: the annotation {WEIGHT} of a Pod's manifest, {WEIGHTS} of a slice"
            result, cause = (Result.NOTE if known else Result.CAUSE), "weight-zero"
        else:
            found = f"{name}: none; connections are rejected"
            then = "compare selector, readiness and target port above; kubectl get endpointslices"
            result, cause = (Result.NOTE if known else Result.CAUSE), "no-endpoints"
        yield Finding(step, result, found, cause, "" if result is Result.NOTE else then)


def _weights(port: PortPlan) -> str:
    """Return the weights of a port's backends in words, ``""`` if all are equal."""
    weights = [one.weight for one in port.cluster]
    words = f"; weights from {min(weights)} to {max(weights)}" if min(weights) < max(weights) else ""
    without = [str(one.address) for one in port.backends if not one.weight]
    return words + (f"; {some(without)} of weight 0" if without else "")


def nodes(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether endpoints are on nodes that are gone: they get their share while their slices list them."""
    if facts.missing_nodes:
        found = f"endpoints name {some(facts.missing_nodes)}, of which there is no Node: they get their share"
        then = "EndpointSlices decide that, as with every proxy: see why the endpoints' pods were not deleted"
        yield Finding("nodes", Result.NOTE, found, "node-missing", then)


def pressure(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether established connections, or clients with affinity, had to make room."""
    if facts.evicted:
        words = some(f"{count} of {name}" for name, count in facts.evicted.items())
        found = f"established entries made room for new ones, since the maps were made: {words}"
        then = "such a connection may have been reset, or led elsewhere: raise --limits-flows, -affinity"
        yield Finding("flow tables", Result.NOTE, found, "evictions", then)


def policies(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether a traffic policy leaves nobody on this node."""
    step, service, topology = "traffic policies", facts.service, facts.topology
    assert service is not None
    ports = [port for port in facts.ports() if port.cluster and not port.local]
    nodes = sorted({one.node for port in ports for one in port.cluster if one.node})
    here = topology.node_name if topology else "this node"
    elsewhere = f"no endpoint on {here}, but on {some(nodes) or 'others'}"
    inner = any(vip.kind is VipKind.CLUSTER_IP for port in ports for vip in port.vips)
    outer = any(vip.kind is not VipKind.CLUSTER_IP for port in ports for vip in port.vips)
    good = True
    # Meant by whoever chose Local, and so on most nodes of a cluster: a note.
    if inner and service.internal_policy is TrafficPolicy.LOCAL:
        good = False
        found = f"internalTrafficPolicy Local and {elsewhere}: what comes from here is dropped, as asked for"
        then = "if clients are here: run an endpoint on each node (a DaemonSet), or set it to Cluster"
        yield Finding(step, Result.NOTE, found, NO_LOCAL_ENDPOINT, then)
    if outer and service.external_policy is TrafficPolicy.LOCAL:
        good = False
        found = (
            f"externalTrafficPolicy Local and {elsewhere}: what comes from outside is dropped, as asked for"
        )
        then = "send clients to those nodes (healthCheckNodePort tells which), or set it to Cluster"
        yield Finding(step, Result.NOTE, found, NO_LOCAL_ENDPOINT, then)
    if good and facts.plan is not None and facts.plan.ports:
        words = f"internal {service.internal_policy}, external {service.external_policy}"
        yield Finding(step, Result.OK, words)


def source_ranges(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether clients are let in."""
    step = "source ranges"
    seen = set()
    for port in facts.ports():
        if not port.source_ranges or port.version in seen:
            continue
        seen.add(port.version)
        client = facts.clients.get(port.version)
        ranges = some(port.source_ranges)
        vips = some(
            vip.key.address for vip in port.vips if vip.kind is VipKind.LOAD_BALANCER and vip.key.port
        )
        if client is None or any(client in network for network in port.source_ranges):
            who = f", {client} among them" if client else ""
            yield Finding(step, Result.OK, f"{vips}: {ranges} may connect{who}")
        else:
            found = f"{vips}: only {ranges} may connect; {client} is dropped"
            then = "add its network to loadBalancerSourceRanges; --from ADDRESS asks for another client"
            yield Finding(step, Result.CAUSE, found, "source-ranges", then)


def rights(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether the Service asks for what it cannot have on this node, whatever others claim."""
    for one in facts.plan.refusals if facts.plan else ():
        then = "give it another address; who may have which: docs/operations.md, External addresses"
        yield Finding("addresses", Result.CAUSE, str(one), "part-refused", then)
    if facts.health_port:
        then = "give it another number: until then load balancers find this Service's nodes unhealthy"
        yield Finding("addresses", Result.CAUSE, facts.health_port, "health-port-taken", then)


def maps(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether the kernel holds what the source says."""
    step = "maps"
    if not facts.kernel:
        yield Finding(step, Result.NOTE, "not looked at: there is no instance of lbctl here", "no-kernel")
        return
    running = "" if facts.agent else "; the agent does not run"
    for one in facts.conflicts:
        then = "give one of the two another address or port; lbctl service list shows who has it"
        yield Finding(step, Result.CAUSE, str(one), "vip-conflict", then)
    if facts.failed:
        then = "raise the limit that it names, see lbctl status"
        yield Finding(step, Result.CAUSE, f"not in the maps: {facts.failed}", "not-programmed", then)
    if facts.differences:
        words = some(
            f"{one.map} {one.entry}: is {one.before or 'missing'}, should be {one.after or 'absent'}"
            for one in facts.differences
        )
        then = "lbctl audit --heal" if facts.agent else "start the agent, or lbctl audit --heal"
        count = several(len(facts.differences), "entry differs", "entries differ")
        found = f"{count} from the source{running}: {words}"
        yield Finding(step, Result.CAUSE, found, "maps-differ", then)
    elif not facts.conflicts and not facts.failed:
        yield Finding(step, Result.OK, f"they hold what the source says{running}")
    if facts.sick[0]:
        result = Result.CAUSE if facts.differences else Result.NOTE
        yield Finding(step, result, facts.sick[0], "agent-silent", facts.sick[1])
    if not facts.agent and not facts.differences:
        found = "the agent does not run: the data plane carries on, and takes in no change"
        yield Finding(step, Result.NOTE, found, "agent-not-running", "start it: lbctl run")


def attached(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See whether there is a program at each hook that matters."""
    step = "hooks"
    if not facts.kernel:
        return
    if facts.hooks:
        then = "lbctl audit --heal has the agent attach them; start it when it does not run"
        yield Finding(step, Result.CAUSE, some(facts.hooks), "hook-missing", then)
    else:
        yield Finding(step, Result.OK, "programs are attached wherever they should be")
    if facts.between[0]:
        yield Finding(step, Result.NOTE, facts.between[0], "cutover-unfinished", facts.between[1])


def announced(facts: Facts, _known: bool) -> Iterator[Finding]:
    """See who answers for the load-balancer addresses, in ARP or neighbour discovery."""
    step, service = "announced", facts.service
    mine = {str(address) for address in service.load_balancer_ips} if service else set()
    for one in facts.owners:
        if one["address"] not in mine:
            continue
        where = f" on {one['interface']}" if one["interface"] else ""
        if one["owner"]:
            yield Finding(step, Result.OK, f"{one['address']}: node {one['owner']} answers for it{where}")
        elif one["interface"]:
            then = (
                "lbctl service list on other nodes says why they do not; it takes some seconds after a change"
            )
            found = f"{one['address']}: nobody answers for it{where}: {one['why']}"
            yield Finding(step, Result.CAUSE, found, "nobody-answers", then)
        else:
            then = "route it to nodes, or name its network in announce_networks"
            yield Finding(step, Result.NOTE, f"{one['address']}: {one['why']}", "not-announced", then)


def _dropped_here(facts: Facts) -> set[tuple[str, int, str]]:
    """Return the VIPs whose connections from this node a policy drops: address, port, protocol."""
    return {
        (str(vip.key.address), vip.key.port, port.protocol.name)
        for port in facts.ports()
        if port.cluster and not port.local
        for vip in port.vips
        if vip.inside is TrafficPolicy.LOCAL
    }


def through(facts: Facts, known: bool) -> Iterator[Finding]:
    """See whether each VIP answers from this node."""
    step = "through VIPs"
    tried = [one for one in facts.outcomes if one.target.kind != "endpoint"]
    good = [one for one in tried if one.result == "answers"]
    bad = [one for one in tried if one.result not in ("answers", "untried")]
    dropped = _dropped_here(facts)
    meant = [one for one in bad if (one.target.address, one.target.port, one.target.protocol) in dropped]
    bad = [one for one in bad if one not in meant]
    if meant:
        found = f"{some(meant)}: follows from internalTrafficPolicy Local"
        yield Finding(step, Result.NOTE, found, NO_LOCAL_ENDPOINT)
    if good:
        verb = "answers" if len(good) == 1 else "answer"
        yield Finding(step, Result.OK, f"{some(text(one.target) for one in good)} {verb}")
    quiet = [one for one in tried if one.result == "untried"]
    if quiet:
        found = f"{some(text(one.target) for one in quiet)}: {quiet[0].detail}, which tells nothing"
        yield Finding(step, Result.NOTE, found, "untried")
    if bad and known:
        yield Finding(step, Result.NOTE, f"{some(bad)}: follows from the cause above", "follows")
    elif bad:
        then = "lbctl maps dump counters names the drops; another program or rule may take the packets first"
        found = f"{some(bad)}, though the endpoints answer"
        yield Finding(step, Result.CAUSE, found, "vip-does-not-answer", then)


def advice(facts: Facts, known: bool) -> Iterator[Finding]:
    """Say what to try where all is well here and a client fails all the same."""
    service = facts.service
    assert service is not None
    if known or service.headless or not service.cluster_ips or not service.ports:
        return
    first, key = service.ports[0], facts.key
    outside = [
        v for port in facts.ports() for v in port.vips if v.kind is not VipKind.CLUSTER_IP and v.key.port
    ]
    words = f"a clusterIP is for pods and nodes; from outside: {some(v.key for v in outside) or 'nothing'}"
    target = f", not the pods' port {first.target_port}" if first.target_port != first.port else ""
    then = (
        f"clients use port {first.port}{target}. Should the name {key.name}.{key.namespace} fail and the"
        " address work, look at DNS. A ping is answered while there is an endpoint, which other"
        " proxies do not do"
    )
    yield Finding("clients", Result.NOTE, words, "", then)


_STEPS: tuple[Callable[[Facts, bool], Iterator[Finding]], ...] = (
    exists,
    selector,
    readiness,
    target_ports,
    endpoints,
    nodes,
    policies,
    source_ranges,
    rights,
    maps,
    pressure,
    attached,
    announced,
    examine,
    through,
    routers,
    advice,
)
_LAST = frozenset({"not-ours", "external-name"})
