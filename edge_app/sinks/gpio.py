"""Output pins of a Raspberry Pi: a pulse that rejects a part, and lamps that show the verdict."""

from __future__ import annotations

import bisect
import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from edge_app.backoff import Backoff
from edge_app.config import GpioConfig
from edge_app.errors import ConfigError, InputError
from edge_app.outbox import GivenUp, Item
from edge_app.records import Result, Verdict

# Waits between two tries at a pin, seconds: one that should be off is not left on for long.
FIRST_S, MOST_S = 0.1, 5.0
# The frame loop turns at least once a second, camera or not: after so many seconds without a turn
# it hangs. It is looked at so often.
SILENT_S, LISTEN_S = 3.0, 0.5

_log = logging.getLogger(__name__)


class Windows:
    """
    When a pin is to be on: the union of windows of time, those that are over forgotten.

    Attributes
    ----------
    spans_s : list of tuple of float
        Beginnings and ends in seconds, rising and apart.
    begun : bool
        Whether the pin has been on for the first of them; whoever drives it sets this.
    missed : int
        Of those that are over, for how many it never was.
    """

    def __init__(self) -> None:
        self.spans_s: list[tuple[float, float]] = []
        self.begun = False
        self.missed = 0

    def add(self, start_s: float, end_s: float) -> None:
        """One more; what it overlaps or touches becomes one with it."""
        spans_s = self.spans_s
        first = bisect.bisect_left(spans_s, start_s, key=lambda span: span[1])
        last = bisect.bisect_right(spans_s, end_s, key=lambda span: span[0])
        if first < last:
            start_s = min(start_s, spans_s[first][0])
            end_s = max(end_s, spans_s[last - 1][1])
        spans_s[first:last] = [(start_s, end_s)]

    def at(self, now_s: float) -> tuple[bool, float | None]:
        """Whether the pin is to be on, and until when that holds; None: for ever."""
        while self.spans_s and self.spans_s[0][1] <= now_s:
            del self.spans_s[0]
            self.missed += not self.begun
            self.begun = False
        if not self.spans_s:
            return False, None
        start_s, end_s = self.spans_s[0]
        return (True, end_s) if start_s <= now_s else (False, start_s)


