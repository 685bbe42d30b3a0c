# SPDX-License-Identifier: Apache-2.0
"""``lbctl addresses run``: addresses for Services of type LoadBalancer."""

from __future__ import annotations

import argparse
import logging
from typing import TextIO

from lb.addresses.process import Options
from lb.addresses.process import run as give
from lb.cli.logs import JsonLine, OneLine
from lb.errors import LbError


def run(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl addresses run``."""
    handler = logging.StreamHandler(err)
    handler.setFormatter(OneLine() if args.log_format == "text" else JsonLine())
    ours = logging.getLogger("lb")
    ours.addHandler(handler)
    ours.setLevel(args.log_level.upper())
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
    try:
        give(options)
    except LbError as error:
        if args.log_format == "text":
            raise
        ours.error("%s", error)
        return 1
    finally:
        ours.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
    return 0
