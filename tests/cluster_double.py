# SPDX-License-Identifier: Apache-2.0
"""A double of an API server that a whole cluster can live from.

:class:`ClusterDouble` is :class:`tests.kube.double.ApiDouble` with the kinds and requests that the lab and
kubectl need besides: get, create, update, patches and deletion (:mod:`tests.kube.registry`), the subresources
status, scale, binding, token and finalize, discovery, client certificates, and RBAC for service accounts.
"""

from __future__ import annotations

import copy
import http.client
import ipaddress
import json
import re
import secrets
import ssl
import threading
from urllib.parse import urlsplit

from tests.kube import double, double_http
from tests.kube.double import KINDS, ApiDouble, Handler, Key, Object, Request, StatusError, api_version
from tests.kube.kinds import WITH_GENERATION, WITH_STATUS
from tests.kube.registry import APPLY, Registry

_RBAC = "rbac.authorization.k8s.io"
KINDS.update(
    {
        "pods": ("", "v1", "Pod"),
        "endpoints": ("", "v1", "Endpoints"),
        "namespaces": ("", "v1", "Namespace"),
        "serviceaccounts": ("", "v1", "ServiceAccount"),
        "replicasets": ("apps", "v1", "ReplicaSet"),
        "deployments": ("apps", "v1", "Deployment"),
        "ingresses": ("networking.k8s.io", "v1", "Ingress"),
        "ingressclasses": ("networking.k8s.io", "v1", "IngressClass"),
        "secrets": ("", "v1", "Secret"),
        "clusterroles": (_RBAC, "v1", "ClusterRole"),
        "clusterrolebindings": (_RBAC, "v1", "ClusterRoleBinding"),
        "roles": (_RBAC, "v1", "Role"),
        "rolebindings": (_RBAC, "v1", "RoleBinding"),
        "leases": ("coordination.k8s.io", "v1", "Lease"),
    }
)
_CLUSTER_WIDE = ("nodes", "namespaces", "ingressclasses", "clusterroles", "clusterrolebindings")
_PROTOBUF = "application/vnd.kubernetes.protobuf"
_SHORT = {"replicasets": ["rs"], "deployments": ["deploy"], "services": ["svc"], "pods": ["po"]}
_OBJECT = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)
_NAMESPACE = re.compile(
    r"/api/v1(?P<group>)(?P<namespace>)/(?P<resource>namespaces)/(?P<name>[^/]+)/(?P<sub>finalize|status)"
)


