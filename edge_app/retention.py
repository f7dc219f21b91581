"""
Retention: which events are dropped, and which lose their pictures, so that the disk suffices.

Rows let go of their pictures in a committed transaction before the files are deleted. The oldest go
first, by their number: the number is true where the clock is not.
"""

from __future__ import annotations

import sqlite3

from edge_app.clock import Now
from edge_app.config import EventsConfig
from edge_app.event_reader import evidence_kept
from edge_app.event_rows import MOST_WHOLE
from edge_app.event_writer import drop_pictures
from edge_app.evidence import BALLAST_BYTES, Evidence

MEGABYTE = 1e6
# Events dropped by one transaction: the ballast must hold it.
DROPPED_AT_ONCE = 64
# Rows deleted for their age by one transaction; that may wait for a disk with room.
DELETED_AT_ONCE = 1000
# What a full disk gets back at a time: the ballast again, and room for some pictures.
ROOM_BYTES = 4 * BALLAST_BYTES
# A disk counts as short until so many times what must be free is free, and more than what dropping
# gives back by itself; or each picture would be an end and a beginning.
ROOM_AGAIN = 1.25
ROOM_AGAIN_BYTES = 4 * ROOM_BYTES
# A row takes 360 bytes, its indices included: at most 360 MB of database.
MOST_ROWS = 1_000_000
# How often age and number of rows are looked at: both change slowly.
LOOK_S = 600.0
# Before this the clock cannot be right: 2024-01-01, before this program was.
LEAST_TIME_S = 1_704_067_200.0
# Nothing is dropped for its age before wall and boot clock have agreed for so long: a clock that
# was set wrong for a while must not cost a year of events.
STEADY_S = 3600.0
# By so much they may disagree: the network's time is stepped to within a second, a leap more.
STEADY_WITHIN_S = 60.0


class Retention:
    """
    Drops what is too old or too much.

    Parameters
    ----------
    settings : EventsConfig
    evidence : Evidence
    """

    def __init__(self, settings: EventsConfig, evidence: Evidence) -> None:
        self._settings = settings
        self._evidence = evidence
        self._short = self._nothing_left = False
        self._looked_s: float | None = None
        self._offset_s: float | None = None
        self._steady_since_s = 0.0

    def begins(self, nothing_left: bool = False) -> bool:
        """Note that the disk is short, and that nothing is left to drop; whether that is new."""
        new = not self._short or nothing_left and not self._nothing_left
        self._short, self._nothing_left = True, self._nothing_left or nothing_left
        return new

    def over(self) -> bool:
        """Whether the disk was short and is no longer; asked once, it is forgotten."""
        least = self._settings.keep_free_mb * MEGABYTE * ROOM_AGAIN
        if not self._short or self._evidence.free_bytes() < max(least, ROOM_AGAIN_BYTES):
            return False
        self._short = self._nothing_left = False
        return True

    def after(self, connection: sqlite3.Connection, now: Now) -> tuple[str, int] | None:
        """
        What is due after a commit.

        Returns
        -------
        why : str
        count : int
            Events that lost their pictures because the disk is short; None in place of both where
            it is not. What `keep_mb` and `keep_days` drop is as it should be and not told.

        Raises
        ------
        sqlite3.Error, OSError
        """
        self._by_age(connection, now)
        over = evidence_kept(connection)[1] - self._settings.keep_mb * MEGABYTE
        if over > 0:
            self.drop(connection, over, f"dropped: more than {self._settings.keep_mb} MB")
        return self._by_room(connection)

    def _by_room(self, connection: sqlite3.Connection) -> tuple[str, int] | None:
        wanted = self._settings.keep_free_mb * MEGABYTE
        if self._evidence.free_bytes() >= wanted:
            return None
        count = 0
        # Files may share blocks and take whole ones: only the disk knows what a file gave back.
        while (missing := wanted - self._evidence.free_bytes()) > 0:
            dropped = self.drop(connection, missing, "dropped: the disk was full")
            if not dropped:
                break
            count += dropped
        return f"Less than {self._settings.keep_free_mb} MB are free on the disk", count

    def drop_for_room(self, connection: sqlite3.Connection) -> int:
        """Drop the oldest evidence of a full disk, a little; returns of how many events."""
        return self.drop(connection, ROOM_BYTES, "dropped: the disk was full")

    def drop(self, connection: sqlite3.Connection, least_bytes: float, why: str) -> int:
        """
        Drop the oldest evidence until `least_bytes` are given back or none is left.

        Returns
        -------
        int
            Events that lost their pictures.
        """
        count = 0
        while least_bytes > 0:
            rows = connection.execute(
                "SELECT id, frame, overlay, bytes FROM events WHERE bytes > 0 ORDER BY id LIMIT ?",
                (DROPPED_AT_ONCE,),
            ).fetchall()
            ids, names = [], []
            for id, frame, overlay, size in rows:
                if least_bytes <= 0:
                    break
                ids.append(id)
                names += [name for name in (frame, overlay) if name]
                least_bytes -= size
            if not ids:
                break
            with _transaction(connection):
                drop_pictures(connection, ids, why)
            self._evidence.remove(names)
            count += len(ids)
        return count

    def _by_age(self, connection: sqlite3.Connection, now: Now) -> None:
        """Whole rows, by age and number, now and then."""
        offset_s = now.time_s - now.boot_s
        if self._offset_s is None or abs(offset_s - self._offset_s) > STEADY_WITHIN_S:
            self._offset_s, self._steady_since_s = offset_s, now.boot_s
        if self._looked_s is not None and 0 <= now.boot_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now.boot_s
        row = connection.execute("SELECT max(id) FROM events").fetchone()
        last = 0
        if now.boot_s - self._steady_since_s >= STEADY_S and now.time_s > LEAST_TIME_S:
            cutoff_s = now.time_s - self._settings.keep_days * 86_400
            # Events before one that is surely too old are older still, whatever time they bear;
            # one from before the clock was set is judged by those after it. None is too old that
            # comes after one that is not: its clock was behind, as after a start without network.
            last = connection.execute(
                "SELECT coalesce(max(id), 0) FROM events WHERE time_s BETWEEN ? AND ? AND id < "
                "(SELECT coalesce(min(id), ?) FROM events WHERE time_s > ? AND time_s <= ?)",
                (LEAST_TIME_S, cutoff_s, MOST_WHOLE, cutoff_s, now.time_s),
            ).fetchone()[0]
            with _transaction(connection):
                connection.execute(
                    "DELETE FROM counts WHERE hour BETWEEN ? AND ?",
                    (int(LEAST_TIME_S // 3600), int(cutoff_s // 3600) - 1),
                )
        count = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        if row[0] is not None and count > MOST_ROWS:
            last = max(last, row[0] - MOST_ROWS)
        self._delete_to(connection, last)

    def _delete_to(self, connection: sqlite3.Connection, last: int) -> None:
        while last > 0:
            rows = connection.execute(
                "SELECT id, frame, overlay FROM events WHERE id <= ? ORDER BY id LIMIT ?",
                (last, DELETED_AT_ONCE),
            ).fetchall()
            if not rows:
                break
            with _transaction(connection):
                connection.executemany("DELETE FROM events WHERE id = ?", [row[:1] for row in rows])
            self._evidence.remove(name for _, *names in rows for name in names if name)


class _transaction:
    """Begin, and commit or roll back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._connection.rollback()
                raise
        else:
            self._connection.rollback()
