# SPDX-License-Identifier: Apache-2.0
"""Requests to the API server: authentication and TLS as :mod:`lb.kube.access` says, raw bytes out.

Credentials that change. The files that a configuration came from (kubeconfig, token, certificates) are looked
at before every request; when one has changed, everything is loaded anew. So it is after an answer 401 and
after a failed TLS handshake: an exec plugin then runs again. A running watch keeps its connection; it ends
within minutes.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import urllib3

import lb
from lb.errors import ConfigError, LbError
from lb.folders import signature
from lb.kube.access import Access, from_kubeconfig, in_cluster, pool
from lb.kube.decode import UNREADABLE

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""For a connection and for each step of its TLS handshake. A first packet that is lost is sent again after 1
and 3 s; were it longer, a server that has just come back would be noticed late."""
PROBE_SECONDS = 1.0
"""How long a probe waits for a connection, and then for an answer, if not told otherwise."""
ANSWER_SECONDS = 30.0
"""How long an answer may keep silent. An overloaded API server lets a request queue for a quarter of its
--request-timeout, 15 s, before it refuses it (API Priority and Fairness)."""
RETRY_AFTER_MOST = 60.0
"""A Retry-After above this counts as this: no server may put the agent to sleep for hours."""
SOCKET_OPTIONS = (
    *urllib3.connection.HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 9),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
)
"""A connection whose other end has vanished without a word ends with ETIMEDOUT after 15 to 18 s, whether a
watch waits on it (the kernel asks after 9 s, then every 3 s; tcp(7): TCP_USER_TIMEOUT overrides the number of
keepalive probes) or a request lies unacknowledged."""
_ERROR_BODY_MOST = 65_536
_READ_BYTES = 262_144


