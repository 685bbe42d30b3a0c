# SPDX-License-Identifier: Apache-2.0
"""Ingress objects to the configuration of nginx, for the lab; a real cluster has a controller of its own.

``read`` turns the text of objects into the types of ``objects``; ``plan`` is the pure function from those,
Services and endpoints to a :class:`~lb.ingress.plan.Site`; ``nginx`` writes that as nginx reads it.
"""
