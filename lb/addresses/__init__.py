# SPDX-License-Identifier: Apache-2.0
"""Addresses for Services of type LoadBalancer, out of pools: what a cloud's controller does elsewhere.

``pool`` says what there is, ``request`` what a Service asks for. ``allocate`` decides: a pure function of
both and of the statuses of all Services. ``cluster`` does it with the Kubernetes API, ``folder`` with
manifests; ``process`` is the process around either. The data plane is no part of it.
"""
