"""
Rows of the event store: what one holds, the tables, and the way from an event to a row.

An event comes from everywhere in the service. Whatever it holds must have a row: one that raised
here would come again and again and hold up all that wait behind it.
"""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import dataclass, field
from typing import Any

from edge_app.clock import iso_8601
from edge_app.records import Event, Verdict

FALSE_ALARM, TRUE_DEFECT = MARKS = ("false alarm", "true defect")

# Each brings the tables from the version that is its place to the next; never changed afterwards.
MIGRATIONS = (
    (
        """
        CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            boot_id TEXT NOT NULL,
            boot_s REAL NOT NULL,
            time_s REAL NOT NULL,
            kind TEXT NOT NULL,
            detail TEXT NOT NULL,
            verdict TEXT,
            reason TEXT,
            part INTEGER,
            score REAL,
            threshold REAL,
            bundle_sha256 TEXT,
            episode TEXT,
            ended_s REAL,
            frames INTEGER NOT NULL,
            data TEXT NOT NULL,
            frame TEXT,
            overlay TEXT,
            bytes INTEGER NOT NULL,
            mark TEXT
        )
        """,
        "CREATE INDEX events_by_kind ON events (kind, id)",
        "CREATE INDEX events_with_pictures ON events (id, bytes) WHERE bytes > 0",
        "CREATE UNIQUE INDEX episodes ON events (boot_id, episode) WHERE episode IS NOT NULL",
        """
        CREATE TABLE counts (
            hour INTEGER NOT NULL,
            name TEXT NOT NULL,
            count INTEGER NOT NULL,
            PRIMARY KEY (hour, name)
        ) WITHOUT ROWID
        """,
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)

COLUMNS = (
    "id",
    "boot_id",
    "boot_s",
    "time_s",
    "kind",
    "detail",
    "verdict",
    "reason",
    "part",
    "score",
    "threshold",
    "bundle_sha256",
    "episode",
    "ended_s",
    "frames",
    "data",
    "frame",
    "overlay",
    "bytes",
    "mark",
)
# What an integer column takes.
MOST_WHOLE = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """
    An event as it is kept.

    Attributes
    ----------
    id : int
        Sequence number: rises with every event, over restarts and whatever the clock says.
    boot_id : str
        Which start of the board it is from; `boot_s` compares within one only.
    frame, overlay : str or None
        Names of its evidence pictures, relative to the folder ``pictures``. None where there is
        none; ``data["pictures"]`` then says why, if there was one once.
    bytes : int
        Size of both.
    mark : {'false alarm', 'true defect'} or None
        What a person said of it.
    kind, time_s, boot_s, detail, verdict, reason, part, score, threshold, bundle_sha256, episode, \
ended_s, frames, data
        As of `edge_app.records.Event`. An episode without `ended_s` goes on, or was cut off with
        the service: ``data["interrupted"]`` is true then.
    """

    id: int
    boot_id: str
    boot_s: float
    time_s: float
    kind: str
    detail: str
    verdict: Verdict | None = None
    reason: str | None = None
    part: int | None = None
    score: float | None = None
    threshold: float | None = None
    bundle_sha256: str | None = None
    episode: str | None = None
    ended_s: float | None = None
    frames: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    frame: str | None = None
    overlay: str | None = None
    bytes: int = 0
    mark: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON holds it: times in ISO 8601, UTC; no NaN."""
        return {
            "id": self.id,
            "time": iso_8601(self.time_s),
            "kind": self.kind,
            "detail": self.detail,
            "verdict": None if self.verdict is None else str(self.verdict),
            "reason": self.reason,
            "part": self.part,
            "score": plain(self.score),
            "threshold": plain(self.threshold),
            "mark": self.mark,
            "ended": iso_8601(self.ended_s),
            "frames": self.frames,
            "frame": self.frame,
            "overlay": self.overlay,
            "bundle_sha256": self.bundle_sha256,
            "episode": self.episode,
            "boot_id": self.boot_id,
            "boot_s": plain(self.boot_s),
            "data": plain(self.data),
        }


def create_tables(connection: sqlite3.Connection) -> None:
    """
    Bring a database's tables to this version, each step whole or not at all.

    Raises
    ------
    sqlite3.Error
    """
    there = connection.execute("PRAGMA user_version").fetchone()[0]
    if there > SCHEMA_VERSION:
        raise sqlite3.OperationalError(f"schema {there} is of a newer edge-app")
    for version in range(there, SCHEMA_VERSION):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have done it meanwhile.
            if connection.execute("PRAGMA user_version").fetchone()[0] == version:
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
        except BaseException:
            connection.rollback()
            raise
        connection.execute("COMMIT")


def row_of(values: sqlite3.Row | tuple[Any, ...]) -> Row:
    """
    A row from its `COLUMNS`.

    Raises
    ------
    ValueError, TypeError
        If they are none of this store, as in a damaged database.
    """
    fields = dict(zip(COLUMNS, values, strict=True))
    fields["verdict"] = None if fields["verdict"] is None else Verdict(fields["verdict"])
    fields["data"] = json.loads(fields["data"])
    if not isinstance(fields["data"], dict) or not isinstance(fields["id"], int):
        raise ValueError(f"row {fields['id']!r} is none of an event store")
    return Row(**fields)


def values_of(event: Event, boot_id: str) -> dict[str, Any]:
    """What goes into the columns of an event, but for pictures and mark; never raises."""
    data = plain(event.data)
    return {
        "boot_id": boot_id,
        "boot_s": _number(event.boot_s) or 0.0,
        "time_s": _number(event.time_s) or 0.0,
        "kind": _text(event.kind) or "",
        "detail": _text(event.detail) or "",
        "verdict": None if event.verdict is None else str(event.verdict),
        "reason": _text(event.reason),
        "part": _whole(event.part),
        "score": _number(event.score),
        "threshold": _number(event.threshold),
        "bundle_sha256": _text(event.bundle_sha256),
        "episode": _text(event.episode),
        "ended_s": _number(event.ended_s),
        "frames": _whole(event.frames) or 0,
        "data": data if isinstance(data, dict) else {},
    }


def plain(value: Any) -> Any:
    """
    The same as JSON and SQLite take it, whatever it is.

    Numbers that are not finite become None, numpy's become Python's, half characters (surrogates)
    question marks, what is unknown its text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_text(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # an array of numpy, or one number of it
        return plain(value.tolist())
    return _text(str(value))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return whole if abs(whole) <= MOST_WHOLE else None
