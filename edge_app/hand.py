"""A hand: a thread that does one job after the other, for whoever must not wait for them."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_app.errors import EdgeAppError


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a value, or a sentence that says why not."""

    value: Any = None
    error: str | None = None


class Hand:
    """
    A thread that does one job after the other.

    Parameters
    ----------
    name : str
    most : int
        Jobs that may wait.

    Attributes
    ----------
    busy : bool
        Whether a job is being done or waits.
    """

    def __init__(self, name: str, most: int) -> None:
        self._jobs: queue.Queue[Callable[[], Any] | None] = queue.Queue(most)
        self._done: queue.Queue[Outcome] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._open = 0
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._open > 0

    def submit(self, job: Callable[[], Any]) -> bool:
        """Do this when what was submitted before is done; False if too much waits already."""
        with self._lock:
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                return False
            self._open += 1
        return True

    def done(self) -> list[Outcome]:
        """What has been done since this was asked last."""
        outcomes = []
        while True:
            try:
                outcomes.append(self._done.get_nowait())
            except queue.Empty:
                return outcomes

    def close(self, wait_s: float) -> None:
        """End the thread, after what is submitted is done or so many seconds have passed."""
        try:
            self._jobs.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome = Outcome(job())
            except EdgeAppError as error:
                outcome = Outcome(error=str(error))
            except OSError as error:
                outcome = Outcome(error=f"{error.filename or 'disk'}: {error.strerror}")
            except Exception as error:
                traceback.print_exc()
                outcome = Outcome(error=f"failed: {type(error).__name__}: {error}")
            self._done.put(outcome)
            with self._lock:
                self._open -= 1
