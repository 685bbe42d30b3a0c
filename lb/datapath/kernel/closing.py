# SPDX-License-Identifier: Apache-2.0
"""The base class of objects that hold something of the kernel until they are closed."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Base of what ``with`` closes at its end."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is held; a second call does nothing."""
        raise NotImplementedError
