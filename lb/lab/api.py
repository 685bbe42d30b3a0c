# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the lab uses it: objects are the dictionaries of their JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from lb.errors import LabError
from lb.kube.client import ApiError, Client
from lb.model import ObjectKey

Object = dict[str, Any]
MANAGER = "lbctl-lab"
"""The field manager under which the lab applies objects."""

_AGAIN_SECONDS = 0.2
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API's paths have it: ``/apis/apps/v1``, ``replicasets``."""

    base: str
    name: str
    namespaced: bool = True

    @property
    def path(self) -> str:
        """The path of all objects of the kind."""
        return f"{self.base}/{self.name}"

    def object(self, key: ObjectKey) -> str:
        """Return the path of one object."""
        return f"{self.all_in(key.namespace)}/{key.name}"

    def all_in(self, namespace: str) -> str:
        """Return the path of the objects of a namespace."""
        return f"{self.base}/namespaces/{namespace}/{self.name}" if self.namespaced else self.path


PODS = Resource("/api/v1", "pods")
SERVICES = Resource("/api/v1", "services")
ENDPOINTS = Resource("/api/v1", "endpoints")
NODES = Resource("/api/v1", "nodes", namespaced=False)
NAMESPACES = Resource("/api/v1", "namespaces", namespaced=False)
SERVICE_ACCOUNTS = Resource("/api/v1", "serviceaccounts")
REPLICA_SETS = Resource("/apis/apps/v1", "replicasets")
DEPLOYMENTS = Resource("/apis/apps/v1", "deployments")
ENDPOINT_SLICES = Resource("/apis/discovery.k8s.io/v1", "endpointslices")
SECRETS = Resource("/api/v1", "secrets")
INGRESSES = Resource("/apis/networking.k8s.io/v1", "ingresses")
INGRESS_CLASSES = Resource("/apis/networking.k8s.io/v1", "ingressclasses", namespaced=False)


def key_of(item: Object) -> ObjectKey:
    """Return an object's key."""
    return ObjectKey(item["metadata"].get("namespace", ""), item["metadata"]["name"])


class Api:
    """Sends requests; each method blocks, and raises :class:`ApiError` when the server refuses or is away.

    patience: seconds for which a request is sent again while the server is away or fails: one that has just
    started cannot give Services addresses yet, although it says that it is ready.
    """

    def __init__(self, client: Client, patience: float = 0.0) -> None:
        self.client = client
        self._patience = patience
        self._groups: dict[str, dict[str, Resource]] = {}
        self._namespaced: list[Resource] = []

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a request and return the object of its answer."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self.client.request(method, path, query, body=body, content_type=content_type).body()
                break
            except ApiError as error:
                if not passing(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
        try:
            found: Object = msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise ApiError(f"{method} {path}: no JSON but {answer[:40]!r}") from error
        return found

    def ready(self) -> bool:
        """Tell whether the server is up with everything that it needs."""
        try:
            return self.client.request("GET", "/readyz", silence=5.0).body() == b"ok"
        except ApiError:
            return False

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return what the server calls a kind.

        Raises LabError: the server does not serve that kind.
        """
        if api_version not in self._groups:
            base = f"/{'apis' if '/' in api_version else 'api'}/{api_version}"
            listed: list[Object] = []
            try:
                listed = self.send("GET", base)["resources"]
            except ApiError as error:
                if error.status != 404:
                    raise
            self._groups[api_version] = {
                each["kind"]: Resource(base, each["name"], each["namespaced"])
                for each in listed
                if "/" not in each["name"]  # a subresource
            }
        try:
            return self._groups[api_version][kind]
        except KeyError:
            raise LabError(f"the API server has no {kind} in {api_version}") from None

    def namespaced(self) -> list[Resource]:
        """Return every resource of namespaces whose objects can be deleted together; asked for once."""
        if not self._namespaced:
            groups = self.send("GET", "/apis")["groups"]
            bases = [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups]
            self._namespaced = [
                Resource(base, each["name"])
                for base in ("/api/v1", *bases)
                for each in self.send("GET", base)["resources"]
                if each["namespaced"] and "deletecollection" in each["verbs"]
            ]
        return self._namespaced

    def apply(self, resource: Resource, item: Object) -> Object:
        """Make the object what item says; other fields stay as they are.

        This is server-side apply: fields that an earlier call named and this one does not go away. It refuses
        a list with two entries of one key, which creating an object may accept (two variables of one name).
        """
        query = {"fieldManager": MANAGER, "force": "true"}
        return self.send("PATCH", resource.object(key_of(item)), query, body=item, content_type=_APPLY)

    def create(self, resource: Resource, item: Object) -> Object:
        """Create an object."""
        return self.send("POST", resource.all_in(key_of(item).namespace), body=item)

    def ensure(self, resource: Resource, item: Object) -> Object:
        """Create the object, or apply item to the one that is there."""
        try:
            return self.create(resource, item)
        except ApiError as error:
            if error.status != 409:
                raise
        return self.apply(resource, item)

    def patch_status(self, resource: Resource, key: ObjectKey, uid: str, status: Object) -> Object:
        """Change the status of the object that has this uid; lists are replaced.

        Server-side apply would not do: the addresses of a Node are a list keyed by their type, and a node of
        two IP families has two of type InternalIP.
        """
        body = {"metadata": {"uid": uid}, "status": status}
        return self.send("PATCH", f"{resource.object(key)}/status", body=body, content_type=_MERGE)

    def patch_metadata(self, resource: Resource, item: Object, change: Object) -> Object:
        """Change an object's metadata, provided that it is the one that item is, in this version."""
        meta = {name: item["metadata"][name] for name in ("uid", "resourceVersion")}
        body = {"metadata": {**meta, **change}}
        return self.send("PATCH", resource.object(key_of(item)), body=body, content_type=_MERGE)

    def finalize(self, namespace: ObjectKey) -> None:
        """Let a namespace go that is being deleted and has nothing in it."""
        path = NAMESPACES.object(namespace)
        item = self.send("GET", path)
        self.send("PUT", f"{path}/finalize", body={**item, "spec": {"finalizers": []}})

    def delete(self, resource: Resource, key: ObjectKey, uid: str, *, now: bool = False) -> None:
        """Delete the object that has this uid, if it is there; now: without a grace period."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        if now:
            options["gracePeriodSeconds"] = 0
        with contextlib.suppress(GoneError), gone():
            self.send("DELETE", resource.object(key), body=options)

    def bind(self, key: ObjectKey, node: str) -> None:
        """Give a pod its node."""
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        self.send("POST", f"{PODS.object(key)}/binding", body=body)

    def token(self, account: ObjectKey, seconds: int) -> str:
        """Return a token of a service account, to be valid for so long."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        answer = self.send("POST", f"{SERVICE_ACCOUNTS.object(account)}/token", body=body)
        return str(answer["status"]["token"])


def passing(error: ApiError) -> bool:
    """Tell whether a request may succeed later as it is."""
    return error.status in (0, 429) or error.status >= 500


class GoneError(Exception):
    """The object is not there any more, or another one has its name."""


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """Turn the server's answers that an object is not there into GoneError.

    These are 404, and for another object of that name 409, or 422 about ``metadata.uid`` (to a patch).
    """
    try:
        yield
    except ApiError as error:
        if error.status in (404, 409) or (error.status == 422 and "metadata.uid:" in str(error)):
            raise GoneError(str(error)) from error
        raise
