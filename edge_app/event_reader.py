"""
Reading the event store, from any thread and any process, while a service writes it or none does.

Each call opens the database for itself and lets go of it: a reader never holds up the writer, and
one that stops half-way leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from edge_app.errors import InputError
from edge_app.event_export import export
from edge_app.event_rows import COLUMNS, SCHEMA_VERSION, Row, create_tables, row_of
from edge_app.evidence import Evidence

DATABASE = "events.sqlite"
# A reader never waits for the writer, but for recovery after a crash, and for another writer.
BUSY_S = 5.0
# Rows that are read at a time where many are wanted; a longer read would hold back the checkpoint.
ROWS_AT_ONCE = 500


class EventReader:
    """
    The events below a folder.

    Parameters
    ----------
    folder : path
        Of the event store: ``events`` in the service's folder of state.

    Raises
    ------
    InputError
        By every method but `picture`, if the database cannot be read. Where there is none yet,
        there are no events.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._path = self.folder / DATABASE
        self._evidence = Evidence(self.folder)

    @property
    def exists(self) -> bool:
        """Whether there is a database."""
        return self._path.exists()

    def latest(
        self,
        n: int,
        before_id: int | None = None,
        kinds: Iterable[str] | None = None,
        since_s: float | None = None,
    ) -> list[Row]:
        """
        The newest events, the newest first.

        Parameters
        ----------
        n : int
            At most so many.
        before_id : int, optional
            Only events before this one.
        kinds : iterable of str, optional
            Only these kinds.
        since_s : float, optional
            Only events from then on, seconds since 1970 UTC.
        """
        where, values = ["1"], []
        if before_id is not None:
            where.append("id < ?")
            values.append(before_id)
        if since_s is not None:
            where.append("time_s >= ?")
            values.append(since_s)
        wanted = [None] if kinds is None else sorted(set(kinds))
        rows: list[Row] = []
        with self._reading() as connection:
            # One kind at a time finds its rows by index; several at once would search them all.
            for kind in wanted:
                rows += self._select(
                    connection,
                    where if kind is None else [*where, "kind = ?"],
                    values if kind is None else [*values, kind],
                    n,
                )
        return sorted(rows, key=lambda row: -row.id)[: max(n, 0)]

    @staticmethod
    def _select(
        connection: sqlite3.Connection, where: list[str], values: list[object], n: int
    ) -> list[Row]:
        order = f"WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        found = connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM events {order}", (*values, max(n, 0))
        )
        return [row_of(row) for row in found]

    def walk(
        self,
        limit: int | None = None,
        kinds: Iterable[str] | None = None,
        since_s: float | None = None,
    ) -> Iterator[Row]:
        """All events, as `latest`, read a few at a time; None as `limit` means all of them."""
        kinds = None if kinds is None else list(kinds)
        before_id, left = None, limit
        while left is None or left > 0:
            most = ROWS_AT_ONCE if left is None else min(ROWS_AT_ONCE, left)
            rows = self.latest(most, before_id, kinds, since_s)
            yield from rows
            if len(rows) < most:
                return
            before_id = rows[-1].id
            left = None if left is None else left - len(rows)

    def get(self, id: int) -> Row | None:
        """One event; None if there is none of this number, or no longer."""
        if not 0 < id < 2**63:
            return None
        with self._reading() as connection:
            rows = self._select(connection, ["id = ?"], [id], 1)
        return rows[0] if rows else None

    def picture(self, id: int, which: str) -> Path | None:
        """
        The file of an event's picture; never one outside the folder of pictures.

        Parameters
        ----------
        id : int
        which : {'frame', 'overlay'}

        Returns
        -------
        Path or None
            None where there is none. It may go at any moment, as older evidence does.
        """
        row = self.get(id) if which in ("frame", "overlay") else None
        return None if row is None else self._evidence.there(getattr(row, which))

    def picture_of(self, row: Row, which: str) -> Path | None:
        """As `picture`, of a row that was read before."""
        return self._evidence.there(getattr(row, which)) if which in ("frame", "overlay") else None

    def counts(self, since_hour: int) -> list[tuple[int, dict[str, int]]]:
        """What was counted in each hour since 1970 UTC, from `since_hour` on, in their order."""
        hours: dict[int, dict[str, int]] = {}
        with self._reading() as connection:
            for hour, name, count in connection.execute(
                "SELECT hour, name, count FROM counts WHERE hour >= ? ORDER BY hour, name",
                (since_hour,),
            ):
                hours.setdefault(hour, {})[name] = count
        return list(hours.items())

    def totals(self) -> dict[str, int | float | None]:
        """
        What is kept: `events`, those of them with `pictures`, the pictures' `bytes`, `oldest_s`.

        `oldest_s` is the time of the first event, seconds since 1970 UTC; None without events.
        """
        with self._reading() as connection:
            events = connection.execute("SELECT count(*) FROM events").fetchone()[0]
            pictures, size = evidence_kept(connection)
            oldest = connection.execute("SELECT time_s FROM events ORDER BY id LIMIT 1").fetchone()
        return {
            "events": events,
            "pictures": pictures,
            "bytes": size,
            "oldest_s": None if oldest is None else oldest[0],
        }

    def last_of(self, kind: str) -> Row | None:
        """The newest event of a kind."""
        rows = self.latest(1, kinds=(kind,))
        return rows[0] if rows else None

    def last_id(self) -> int:
        """Number of the newest event, 0 before the first; it never goes back."""
        with self._reading() as connection:
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
            row = found.fetchone()
        return 0 if row is None else row[0]

    def export(self, rows: Iterable[Row], target: Path | str | IO[bytes], kind: str) -> int:
        """Write events to a file; parameters and errors as of `event_export.export`."""
        return export(rows, target, kind, self.picture_of)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, to an empty database where there is none."""
        try:
            connection = self._open_to_read()
            try:
                yield connection
            finally:
                connection.close()
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            if is_damage(error):
                self._met_damage()
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{self._path}: cannot be read: {why}") from None

    def _met_damage(self) -> None:
        """A reader can only say so."""

    def _open_to_read(self) -> sqlite3.Connection:
        if not self.exists:
            connection = sqlite3.connect(":memory:")
            create_tables(connection)
            return connection
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_S)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            # A database that was just begun is as good as none.
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if self._path.with_name(DATABASE + "-wal").exists():
                raise
            # Who may not write here cannot set up the index that readers of a write-ahead log
            # share. There is no log, so no service has it open, and the file is all there is.
            connection = sqlite3.connect(address + "&immutable=1", uri=True)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.close()
            connection = sqlite3.connect(":memory:")
            create_tables(connection)
        elif version > SCHEMA_VERSION:
            connection.close()
            raise InputError(
                f"{self._path}: schema {version} is of a newer edge-app, this one reads "
                f"{SCHEMA_VERSION}"
            )
        return connection


def evidence_kept(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many events have pictures, and the pictures' bytes."""
    return connection.execute(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM events WHERE bytes > 0"
    ).fetchone()


def error_code(error: BaseException) -> int | None:
    """SQLite's primary error code; None for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(error: BaseException) -> bool:
    """Whether SQLite has found its file damaged, or none of its own."""
    return error_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
