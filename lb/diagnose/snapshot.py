# SPDX-License-Identifier: Apache-2.0
"""What the source of a node says at this moment, read once: for commands, beside the agent or without one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lb.config import Config
from lb.datapath.kernel import netns
from lb.errors import ConfigError, InputError, LbError
from lb.folders import read_stream
from lb.manifests.cluster import assemble
from lb.manifests.complete import Pools
from lb.manifests.documents import Content, read
from lb.manifests.library import MOST_BYTES, SUFFIXES, Library, folders, walk
from lb.manifests.objects import Endpoints, ObjectId, Parsed, ServiceAddresses, ServiceRequest
from lb.model import EndpointSlice, Namespace, Node, ObjectKey, Pod, Resource, Service, Synced, Upsert
from lb.state import ClusterState

if TYPE_CHECKING:
    from lb.kube.client import Client

KUBERNETES = "kubernetes"
STDIN = Path("/dev/stdin")
_READER = "the ClusterRole lbctl-reader of deploy/reader-rbac.yaml gives it"
_PAGE = "500"


@dataclass(slots=True)
class Snapshot:
    """What a source says. errors: objects that cannot be used, or only in part."""

    state: ClusterState
    errors: list[InputError] = field(default_factory=list)


class SourceReader(Protocol):
    """A source that is asked once. Every method raises LbError when the source cannot be read."""

    name: str

    def snapshot(self) -> Snapshot:
        """Return what the agent would have from it."""
        ...

    def merged(self, content: Content) -> Snapshot:
        """Return what the agent would have if these objects were applied as well."""
        ...

    def service(self, key: ObjectKey) -> Service | None:
        """Return a Service as it is, also one that is not ours; None when there is none."""
        ...

    def pods(self, namespace: str) -> list[Pod]:
        """Return the pods of a namespace."""
        ...

    def headless_slices(self, key: ObjectKey) -> list[EndpointSlice]:
        """Return the EndpointSlices of a headless Service, which agents need not read."""
        ...

    def missing_nodes(self, names: Sequence[str]) -> list[str]:
        """Return those of which there is no Node object; none where that cannot be told."""
        ...


def open_source(config: Config, caller: Path | None = None) -> SourceReader:
    """Return the reader of the source that the settings name.

    caller: a network namespace from which the Kubernetes API is asked first, see :class:`ApiReader`.

    Raises ConfigError: they name none, a directory does not exist, or there is no access to the Kubernetes
    API.
    """
    if not config.sources:
        raise ConfigError("the agent left no note of its source; say --source manifests:DIR or kubernetes")
    if KUBERNETES in config.sources:
        return ApiReader(config, caller)
    return ManifestReader(config)


def read_files(names: Sequence[str], config: Config) -> Content:
    """Return the objects of manifests: files, folders with what is below them, ``-`` for standard input.

    Of an object that is there twice, the last one counts.

    Raises ConfigError: one cannot be read, or a folder holds none. InputError: something in them is wrong;
    the first thing is named.
    """
    content = Content()
    for name in names:
        for path in _files(name):
            content.add(_read_one(path, config))
    if content.errors:
        first, *more = content.errors
        raise LbError(f"{first}{f'; and {len(more)} more errors' if more else ''}") from first
    return content


def _files(name: str) -> list[str]:
    """Return the files that a name stands for; ``-`` stays."""
    if not os.path.isdir(name):
        return [name]
    faults: list[InputError] = []
    found = sorted(path for path, _ in walk([Path(name)], faults))
    if faults:
        raise ConfigError(str(faults[0]))
    if not found:
        raise ConfigError(f"{name}: holds no manifest: no file ends in {', '.join(SUFFIXES)}")
    return found


def _read_one(name: str, config: Config) -> Content:
    path, name = (STDIN, "standard input") if name == "-" else (Path(name), name)
    try:
        text = read_stream(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8 text: {error}") from error
    return read(name, text, Pools.parse(config.service_cidr, config.node_port_range).node_ports)


def identity(parsed: Parsed) -> ObjectId:
    """Return kind and key of an object."""
    match parsed:
        case ServiceRequest():
            return "Service", parsed.service.key
        case Node() | Namespace():
            return type(parsed).__name__, ObjectKey("", parsed.name)
        case Pod() | EndpointSlice() | Endpoints() | ServiceAddresses():
            return type(parsed).__name__, parsed.key


def _state(resources: Iterable[Resource]) -> ClusterState:
    state = ClusterState()
    state.apply([*map(Upsert, resources), Synced("snapshot")])
    return state


class ManifestReader:
    """Folders of manifests. What an agent keeps of an object that broke since is not known here."""

    def __init__(self, config: Config) -> None:
        self.name = ", ".join(config.sources)
        self._pools = Pools.parse(config.service_cidr, config.node_port_range)
        self._library = Library(folders(config.sources), self._pools.node_ports, time.time)

    def _contents(self) -> tuple[list[Parsed], list[InputError]]:
        self._library.refresh()
        return self._library.contents()

    def snapshot(self) -> Snapshot:
        """See :class:`SourceReader`."""
        objects, errors = self._contents()
        resources, more = assemble(objects, self._pools)
        return Snapshot(_state(resources.values()), [*errors, *more])

    def merged(self, content: Content) -> Snapshot:
        """See :class:`SourceReader`."""
        objects, errors = self._contents()
        kept = [one for one in objects if identity(one) not in content.objects]
        resources, more = assemble([*kept, *content.objects.values()], self._pools)
        return Snapshot(_state(resources.values()), [*errors, *more])

    def service(self, key: ObjectKey) -> Service | None:
        """See :class:`SourceReader`."""
        return self.snapshot().state.service(key)

    def pods(self, namespace: str) -> list[Pod]:
        """See :class:`SourceReader`."""
        return [one for one in self._contents()[0] if isinstance(one, Pod) and one.key.namespace == namespace]

    def headless_slices(self, key: ObjectKey) -> list[EndpointSlice]:
        """See :class:`SourceReader`."""
        return list(self.snapshot().state.slices(key))

    def missing_nodes(self, names: Sequence[str]) -> list[str]:
        """See :class:`SourceReader`; folders without any Node say nothing of nodes."""
        known = {one.name for one in self._contents()[0] if isinstance(one, Node)}
        return [name for name in names if name not in known] if known else []


def _of_slices(service: Service) -> tuple[object, ...]:
    """Return what of a Service the EndpointSlice controller makes its slices from."""
    ports = sorted((port.name, port.protocol, str(port.target_port)) for port in service.ports)
    return service.selector, ports, service.publish_not_ready, service.distribution, service.headless


def _families(service: Service) -> tuple[int, ...]:
    """Return the IP versions of a Service's cluster IPs, in their order."""
    return tuple(address.version for address in service.cluster_ips)


