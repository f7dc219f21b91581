"""The journal of a live session: results and keys as JSON Lines in one file, from any thread."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from edge_app.clock import iso_8601
from edge_app.errors import InputError
from edge_app.records import Result
from edge_app.sinks.jsonl import as_line


class Journal:
    """
    Writes one line a result and one line a key.

    Parameters
    ----------
    path : path or None
        Replaced if it exists; None writes nothing.

    Attributes
    ----------
    problem : str or None
        Why nothing is written any more: a full disk must not end the window.

    Raises
    ------
    InputError
        If the file cannot be opened.
    """

    def __init__(self, path: Path | str | None) -> None:
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        if path is None:
            return
        self._path = os.fspath(path)
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            self._descriptor = os.open(self._path, flags, 0o644)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror}") from None

    def result(self, result: Result) -> None:
        """A verdict, as ``inspect --json`` writes it."""
        if self._descriptor is not None:
            self._write(as_line(result))

    def note(self, event: str, **fields: Any) -> None:
        """Something else that happened."""
        if self._descriptor is not None:
            self._write({"event": event, "time": iso_8601(time.time()), **fields})

    def _write(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with self._lock:
            if self._descriptor is None:
                return
            try:
                if os.write(self._descriptor, data) < len(data):
                    raise OSError(28, "No space left on device")
            except OSError as error:
                self.problem = f"{self._path}: cannot be written: {error.strerror}"
                os.close(self._descriptor)
                self._descriptor = None

    def close(self) -> None:
        """Any number of times."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
