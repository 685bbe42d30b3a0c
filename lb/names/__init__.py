# SPDX-License-Identifier: Apache-2.0
"""Names of Services in DNS: which there should be, and how a server comes to hold them."""

from __future__ import annotations

from lb.model import ObjectKey

ZONE = "cluster.local"
"""The cluster's domain, as nearly every cluster has it."""

DNS = ObjectKey("kube-system", "kube-dns")
"""The Service whose endpoints are the DNS servers, CoreDNS too."""

SILENT = "no answer"
"""What stands for the status of an answer where none came."""