def _forbidden(path: str, error: LbError) -> LbError:
    """Return the error that says which right is missing and what would give it; path is the API's."""
    *_, before, last = path.split("/")
    space = f" in namespace {before}" if "/namespaces/" in path else ""
    return LbError(f"no right to list {last}{space} ({error}); {_READER}")


class ApiReader:
    """The Kubernetes API, asked with the same selectors as the agent's watches.

    It is asked from the calling thread's network namespace, which is the node's, as the agent asks it. caller
    is the namespace where the command was started, for a kubeconfig that somebody has given to the command:
    its server may be an address that is reached from there alone (127.0.0.1). There it is tried first.
    """

    def __init__(self, config: Config, caller: Path | None = None) -> None:
        from lb.kube import client  # noqa: PLC0415  (large; commands about manifests do without)

        self.name = KUBERNETES
        self._config = config
        self._pools = Pools.parse(config.service_cidr, config.node_port_range)
        self._caller = caller
        with self._at_caller():
            self._client: Client = client.by_kubeconfig_or_pod(config.kubeconfig, config.context)

    def _at_caller(self) -> contextlib.AbstractContextManager[None]:
        return netns.entered(self._caller) if self._caller else contextlib.nullcontext()

    def _get(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return the answer to a GET.

        Raises ApiError: the server does not answer. LbError: the rights for it are missing; says which.
        """
        from lb.kube.client import ApiError  # noqa: PLC0415

        try:
            with self._at_caller():
                return self._client.request("GET", path, query, compress=True).body()
        except ApiError as error:
            if error.status == 403:
                raise _forbidden(path, error) from error
            if error.status or self._caller is None:
                raise
        self._caller = None
        return self._get(path, query)

    def _list(self, path: str, **query: str) -> Iterator[bytes]:
        """Yield the objects of a list, page by page."""
        asked = {"limit": _PAGE, **query}
        while True:
            page: dict[str, Any] = json.loads(self._get(path, asked))
            for item in page.get("items") or ():
                yield json.dumps(item).encode()
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            asked["continue"] = token

    def snapshot(self) -> Snapshot:
        """See :class:`SourceReader`."""
        from lb.kube import convert  # noqa: PLC0415
        from lb.kube.source import NOT_OURS  # noqa: PLC0415

        labels = f"kubernetes.io/service-name,{NOT_OURS}"
        name = f"metadata.name={self._config.node_name}"
        wanted: tuple[tuple[Any, dict[str, str]], ...] = (
            (convert.SERVICES, {"labelSelector": NOT_OURS, "fieldSelector": "spec.clusterIP!=None"}),
            (convert.ENDPOINT_SLICES, {"labelSelector": labels}),
            (convert.NODES, {} if self._config.every_node else {"fieldSelector": name}),
        )
        resources: list[Resource] = []
        errors: list[InputError] = []
        for reader, query in wanted:
            for body in self._list(reader.path, **query):
                item = reader.read(body)
                resources += [item.resource] if item.resource is not None else []
                errors += [item.error] if item.error is not None else []
        return Snapshot(_state(resources), errors)

    def merged(self, content: Content) -> Snapshot:
        """See :class:`SourceReader`.

        The API server and its controllers do their part: a Service keeps the addresses and node ports that it
        has, and its slices are those of the pods that its new selector matches. Pods are read only for a
        Service whose slices may become others by it.
        """
        now = self.snapshot()
        others = [one for (kind, _), one in content.objects.items() if kind != "Service"]
        with_pods = {one.key.namespace for one in others if isinstance(one, Pod)}
        requests = {
            key: self._as_applied(parsed, now.state.service(key), key.namespace in with_pods)
            for (kind, key), parsed in content.objects.items()
            if kind == "Service" and isinstance(parsed, ServiceRequest)
        }
        kept: list[Parsed] = []
        for key in now.state.service_keys():
            service = now.state.service(key)
            if service is not None and key not in requests:
                kept.append(ServiceRequest(dataclasses.replace(service, selector=None), _families(service)))
            if key not in requests or not requests[key].service.selector:
                kept += now.state.slices(key)
        spaces = {key.namespace for key, request in requests.items() if request.service.selector}
        pods = [pod for space in sorted(spaces) for pod in self.pods(space)]
        given = {identity(one) for one in others}
        around: list[Parsed] = [*pods, *now.state.nodes()]
        kept += [one for one in around if identity(one) not in given]
        resources, errors = assemble([*kept, *others, *requests.values()], self._pools)
        return Snapshot(_state(resources.values()), [*now.errors, *errors])

    def _as_applied(
        self, request: ServiceRequest, before: Service | None, pods_change: bool
    ) -> ServiceRequest:
        """Return a Service as the cluster would have it; without selector if its slices stay as they are."""
        if before is None:
            return request
        service = request.service
        stay = not pods_change and _of_slices(service) == _of_slices(before)
        ports = {(port.name, port.protocol): port.node_port for port in before.ports}
        given = {address.version for address in service.cluster_ips}
        addresses = [address for address in before.cluster_ips if address.version not in given]
        follows = not request.families or request.prefers_dual or request.requires_dual
        return dataclasses.replace(
            request,
            families=(_families(before) if follows else ()) or request.families,
            service=dataclasses.replace(
                service,
                selector=None if stay else service.selector,
                cluster_ips=service.cluster_ips if service.headless else (*service.cluster_ips, *addresses),
                load_balancer_ips=service.load_balancer_ips or before.load_balancer_ips,
                created=before.created,
                ports=tuple(
                    dataclasses.replace(
                        port, node_port=port.node_port or ports.get((port.name, port.protocol), 0)
                    )
                    if request.wants_node_ports
                    else port
                    for port in service.ports
                ),
            ),
        )

    def service(self, key: ObjectKey) -> Service | None:
        """See :class:`SourceReader`."""
        path = f"/api/v1/namespaces/{key.namespace}/services"
        items = [json.loads(body) for body in self._list(path, fieldSelector=f"metadata.name={key.name}")]
        for parsed in self._parse("Service", path, items):
            if isinstance(parsed, ServiceRequest) and parsed.service.key == key:
                return parsed.service
        return None

    def pods(self, namespace: str) -> list[Pod]:
        """See :class:`SourceReader`."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        items = [json.loads(body) for body in self._list(path)]
        return [one for one in self._parse("Pod", path, items) if isinstance(one, Pod)]

    def headless_slices(self, key: ObjectKey) -> list[EndpointSlice]:
        """See :class:`SourceReader`; the agent's watch leaves them out by their label."""
        from lb.kube import convert  # noqa: PLC0415

        path = f"/apis/discovery.k8s.io/v1/namespaces/{key.namespace}/endpointslices"
        found = self._list(path, labelSelector=f"kubernetes.io/service-name={key.name}")
        read = map(convert.ENDPOINT_SLICES.read, found)
        return [each.resource for each in read if isinstance(each.resource, EndpointSlice)]

    def missing_nodes(self, names: Sequence[str]) -> list[str]:
        """See :class:`SourceReader`; without the right to list nodes nothing can be told."""
        with contextlib.suppress(LbError):
            return [
                name
                for name in names
                if not any(self._list("/api/v1/nodes", fieldSelector=f"metadata.name={name}"))
            ]
        return []

    def _parse(self, kind: str, path: str, items: list[Mapping[str, Any]]) -> list[Parsed]:
        """Return API objects as the manifests' reader has them: it reads more than the agent's watches do."""
        text = json.dumps({"apiVersion": "v1", "kind": f"{kind}List", "items": items})
        content = read(path, text, range(1, 65536))
        if content.errors:
            raise LbError(str(content.errors[0])) from content.errors[0]
        return list(content.objects.values())
