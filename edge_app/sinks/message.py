"""What is said to others of a result or an event: one JSON object, without pictures."""

from __future__ import annotations

import json
from typing import Any

from edge_app.clock import iso_8601
from edge_app.event_rows import plain
from edge_app.records import Event, Result
from edge_app.sinks.jsonl import as_line


def as_message(item: Result | Event, station: str) -> bytes:
    """
    The JSON of a result, as `as_line`, or of an event, each with the station's name; UTF-8.

    A number that is not finite is null: JSON has none, and many readers refuse what has.
    """
    fields = as_line(item) if isinstance(item, Result) else _event(item)
    message = plain({"station": station, **fields})
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode()


def _event(event: Event) -> dict[str, Any]:
    return {
        "event": event.kind,
        "time": iso_8601(event.time_s),
        "boot_s": round(event.boot_s, 3),
        "detail": event.detail,
        "verdict": None if event.verdict is None else str(event.verdict),
        "reason": event.reason,
        "part": event.part,
        "score": event.score,
        "threshold": event.threshold,
        "bundle_sha256": event.bundle_sha256,
        "episode": event.episode,
        "ended": iso_8601(event.ended_s),
        "frames": event.frames,
        "data": event.data,
    }
