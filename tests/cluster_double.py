# SPDX-License-Identifier: Apache-2.0
"""A double of an API server that a whole cluster can live from.

:class:`ClusterDouble` is :class:`tests.kube.double.ApiDouble` with the kinds and requests that the lab and
kubectl need besides: get, create, server-side apply, merge patches, the subresources status, scale, binding
and token, graceful deletion, discovery, client certificates, and RBAC for service accounts.
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
from typing import Any
from urllib.parse import urlsplit

from tests.kube import double
from tests.kube.double import KINDS, ApiDouble, Handler, Key, Object, Request, StatusError, api_version

_RBAC = "rbac.authorization.k8s.io"
KINDS.update(
    {
        "pods": ("", "v1", "Pod"),
        "endpoints": ("", "v1", "Endpoints"),
        "namespaces": ("", "v1", "Namespace"),
        "serviceaccounts": ("", "v1", "ServiceAccount"),
        "replicasets": ("apps", "v1", "ReplicaSet"),
        "deployments": ("apps", "v1", "Deployment"),
        "clusterroles": (_RBAC, "v1", "ClusterRole"),
        "clusterrolebindings": (_RBAC, "v1", "ClusterRoleBinding"),
    }
)
_CLUSTER_WIDE = ("nodes", "namespaces", "clusterroles", "clusterrolebindings")
_SHORT = {"replicasets": ["rs"], "deployments": ["deploy"], "services": ["svc"], "pods": ["po"]}
_OBJECT = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
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
        self.applied: dict[tuple[str, Key, str, str], Object] = {}
        """What each manager applied last."""
        networks = map(ipaddress.ip_network, services.split(","))
        self.services = {f"IPv{network.version}": network for network in networks}
        self._address = address
        self._store = store
        super().__init__(tls)
        if store:
            self._load()

    def _start(self) -> None:
        host, port = self._address
        self._server = double._Server((host, self._port or port), self, self._tls)
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
            if "spec" in item:
                old = before or {"metadata": {}}
                generation = old["metadata"].get("generation", 0)
                meta["generation"] = generation + (old.get("spec") != item["spec"])
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
            self.version = self.oldest = state.get("version", self.version)
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
        match = _OBJECT.fullmatch(urlsplit(self.path).path)
        if match is None or match["resource"] not in KINDS:
            self.send_json(404, StatusError(404, "NotFound", f"no path {self.path}").body)
            return
        resource, self._sub = match["resource"], match["sub"] or ""
        self.request_ = Request(verb, match["group"] or "", resource, self._query(), dict(self.headers))
        with self.double.changed:
            self.double.requests.append(self.request_)
            fault = self.double.take_fault(verb, resource)
        if fault is not None:
            fault(self)
            return
        namespace = "" if resource in _CLUSTER_WIDE else match["namespace"] or ""
        try:
            self._admit()
            if verb == "watch":
                self._watch()
            elif verb == "list":
                self.send_json(200, self._page(namespace))
            else:
                self._change((namespace, match["name"] or ""), json.loads(body) if body else {})
        except StatusError as status:
            self.send_json(status.code, status.body)

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
        wanted = (self.request_.group, self.request_.resource, self.request_.verb)
        with self.double.changed:
            roles = list(self.double.objects["clusterroles"].values())
        if not any(
            wanted[0] in rule["apiGroups"] and wanted[1] in rule["resources"] and wanted[2] in rule["verbs"]
            for role in roles
            for rule in role["rules"]
        ):
            raise StatusError(403, "Forbidden", f"{user} may not {' '.join(wanted)}")

    # objects

    def _change(self, key: Key, body: Object) -> None:
        resource, verb = self.request_.resource, self.request_.verb
        with self.double.changed:
            stored = self.double.objects[resource]
            known = stored.get(key)
            if verb == "create" and not self._sub:
                key = (key[0], body["metadata"]["name"])
                if key in stored:
                    raise StatusError(409, "AlreadyExists", "already exists")
                self.send_json(201, self._store(key, {n: v for n, v in body.items() if n != "status"}))
            elif verb == "delete" and not key[1]:
                for item in [item for (namespace, _), item in stored.items() if namespace == key[0]]:
                    self.double.remove(item)
                self.send_json(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
            elif verb == "patch" and self.headers["Content-Type"] == "application/apply-patch+yaml":
                if not self.request_.query.get("fieldManager"):
                    raise StatusError(400, "BadRequest", "fieldManager is required for apply patch")
                applied = (self.request_.resource, key, self._sub, self.request_.query["fieldManager"])
                former = self.double.applied.get(applied, {}) if known else {}
                stored_as = self._merge(key, without(known, former, body), body)
                self.double.applied[applied] = body
                self.send_json(200 if known else 201, stored_as)
            elif known is None:
                raise StatusError(404, "NotFound", f"{resource} {key[1]} not found")
            elif verb == "delete":
                self._delete(known, body)
            elif self._sub == "scale":
                self._scale(key, known, body)
            elif self._sub == "binding":
                self._bind(key, known, body)
            elif self._sub == "token":
                token = secrets.token_hex(16)
                self.double.issued[token] = f"system:serviceaccount:{key[0]}:{key[1]}"
                self.double._save()
                self.send_json(201, {**body, "status": {"token": token}})
            elif verb == "get":
                self.send_json(200, known)
            elif verb == "patch" and self.headers["Content-Type"] == "application/merge-patch+json":
                self.send_json(200, self._merge(key, known, body))
            else:
                raise StatusError(415, "UnsupportedMediaType", f"{verb} {self.headers['Content-Type']}")

    def _merge(self, key: Key, known: Object | None, body: Object) -> Object:
        if known is None and self._sub:
            raise StatusError(404, "NotFound", f"{self.request_.resource} {key[1]} not found")
        uid = body.get("metadata", {}).get("uid")
        if known is not None and uid not in (None, known["metadata"]["uid"]):
            raise StatusError(409, "Conflict", "Precondition failed: UID in precondition")
        if self._sub == "status":
            changed = {"status": body.get("status", {})}
        else:
            changed = {name: value for name, value in body.items() if name != "status"}
        return self._store(key, merged(known or {}, changed))

    def _store(self, key: Key, item: Object) -> Object:
        """Validate, fill in defaults and store."""
        group, version, kind = KINDS[self.request_.resource]
        if (item.get("apiVersion"), item.get("kind")) != (api_version(group, version), kind):
            raise StatusError(400, "BadRequest", f"not a {kind} of {api_version(group, version)}")
        item["metadata"] = {**item["metadata"], "name": key[1], **({"namespace": key[0]} if key[0] else {})}
        namespaces = self.double.objects["namespaces"]
        if key[0] and ("", key[0]) not in namespaces:
            raise StatusError(404, "NotFound", f'namespaces "{key[0]}" not found')
        if kind == "Service":
            self._complete_service(item)
        if kind == "Pod":
            check_pod(item)
            item.setdefault("status", {"phase": "Pending"})
        if kind == "EndpointSlice":
            check_slice(item)
        return self.double.put(item)

    def _complete_service(self, item: Object) -> None:
        spec = item["spec"]
        spec.setdefault("type", "ClusterIP")
        for port in spec.get("ports", ()):
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
        if spec["type"] == "ExternalName":
            return
        headless = spec.get("clusterIP") == "None"
        named = [] if headless else spec.get("clusterIPs") or list(filter(None, [spec.get("clusterIP")]))
        asked = spec.get("ipFamilies") or [f"IPv{ipaddress.ip_address(each).version}" for each in named]
        families = list(asked) or [next(iter(self.double.services))]
        both = headless and not spec.get("selector")
        policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if both else "SingleStack")
        if policy == "SingleStack" and len(families) > 1:
            raise StatusError(422, "Invalid", "spec.ipFamilyPolicy: must be RequireDualStack or Prefer…")
        if policy == "RequireDualStack" and len(self.double.services) < 2 and not both:
            raise StatusError(422, "Invalid", "spec.ipFamilyPolicy: not configured for dual-stack services")
        if policy != "SingleStack":
            families += [each for each in self.double.services if each not in families]
        spec["ipFamilies"] = families
        if headless:
            spec["clusterIPs"] = ["None"]
            return
        spec["clusterIPs"] = [
            self._cluster_ip(family, named[number] if number < len(named) else "")
            for number, family in enumerate(families)
        ]
        spec["clusterIP"] = spec["clusterIPs"][0]

    def _cluster_ip(self, family: str, named: str) -> str:
        if family not in self.double.services:
            raise StatusError(422, "Invalid", f"spec.ipFamilies: {family} is not configured on this cluster")
        network = self.double.services[family]
        if named and ipaddress.ip_address(named) not in network:
            raise StatusError(422, "Invalid", f"spec.clusterIPs: {named} is not in {network}")
        services = self.double.objects["services"].values()
        taken = {address for each in services for address in each["spec"].get("clusterIPs", ())}
        return named or next(str(each) for each in network.hosts() if str(each) not in taken)

    def _delete(self, known: Object, options: Object) -> None:
        uid = options.get("preconditions", {}).get("uid")
        if uid not in (None, known["metadata"]["uid"]):
            raise StatusError(409, "Conflict", "Precondition failed: UID in precondition")
        spec = known.get("spec") or {}
        grace = options.get("gracePeriodSeconds")
        if grace is None:
            grace = spec.get("terminationGracePeriodSeconds", 30)
        if known["kind"] == "Pod" and spec.get("nodeName") and grace:
            if "deletionTimestamp" not in known["metadata"]:
                dying = copy.deepcopy(known)
                dying["metadata"] |= {
                    "deletionTimestamp": "2020-01-15T10:20:59Z",
                    "deletionGracePeriodSeconds": grace,
                }
                known = self.double.put(dying)
        else:
            self.double.remove(known)
        self.send_json(200, known)

    def _scale(self, key: Key, known: Object, body: Object) -> None:
        if self.request_.verb != "get":
            changed = copy.deepcopy(known)
            changed["spec"]["replicas"] = body["spec"].get("replicas", 0)
            known = self.double.put(changed)
        meta = {name: known["metadata"].get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
        scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta}
        count = known["spec"].get("replicas", 1)
        self.send_json(200, {**scale, "spec": {"replicas": count}, "status": {"replicas": count}})

    def _bind(self, key: Key, known: Object, body: Object) -> None:
        if known["spec"].get("nodeName"):
            raise StatusError(409, "Conflict", f"pod {key[1]} is already assigned to a node")
        bound = copy.deepcopy(known)
        bound["spec"]["nodeName"] = body["target"]["name"]
        self.double.put(bound)
        self.send_json(201, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


def merged(old: Any, new: Any) -> Any:
    """Return an object after a merge patch (RFC 7386)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    result = {name: value for name, value in old.items() if new.get(name, "") is not None}
    for name, value in new.items():
        if value is not None:
            result[name] = merged(old.get(name), value)
    return result


