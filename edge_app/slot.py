"""A slot: hands the newest of something from one thread to another; what nobody took is gone."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """
    One place, in which the newest replaces what is there.

    Attributes
    ----------
    dropped : int
        How many were replaced before anybody took them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._content: T | None = None
        self.dropped = 0

    def put(self, content: T) -> None:
        """Replace what is there; never waits."""
        with self._changed:
            self.dropped += self._content is not None
            self._content = content
            self._changed.notify_all()

    def take(self, wait_s: float = 0.0) -> T | None:
        """Take what is there out, waiting so many seconds for it; None if there is nothing."""
        with self._changed:
            if self._content is None and wait_s > 0:
                self._changed.wait(wait_s)
            content, self._content = self._content, None
            return content