class RejectSink:
    """
    A pulse on a pin for each part that is to be rejected.

    It begins `reject_delay_ms` after the part was announced, whenever its verdict comes, and lasts
    `reject_ms`. Pulses that overlap are one: the pin is on exactly while any of them lasts. Of the
    pulse of a verdict that comes late, what remains is given.

    Parameters
    ----------
    settings : GpioConfig
    pin_factory : gpiozero.Factory, optional
        How gpiozero reaches the pins; without it gpiozero's own choice.

    Attributes
    ----------
    late : int
        Pulses that were not given: the verdict came when they were over, or the pin could not be
        driven in time.
    problem : str or None
        Why the pin cannot be driven; it is tried again.

    Raises
    ------
    ConfigError
        If gpiozero is not installed.
    """

    name = "reject"

    def __init__(self, settings: GpioConfig, pin_factory: Any = None) -> None:
        self._open = _opener(settings, pin_factory)
        self._pin, self._unknown = settings.reject_pin, settings.reject_unknown
        self._delay_s, self._length_s = settings.reject_delay_ms / 1e3, settings.reject_ms / 1e3
        self.late = 0
        self.problem: str | None = None
        self._windows = Windows()
        self._closing = False
        self._plans = 0  # rises with each change, so that none is slept through
        # Guards the windows and the end; the pin is driven without it, by the sink's thread alone.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reject pin", daemon=True)
        self._thread.start()

    def wants(self, item: Item) -> bool:
        """Parts that are NG, and UNKNOWN where that is to be rejected."""
        if not isinstance(item, Result) or item.event != "part":
            return False
        verdict = item.decision.verdict
        return verdict is Verdict.NG or (verdict is Verdict.UNKNOWN and self._unknown)

    def emit(self, items: Sequence[Item]) -> None:
        """
        Plan the pulses of some parts; does not wait for them.

        Raises
        ------
        GivenUp
            If one came too late for its pulse; those of the others are planned.
        """
        late_s, part = 0.0, None
        with self._changed:
            for item in items:
                now_s = time.monotonic()
                # Nobody announces the pictures of a folder: theirs is counted from the verdict.
                announced_s = now_s if item.announced_s is None else item.announced_s
                start_s = announced_s + self._delay_s
                end_s = start_s + self._length_s
                if end_s <= now_s:
                    self.late += 1
                    late_s, part = now_s - end_s, item.decision.part
                else:
                    self._windows.add(start_s, end_s)
            self._plans += 1
            self._changed.notify_all()
        if late_s > 0:
            raise GivenUp(
                f"part {part} was not rejected: its verdict came {late_s * 1e3:.0f} ms after its "
                "pulse was over (reject_delay_ms is too short for the inspection)"
            )

    def close(self) -> None:
        """Switch the pin off and give it back; pulses that are still due are lost and logged."""
        with self._changed:
            self._closing = True
            self._plans += 1
            lost = len(self._windows.spans_s)
            self._changed.notify_all()
        self._thread.join()
        if lost:
            _log.warning("reject: ended with %d pulses due or under way, which are lost", lost)

    def _run(self) -> None:
        device, backoff = None, Backoff(FIRST_S, MOST_S)
        while True:
            with self._changed:
                plans, closing = self._plans, self._closing
                on, until_s = self._windows.at(time.monotonic())
                missed, self._windows.missed = self._windows.missed, 0
                self.late += missed
            if missed:
                _log.warning(
                    "reject: %d pulses were missed, the pin was not driven in time", missed
                )
            try:
                if device is None:
                    device = self._open(self._pin)
                _drive(device, on and not closing)
                if on:
                    self._windows.begun = True
                self.problem = None
                backoff.reset()
            # A library's own errors are plain Exceptions; a thread that died of one would leave the
            # pin as it is.
            except Exception as error:
                if self.problem is None:
                    _log.warning("reject: %s; it is tried again", error)
                self.problem = str(error)
                again_s = time.monotonic() + backoff.wait_s()
                until_s = again_s if until_s is None else min(until_s, again_s)
            if closing:
                break
            with self._changed:
                if self._plans == plans:
                    self._changed.wait(None if until_s is None else until_s - time.monotonic())
        if device is not None:
            device.close()


def lamp(before: Verdict, result: Result) -> Verdict:
    """
    Which lamp is on after a result.

    Parameters
    ----------
    before : {Verdict.OK, Verdict.NG, Verdict.UNKNOWN}
        Which was on before; UNKNOWN at the start.
    result : Result
        Of a frame or a part.

    Returns
    -------
    {Verdict.OK, Verdict.NG, Verdict.UNKNOWN}
        UNKNOWN at once whatever is UNKNOWN, and until there is a verdict again. A part has its
        verdict when it has ended: what its frames are says nothing before. EMPTY changes nothing,
        so that the lamp shows the last part after it has gone.
    """
    decision = result.decision
    if decision.verdict is Verdict.UNKNOWN:
        return Verdict.UNKNOWN
    within_part = result.event == "frame" and decision.part is not None
    if decision.verdict is Verdict.EMPTY or within_part:
        return before
    return decision.verdict