class ClusterDouble(ApiDouble):
    """The server; services are the networks of Service addresses, store the URL of what keeps the objects."""

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
        services: str = "10.66.0.0/16,fd00:66::/112",
        store: str = "",
    ) -> None:
        self.issued: dict[str, str] = {}
        """User by token."""
        self.registry = Registry(self)
        networks = map(ipaddress.ip_network, services.split(","))
        self.services = {f"IPv{network.version}": network for network in networks}
        self._address = address
        self._store = store
        super().__init__(tls)
        if store:
            self._load()

    def _start(self) -> None:
        host, port = self._address
        self._server = double_http.Server((host, self._port or port), self, self._tls)
        self._server.RequestHandlerClass = ClusterHandler
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def put(self, item: Object) -> Object:
        """See the base class; the generation rises with the spec."""
        resource = double.resource_of(item)
        item = copy.deepcopy(item)
        meta = item["metadata"]
        with self.changed:
            before = self.objects[resource].get((meta.get("namespace", ""), meta["name"]))
            if item["kind"] in WITH_GENERATION:
                generation = before["metadata"].get("generation", 0) if before else 0
                ending = (
                    "deletionTimestamp" in meta and "deletionTimestamp" not in (before or item)["metadata"]
                )
                meta["generation"] = generation + (before is None or ending or wanted(before) != wanted(item))
            stored = super().put(item)
            self._save()
        return stored

    def remove(self, item: Object) -> None:
        """See the base class."""
        with self.changed:
            super().remove(item)
            self._save()

    def _save(self) -> None:
        if self._store:
            kept = {resource: list(known.values()) for resource, known in self.objects.items()}
            state = {"version": self.version, "objects": kept, "issued": self.issued}
            self._ask("PUT", json.dumps(state))

    def _load(self) -> None:
        state = json.loads(self._ask("GET") or "{}")
        with self.changed:
            self.version = self.oldest = state.get("version", self.version) + 1  # see restart
            self.issued = state.get("issued", {})
            for resource, items in state.get("objects", {}).items():
                self.objects[resource] = {
                    (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in items
                }

    def _ask(self, method: str, body: str | None = None) -> bytes:
        where = urlsplit(self._store)
        line = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        try:
            line.request(method, "/state", body)
            return line.getresponse().read()
        finally:
            line.close()


class ClusterHandler(Handler):
    """One connection."""

    @property
    def double(self) -> ClusterDouble:
        """See the base class."""
        assert isinstance(self.server.double, ClusterDouble)
        return self.server.double

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path
        if path in ("/readyz", "/healthz", "/livez"):
            self.send_bytes(200, b"ok", {"Content-Type": "text/plain"})
        elif (answer := discovery(path)) is not None:
            self.send_json(200, answer)
        else:
            match = _OBJECT.fullmatch(path)
            named = match is not None and match["name"]
            self._answer("watch" if "watch" in self._query() else "get" if named else "list")

    def do_PUT(self) -> None:  # noqa: N802
        self._answer("update")

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        match = _NAMESPACE.fullmatch(path) or _OBJECT.fullmatch(path)
        if match is None or match["resource"] not in KINDS:
            self.send_json(404, StatusError(404, "NotFound", f"no path {self.path}").body)
            return
        resource, self._sub = match["resource"], match["sub"] or ""
        self.request_ = Request(
            verb, match["group"] or "", resource, self._query(), dict(self.headers), self._sub
        )
        with self.double.changed:
            self.double.requests.append(self.request_)
            fault = self.double.take_fault(verb, resource)
        if fault is not None:
            fault(self)
            return
        namespace = self._namespace = "" if resource in _CLUSTER_WIDE else match["namespace"] or ""
        if self.headers.get("Content-Type", "").startswith(_PROTOBUF):
            self.send_json(415, StatusError(415, "UnsupportedMediaType", "JSON alone is understood").body)
            return
        try:
            self._admit()
            if verb == "watch":
                self._watch()
            elif verb == "list":
                self.send_json(200, self._page(namespace))
            else:
                with self.double.changed:
                    key = (namespace, match["name"] or "")
                    code, answer = self._change(key, json.loads(body) if body else {})
                self.send_json(code, answer)
        except StatusError as status:
            self.send_json(status.code, status.body)

    def selectors(self) -> dict[str, str]:
        """See the base class; the path's namespace selects as well."""
        query = dict(self.request_.query)
        if self._namespace:
            own = f"metadata.namespace={self._namespace}"
            query["fieldSelector"] = ",".join(filter(None, (query.get("fieldSelector", ""), own)))
        return query

    def _page(self, namespace: str) -> Object:
        page = self.double.page(self.request_)
        page["items"] = [
            item for item in page["items"] if namespace in ("", item["metadata"].get("namespace", ""))
        ]
        return page

    # authentication and authorisation

    def _admit(self) -> None:
        super()._admit()
        if not isinstance(self.connection, ssl.SSLSocket):
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.connection.getpeercert():
            return  # the CA signs for administrators only
        user = self.double.issued.get(token)
        if user is None:
            raise StatusError(401, "Unauthorized", "Unauthorized")
        wanted = self.request_.right
        with self.double.changed:
            roles = [*self.double.objects["clusterroles"].values(), *self.double.objects["roles"].values()]
        if not any(
            wanted[0] in rule["apiGroups"] and wanted[1] in rule["resources"] and wanted[2] in rule["verbs"]
            for role in roles
            for rule in role["rules"]
        ):
            raise StatusError(403, "Forbidden", f"{user} may not {' '.join(wanted)}")

    # objects

    def _change(self, key: Key, body: Object) -> tuple[int, Object]:
        """Do what is asked to an object, or to all of a namespace; return code and body of the answer."""
        resource, verb, query = self.request_.resource, self.request_.verb, self.request_.query
        registry, sub = self.double.registry, self._sub
        if sub == "status" and KINDS[resource][2] not in WITH_STATUS:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        if sub in ("scale", "binding", "token", "finalize"):
            return self._subresource(key, body)
        if verb == "create":
            return 201, registry.create(resource, key[0], body, query)
        if verb == "delete" and key[1]:
            return 200, registry.delete(resource, key, body, query)
        if verb == "delete":
            return 200, registry.delete_all(resource, key[0], body, query)
        if verb == "update":
            new = key not in self.double.objects[resource]
            return (201 if new else 200), registry.update(resource, key, sub, body, query)
        if verb == "patch" and self.headers["Content-Type"] == APPLY:
            stored, new = registry.apply(resource, key, sub, body, query)
            return (201 if new else 200), stored
        if verb == "patch":
            return 200, registry.patch(resource, key, sub, body, query, self.headers["Content-Type"])
        return 200, registry.get(resource, key)

    def _subresource(self, key: Key, body: Object) -> tuple[int, Object]:
        known = self.double.registry.get(self.request_.resource, key)
        if self._sub == "finalize":
            return 200, self.double.registry.finalize(key, body)
        if self._sub == "token":
            token = secrets.token_hex(16)
            self.double.issued[token] = f"system:serviceaccount:{key[0]}:{key[1]}"
            self.double._save()
            return 201, {**body, "status": {"token": token}}
        changed = copy.deepcopy(known)
        if self._sub == "binding":
            if known["spec"].get("nodeName"):
                raise StatusError(409, "Conflict", f"pod {key[1]} is already assigned to a node")
            changed["spec"]["nodeName"] = body["target"]["name"]
            self.double.put(changed)
            return 201, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if self.request_.verb != "get":
            changed["spec"]["replicas"] = body["spec"].get("replicas", 0)
            known = self.double.put(changed)
        meta = {name: known["metadata"].get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
        scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta}
        count = known["spec"].get("replicas", 1)
        return 200, {**scale, "spec": {"replicas": count}, "status": {"replicas": count}}


def wanted(item: Object) -> Object:
    """Return the part of an object whose changes its generation counts."""
    content = {name: value for name, value in item.items() if name not in ("metadata", "status")}
    if item["kind"] == "EndpointSlice":
        content["labels"] = item["metadata"].get("labels")
    return content


def discovery(path: str) -> Object | None:
    """Return the answer to a request of what there is; None when it is another request."""
    groups = sorted({group for group, _, _ in KINDS.values() if group})
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0-double"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        listed = [
            {
                "name": group,
                "versions": [{"groupVersion": f"{group}/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": f"{group}/v1", "version": "v1"},
            }
            for group in groups
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    version = path.removeprefix("/apis/" if path.startswith("/apis/") else "/api/")
    if version not in ("v1", *(f"{group}/v1" for group in groups)):
        return None
    verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    resources = []
    for name, (group, number, kind) in KINDS.items():
        if api_version(group, number) == version:
            namespaced = name not in _CLUSTER_WIDE
            entry = {"name": name, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind}
            resources.append({**entry, "verbs": verbs, "shortNames": _SHORT.get(name, [])})
            if group == "apps":
                scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
                resources.append(
                    {**entry, **scale, "name": f"{name}/scale", "verbs": ["get", "patch", "update"]}
                )
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
