# SPDX-License-Identifier: Apache-2.0
"""Whether a certificate and a key are what they should be, and belong together: OpenSSL is asked."""

from __future__ import annotations

import os
import ssl


def complaint(certificate: str, key: str) -> str | None:
    """Return what is wrong with a pair of PEM texts; None when a server can use it.

    The texts go through files in memory, since OpenSSL reads a pair from files only.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = [os.memfd_create(name) for name in ("certificate", "key")]
    try:
        for file, text in zip(files, (certificate, key), strict=True):
            os.pwrite(file, text.encode(), 0)
        first, second = (f"/proc/self/fd/{file}" for file in files)
        context.load_cert_chain(first, second, password=_no_password)
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        return f"holds no certificate with its own key: {str(reason).lower().replace('_', ' ')}"
    finally:
        for file in files:
            os.close(file)
    return None


def _no_password() -> str:
    raise ValueError("the key is encrypted")
