# SPDX-License-Identifier: Apache-2.0
"""Folders of Kubernetes manifests as a source: YAML and JSON files to model objects.

``yamldoc → fields → documents`` read one text; ``library`` holds all files; ``complete``, ``allocate`` and
``endpoints`` do, as pure functions, what a cluster's control plane would do; ``source`` follows the folders.
"""

from lb.manifests.source import ManifestSource

__all__ = ["ManifestSource"]
