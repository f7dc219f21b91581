"""What the page needs of the rest of the service; each may be a fake in a test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np


class Board(Protocol):
    """What is to be seen. Nothing here blocks for longer than a lock is held."""

    @property
    def picture(self) -> tuple[int, np.ndarray, str] | None:
        """
        The newest: number, picture and verdict.

        The picture is uint8, shape (height, width, 3), BGR, with the heatmap laid over it where NG.
        """

    def snapshot(self) -> dict[str, Any]:
        """Everything the page shows, as JSON holds it; `history` rises by its first column."""

    def watch(self) -> None:
        """One more looks at the picture."""

    def unwatch(self) -> None:
        """One fewer."""


class Controls(Protocol):
    """What can be done. Each may block; each may raise `InputError` with a sentence."""

    def learn_good(self, event_id: int) -> str: ...
    def mark_defect(self, event_id: int) -> str: ...
    def revert(self, sha256: str) -> str: ...
    def bundles(self) -> list[dict[str, Any]]: ...
    def threshold(self) -> dict[str, Any]: ...
    def set_threshold(self, value: float) -> str: ...
    def take_picture(self) -> str: ...
    def start(self) -> str: ...
    def stop(self) -> str: ...
    def trigger(self) -> bool: ...


class Row(Protocol):
    """One stored event."""

    id: int
    mark: str | None

    def as_json(self) -> dict[str, Any]: ...


class Store(Protocol):
    """The stored events; read from any thread."""

    def latest(
        self,
        n: int,
        before_id: int | None = None,
        kinds: Iterable[str] | None = None,
        since_s: float | None = None,
    ) -> list[Row]: ...

    def walk(
        self,
        limit: int | None = None,
        kinds: Iterable[str] | None = None,
        since_s: float | None = None,
    ) -> Iterator[Row]: ...

    def get(self, id: int) -> Row | None: ...
    def picture(self, id: int, which: str) -> Path | None: ...
    def counts(self, since_hour: int) -> list[tuple[int, dict[str, int]]]: ...
    def set_mark(self, id: int, mark: str | None) -> None: ...
    def export(self, rows: Iterable[Row], target: BinaryIO, kind: str) -> int: ...


class Metrics(Protocol):
    """Figures for Prometheus."""

    def render(self) -> bytes: ...
