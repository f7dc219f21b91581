"""
Outbox: takes what the frame loop has to say and hands it to a sink in a thread of its own.

The loop only ever puts something into a bounded queue. A sink may be as slow as it likes, fail and
come back: what it has not taken is offered to it again, and where too much waits the oldest goes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from edge_app.backoff import Backoff
from edge_app.records import Counts, Event, Result

Item = Result | Event | Counts

# For closing a sink whose last item has been taken: a disconnect message or a file's close.
CLOSE_S = 0.25

_log = logging.getLogger(__name__)


class GivenUp(Exception):
    """Raised by a sink whose other side will never take these items: they are not offered again."""


class Sink(Protocol):
    """
    Where results and events go.

    Two more are looked for and may be missing. ``wants(item) -> bool`` must not block; what it does
    not want takes no place in the queue. It is asked once for each item, in their order, by the
    threads that offer them but never by two at a time. ``problem`` is a sentence or None: what the
    sink knows to be wrong without having been given anything, as that its broker is away.

    Attributes
    ----------
    name : str
        One word, as pages and metrics show it.
    """

    name: str

    def emit(self, items: Sequence[Item]) -> None:
        """
        Take some items, in order. May block.

        It may raise anything: all of `items` are then offered again, after `GivenUp` none of them.
        """

    def close(self) -> None:
        """Let go of everything; called once, by the thread that calls `emit`."""


class Outbox:
    """
    A bounded queue before a sink, emptied by a thread of its own.

    Parameters
    ----------
    sink : Sink
    most : int
        Items that may wait. One more and the oldest is dropped.
    batch : int
        Items that are handed over at a time, at most.
    backoff : Backoff, optional
        Waits between the tries of a sink that fails; half a second to half a minute by default.
    on_change : callable, optional
        Takes one sentence each time the sink begins to fail or works again; called by the outbox's
        thread.

    Attributes
    ----------
    name : str
        The sink's.
    dropped : int
        Items that the sink never took: too many waited, which is logged when it begins, or it gave
        them up.
    failures : int
        Tries that failed.
    """

    def __init__(
        self,
        sink: Sink,
        most: int = 256,
        batch: int = 1,
        backoff: Backoff | None = None,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self.name = sink.name
        self.dropped = self.failures = 0
        self._failing: str | None = None
        self._sink, self._most, self._batch = sink, most, batch
        self._wants: Callable[[Item], bool] | None = getattr(sink, "wants", None)
        # A minute of trouble costs a few tries; half a minute after it has ended all is well.
        self._backoff = backoff or Backoff(0.5, 30.0)
        self._on_change = on_change
        # Guards all that follows and the counts; nobody holds it while the sink works.
        self._changed = threading.Condition()
        self._queue: deque[Item] = deque()
        self._taken = 0  # items that the sink has in its hands
        self._flooded = False  # items were dropped, since when some always waited
        self._until_s: float | None = None  # once it closes: tries end here
        self._emptied = False
        self._thread = threading.Thread(target=self._run, name=sink.name, daemon=True)
        self._thread.start()

    @property
    def failing(self) -> str | None:
        """Why the last try failed, or the next one will; None where all is well."""
        return self._failing or getattr(self._sink, "problem", None)

    @property
    def waiting(self) -> int:
        """Items that the sink has not taken yet."""
        return len(self._queue) + self._taken

    def offer(self, item: Item) -> bool:
        """
        Hand an item over; never waits for the sink.

        Returns
        -------
        bool
            False if for this one the oldest was dropped, or the outbox is closed.
        """
        with self._changed:
            if self._until_s is not None:
                self.dropped += 1
                return False
            if self._wants is not None and not self._wants(item):
                return True
            self._queue.append(item)
            fits = self._shorten()
            begins, self._flooded = not fits and not self._flooded, self._flooded or not fits
            self._changed.notify_all()
        if begins:
            _log.warning("%s: more than %d wait: the oldest are dropped", self.name, self._most)
        return fits

    def end(self, wait_s: float) -> None:
        """Begin to close and return at once: who has several ends them all, then closes each."""
        with self._changed:
            if self._until_s is None:
                self._until_s = time.monotonic() + wait_s
            self._changed.notify_all()

    def close(self, wait_s: float) -> bool:
        """
        Try to get rid of what waits, close the sink and end; any number of times.

        Parameters
        ----------
        wait_s : float
            Seconds for all of it, from the first `end` or `close`. A sink that blocks for longer is
            left to its thread, which ends with the process.

        Returns
        -------
        bool
            Whether the sink took everything that was waiting.
        """
        self.end(wait_s)
        self._thread.join(max(self._until_s - time.monotonic(), 0.0) + CLOSE_S)
        return self._emptied

    def _shorten(self) -> bool:
        excess = len(self._queue) - self._most
        for _ in range(excess):
            self._queue.popleft()
            self.dropped += 1
        return excess <= 0

    # The outbox's thread

    def _run(self) -> None:
        while (items := self._next()) is not None:
            try:
                self._sink.emit(items)
            except GivenUp as error:
                self._failed(error, [])
            # Whatever it raises, a thread that died of it would end this output for ever.
            except Exception as error:
                self._failed(error, items)
                self._rest(self._backoff.wait_s())
            else:
                self._worked()
        with self._changed:
            self._emptied = not self._queue
            self.dropped += len(self._queue)
            self._queue.clear()
        try:
            self._sink.close()
        except Exception as error:
            _log.warning("%s: could not be closed: %s", self.name, _sentence(error))

    def _next(self) -> list[Item] | None:
        with self._changed:
            while not self._queue and self._until_s is None:
                self._changed.wait()
            if not self._queue:
                return None
            if self._until_s is not None and time.monotonic() >= self._until_s:
                return None
            count = min(self._batch, len(self._queue))
            self._taken = count
            return [self._queue.popleft() for _ in range(count)]

    def _worked(self) -> None:
        with self._changed:
            self._taken = 0
            self._flooded = self._flooded and bool(self._queue)
            was, self._failing = self._failing, None
        self._backoff.reset()
        if was is not None:
            self._tell("works again")

    def _failed(self, error: Exception, again: list[Item]) -> None:
        sentence = _sentence(error)
        with self._changed:
            self.failures += 1
            if not again:
                self.dropped += self._taken
            self._taken = 0
            # In front of what has come meanwhile, and so the first to go if there is no room.
            self._queue.extendleft(reversed(again))
            self._shorten()
            was, self._failing = self._failing, sentence
        if was is None:
            self._tell(sentence)

    def _tell(self, sentence: str) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(f"{self.name}: {sentence}")
        except Exception:
            _log.exception("%s: its change could not be told", self.name)

    def _rest(self, wait_s: float) -> None:
        """Wait before the next try: at the end at once and then shortly, since time is short."""
        with self._changed:
            closing = self._until_s is not None
            due_s = time.monotonic() + wait_s
            while (left_s := due_s - time.monotonic()) > 0:
                if self._until_s is not None:
                    if not closing:
                        self._backoff.reset()
                        return
                    left_s = min(left_s, self._until_s - time.monotonic())
                    if left_s <= 0:
                        return
                self._changed.wait(left_s)


def _sentence(error: Exception) -> str:
    """What has happened, in one line: libraries' errors are often nothing without their class."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    known = isinstance(error, OSError | GivenUp) or type(error).__module__.startswith("edge_app.")
    return text if known else f"{type(error).__name__}: {text}"


def bare(item: Item) -> Item:
    """The same without any pictures: what waits for a broker must not hold the memory's worth."""
    if isinstance(item, Result):
        frame = item.frame
        if frame.frame_bgr is not None:
            frame = replace(frame, frame_bgr=None)
        return replace(item, frame=frame, overlay_bgr=None, map_01=None)
    if isinstance(item, Event):
        return replace(item, frame_bgr=None, overlay_bgr=None)
    return item
