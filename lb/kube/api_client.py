# SPDX-License-Identifier: Apache-2.0
"""A name that the kubernetes package's configuration loader wants to see.

It asks it for a new token where a kubeconfig has the auth-provider "oidc", which is rare: kubectl has done
without since 1.26. The real class comes with a model of every kind of object, 15 MB; so it comes when it is
called for.
"""

from __future__ import annotations

from typing import Any


class ApiClient:
    """Stands for ``kubernetes.client.ApiClient``."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """Return an object of the real class."""
        from kubernetes.client import api_client  # noqa: PLC0415

        return api_client.ApiClient(*arguments, **named)
