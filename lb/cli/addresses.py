# SPDX-License-Identifier: Apache-2.0
"""``lbctl addresses run``: addresses for Services of type LoadBalancer."""

from __future__ import annotations

import argparse
from typing import TextIO

from lb.addresses.process import Options
from lb.addresses.process import run as give
from lb.cli.logs import logged


def run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl addresses run``."""
    options = Options(
        sources=tuple(args.source or ()),
        pools=args.pools,
        state=args.state,
        kubeconfig=args.kubeconfig or "",
        context=args.context or "",
        lease_namespace=args.lease_namespace or "",
        service_cidr=args.service_cidr,
        metrics_address=args.metrics_address,
    )
    return logged(args, err, lambda: give(options))
