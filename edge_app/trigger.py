"""
Trigger: from the announcements of parts to the frames that show them.

A key, an input pin, a message or a request says when a part is announced; the gate says of each
frame whether it belongs to one. It compares times that others give it and has no clock.
"""

from __future__ import annotations

import bisect
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from edge_app.config import TriggerConfig
from edge_app.errors import ConfigError, InputError

Turn = Literal["idle", "first", "more", "last", "only"]

# Parts announced and not yet in view. More than a conveyor carries between sensor and camera; a
# sensor that fires while nobody takes frames must not fill the memory.
MOST_WAITING = 1000
# A part is taken to have gone on so many seconds after it was due; no camera that is not lost keeps
# one waiting for so long.
LATEST_S = 2.0


class Gate:
    """
    Opens a part for a number of frames after each announcement. Any thread may call it.

    Parameters
    ----------
    settings : TriggerConfig
        `debounce_s`, `delay_s` and `frames`.

    Attributes
    ----------
    missed : int
        Announced parts that did not get all their frames, since the next one was due before.
    unseen : int
        Of these, those that got none: there was no frame within `LATEST_S`, or before the next.
    opened_s : float or None
        When the part that is open, or was last, was announced.
    unseen_s : deque of float
        The same of those in `unseen`; whoever tells of one takes it out.
    """

    def __init__(self, settings: TriggerConfig) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._fired_s: float | None = None
        self._due_s: list[float] = []  # rising
        self._left = 0
        self.missed = 0
        self.unseen = 0
        self.opened_s: float | None = None
        self.unseen_s: deque[float] = deque(maxlen=MOST_WAITING)

    def fire(self, at_s: float) -> bool:
        """
        Announce a part.

        Parameters
        ----------
        at_s : float
            When, in seconds on the clock of the frames' `captured_s`.

        Returns
        -------
        announced : bool
            False where it is the bounce of a trigger less than `debounce_s` away. A bounce does
            not prolong that time: a contact that never rests announces parts that are seen to be
            none, rather than no part ever again.
        """
        with self._lock:
            # Two threads may come out of order, hence the absolute value.
            if self._fired_s is not None and abs(at_s - self._fired_s) < self._settings.debounce_s:
                return False
            self._fired_s = at_s
            bisect.insort(self._due_s, at_s + self._settings.delay_s)
            if len(self._due_s) > MOST_WAITING:
                self._never_seen(self._due_s.pop(0))
                self.missed += 1
            return True

    def _never_seen(self, due_s: float) -> None:
        self.unseen_s.append(due_s - self._settings.delay_s)
        self.unseen += 1  # after it: who sees the count takes the time out, without the lock

    def take(self, at_s: float) -> Turn:
        """
        Whether a frame belongs to a part; asked once for each frame, in their order.

        Parameters
        ----------
        at_s : float
            When the frame was captured, in seconds.

        Returns
        -------
        turn : {'idle', 'first', 'more', 'last', 'only'}
            'idle': to none. 'only': it is all frames of its part. 'first' may come while a part is
            open: that one ends without 'last', counted in `missed`, as from here on the frames
            show the next.
        """
        with self._lock:
            opened = False
            while self._due_s and self._due_s[0] <= at_s:
                due_s = self._due_s.pop(0)
                if self._left:
                    self.missed += 1
                    # Opened by this very frame, and overtaken at once.
                    if opened:
                        self._never_seen(self.opened_s + self._settings.delay_s)
                self._left, opened = self._settings.frames, True
                self.opened_s = due_s - self._settings.delay_s
                if at_s - due_s > LATEST_S:
                    # What is in view by now is something else.
                    self.missed += 1
                    self._never_seen(due_s)
                    self._left, opened = 0, False
            if not self._left:
                return "idle"
            self._left -= 1
            if opened:
                return "first" if self._left else "only"
            return "more" if self._left else "last"


class GpioInput:
    """
    An input pin that announces parts to a gate.

    With the edge ``falling`` the pin is pulled up, for a button or sensor that switches to ground;
    with ``rising`` it is pulled down. A pin that is already active at the start announces nothing
    until it is released and comes again.

    Parameters
    ----------
    settings : TriggerConfig
        `gpio_pin` and `gpio_edge`.
    gate : Gate
        Debounces.
    clock : callable
        The clock of the frames' `captured_s`, in seconds.
    pin_factory : gpiozero.Factory, optional
        How gpiozero reaches the pins; without it gpiozero's own choice.

    Raises
    ------
    ConfigError
        Where there are no pins, or not this one, or a library is missing: another try gives no
        other answer.
    InputError
        Where the pin cannot be had now: somebody else holds it, or the device is closed to us.
    """

    def __init__(
        self,
        settings: TriggerConfig,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
        pin_factory: Any = None,
    ) -> None:
        try:
            from gpiozero import DigitalInputDevice
            from gpiozero.exc import PinError
        except ImportError:
            raise ConfigError(
                f"trigger: GPIO {settings.gpio_pin} needs gpiozero: "
                "sudo apt install python3-gpiozero python3-lgpio"
            ) from None
        try:
            with warnings.catch_warnings():
                # One for each library it tries; the error says what to do.
                warnings.simplefilter("ignore")
                self._device = DigitalInputDevice(
                    settings.gpio_pin,
                    pull_up=settings.gpio_edge == "falling",
                    pin_factory=pin_factory,
                )
        # gpiozero lets its pin libraries' own errors through; lgpio's is a plain Exception. An
        # ImportError is a library that is not there, or none that finds pins on this machine.
        except Exception as error:
            lasting = isinstance(error, (ImportError, PinError))
            raise (ConfigError if lasting else InputError)(
                f"trigger: GPIO {settings.gpio_pin} cannot be read: {error} (wanted a free pin of "
                "a Raspberry Pi, python3-lgpio installed, and you in group gpio)"
            ) from error
        # Active is low with the pull-up and high with the pull-down: either way the edge wanted.
        self._device.when_activated = lambda: gate.fire(clock())

    def close(self) -> None:
        """Give the pin back; any number of times."""
        self._device.close()
