"""Certificates for tests, made with the openssl command; valid for two days."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(folder: Path, name: str = "ca") -> Path:
    """Make a CA: NAME.crt and NAME.key; return the certificate's path."""
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign",
             "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"))  # fmt: skip
    return folder / f"{name}.crt"


def issue(folder: Path, name: str, authority: str = "ca") -> tuple[Path, Path]:
    """Make NAME.crt, for 127.0.0.1 and localhost, signed by a CA, and NAME.key; return both paths."""
    key, request, certificate = (folder / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
             "-keyout", str(key), "-out", str(request))  # fmt: skip
    _openssl("x509", "-req", "-days", "2", "-in", str(request), "-extfile", str(extensions),
             "-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key"),
             "-CAcreateserial", "-out", str(certificate))  # fmt: skip
    return certificate, key


def make_key(path: Path) -> None:
    """Make a private RSA key."""
    _openssl("genrsa", "-out", str(path), "2048")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
