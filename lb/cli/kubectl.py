# SPDX-License-Identifier: Apache-2.0
"""What is said as kubectl takes it: ``svc/NAME``, ``-n NAMESPACE``."""

from __future__ import annotations

import argparse

from lb.errors import UsageError

_KINDS = ("svc", "service", "services")


def settle(args: argparse.Namespace) -> None:
    """Write out the Service that a command is about: ``svc/web -n shop`` is ``shop/web``.

    A namespace that is called as the kind is has to be given by ``-n``.

    Raises UsageError: the Service's namespace is not the one that ``-n`` gives.
    """
    text: str | None = getattr(args, "service", None)
    if not text:
        return
    kind, slash, rest = text.partition("/")
    if slash and kind in _KINDS:
        text = rest
    given, slash, _ = text.rpartition("/")
    namespace = getattr(args, "namespace", None)
    if slash and namespace and given != namespace:
        raise UsageError(f"{args.service}: is in namespace {given}, and -n says {namespace}")
    args.service = f"{namespace}/{text}" if namespace and not slash else text
