"""
The event store: what happened, with pictures, on a disk that may fill up, break or lose its power.

The order of writes makes an event whole or absent, whenever the program or the board stops:

1. Each picture is written under a temporary name, synced (`fsync`), and renamed; then the folders
   are synced. From here on the pictures last, and no row names them yet.
2. One transaction inserts the rows of the whole batch. SQLite's write-ahead log with
   ``synchronous=FULL`` syncs the log before COMMIT returns: the rows last. Only then does `emit`
   return. A log that was cut off in the middle of a transaction is ignored from there on.
3. Pictures that the transaction has replaced are deleted.

Stopped before 2 is done, there are pictures without a row, which the next start sweeps away; the
batch was never acknowledged. Stopped after it, everything is there. Retention goes the other way
round: first the rows let go of their pictures (committed), then the files are deleted; stopped in
between there are again only pictures without a row. So a row never names a picture that is missing
or half written. This rests on a disk that keeps what it says it has synced. Killing the process at
any point is tested; loss of power is argued from this order only: some cards break the promise.

`emit` may be called again with a batch whose commit failed. Should the disk have failed in the one
moment between the log's last byte and the answer, an event can be there twice; none is lost.

A full disk gives up a file kept for it (the ballast), so that there is room for the transaction
that drops the oldest evidence. With no evidence left to drop, events go on without pictures.

A damaged database is set aside under another name, what can be read of it is taken over, and a new
one is begun. All of it is said by an event of kind ``storage``.

What runs beside it: readers (`EventReader`), at any time; `append` and `set_mark` from other
threads and processes. They and `emit` hold the lock file shared while they write; the sweep and the
setting aside hold it alone. The database's own file must not be opened by anything but SQLite:
closing it would drop the locks that the process has on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge_app.clock import Now, boot_id, read_now
from edge_app.config import EventsConfig
from edge_app.errors import InputError
from edge_app.event_reader import BUSY_S, EventReader, error_code, is_damage
from edge_app.event_rows import MARKS, create_tables
from edge_app.event_writer import add_counts, drop_pictures, end_cut_off_episodes, put_event
from edge_app.evidence import Evidence, Written, keep_owner
from edge_app.records import Counts, Event
from edge_app.retention import Retention
from edge_app.set_aside import Unusable, check, set_aside

LOCK = "lock"
# The log is carried over into the database at so many pages of 4 KiB, 1 MiB, and cut back to that:
# SQLite's own 4 MiB are much for a small full disk, and as a log is synced at every commit anyway,
# carrying over four times as often costs little.
LOG_PAGES = 256
LOG_BYTES = LOG_PAGES * 4096
# With less free a disk counts as full when SQLite cannot say why it failed: it does so with files
# that it makes or maps.
FULL_BYTES = 64 * 1024

_log = logging.getLogger(__name__)


class EventStore(EventReader):
    """
    Keeps events, counts and evidence in a folder.

    Parameters
    ----------
    folder : path
        ``events`` in the service's folder of state; made if it is not there.
    settings : EventsConfig
    on_change : callable, optional
        Gets a sentence when the disk becomes short or the database was set aside, and when that is
        over, from the thread that writes. It is logged too, and kept as an event.
    now : callable, optional
        The clocks.

    Attributes
    ----------
    problem : str or None
        What is wrong while nothing was given to it: the folder cannot be used yet, or the disk is
        short.

    Nothing is raised where the folder cannot be written: it is tried again with each `emit`, which
    raises. A database of a newer schema is set aside as a damaged one is, with its pictures.
    """

    name = "events"

    def __init__(
        self,
        folder: Path | str,
        settings: EventsConfig,
        on_change: Callable[[str], None] | None = None,
        now: Callable[[], Now] = read_now,
    ) -> None:
        super().__init__(folder)
        self._settings = settings
        self._on_change = on_change
        self._now = now
        self._boot_id = boot_id()
        self.problem: str | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = -1
        self._begun = False
        self._suspect = False  # a reader has met damage
        self._pictured: deque[float] = deque()  # times (boot_s) of events that kept pictures
        self._untold: deque[Event] = deque(maxlen=100)  # of the store's own, not yet written
        self._untidy = False  # retention fails
        self._retention = Retention(settings, self._evidence)
        try:
            self._opened()
        except (OSError, sqlite3.Error, Unusable) as error:
            self.problem = f"{self._path}: cannot be opened yet: {_why(error)}"
            _log.warning("%s", self.problem)

    @staticmethod
    def wants(item: object) -> bool:
        """What it keeps: events and counts, and no results."""
        return isinstance(item, Event | Counts)

    def emit(self, items: Sequence[Event | Counts]) -> None:
        """
        Keep a batch; what it holds lasts when this returns. For one thread only, the writer's.

        An episode that comes again takes the place of its first event: number, time and, unless
        it brings new ones, pictures stay. Counts are added to those of their hour.

        Parameters
        ----------
        items : sequence of Event or Counts

        Raises
        ------
        OSError
            If it could not be kept; nothing of the batch is there then.
        """
        own, pictures, renewed = list(self._untold), True, False
        items = [*own, *items]
        while True:
            try:
                connection = self._opened()
                with self._lock(fcntl.LOCK_SH):
                    self._keep(connection, self._evidence, items, pictures)
                break
            except (OSError, sqlite3.Error, Unusable) as error:
                if _is_damage(error) and not renewed:
                    renewed = True
                    self._renew(error)
                elif self._is_full(error) and pictures:
                    pictures = self._make_room()
                else:
                    self._close()
                    raise _as_os_error(self._path, error) from error
        self._told(own)
        self._tidy(connection)

    def append(self, event: Event) -> int:
        """
        Keep one event from another thread or process than the writer's, as safely.

        Returns
        -------
        int
            Its number.

        Raises
        ------
        InputError
            If it could not be kept.
        """
        evidence = Evidence(self.folder)
        try:
            evidence.prepare()
            with self._lock(fcntl.LOCK_SH), contextlib.closing(self._connect()) as connection:
                return self._keep(connection, evidence, [event], limited=False)[0]
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self._path}: cannot be written: {_why(error)}") from None

    def set_mark(self, id: int, mark: str | None) -> None:
        """
        Note what a person said of an event; from any thread and process.

        Parameters
        ----------
        id : int
        mark : {'false alarm', 'true defect'} or None
            None takes it back.

        Raises
        ------
        InputError
            If there is no such event or mark, or it could not be kept.
        """
        if mark is not None and mark not in MARKS:
            raise InputError(f"mark is {mark!r}, wanted {' or '.join(MARKS)} or none")
        if self.get(id) is None:
            raise InputError(f"there is no event {id}")
        try:
            with self._lock(fcntl.LOCK_SH), contextlib.closing(self._connect()) as connection:
                connection.execute("UPDATE events SET mark = ? WHERE id = ?", (mark, id))
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self._path}: cannot be written: {_why(error)}") from None

    def _met_damage(self) -> None:
        # What this connection holds in its cache may look well for months.
        self._suspect = True

    def close(self) -> None:
        """Let go of the database; any number of times. What was emitted lasts without it."""
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        descriptor = os.open(self.folder / LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _connect(self) -> sqlite3.Connection:
        new = not self._path.exists()
        connection = sqlite3.connect(
            self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            if new:
                keep_owner(self._path)  # SQLite gives its log to the same owner
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            create_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _opened(self) -> sqlite3.Connection:
        """The writer's connection; a database that was taken away or put back is opened anew."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode and not self._suspect:
                    return self._connection
            self._close()
        try:
            return self._open()
        except (Unusable, sqlite3.Error) as error:
            if not _is_damage(error):
                raise
            self._renew(error)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        self._evidence.prepare()
        check(self._path, thorough=self._suspect)
        self._suspect = False
        connection = self._connect()
        try:
            with contextlib.suppress(BlockingIOError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._sweep(connection)
            self._inode = os.stat(self._path).st_ino
        except BaseException:
            connection.close()
            raise
        self._evidence.take_ballast()
        self._connection, self.problem = connection, None
        return connection

    def _renew(self, problem: Exception) -> None:
        """Set the database aside and begin a new one with what can be read of it."""
        self._close()
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                sentence = set_aside(
                    self._evidence, self._path, problem, self._now(), self._connect
                )
        except BlockingIOError:
            raise OSError(
                errno.EAGAIN, f"is to be set aside ({problem}), but another program writes it"
            ) from None
        self._say(sentence)

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Files without a row, and names without a file, which only a hand or a backup leaves."""
        named = connection.execute("SELECT id, frame, overlay FROM events WHERE bytes > 0")
        rows = named.fetchall()
        kept = {name for _, *names in rows for name in names if name}
        removed, missing = self._evidence.sweep(kept)
        gone = {id for id, frame, overlay in rows if frame in missing or overlay in missing}
        drop_pictures(connection, gone, "missing")
        for id, *names in rows:
            if id in gone:
                self._evidence.remove(name for name in names if name)
        if removed or gone:
            _log.info(
                "%s: %d pictures without an event removed, %d events whose pictures are missing",
                self.folder, removed, len(gone),
            )  # fmt: skip

    def _keep(
        self,
        connection: sqlite3.Connection,
        evidence: Evidence,
        items: Sequence[Event | Counts],
        pictures: bool = True,
        limited: bool = True,
    ) -> list[int]:
        """Write pictures, then rows; returns the events' numbers."""
        pictured, committing = deque(self._pictured), False
        written: list[str] = []
        replaced: list[str] = []
        try:
            plans = []
            for item in items:
                if isinstance(item, Counts):
                    continue
                shown, why = Written(), None
                if item.frame_bgr is not None or item.overlay_bgr is not None:
                    why = "none: the disk is full"
                    if pictures:
                        why = self._refuse(item, pictured) if limited else None
                        if why is None:
                            shown, why = _write(evidence, item)
                            written += shown.names
                plans.append((item, shown, why))
            evidence.sync()
            connection.execute("BEGIN IMMEDIATE")
            if limited and not self._begun:
                end_cut_off_episodes(connection)
            ids = []
            for plan in plans:
                id, unnamed = put_event(connection, *plan, self._boot_id)
                ids.append(id)
                replaced += unnamed
            for item in items:
                if isinstance(item, Counts):
                    add_counts(connection, item)
            committing = True
            connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            # A commit that failed for want of room is not there. One whose sync failed may be, once
            # the log is read again: its pictures stay, and the next sweep knows.
            if not committing or error_code(error) == sqlite3.SQLITE_FULL:
                evidence.remove(written)
            raise
        if limited:
            self._begun, self._pictured = True, pictured
        evidence.remove(replaced)
        return ids

    def _refuse(self, event: Event, pictured: deque[float]) -> str | None:
        """Why an event's pictures are not kept; else its time is added to `pictured`."""
        most = self._settings.pictures_a_minute
        # A clock that went back: the board has started anew.
        while pictured and not event.boot_s - 60 < pictured[0] <= event.boot_s:
            pictured.popleft()
        if len(pictured) >= most:
            return f"none: more than {most} a minute"
        pictured.append(event.boot_s)
        return None

    def _is_full(self, error: Exception) -> bool:
        if isinstance(error, OSError):
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error_code(error) == sqlite3.SQLITE_FULL:
            return True
        try:
            return not _is_damage(error) and self._evidence.free_bytes() < FULL_BYTES
        except OSError:
            return False

    def _make_room(self) -> bool:
        """Give up the ballast, then drop the oldest evidence; False if there was none to drop."""
        self._evidence.drop_ballast()
        count = 0
        try:
            connection = self._opened()
            with self._lock(fcntl.LOCK_SH):
                count = self._retention.drop_for_room(connection)
        except (OSError, sqlite3.Error, Unusable) as error:
            _log.debug("%s: no room could be made: %s", self._path, error)
        self._short("The disk is full", count)
        return count > 0

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Retention after a commit; what fails here is no reason to offer the batch again."""
        try:
            with self._lock(fcntl.LOCK_SH):
                dropped = self._retention.after(connection, self._now())
            if dropped is not None:
                self._short(*dropped)
            elif self._retention.over():
                self.problem = None
                self._say("The disk has room again")
            self._evidence.take_ballast()
            if self._untold:
                own = list(self._untold)
                with self._lock(fcntl.LOCK_SH):
                    self._keep(connection, self._evidence, own)
                self._told(own)
            self._untidy = False
        except (OSError, sqlite3.Error) as error:
            if _is_damage(error):
                self._suspect = True  # looked at, and set aside, when it is opened next
            if not self._untidy:
                _log.warning("%s: nothing old can be dropped: %s", self._path, error)
            self._untidy = True

    def _told(self, own: list[Event]) -> None:
        """Events of the store's own are kept now."""
        for event in own:
            with contextlib.suppress(ValueError, IndexError):
                if self._untold[0] is event:
                    self._untold.popleft()

    def _short(self, why: str, count: int) -> None:
        """Say that evidence is dropped, once each time that it begins."""
        if not self._retention.begins(count == 0):
            return
        done = f"the pictures of the {count} oldest events were dropped"
        if not count:
            done = "there is no older evidence to drop, and events are kept without pictures"
        self.problem = f"{why}: {done}"
        self._say(self.problem)

    def _say(self, sentence: str) -> None:
        now = self._now()
        self._untold.append(Event("storage", now.time_s, now.boot_s, sentence))
        _log.warning("%s: %s", self.folder, sentence)
        if self._on_change is not None:
            self._on_change(sentence)


def _write(evidence: Evidence, event: Event) -> tuple[Written, str | None]:
    try:
        return evidence.write(event), None
    except ValueError as error:
        # Offered again it would fail again, and nothing behind it would be kept.
        return Written(), f"none: {error}"


def _is_damage(error: BaseException) -> bool:
    return isinstance(error, Unusable) or is_damage(error)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _as_os_error(path: Path, error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    return OSError(errno.EIO, f"{error}", str(path))
