# SPDX-License-Identifier: Apache-2.0
"""Reading YAML files of our own, which hold no Kubernetes objects: pools of addresses, peers of BGP."""

from __future__ import annotations

from pathlib import Path

from lb.errors import ConfigError
from lb.folders import read_file
from lb.manifests.fields import Field, Problems
from lb.manifests.yamldoc import load

_MOST_BYTES = 1 << 20


def read_text(path: Path) -> str:
    """Return the text of a file of at most 1 MiB.

    Raises ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        return read_file(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error


def one_document(text: str, problems: Problems) -> Field | None:
    """Return the one document of a text, None if it is empty; problems takes what is no YAML.

    Raises ConfigError: the text holds several documents.
    """
    documents = list(load(text))
    if len(documents) != 1:
        raise ConfigError(f"{problems.path}: must hold one YAML document, holds {len(documents)}")
    [document] = documents
    for fault in document.faults:
        problems.note(fault.line, fault.field, fault.message)
    root = document.root
    return None if root is None else Field(problems, "", root.line, root)
