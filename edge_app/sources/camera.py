"""
A camera as a source: its newest picture, or why there is none.

A thread reads the camera as fast as it delivers and keeps the newest picture only, so whoever takes
one never gets a picture that waited behind others. A camera that goes away is tried again, first
soon, then ever more slowly; meanwhile its frames say so.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_app.backoff import Backoff
from edge_app.config import CameraConfig
from edge_app.errors import CameraError
from edge_app.records import Frame
from edge_app.sources.device import Device

# A person waiting for the camera looks about once a second.
REPEAT_S = 1.0
# By then any camera at 2 frames a second or more has come back from a read that does not hang.
PATIENCE_S = 0.5
NOT_OPENED = "not opened yet"
# While a camera is away the journal is told so each so many seconds, and no oftener.
TELL_AGAIN_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    index: int
    frame_bgr: np.ndarray
    read_ms: float
    captured_s: float


class Absence:
    """
    What the journal is told of a camera that is away: not each try, of which there are thousands.

    Attributes
    ----------
    tries : int
        In vain since it was lost.
    """

    def __init__(self) -> None:
        self.tries = 0
        self._since_s: float | None = None
        self._told_s = 0.0

    def lost(self, why: str, now_s: float) -> str | None:
        """It was lost at `now_s`, or a try was in vain; what to tell, if anything."""
        if self._since_s is None:
            self._since_s = self._told_s = now_s
            self.tries = 0
            return f"lost ({why}); it is tried again"
        self.tries += 1
        if now_s - self._told_s < TELL_AGAIN_S:
            return None
        self._told_s = now_s
        return f"still lost ({why}), {self._so_far(now_s)}"

    def back(self, now_s: float) -> str | None:
        """It gives pictures; what to tell, if it was lost before."""
        if self._since_s is None:
            return None
        self.tries += 1  # the one that was not in vain
        said = f"back again, {self._so_far(now_s)}"
        self._since_s = None
        return said

    def _so_far(self, now_s: float) -> str:
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        return f"after {now_s - self._since_s:.1f} s and {tries}"


class CameraSource:
    """
    The newest picture of a camera, whenever one is asked for.

    Every picture that the device delivers is either taken or counted as dropped. One that was
    not taken when the camera was lost is dropped: after a loss no picture is from before it.

    Parameters
    ----------
    device : Device
    settings : CameraConfig
        `hang_s`, `retry_first_s` and `retry_most_s` are used here, the rest by the device.
    patient : bool
        True starts lost and goes on trying, where the first open would raise.

    Attributes
    ----------
    delivered : int
        Pictures that the device has delivered.
    dropped : int
        Those of them that nobody took.

    Raises
    ------
    CameraError
        If the camera cannot be opened and `patient` is False.
    """

    live = True
    separate_parts = False

    def __init__(self, device: Device, settings: CameraConfig, patient: bool = False) -> None:
        self._device = device
        self._hang_s = settings.hang_s
        self._backoff = Backoff(settings.retry_first_s, settings.retry_most_s)
        self._closing = threading.Event()
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self.delivered = 0
        self.dropped = 0
        self._slot: _Picture | None = None
        self._lost = False
        self._untold = False  # a loss that no frame has told of yet
        self._why = ""
        self._next_try_s = 0.0
        self._told_s = -math.inf
        self._inside_since_s: float | None = None
        self._absence = Absence()  # the reader's
        if patient:
            self._lost = True
            self._why = NOT_OPENED
            # A camera that opens at once was never lost.
            self._told_s = time.monotonic()
        else:
            try:
                device.open()
            except BaseException:
                device.close()
                raise
        self._waiting_since_s = time.monotonic()
        self._reader = threading.Thread(
            target=self._run, args=(not patient,), name=f"reader of {device.name}", daemon=True
        )
        self._reader.start()

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    def frames(self) -> Iterator[Frame]:
        """
        Frames until the source is closed, each the newest at the time it is asked for.

        `index` counts the pictures delivered by the camera, from 0: gaps are dropped ones. A frame
        without a picture bears the index of the picture that it waits for, and a `problem`:
        ``camera: lost (why), next try in 4 s``, at once and then every second until the camera is
        back, or ``camera: no picture for 2.3 s``, likewise.
        """
        while (frame := self._next()) is not None:
            yield frame

    def end(self) -> None:
        """Whoever takes frames gets no more; by any thread, and `close` is to follow."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()

    @property
    def stuck_s(self) -> float:
        """For how long the device has not come back from a call, seconds; 0 between calls."""
        since_s = self._inside_since_s
        return 0.0 if since_s is None else max(time.monotonic() - since_s, 0.0)

    def close(self, wait_s: float | None = None) -> None:
        """
        End the thread and let go of the camera; any number of times, by any thread.

        Where the device hangs, its thread is left behind after a while, `wait_s` seconds if given;
        it lets go of the camera should it ever return.
        """
        self.end()
        self._reader.join(PATIENCE_S if wait_s is None else min(wait_s, PATIENCE_S))
        if self._reader.is_alive():
            self._close_device()  # wakes what can be woken
            longest_s = self._hang_s + PATIENCE_S
            self._reader.join(longest_s if wait_s is None else min(wait_s, longest_s))
        with self._changed:
            self._drop_slot()

    # The taker's side

    def _next(self) -> Frame | None:
        with self._changed:
            while not self._closing.is_set():
                now_s = time.monotonic()
                if self._untold:
                    self._untold = False
                    return self._problem(self._loss_text(now_s), now_s)
                if self._slot is not None and now_s - self._slot.captured_s > self._hang_s:
                    # The taker was away so long, and nothing newer came.
                    self._drop_slot()
                if self._slot is not None:
                    return self._take()
                due_s = self._told_s + REPEAT_S
                if not self._lost:
                    due_s = max(due_s, self._waiting_since_s + self._hang_s)
                if now_s < due_s:
                    self._changed.wait(due_s - now_s)
                elif self._lost:
                    return self._problem(self._loss_text(now_s), now_s)
                else:
                    waited_s = now_s - self._waiting_since_s
                    return self._problem(f"camera: no picture for {waited_s:.1f} s", now_s)
        return None

    def _take(self) -> Frame:
        picture, self._slot = self._slot, None
        return Frame(
            picture.index,
            self._device.name,
            picture.frame_bgr,
            read_ms=picture.read_ms,
            captured_s=picture.captured_s,
            dropped=self.dropped,
        )

    def _problem(self, problem: str, now_s: float) -> Frame:
        self._told_s = now_s
        return Frame(self.delivered, self._device.name, None, problem=problem, dropped=self.dropped)

    def _loss_text(self, now_s: float) -> str:
        if self._lost and self._why == NOT_OPENED:
            return f"camera: {NOT_OPENED}"
        if not self._lost:
            then = "back again"
        elif now_s < self._next_try_s:
            then = f"next try in {math.ceil(self._next_try_s - now_s)} s"
        else:
            then = "trying now"
        return f"camera: lost ({self._why}), {then}"

    # The reader's side

    def _run(self, opened: bool) -> None:
        while not self._closing.is_set():
            try:
                if not opened:
                    with self._inside():
                        self._device.open()
                    opened = True
                self._read_on()
            except CameraError as error:
                why = str(error).removeprefix(f"{self._device.name}: ")
            # Whatever a driver's binding raises, a reader that died of it would leave the line
            # waiting for ever.
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if self._closing.is_set():
                break
            opened = False
            wait_s = self._backoff.wait_s()
            self._lose(why, wait_s)
            self._close_device()
            self._closing.wait(wait_s)
        self._close_device()

    def _read_on(self) -> None:
        """Put picture after picture into the slot; returns when the source is closed."""
        while not self._closing.is_set():
            started = time.perf_counter()
            with self._inside():
                frame_bgr = self._device.read()
            read_ms = (time.perf_counter() - started) * 1e3
            with self._changed:
                self._drop_slot()
                now_s = time.monotonic()
                self._slot = _Picture(self.delivered, frame_bgr, read_ms, now_s)
                self.delivered += 1
                self._waiting_since_s = now_s
                self._lost = False
                self._changed.notify_all()
            self._tell(self._absence.back(now_s))
            # Not at the open: a camera that opens and gives nothing is still lost.
            self._backoff.reset()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """While the device is called; what never returns is told by `stuck_s`."""
        self._inside_since_s = time.monotonic()
        try:
            yield
        finally:
            self._inside_since_s = None

    def _lose(self, why: str, wait_s: float) -> None:
        self._tell(self._absence.lost(why, time.monotonic()))
        with self._changed:
            self._drop_slot()
            if not self._lost or why != self._why:
                self._untold = True
            self._lost = True
            self._why = why
            self._next_try_s = time.monotonic() + wait_s
            self._changed.notify_all()

    def _tell(self, said: str | None) -> None:
        if said is not None:
            _log.info("%s: %s", self._device.name, said)

    def _drop_slot(self) -> None:
        if self._slot is not None:
            self._slot = None
            self.dropped += 1

    def _close_device(self) -> None:
        # A driver that fails to close a camera that is gone has nothing left to close.
        with contextlib.suppress(Exception):
            self._device.close()
