"""
A database that cannot be used: set aside under another name, with what can be read of it saved.

Its files stay beside the new one, for ``sqlite3 FILE .recover``. Rows are read from both ends as
far as they go; those of the pages that are broken are lost, and with them the names of their
pictures, which the sweep then removes.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_app.clock import Now
from edge_app.event_rows import COLUMNS, SCHEMA_VERSION, row_of
from edge_app.evidence import Evidence, sync_folder

# Set-aside databases that are kept: more would fill a disk that damages one after the other.
MOST_ASIDE = 3
# Larger ones are not read through at every start: 64 MB take a card of 20 MB/s three seconds.
# Damage in them is found when it is met.
MOST_CHECKED_BYTES = 64_000_000


class Unusable(Exception):
    """A database that another has to take the place of; the text says what is wrong with it."""


class Newer(Unusable):
    """It was written by a newer program, and is whole."""


_log = logging.getLogger(__name__)


def check(path: Path, thorough: bool = False) -> None:
    """
    Look whether a database is whole, if there is one.

    Parameters
    ----------
    path : Path
    thorough : bool
        Read it through however large it is.

    Raises
    ------
    Unusable
        If it is not, or newer.
    sqlite3.Error
        If it is too damaged to be asked, or cannot be opened.
    """
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise Newer(f"schema {version} of a newer edge-app, this one knows {SCHEMA_VERSION}")
        if thorough or path.stat().st_size <= MOST_CHECKED_BYTES:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise Unusable(" ".join(found.split()))
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if version and not {"events", "counts"} <= tables:
            raise Unusable("its tables are missing")


def set_aside(
    evidence: Evidence,
    path: Path,
    problem: Exception,
    now: Now,
    connect: Callable[[], sqlite3.Connection],
) -> str:
    """
    Rename a database and begin a new one; nobody else may write meanwhile.

    Parameters
    ----------
    evidence : Evidence
    path : Path
        The database.
    problem : Exception
        What is wrong with it.
    now : Now
    connect : callable
        Makes the new database.

    Returns
    -------
    str
        One sentence that says what was done.

    Raises
    ------
    OSError, sqlite3.Error
    """
    newer = isinstance(problem, Newer)
    old = _free_name(path, "newer" if newer else "damaged", now)
    if newer:
        # Its rows are not ours to read, so its pictures go with it, or the sweep would take them.
        with contextlib.suppress(FileNotFoundError):
            evidence.pictures.rename(old.with_suffix(".pictures"))
    # The log before the database: cut off in between, a database without its log is still one, but
    # a log without its database would be taken for the new one's.
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{old}{suffix}")
    evidence.prepare()
    sync_folder(path.parent)
    _forget_old(path.parent)
    saved = 0
    with contextlib.closing(connect()) as connection:
        if not newer:
            try:
                saved = _save(old, connection)
            except (sqlite3.Error, OSError) as error:
                _log.warning("%s: nothing could be taken over: %s", old, error)
    done = "" if newer else f", {saved} events of it were saved"
    return f"The database is unusable ({problem}): it was set aside as {old.name}{done}"


def _free_name(path: Path, what: str, now: Now) -> Path:
    try:
        stamp = datetime.fromtimestamp(now.time_s, UTC).strftime("%Y%m%dT%H%M%S")
    except (ValueError, OverflowError, OSError):
        stamp = "undated"
    number, name = 1, f"{what}_{stamp}.sqlite"
    while (path.parent / name).exists():
        number += 1
        name = f"{what}_{stamp}_{number}.sqlite"
    return path.parent / name


def _forget_old(folder: Path) -> None:
    aside = sorted(folder.glob("damaged_*.sqlite"), key=lambda path: path.stat().st_mtime)
    for path in aside[:-MOST_ASIDE]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{path}{suffix}").unlink()


def _save(old: Path, new: sqlite3.Connection) -> int:
    """Take over rows and counts as far as they can be read; returns how many events."""
    columns, places = ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS))
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as source:
        source.execute("PRAGMA query_only = 1")
        new.execute("BEGIN IMMEDIATE")
        try:
            # Upwards to the first broken page, then downwards to the last one.
            for order in ("ASC", "DESC"):
                _copy(
                    source,
                    f"SELECT {columns} FROM events ORDER BY id {order}",
                    new,
                    f"INSERT INTO events ({columns}) VALUES ({places})",
                )
            _copy(
                source,
                "SELECT hour, name, count FROM counts",
                new,
                "INSERT OR IGNORE INTO counts (hour, name, count) VALUES (?, ?, ?)",
            )
            _keep_numbering(source, new)
            saved = new.execute("SELECT count(*) FROM events").fetchone()[0]
        except BaseException:
            new.rollback()
            raise
        new.execute("COMMIT")
    return saved


def _copy(source: sqlite3.Connection, select: str, new: sqlite3.Connection, insert: str) -> None:
    for row in _readable(source, select):
        try:
            if len(row) == len(COLUMNS):
                row_of(row)
            new.execute(insert, row)
        except (ValueError, TypeError, sqlite3.IntegrityError):
            # What is in it cannot be meant, or the other direction has brought it already.
            continue


def _readable(source: sqlite3.Connection, select: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
        yield from source.execute(select)


def _keep_numbering(source: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """No number is given out twice, also of events that were dropped or lost."""
    with contextlib.suppress(sqlite3.DatabaseError):
        last = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        if last is not None and isinstance(last[0], int):
            new.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
            highest = new.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
            new.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)",
                (max(last[0], highest),),
            )
