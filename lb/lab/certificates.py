# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for an API server of one's own, made with the openssl command; valid for a year."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from lb.errors import LabError

_DAYS = "365"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_authority(folder: Path, name: str = "ca") -> Path:
    """Make a CA: NAME.crt and NAME.key; return the certificate's path.

    Raises LabError: openssl is missing or failed.
    """
    certificate = folder / f"{name}.crt"
    _openssl(
        *("req", "-x509", *_CURVE, "-days", _DAYS, "-subj", f"/CN={name}"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(certificate)),
    )
    return certificate


def issue(
    folder: Path,
    name: str,
    authority: str = "ca",
    *,
    hosts: Iterable[str] = ("127.0.0.1", "localhost"),
    group: str = "",
) -> tuple[Path, Path]:
    """Make NAME.crt, signed by a CA, and NAME.key; return both paths.

    The certificate serves for servers at the hosts, names or IPv4 addresses, and for clients: an API server
    takes the common name, which is NAME, for the user and the organisation for the group.

    Raises LabError: openssl is missing or failed.
    """
    key, request, certificate = (folder / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
    extensions = folder / f"{name}.ext"
    places = ",".join(f"{'IP' if host[-1].isdigit() else 'DNS'}:{host}" for host in hosts)
    extensions.write_text(
        f"subjectAltName={places}\nauthorityKeyIdentifier=keyid\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    subject = f"/O={group}/CN={name}" if group else f"/CN={name}"
    _openssl("req", *_CURVE, "-subj", subject, "-keyout", str(key), "-out", str(request))
    _openssl(
        *("x509", "-req", "-days", _DAYS, "-in", str(request), "-extfile", str(extensions)),
        *("-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key")),
        *("-CAcreateserial", "-out", str(certificate)),
    )
    return certificate, key


def make_key(path: Path) -> None:
    """Make a private RSA key, which API servers read as the public one, too.

    Raises LabError: openssl is missing or failed.
    """
    _openssl("genrsa", "-out", str(path), "2048")


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise LabError("openssl is missing: an API server needs certificates") from None
    if done.returncode:
        raise LabError(f"openssl {arguments[0]}: {done.stderr.strip()}")
