"""Results as JSON Lines."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from edge_app.clock import iso_8601
from edge_app.errors import InputError
from edge_app.records import Result


def as_line(result: Result) -> dict[str, Any]:
    """The JSON object of a result; holds no NaN."""
    decision = result.decision
    closed = decision.closed
    part_frames = None
    if closed is not None:
        part_frames = {
            "first": closed.first_frame,
            "last": closed.last_frame,
            "usable": closed.usable,
            "ng": closed.ng,
            "unknown": closed.unknown,
        }
    return {
        "event": result.event,
        "frame": result.frame.index,
        "source": result.frame.source,
        "time": iso_8601(result.time_s),
        "part": decision.part,
        "score": decision.score,
        "score_smoothed": decision.score_smoothed,
        "threshold": result.threshold,
        "verdict": str(decision.verdict),
        "reason": decision.reason,
        "degraded": list(result.degraded),
        "latency_ms": {stage: round(ms, 4) for stage, ms in result.latency_ms.items()},
        "heatmap": result.heatmap,
        "part_frames": part_frames,
        "bundle_sha256": result.bundle_sha256,
    }


class JsonLines:
    """
    Writes one line a result.

    Parameters
    ----------
    path : path or '-'
        Replaced if it exists; ``-`` is standard output.

    Raises
    ------
    InputError
        If the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = os.fspath(path)
        if self._path == "-":
            try:
                self._descriptor = os.dup(1)
            except OSError as error:
                raise InputError(f"standard output: cannot be written: {error.strerror}") from None
            return
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644
            )
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror}") from None

    def emit(self, result: Result) -> None:
        # One write a line, past Python's buffer: a killed run leaves whole lines only.
        line = json.dumps(as_line(result), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode()
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                # The disk filled up within the line: take its beginning back.
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BrokenPipeError:
            raise  # nobody reads on (| head): the end, and no error
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        os.close(self._descriptor)