def without(item: Any, former: Any, now: Any) -> Any:
    """Return an object without the fields that a manager applied formerly and does not apply now."""
    if not isinstance(item, dict) or not isinstance(former, dict) or not isinstance(now, dict):
        return item
    gone = {name for name in former if name not in now and not isinstance(former[name], dict)}
    return {
        name: without(value, former.get(name), now.get(name, {} if name in former else None))
        for name, value in item.items()
        if name not in gone
    }


def check_pod(item: Object) -> None:
    """Refuse what the API server's validation of pods refuses."""
    spec = item["spec"]
    if not spec.get("containers") or any(not each.get("name") for each in spec["containers"]):
        raise StatusError(422, "Invalid", "spec.containers: Required value")
    for owner in item["metadata"].get("ownerReferences", ()):
        if not all(owner.get(name) for name in ("apiVersion", "kind", "name", "uid")):
            raise StatusError(422, "Invalid", "metadata.ownerReferences: Required value")
    status = item.get("status") or {}
    if status.get("podIPs") and status["podIPs"][0]["ip"] != status.get("podIP"):
        raise StatusError(422, "Invalid", "status.podIPs: does not match podIP")


def check_slice(item: Object) -> None:
    """Refuse what the API server's validation of EndpointSlices refuses."""
    families = {"IPv4": 4, "IPv6": 6}
    for endpoint in item["endpoints"]:
        for address in endpoint["addresses"]:
            if ipaddress.ip_address(address).version != families[item["addressType"]]:
                raise StatusError(422, "Invalid", f"endpoints.addresses: {address}")
    names = [port.get("name", "") for port in item["ports"]]
    if len(set(names)) != len(names):
        raise StatusError(422, "Invalid", "ports.name: Duplicate value")


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
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
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
