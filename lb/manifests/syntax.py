# SPDX-License-Identifier: Apache-2.0
"""What names, labels and addresses may look like, as Kubernetes' API validation has it.

Every function returns the complaint, or None when the text is right.
"""

from __future__ import annotations

import re

from lb.model import IPAddress
from lb.plan.rights import special_address

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def dns_label(text: str) -> str | None:
    """Check a DNS label (RFC 1123): names of Services, namespaces and Service ports."""
    if _DNS_LABEL.fullmatch(text):
        return None
    return f"{text!r} is no DNS label: at most 63 lower-case letters, digits and '-', no '-' at either end"


def dns_subdomain(text: str) -> str | None:
    """Check a DNS subdomain (RFC 1123): names of most other objects, and externalName."""
    if len(text) <= 253 and all(
        re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", part) for part in text.split(".")
    ):
        return None
    return f"{text!r} is no DNS name: lower-case letters, digits, '-' and '.', at most 253 of them"


def port_name(text: str) -> str | None:
    """Check the name of a container port, and so a targetPort by name (IANA_SVC_NAME of RFC 6335)."""
    if text.isdecimal():
        return f"{text!r} is a number in quotes, so a port's name, which needs a letter: remove the quotes"
    if _PORT_NAME.fullmatch(text) and re.search(r"[a-z]", text) and "--" not in text:
        return None
    return (
        f"{text!r} is no port name: at most 15 lower-case letters, digits and single '-',"
        " with at least one letter and no '-' at either end"
    )


def label_key(text: str) -> str | None:
    """Check a label's key: a name of at most 63 characters, which a DNS subdomain and '/' may precede."""
    prefix, slash, name = text.rpartition("/")
    if _LABEL_PART.fullmatch(name) and (not slash or dns_subdomain(prefix) is None):
        return None
    return (
        f"{text!r} is no label key: [prefix/]name, the name of at most 63 letters, digits, '-', '_' and '.'"
    )


def label_value(text: str) -> str | None:
    """Check a label's value; it may be empty."""
    if not text or _LABEL_PART.fullmatch(text):
        return None
    return (
        f"{text!r} is no label value: at most 63 letters, digits, '-', '_' and '.',"
        " with a letter or digit at both ends"
    )


def endpoint_address(address: IPAddress) -> str | None:
    """Check an address that packets are sent to."""
    if special := special_address(address):
        return f"{address} is {special}, which Kubernetes does not admit here"
    return None
