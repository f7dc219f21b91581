"""What one transaction of the event store does to its tables."""

from __future__ import annotations

import json
import sqlite3

from edge_app.event_rows import values_of
from edge_app.evidence import Written
from edge_app.records import Counts, Event


def put_event(
    connection: sqlite3.Connection,
    event: Event,
    shown: Written,
    why: str | None,
    boot_id: str,
) -> tuple[int, list[str]]:
    """
    Insert an event; an episode that is there already is brought up to date instead.

    Parameters
    ----------
    connection : sqlite3.Connection
        Within a transaction.
    event : Event
    shown : Written
        Its pictures.
    why : str or None
        Why there are none, if there could be.
    boot_id : str

    Returns
    -------
    id : int
    replaced : list of str
        Names of pictures that no row names any more once this is committed.
    """
    values = values_of(event, boot_id)
    replaced: list[str] = []
    first = None
    if values["episode"] is not None:
        first = connection.execute(
            "SELECT id, frame, overlay, bytes, data FROM events WHERE boot_id = ? AND episode = ?",
            (boot_id, values["episode"]),
        ).fetchone()
    if first is not None:
        id, frame, overlay, size, data = first
        if shown.bytes:
            replaced = [name for name in (frame, overlay) if name]
        else:
            shown = Written(frame, overlay, size)
            # What was said of the first's pictures still holds.
            why = json.loads(data).get("pictures", None if size else why)
        # When it began stays as it was.
        del values["time_s"], values["boot_s"]
    if why is not None:
        values["data"]["pictures"] = why
    values["data"] = json.dumps(values["data"], ensure_ascii=False, allow_nan=False)
    values |= {"frame": shown.frame, "overlay": shown.overlay, "bytes": shown.bytes}
    if first is not None:
        changes = ", ".join(f"{column} = :{column}" for column in values)
        connection.execute(f"UPDATE events SET {changes} WHERE id = :id", {**values, "id": id})
        return id, replaced
    columns, places = ", ".join(values), ", ".join(f":{column}" for column in values)
    found = connection.execute(f"INSERT INTO events ({columns}) VALUES ({places})", values)
    return found.lastrowid, replaced


def add_counts(connection: sqlite3.Connection, counts: Counts) -> None:
    """Add to what was counted of the hour."""
    connection.executemany(
        "INSERT INTO counts (hour, name, count) VALUES (?, ?, ?) "
        "ON CONFLICT (hour, name) DO UPDATE SET count = count + excluded.count",
        [(int(counts.hour), name, int(count)) for name, count in counts.counts.items()],
    )


def end_cut_off_episodes(connection: sqlite3.Connection) -> None:
    """Mark episodes that nobody will end: the service was cut off while they lasted."""
    connection.execute(
        "UPDATE events SET data = json_set(data, '$.interrupted', json('true')) "
        "WHERE episode IS NOT NULL AND ended_s IS NULL "
        "AND json_extract(data, '$.interrupted') IS NULL"
    )


def drop_pictures(connection: sqlite3.Connection, ids: list[int], why: str) -> None:
    """Rows let go of their pictures, and say why."""
    connection.executemany(
        "UPDATE events SET frame = NULL, overlay = NULL, bytes = 0, "
        "data = json_set(data, '$.pictures', ?) WHERE id = ?",
        [(why, id) for id in ids],
    )