class LampSink:
    """
    Lamps: red for NG, green for OK, yellow for UNKNOWN, of those that have a pin.

    Yellow at the start; all off at the end. Where `silent_s` is given, yellow too while the frame
    loop has not turned for `SILENT_S`: a lamp that goes on showing OK would be a verdict on parts
    that nobody looks at.

    Parameters
    ----------
    settings : GpioConfig
    pin_factory : gpiozero.Factory, optional
    silent_s : callable, optional
        Seconds since the frame loop last turned.

    Raises
    ------
    ConfigError
        If gpiozero is not installed.
    """

    name = "lamps"

    def __init__(
        self,
        settings: GpioConfig,
        pin_factory: Any = None,
        silent_s: Callable[[], float] | None = None,
    ) -> None:
        self._open = _opener(settings, pin_factory)
        self._pins = {
            verdict: pin
            for verdict, pin in (
                (Verdict.NG, settings.red_pin),
                (Verdict.UNKNOWN, settings.yellow_pin),
                (Verdict.OK, settings.green_pin),
            )
            if pin >= 0
        }
        self._devices: dict[Verdict, Any] = {}
        self._on = Verdict.UNKNOWN
        self._first = True
        self._silent = False
        self._warned = False
        # Guards the pins, which the outbox's thread and the one below drive.
        self._lock = threading.Lock()
        self._closing = threading.Event()
        try:
            self.emit(())
        except Exception as error:
            self._warn(error)
        if silent_s is not None:
            threading.Thread(
                target=self._listen, args=(silent_s,), name="lamps' dead man", daemon=True
            ).start()

    def _listen(self, silent_s: Callable[[], float]) -> None:
        while not self._closing.wait(LISTEN_S):
            silent = silent_s() > SILENT_S
            if silent is self._silent:
                continue
            self._silent = silent
            try:
                self.emit(())
            except Exception as error:
                self._silent = not silent  # not shown yet: again with the next look
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Where nobody else hears of it: once, until they work again."""
        if not self._warned:
            _log.warning("lamps: %s; it is tried again", error)
        self._warned = True

    def wants(self, item: Item) -> bool:
        """What changes the lamp, and the first of all."""
        if not isinstance(item, Result):
            return False
        before, first = self._on, self._first
        self._on, self._first = lamp(before, item), False
        return first or self._on is not before

    def emit(self, items: Sequence[Item]) -> None:
        """
        Show the newest verdict, which may be of a later item than these.

        Raises
        ------
        InputError
            If a pin cannot be driven.
        """
        with self._lock:
            if self._closing.is_set():
                return
            for verdict, pin in self._pins.items():
                if verdict not in self._devices:
                    self._devices[verdict] = self._open(pin)
            wanted = Verdict.UNKNOWN if self._silent else self._on
            # Off first: two lamps at once would be no verdict.
            for verdict, device in sorted(
                self._devices.items(), key=lambda pair: pair[0] is wanted
            ):
                _drive(device, verdict is wanted)
            if self._warned:
                self._warned = False
                _log.warning("lamps: work again")

    def close(self) -> None:
        """All off, the pins given back."""
        self._closing.set()
        with self._lock, contextlib.ExitStack() as each:  # goes on with the others where one fails
            for device in self._devices.values():
                each.callback(device.close)
                each.callback(_drive, device, False)


def _opener(settings: GpioConfig, pin_factory: Any) -> Callable[[int], Any]:
    """Opens an output pin, which is off then."""
    try:
        from gpiozero import DigitalOutputDevice
    except ImportError:
        raise ConfigError(
            "[gpio] is enabled, which needs gpiozero: "
            "sudo apt install python3-gpiozero python3-lgpio"
        ) from None

    def opened(pin: int) -> Any:
        try:
            with warnings.catch_warnings():
                # One for each library it tries; the error says what to do.
                warnings.simplefilter("ignore")
                return DigitalOutputDevice(
                    pin, active_high=settings.active_high, pin_factory=pin_factory
                )
        except Exception as error:
            raise InputError(
                f"GPIO {pin} cannot be driven: {error} (wanted a free pin of a Raspberry Pi, "
                "python3-lgpio installed, and the service's user in group gpio)"
            ) from error

    return opened


def _drive(device: Any, on: bool) -> None:
    if bool(device.value) != on:
        device.value = on
