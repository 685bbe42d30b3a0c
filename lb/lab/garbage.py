# SPDX-License-Identifier: Apache-2.0
"""What waits for a controller before it is gone, where the API server comes without kube-controller-manager.

A namespace ends when nothing is in it (Kubernetes documentation, "Namespaces"). A ReplicaSet or Deployment
that is deleted with the propagation policy Foreground ends after its pods; with Orphan it ends when they are
let go ("Garbage Collection"). Both leave a finalizer for the garbage collector to take away.
"""

from __future__ import annotations

import asyncio

from lb.lab.api import DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, Api, Object, Resource
from lb.lab.controllers import controller_of, terminating
from lb.lab.watch import Cache
from lb.model import ObjectKey

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"
_KUBERNETES = "kubernetes"
"""The finalizer in the spec of every namespace."""


async def collect(api: Api, cache: Cache) -> None:
    """Let go what is being deleted and has nothing left to wait for.

    Raises ApiError: the API server did not take something; the rest is for the next time.
    """
    for resource in (REPLICA_SETS, DEPLOYMENTS):
        for owner in cache.of(resource).values():
            if terminating(owner):
                await _collect_owner(api, cache, resource, owner)
    for namespace in cache.of(NAMESPACES).values():
        if terminating(namespace) and _KUBERNETES in namespace["spec"].get("finalizers", ()):
            await asyncio.to_thread(_empty, api, cache, namespace)


async def _collect_owner(api: Api, cache: Cache, resource: Resource, owner: Object) -> None:
    uid, finalizers = owner["metadata"]["uid"], owner["metadata"].get("finalizers", ())
    pods = [pod for pod in cache.of(PODS).values() if controller_of(pod)[1] == uid]
    if ORPHAN in finalizers:
        for pod in pods:
            others = [each for each in pod["metadata"]["ownerReferences"] if each["uid"] != uid]
            change = {"ownerReferences": others}
            cache.put(PODS, await asyncio.to_thread(api.patch_metadata, PODS, pod, change))
    elif FOREGROUND not in finalizers or pods:
        return  # its pods are ended as those of any owner that goes
    left = [each for each in finalizers if each not in (ORPHAN, FOREGROUND)]
    await asyncio.to_thread(api.patch_metadata, resource, owner, {"finalizers": left})
    cache.drop(resource, owner)


def _empty(api: Api, cache: Cache, namespace: Object) -> None:
    """Delete all that is in a namespace; let it go when its pods have ended."""
    name = namespace["metadata"]["name"]
    for resource in api.namespaced():
        api.send("DELETE", resource.all_in(name), {"propagationPolicy": "Background"})
    if not any(key.namespace == name for key in cache.of(PODS)):
        api.finalize(ObjectKey("", name))
        cache.drop(NAMESPACES, namespace)
