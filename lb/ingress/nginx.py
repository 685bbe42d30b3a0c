# SPDX-License-Identifier: Apache-2.0
"""A site as the configuration of nginx: pure text. nginx 1.20 and later read it.

All paths in it are relative: certificates to the folder of the configuration, what nginx writes to its
prefix (``nginx -p FOLDER -c …/nginx.conf``), so that several can run with one configuration.

Bodies are passed on as they come, in both directions, and never touch a disk. No connection to an endpoint
is kept for a later request: that would hold up pods that end. nginx does not judge endpoints: readiness
does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from lb.ingress.plan import UNAVAILABLE, Location, Server, Site, Upstream

MAIN = "nginx.conf"
HEALTH_PORT, HEALTH_PATH = 10254, "/healthz"
"""Where nginx says that it runs."""

HTTP_PORT, HTTPS_PORT = 80, 443

_HEAD = """\
# Written by lbctl from Ingress objects; changes here are lost.
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
# Connections that outlast a change of the configuration may go on for so long.
worker_shutdown_timeout 1h;
pid nginx.pid;
error_log stderr warn;
events {
    worker_connections 8192;
}
http {
    access_log off;
    server_tokens off;
    server_names_hash_bucket_size 512;
    server_names_hash_max_size 8192;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_http_version 1.1;
    proxy_connect_timeout 5s;
    proxy_next_upstream_tries 3;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:1m;
    map $http_upgrade $upgrade {
        default "";
        ~*^websocket$ websocket;
    }
    map $upgrade $connection_header {
        default close;
        websocket upgrade;
    }
    map $http_host $host_header {
        default $http_host;
        "" $host;
    }
    proxy_set_header Host $host_header;
    proxy_set_header Upgrade $upgrade;
    proxy_set_header Connection $connection_header;
    # What a client says of itself in these is not believed.
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $host_header;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Proto $scheme;
"""


def files(site: Site, versions: Sequence[int]) -> dict[str, str]:
    """Return the files of a configuration, their texts by their names; :data:`MAIN` is the main one.

    versions are the IP versions to listen with. A certificate's name depends on its contents, so that one
    that is still in use is never overwritten.
    """
    result = {_pem(each.certificate): each.certificate for each in site.servers if each.certificate}
    return {**result, MAIN: _HEAD + "".join(_http(site, versions)) + "}\n"}


def _pem(certificate: str) -> str:
    return f"{hashlib.sha256(certificate.encode()).hexdigest()[:24]}.pem"


def _http(site: Site, versions: Sequence[int]) -> Iterator[str]:
    for upstream in site.upstreams():
        yield f"    upstream {upstream.name} {{\n"
        yield from (f"        server {socket} max_fails=0;\n" for socket in upstream.sockets)
        yield "    }\n"
    yield "    server {\n"
    yield from _listen(versions, HEALTH_PORT, "")
    yield f"        location = {HEALTH_PATH} {{\n            return 200;\n        }}\n    }}\n"
    for server in site.servers:
        yield from _server(server, versions)


def _listen(versions: Sequence[int], port: int, more: str) -> Iterator[str]:
    for version in versions:
        yield f"        listen {port if version == 4 else f'[::]:{port}'}{more};\n"


def _server(server: Server, versions: Sequence[int]) -> Iterator[str]:
    default = "" if server.host else " default_server"
    yield "    server {\n"
    yield from _listen(versions, HTTP_PORT, default)
    if server.certificate:
        yield from _listen(versions, HTTPS_PORT, f" ssl http2{default}")
        yield f"        ssl_certificate {_pem(server.certificate)};\n"
        yield f"        ssl_certificate_key {_pem(server.certificate)};\n"
    elif default:
        yield from _listen(versions, HTTPS_PORT, f" ssl http2{default}")
        yield "        ssl_reject_handshake on;\n"
    if server.host:
        yield f"        server_name {_name(server.host)};\n"
    for location in server.locations:
        yield from _location(location)
    yield "    }\n"


def _name(host: str) -> str:
    """Return the name as nginx matches it; its own ``*.`` would stand for any number of labels."""
    if not host.startswith("*."):
        return host
    return f'"~^[^.]+{re.escape(host[1:])}$"'


def _location(location: Location) -> Iterator[str]:
    target = location.target
    yield f"        location {'= ' if location.exact else ''}{_quoted(location.path)} {{\n"
    if isinstance(target, Upstream) and target.sockets:
        yield f"            proxy_pass http://{target.name};\n"
    else:
        yield f"            return {UNAVAILABLE if isinstance(target, Upstream) else target};\n"
    yield "        }\n"


def _quoted(path: str) -> str:
    """Return a path as a word of the configuration; nginx compares it with the decoded path of a request."""
    return '"' + unquote(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
