# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as a source, and Events back to it."""

from lb.kube.access import Access, from_kubeconfig, in_cluster
from lb.kube.client import ApiError, Client
from lb.kube.reflector import Health
from lb.kube.source import KubernetesSource

__all__ = ["Access", "ApiError", "Client", "Health", "KubernetesSource", "from_kubeconfig", "in_cluster"]
