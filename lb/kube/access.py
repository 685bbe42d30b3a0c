# SPDX-License-Identifier: Apache-2.0
"""Ways to the API server: a pod's service account, or a kubeconfig file, by the kubernetes package.

Of that package only the configuration loaders and the urllib3 pool are used, and the rest is not even
imported: its model objects cost ten times the time and memory of what we need, and its watch hides the errors
that a reflector has to tell apart.

Every file is read in bounds before the package reads it: a FIFO would make it wait, and of a damaged
certificate TLS says neither what is wrong nor where it lies.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml

from lb.errors import ConfigError
from lb.folders import read_file, read_stream
from lb.lazy_imports import bare_package, late_classes

bare_package("kubernetes")
bare_package(
    "kubernetes.client", Configuration="kubernetes.client.configuration", ApiClient="lb.kube.api_client"
)
from kubernetes.client.configuration import Configuration  # noqa: E402
from kubernetes.client.rest import RESTClientObject  # noqa: E402

with late_classes("requests_oauthlib", "OAuth2Session"):  # for one way to log in among many
    from kubernetes.config import ConfigException, incluster_config, kube_config

_MOST_BYTES = 4 << 20
"""Of a kubeconfig, a token or a file of certificates; all CAs of a distribution take 0.3 MB."""


@dataclass(frozen=True, slots=True)
class Access:
    """A way to the API server.

    configuration: where, and with which credentials.
    files: what it was read from; when one changes, it is to be loaded again.
    """

    configuration: Configuration
    files: tuple[str, ...] = ()


def in_cluster(
    token: str = incluster_config.SERVICE_TOKEN_FILENAME,
    authority: str = incluster_config.SERVICE_CERT_FILENAME,
    environ: Mapping[str, str] = os.environ,
) -> Access:
    """Return the access of a pod's service account.

    The address is that of the environment (KUBERNETES_SERVICE_HOST, _PORT). It is a Service's own address:
    where lbctl is the only one to serve it, set the two variables to an address of the API server itself, or
    a starting node cannot reach it.

    Raises ConfigError: this is no pod, or its token or its authority cannot be read.
    """
    configuration = Configuration()
    loader = incluster_config.InClusterConfigLoader(
        token, authority, try_refresh_token=False, environ=environ
    )
    try:
        bearer = _bearer(token)
        _check_certificates(authority)
        loader.load_and_set(configuration)
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(
            f"access as a pod of the cluster: {_words(error)}; elsewhere use --kubeconfig FILE"
        ) from error
    configuration.api_key["BearerToken"] = bearer
    return Access(configuration, (token, authority))


def from_kubeconfig(path: str = "", context: str = "") -> Access:
    """Return the access that a context of a kubeconfig file gives.

    Without path it is the files of the variable KUBECONFIG, or ~/.kube/config; without context the current
    one.

    Raises ConfigError: the file or the context is missing or wrong, or an exec plugin gave no credentials.
    """
    place = path or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    configuration = Configuration()
    try:
        merged = _Merger(place)
        if merged.config is None:
            raise ConfigError(f"kubeconfig {place}: there is no such file, or nothing in it")
        user = _entry(merged.config, context, "user", ("tokenFile", "client-certificate", "client-key"))
        cluster = _entry(merged.config, context, "cluster", ("certificate-authority",))
        for file in (*user.files, *cluster.files):
            read_file(Path(file), _MOST_BYTES)
        token_file = user.values.get("tokenFile", "")
        bearer = _bearer(token_file) if token_file else ""
        kube_config.KubeConfigLoader(
            merged.config, active_context=context or None, config_base_path=None
        ).load_and_set(configuration)
        _check_certificates(configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
        if bearer:
            # client-go reads this file again and again, and prefers it to a token given directly
            configuration.api_key["BearerToken"] = bearer
            configuration.refresh_api_key_hook = None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"kubeconfig {place}: does not parse as YAML: {' '.join(str(error).split())}"
        ) from error
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"kubeconfig {place}: {_words(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"kubeconfig {place}: nested too deep") from error
    if "exec" in user.values and not configuration.api_key and not configuration.cert_file:
        raise ConfigError(
            f"kubeconfig {place}: the plugin {user.values['exec'].get('command')!r} gave no credentials"
        )
    files = (
        *(os.path.expanduser(part) for part in place.split(kube_config.ENV_KUBECONFIG_PATH_SEPARATOR)),
        token_file,
        configuration.ssl_ca_cert,
        configuration.cert_file,
        configuration.key_file,
    )
    return Access(configuration, tuple(file for file in files if file))


class _Merger(kube_config.KubeConfigMerger):  # type: ignore[misc]  # the package has no types
    """The package's merger of kubeconfig files, reading them in bounds; one may be a pipe."""

    def load_config(self, path: str) -> None:
        """Take in one more file: of two entries with one name the earlier counts."""
        config = yaml.safe_load(read_stream(Path(path), _MOST_BYTES))
        if not isinstance(config, dict):
            raise ConfigException(f"{path} holds no mapping")
        kinds = ("clusters", "contexts", "users")
        if self.config is None:
            empty = {**config, **{kind: [] for kind in kinds}}
            self.config_merged = kube_config.ConfigNode(path, empty, path)
        for kind in kinds:
            self._merge(kind, config.get(kind) or [], path)
        if "current-context" in config:
            self.config_merged.value["current-context"] = config["current-context"]
        self.config_files[path] = config


def _bearer(token_file: str) -> str:
    token = read_file(Path(token_file), _MOST_BYTES).strip()
    if not token.isascii():
        raise ConfigException(f"token file {token_file} holds no ASCII text")
    if not token:
        raise ConfigException(f"token file {token_file} is empty")
    return f"Bearer {token.decode()}"


def _check_certificates(
    authority: str | None, certificate: str | None = None, key: str | None = None
) -> None:
    """See that certificate files can be used.

    Raises ConfigException: a file cannot be used.
    Raises OSError: a file cannot be read.
    """
    for file in filter(None, (authority, certificate, key)):
        read_file(Path(file), _MOST_BYTES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authority:
            context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise ConfigException(f"{authority} holds no certificates: {error.reason or error}") from error
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password="")  # it would ask the terminal for one
    except ssl.SSLError as error:
        pair = " and ".join(filter(None, (certificate, key)))
        raise ConfigException(f"{pair}: no certificate with its key: {error.reason or error}") from error


def _words(error: Exception) -> str:
    """Return what went wrong in one line, with the file's name if it is about one."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


@dataclass(frozen=True, slots=True)
class _Entry:
    """The user or the cluster of a context. files: those that it names, which are absolute in values, too."""

    values: dict[str, Any]
    files: tuple[str, ...] = ()


def _entry(config: Any, context: str, kind: str, file_keys: tuple[str, ...]) -> _Entry:
    """Return the entry of a kind, user or cluster, that a context names; an empty one if there is none."""
    chosen = config["contexts"].get_with_name(context or config["current-context"])["context"]
    name, kinds = chosen.safe_get(kind), f"{kind}s"
    found = config[kinds].get_with_name(name, safe=True) if name and config.safe_get(kinds) else None
    if found is None:
        return _Entry({})
    values = dict(found[kind].value)
    folder = os.path.dirname(os.path.abspath(found.path))
    values |= {key: os.path.join(folder, values[key]) for key in file_keys if values.get(key)}
    return _Entry(values, tuple(values[key] for key in file_keys if values.get(key)))


def pool(configuration: Configuration) -> urllib3.PoolManager:
    """Return a pool of connections that are made as a configuration says."""
    manager: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
    return manager