class ApiError(LbError):
    """The API server refused, or did not answer; it is worth trying again.

    Attributes
    ----------
    status: HTTP status, or the code of an ERROR event; 0 when there was no answer.
    retry_after: seconds that the server asks for; 0 when it does not.
    expired: the resourceVersion or continue token of the request is of no use any more; list anew.
    unheard: nothing at all came back, not even a refusal, while a connection was to be made.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after: float = 0.0,
        expired: bool = False,
        unheard: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.expired = expired
        self.unheard = unheard


class SilenceError(ApiError):
    """A stream said nothing for as long as was agreed."""


class Reach(enum.Enum):
    """What came of asking the API server whether it is there."""

    READY = enum.auto()
    UNREADY = enum.auto()
    """It answers, itself or a proxy for it, with a status from 500 on."""
    NONE = enum.auto()
    """No answer."""


class _Cause(msgspec.Struct, gc=False):
    reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    causes: list[_Cause] | None = None
    retry_after_seconds: float | None = msgspec.field(name="retryAfterSeconds", default=None)


class _Status(msgspec.Struct, gc=False):
    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(_Status)


def status_error(what: str, body: bytes | msgspec.Raw, *, status: int = 0, retry_after: str = "") -> ApiError:
    """Return the error that a Status object tells of; body may be anything, a proxy's page for instance.

    Expired are 410 Gone; 400 and 422, which mean that the server cannot read our resourceVersion; and "too
    large resource version", which a server says that was restored from a backup or lags behind the one we
    knew. retry_after is the header's text; its form as a date is not used by Kubernetes and counts as absent.
    """
    try:
        told = _STATUS.decode(body)
    except UNREADABLE:
        told = _Status()
    code = status or told.code or 0
    details = told.details or _Details()
    wait = float(retry_after) if retry_after.isdecimal() else details.retry_after_seconds or 0.0
    too_large = any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes or ())
    words = told.message or told.reason or "no reason given"
    return ApiError(
        f"{what}: {code} {words}",
        status=code,
        retry_after=min(wait, RETRY_AFTER_MOST),
        expired=code in (400, 410, 422) or too_large,
    )


class Response:
    """A successful answer. Reading raises :class:`ApiError` when the connection breaks."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, what: str) -> None:
        self._raw = raw
        self._what = what

    def body(self) -> bytes:
        """Return all of it, uncompressed."""
        with _as_api_error(self._what):
            body = self._raw.read(decode_content=True)
            self._raw.release_conn()
            return body

    def chunks(self) -> Iterator[bytes]:
        """Yield bytes as they come until the server ends the answer.

        Raises SilenceError: nothing came for as long as the request agreed.
        """
        while True:
            with _as_api_error(self._what):
                data = self._raw.read1(_READ_BYTES)
            if not data:
                self._raw.release_conn()
                return
            yield data

    def allow_silence(self, seconds: float) -> None:
        """Set how long :meth:`chunks` may wait for more; until then it is what the request agreed."""
        connection = getattr(self._raw.connection, "sock", None)
        if connection is not None:
            connection.settimeout(seconds)

    def waiting(self) -> bool:
        """Tell whether more has come already; what lies in buffers on the way here is not seen."""
        try:
            poll = select.poll()
            poll.register(self._raw.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # it is over already
            return False

    def abort(self) -> None:
        """Make a read that waits in another thread return."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # it is over already
            self._raw.shutdown()

    def close(self) -> None:
        """Close the connection unless the whole answer was read."""
        self._raw.close()


@contextlib.contextmanager
def _as_api_error(what: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.ReadTimeoutError as error:
        raise SilenceError(f"{what}: the server keeps silent") from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        # ValueError: a token that no header can hold, a connection shut by abort()
        words = error.args[0] if error.args and isinstance(error.args[0], str) else error
        refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # its base means that none came
        unheard = isinstance(error, urllib3.exceptions.ConnectTimeoutError) and not refused
        raise ApiError(f"{what}: {words}", unheard=unheard) from error


def _blames_credentials(cause: BaseException | None) -> bool:
    """Tell whether a TLS handshake failed, other than by an end of the connection: then nobody was there."""
    if not isinstance(cause, urllib3.exceptions.SSLError):
        return False
    return not (cause.args and isinstance(cause.args[0], ssl.SSLEOFError | ssl.SSLZeroReturnError))


def by_kubeconfig_or_pod(kubeconfig: str, context: str) -> Client:
    """Return a client by a kubeconfig file or a context of it; as a pod where neither is given.

    Raises ConfigError: there is no access.
    """
    if kubeconfig or context:
        return Client(lambda: from_kubeconfig(kubeconfig, context))
    return Client(in_cluster)


class Client:
    """Sends requests as ``lbctl/VERSION``; usable from several threads.

    load gives the access, at once and again whenever credentials have to be renewed.

    Raises ConfigError: there is no access to begin with. Later failures to load are logged; the old access is
    kept.
    """

    def __init__(self, load: Callable[[], Access]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._line = _Line(load())

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        content_type: str = "application/json",
        connect: float = CONNECT_SECONDS,
        silence: float = ANSWER_SECONDS,
        compress: bool = False,
    ) -> Response:
        """Return the answer to a request when its status is 2xx.

        body is sent as JSON. connect is how many seconds a connection may take to be made. silence is how
        long the server may say nothing, at any time.

        Raises ApiError: the status is another one, or there is no answer.
        """
        what = f"{method} {path}"
        line, authorization = self._current()
        headers = {"User-Agent": f"lbctl/{lb.__version__}", "Accept": "application/json"}
        headers["Accept-Encoding"] = "gzip" if compress else "identity"
        if authorization:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            with _as_api_error(what):
                raw = line.pool.request(
                    method,
                    line.host + path + ("?" + urlencode(query) if query else ""),
                    headers=headers,
                    body=None if body is None else msgspec.json.encode(body),
                    timeout=urllib3.Timeout(connect=connect, read=silence),
                    retries=False,
                    preload_content=False,
                )
        except ApiError as error:
            if _blames_credentials(error.__cause__):
                self._renew(line)
            raise
        if 200 <= raw.status < 300:
            return Response(raw, what)
        told = b""
        with contextlib.suppress(ApiError), _as_api_error(what):
            told = raw.read(_ERROR_BODY_MOST, decode_content=True)
        raw.close()
        if raw.status == 401:
            self._renew(line)
        raise status_error(what, told, status=raw.status, retry_after=raw.headers.get("Retry-After", ""))

    def probe(self, patience: float = PROBE_SECONDS) -> Reach:
        """Ask the API server whether it is there and ready; never raises.

        It is asked for ``/readyz``, which every API server answers to everybody; a refusal (4xx) is an answer
        as well. patience is how many seconds a connection may take, each step of its TLS handshake, and the
        answer.
        """
        try:
            self.request("GET", "/readyz", connect=patience, silence=patience).body()
        except ApiError as error:
            if error.status == 0:
                return Reach.NONE
            return Reach.UNREADY if error.status >= 500 else Reach.READY
        return Reach.READY

    def _current(self) -> tuple[_Line, str]:
        """Return the present connection pool and what goes into the header Authorization."""
        with self._lock:
            if self._line.files != _signatures(self._line.access):
                self._reload()
            return self._line, self._line.authorization()

    def _renew(self, used: _Line) -> None:
        """Load everything again, unless another thread did since."""
        with self._lock:
            if self._line is used:
                self._reload()

    def _reload(self) -> None:
        try:
            line = _Line(self._load())
        except ConfigError as error:
            _log.warning("credentials stay as they were: %s", error)
            return
        self._line.pool.clear()
        self._line = line
        _log.info("credentials for %s loaded again", line.host)


class _Line:
    """One access and the connections made with it."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.files = _signatures(access)
        self.host = access.configuration.host.rstrip("/")
        access.configuration.socket_options = SOCKET_OPTIONS
        self.pool = pool(access.configuration)

    def authorization(self) -> str:
        """Return the header's value; an exec plugin whose token runs out is run again for it.

        Raises ApiError: the token could not be renewed.
        """
        try:
            setting = self.access.configuration.auth_settings().get("BearerToken")
        except Exception as error:  # the package lets through whatever its ways to renew a token raise
            raise ApiError(f"credentials for {self.host}: {error}") from error
        return (setting and setting["value"]) or ""


def _signatures(access: Access) -> tuple[object, ...]:
    return tuple(signature(Path(file)) for file in access.files)
