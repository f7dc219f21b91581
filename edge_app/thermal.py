"""
Heat: the pace of inspection, controlled so that the board settles at a set temperature.

Left alone, a small board that inspects without a pause grows hot until its firmware slows the
clock, and what was 20 inspections a second is 8 without a word. Here the share of time spent on
inspections (the *duty*) is what a controller sets, once a second, from the temperature alone. It
knows nothing of the board. The time between two inspections follows from the duty and from how long
the inspection took: a slower encoder or a heatmap rests longer and heats no more.

The controller is a PI controller on the filtered temperature. The duty heats in proportion, so
that duty, and not the interval, is what it sets. Its gains are by the SIMC rules (S. Skogestad,
"Simple analytic rules for model reduction and PID controller tuning", Journal of Process Control
13, 2003), for the fastest board thought possible and checked for the slowest. Its anti-windup is
tracking by back-calculation (K. J. Åström and T. Hägglund, "Advanced PID Control", ISA, 2006,
section 3.5).

`step` is pure: readings and times in, memory out. `ThermalWatch` owns the memory, the clock and the
sensors. Where ``[thermal] enabled`` is false, build none.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edge_app.config import ThermalConfig

# How a board heats: C dT/dt = idle_w + span_w * duty - (T - ambient) / R. So close to a target it
# acts as an integrator of slope span_w / C in kelvin a second for each unit of duty. Thought
# possible are slopes from 0.3 (6 W more at full load in 20 J/K: a bare board with a fast chip) to
# 0.01 (3 W in 300 J/K: a board in a heavy case); the boards of the bench have 0.029 and 0.117.

# Time constant of the filter of the temperature, seconds. Readings of 1 K noise, one a second,
# leave it with about 0.25 K.
FILTER_S = 10.0
# Wild single readings are cut out before by the median of so many.
MEDIAN_OF = 3
# The delay in the loop: the filter counted in full, a second in the median, half a second between
# readings. SIMC's tight tuning (closed-loop time constant = delay) of the fastest board gives
#   1 / (0.3 * 2 * 11.5 s) = 0.145 of duty per kelvin.
# Slower boards take the same gain with more margin. 15 K more ambient push a 10 K/W board with a
# span of 3.5 W by at most 15 / (1 + GAIN * 35) = 2.4 K.
GAIN = 0.15
# SIMC's integral time is the smaller of the board's own time constant R C (150 to 1200 s on the
# bench's boards) and 4 / (GAIN * slope) (230 to 920 s). One value must do for all. Too long only
# makes the last kelvin slow, too short makes it swing: the damping ratio of a pure integrator is
# 0.5 * sqrt(GAIN * slope * INTEGRAL_S), here 0.8 on the bench's slowest board and 0.5 on the
# slowest thought possible, each before what the heat that leaves the board adds.
INTEGRAL_S = 600.0
# Time constant of the tracking, a quarter of INTEGRAL_S: short enough that a board which comes up
# from cold finds the integral small (it slows down below the target and not above it), long enough
# that a board that holds full speed 1 K below the target is left alone by noise.
TRACKING_S = 150.0
# The integral is tracked only beyond this much of duty above the limit, 2.5 sigma of the noise that
# a reading leaves in the duty (0.25 K * GAIN = 0.04): otherwise noise alone, cut off above and not
# below, would hold a fast encoder under what the board can bear. It costs 0.1 / GAIN = 0.7 K.
HEADROOM = 0.1
# The longest time a step integrates over, seconds: a camera that hung for an hour tells nothing of
# that hour.
MOST_STEP_S = 10.0

# The sensor is read so often at most, seconds: boards take minutes, and the firmware's own flags
# change every 2 s.
READ_EVERY_S = 1.0
# Without a temperature the last pace is kept for so long, seconds: in a minute the fastest board
# of the bench moves by the 5 K that lie between target and throttling, no farther.
BLIND_S = 60.0
# A sensor that was lost leaves the last pace, but at least this duty: one that was paused goes on
# slowly, since the firmware still guards the chip, and a dead sensor must not end the inspection.
BLIND_DUTY = 0.1
# A powered board that runs is within these, degrees Celsius: the chips shut down at 110, and -40
# is what broken sensors say.
COLDEST_C, HOTTEST_C = -30.0, 125.0

# Slower than this share of full speed is `warm`; less is in the noise (0.25 K * GAIN = 0.04).
WARM_DUTY = 0.9
# At full speed for so long, seconds, it is `normal` again: several filter times.
NORMAL_AFTER_S = 60.0
# What a state that ends below its own limit ends below it by at least, kelvin: four sigma of the
# filtered noise.
HYSTERESIS_K = 1.0

# Bits of the firmware's answer to get_throttled, and the words of its documentation.
FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft limit"}
SINCE_BOOT = " since boot"
# The same four have been seen since boot: so many bits higher.
SINCE_BOOT_SHIFT = 16

NO_FLAGS: frozenset[str] = frozenset()

_log = logging.getLogger("edge_app.thermal")


@dataclass(frozen=True)
class Reading:
    """
    What the sensors said once.

    Attributes
    ----------
    temperature_c : float or None
        Degrees Celsius; None where it cannot be known.
    flags : frozenset of str
        The words of `FLAGS`, each for now, and with `SINCE_BOOT` behind it for earlier; empty where
        they cannot be known.
    """

    temperature_c: float | None
    flags: frozenset[str] = NO_FLAGS


class HasReadings(Protocol):
    """What `ThermalWatch` reads; never raises."""

    def read(self) -> Reading: ...


class Sensors:
    """
    The board's own sensors.

    Parameters
    ----------
    sensor : path
        File with thousandths of a degree Celsius.
    throttled : path
        File with the firmware's flags, a hexadecimal number without ``0x``. Kernels of Raspberry Pi
        OS have it from 4.14 to early 2025 (raspberrypi/linux #2397, removed by #6697).
    hwmon : path
        Folder of the kernel's hardware monitors. Where there is no file `throttled`, the one named
        ``rpi_volt`` still tells of under-voltage, and of nothing else.
    """

    def __init__(
        self, sensor: Path | str, throttled: Path | str, hwmon: Path | str = "/sys/class/hwmon"
    ) -> None:
        self._sensor = Path(sensor)
        self._throttled = Path(throttled)
        self._alarm = _voltage_alarm(Path(hwmon))

    def read(self) -> Reading:
        """The temperature and the flags; what cannot be read is None or empty. Never raises."""
        return Reading(self._temperature_c(), self._flags())

    def _temperature_c(self) -> float | None:
        thousandths = _whole_number(self._sensor, 10)
        # Nobody's board is within the first degree above zero for long. Who says 0 is broken; who
        # says 62 counts in whole degrees, and would never be found hot.
        if thousandths is None or 0 <= thousandths < 1000:
            return None
        return thousandths / 1000

    def _flags(self) -> frozenset[str]:
        bits = _whole_number(self._throttled, 16)
        if bits is None and self._alarm is not None:
            bits = _whole_number(self._alarm, 10)  # 1 is under-voltage, as bit 0 is
        if bits is None or bits < 0:
            return NO_FLAGS
        now = {word for bit, word in FLAGS.items() if bits >> bit & 1}
        earlier = {
            word + SINCE_BOOT for bit, word in FLAGS.items() if bits >> bit + SINCE_BOOT_SHIFT & 1
        }
        return frozenset(now | earlier)


def _voltage_alarm(hwmon: Path) -> Path | None:
    """The file of the kernel's under-voltage alarm; monitors are numbered as they come."""
    try:
        for folder in sorted(hwmon.iterdir()):
            if _text(folder / "name") == "rpi_volt":
                return folder / "in0_lcrit_alarm"
    except OSError:
        pass
    return None


def _text(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(64).decode("ascii").strip()  # what sysfs says is far shorter
    except (OSError, ValueError):
        return None


def _whole_number(path: Path, base: int) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


@dataclass(frozen=True)
class Memory:
    """
    What the controller remembers between two steps.

    Attributes
    ----------
    state : {'normal', 'warm', 'hot', 'paused', 'unwatched'}
        Full speed; slowed down; that and no heatmaps; nothing inspected; no temperature known.
    duty : float
        Wanted share of time spent on inspections, 0 to 1; 1 is full speed.
    interval_s : float
        Seconds from the start of one inspection to the start of the next; 0 at full speed.
    temperature_c : float or None
        Filtered, degrees Celsius; the last known one for `BLIND_S`; None while unwatched.
    integral : float
        The integral part of the duty, 0 to 1.
    work_s : float
        Seconds that an inspection took lately.
    recent_c : tuple of float
        The last readings, at most `MEDIAN_OF`.
    flags : frozenset of str
        As `Reading`; what has been seen once stays as `SINCE_BOOT`.
    step_s, seen_s, full_s : float or None
        When the last step was, the last temperature, and when full speed began, seconds of any
        clock that never goes back.
    """

    state: str = "unwatched"
    duty: float = 1.0
    interval_s: float = 0.0
    temperature_c: float | None = None
    integral: float = 0.0
    work_s: float = 0.0
    recent_c: tuple[float, ...] = ()
    flags: frozenset[str] = NO_FLAGS
    step_s: float | None = None
    seen_s: float | None = None
    full_s: float | None = None


def step(
    memory: Memory,
    reading: Reading,
    work_s: float,
    now_s: float,
    settings: ThermalConfig,
    reached: float | None = None,
) -> Memory:
    """
    One step of the controller.

    Parameters
    ----------
    memory : Memory
    reading : Reading
        A temperature outside `COLDEST_C` to `HOTTEST_C`, or NaN, counts as none.
    work_s : float
        Seconds that an inspection takes.
    now_s : float
        Seconds; steps may come at any times. One that is earlier than the last counts as no time.
    settings : ThermalConfig
    reached : float, optional
        Where the pace held nothing back since the last step: the share of time that was spent on
        inspections all the same, 0 to 1 (a source may be slower than the pace allows). None where
        it did hold back.

    Returns
    -------
    Memory
    """
    dt = 0.0 if memory.step_s is None else max(now_s - memory.step_s, 0.0)
    memory = replace(
        memory, work_s=work_s, flags=_with_history(memory.flags, reading.flags), step_s=now_s
    )
    temperature_c = reading.temperature_c
    if temperature_c is None or not COLDEST_C <= temperature_c <= HOTTEST_C:
        memory = _blind(memory, now_s)
    else:
        memory = _control(memory, temperature_c, dt, now_s, settings, reached)
    return replace(memory, interval_s=interval_after(memory, work_s, settings))


def interval_after(memory: Memory, work_s: float, settings: ThermalConfig) -> float:
    """
    Seconds from the start of an inspection that took `work_s` to the start of the next.

    This is the feed-forward: who took longer rests longer, at the same duty.
    """
    if memory.state == "paused":
        return settings.slowest_s
    if memory.duty >= 1:
        return 0.0
    if work_s >= memory.duty * settings.slowest_s:
        return settings.slowest_s
    return work_s / memory.duty


def _with_history(before: frozenset[str], flags: frozenset[str]) -> frozenset[str]:
    # The kernel asks the firmware every 2 s and has it forget (raspberrypi-hwmon.c writes 0xffff),
    # so that "since boot" in the file may mean the last 2 s. What was seen is kept here.
    kept = {word for word in before if word.endswith(SINCE_BOOT)}
    seen = {word + SINCE_BOOT for word in flags if not word.endswith(SINCE_BOOT)}
    return frozenset(flags | kept | seen)


def _blind(memory: Memory, now_s: float) -> Memory:
    if memory.state == "unwatched" or memory.seen_s is None:
        return memory
    if now_s - memory.seen_s < BLIND_S:
        return memory
    return replace(
        memory,
        state="unwatched",
        duty=max(memory.duty, BLIND_DUTY),
        temperature_c=None,
        recent_c=(),
        full_s=None,
    )


def _control(
    memory: Memory,
    reading_c: float,
    dt: float,
    now_s: float,
    settings: ThermalConfig,
    reached: float | None,
) -> Memory:
    recent_c = (*memory.recent_c, reading_c)[-MEDIAN_OF:]
    middle_c = statistics.median(recent_c)
    temperature_c = memory.temperature_c
    if temperature_c is None:
        temperature_c = middle_c
    else:
        temperature_c += (1 - math.exp(-dt / FILTER_S)) * (middle_c - temperature_c)
    error = settings.target_c - temperature_c
    wanted = memory.integral + GAIN * error
    # What the loop can do at most. A source that delivers little is a limit as full speed is one:
    # the integral must not grow behind it.
    most = 1.0 if reached is None else min(max(reached, 0.0), 1.0)
    excess = max(wanted - most - HEADROOM, 0.0)
    change = GAIN / INTEGRAL_S * error - excess / TRACKING_S
    # Below a duty of 0 nothing is tracked, only bounded: a board that comes down from too hot
    # starts again from little.
    integral = min(max(memory.integral + min(dt, MOST_STEP_S) * change, 0.0), 1.0)
    duty = min(max(wanted, 0.0), 1.0)
    free = duty >= 1 or reached is not None
    full_s = (now_s if memory.full_s is None else memory.full_s) if free else None
    rested = full_s is not None and now_s - full_s >= NORMAL_AFTER_S
    state = _state(memory.state, temperature_c, settings, duty < WARM_DUTY and not free, rested)
    if state == "paused":
        integral = duty = 0.0
    return replace(
        memory,
        state=state,
        duty=duty,
        temperature_c=temperature_c,
        integral=integral,
        recent_c=recent_c,
        seen_s=now_s,
        full_s=full_s,
    )


def _state(
    before: str, temperature_c: float, settings: ThermalConfig, slowed: bool, rested: bool
) -> str:
    target_c, hot_c, pause_at_c = settings.target_c, settings.hot_c, settings.pause_at_c
    goes_on_c = min(target_c, pause_at_c - HYSTERESIS_K)
    if temperature_c >= pause_at_c or (before == "paused" and temperature_c >= goes_on_c):
        return "paused"
    cooler_c = min((target_c + hot_c) / 2, hot_c - HYSTERESIS_K)
    if temperature_c >= hot_c or (before == "hot" and temperature_c >= cooler_c):
        return "hot"
    if slowed or (before in ("warm", "hot", "paused") and not rested):
        return "warm"
    return "normal"


@dataclass(frozen=True)
class Heat:
    """
    How hot it is and what is done about it.

    Attributes
    ----------
    state : {'normal', 'warm', 'hot', 'paused', 'unwatched'}
        Full speed; slowed down; that and no heatmaps; nothing inspected until below the target; no
        temperature known.
    temperature_c : float or None
        Filtered, degrees Celsius; None exactly while unwatched.
    flags : frozenset of str
        As `Reading`; what has been seen once stays as `SINCE_BOOT`.
    interval_s : float
        Seconds from the start of one inspection to the start of the next; 0 at full speed.
    degraded : tuple of str
        What every result must say, one sentence each, as ``kind: detail``; empty where all is well.
    """

    state: str
    temperature_c: float | None
    flags: frozenset[str]
    interval_s: float
    degraded: tuple[str, ...]

    @property
    def too_hot_to_draw(self) -> bool:
        """Whether no heatmap is drawn."""
        return self.state in ("hot", "paused")


class ThermalWatch:
    """
    Says when the next inspection may start.

    One thread asks `due` and says `worked`; `heat` may be read by any.

    Parameters
    ----------
    settings : ThermalConfig
    clock : callable, optional
        Seconds; where it goes back, no time has passed.
    sensors : object with ``read() -> Reading``, optional
        `Sensors` of the files in `settings` by default.
    """

    def __init__(
        self,
        settings: ThermalConfig,
        clock: Callable[[], float] = time.monotonic,
        sensors: HasReadings | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sensors = sensors or Sensors(settings.sensor, settings.throttled)
        self._clock_s = clock()
        self._now_s = 0.0  # sums what the clock goes forward, and so never goes back
        self._memory = Memory()
        self._watched = False  # whether there ever was a temperature
        self._read_s: float | None = None
        # The inspection before: when it was due, and what it took.
        self._base_s: float | None = None
        self._last_work_s = 0.0
        # Between two readings: time spent on inspections, whether the pace held one back.
        self._busy_s = 0.0
        self._held_back = False
        self._reached = 0.0
        self._interval_s = 0.0
        self._heat = Heat("unwatched", None, NO_FLAGS, 0.0, ())

    @property
    def heat(self) -> Heat:
        """As of the last reading."""
        return self._heat

    def due(self) -> bool:
        """
        May an inspection start now?

        Reads the sensors at most once a second. During a heat pause it is due at the slowest pace,
        so that the pause can be told; nothing is to be inspected then.
        """
        now_s = self._tick()
        if self._read_s is None or now_s - self._read_s >= READ_EVERY_S:
            self._read(now_s)
        if self._base_s is None or now_s - self._base_s >= self._interval_s:
            return True
        self._held_back = True
        return False

    def worked(self, seconds: float) -> None:
        """Say that an inspection has ended, and took so many seconds."""
        now_s = self._tick()
        start_s = now_s - seconds
        # The next one is counted from when this one was due, not from when a frame came for it:
        # otherwise a source of 30 frames a second would round every interval up to whole frames.
        # What a slow source leaves unused is saved up for one inspection at most.
        if self._base_s is None:
            self._base_s = start_s
        else:
            due_s = self._base_s + self._interval_s
            self._base_s = min(max(due_s, start_s - self._interval_s), start_s)
        if self._memory.state != "paused":
            self._last_work_s = seconds
            self._busy_s += seconds
        self._interval_s = interval_after(self._memory, self._last_work_s, self._settings)

    def _tick(self) -> float:
        clock_s = self._clock()
        self._now_s += max(clock_s - self._clock_s, 0.0)
        self._clock_s = clock_s
        return self._now_s

    def _read(self, now_s: float) -> None:
        before = self._memory
        reading = self._sensors.read()
        if self._read_s is not None:
            # Averaged as the temperature is, or one long inspection would look like a full second.
            dt = now_s - self._read_s
            share = 1 - math.exp(-dt / FILTER_S)
            self._reached += share * (min(self._busy_s / dt, 1.0) - self._reached)
        reached = None if self._held_back else self._reached
        self._memory = step(
            before, reading, self._last_work_s, now_s, self._settings, reached=reached
        )
        first = self._read_s is None
        self._read_s, self._busy_s, self._held_back = now_s, 0.0, False
        self._interval_s = interval_after(self._memory, self._last_work_s, self._settings)
        self._watched = self._watched or self._memory.temperature_c is not None
        self._heat = Heat(
            self._memory.state,
            self._memory.temperature_c,
            self._memory.flags,
            self._memory.interval_s,
            self._degraded(),
        )
        if first or self._memory.state != before.state:
            self._log_state(first)
        for word in sorted(self._memory.flags - before.flags):
            if word.endswith(SINCE_BOOT):
                _log.warning("%s", word)

    def _degraded(self) -> tuple[str, ...]:
        memory = self._memory
        said = []
        if memory.state == "warm":
            said.append(f"heat: {memory.temperature_c:.0f} °C, slowed down")
        elif memory.state == "hot":
            said.append(f"heat: {memory.temperature_c:.0f} °C, heatmaps off")
        elif memory.state == "paused":
            said.append(f"heat: paused at {memory.temperature_c:.0f} °C")
        elif memory.state == "unwatched" and self._watched:
            said.append("heat: not watched, the sensor is lost")
        if memory.temperature_c is not None and memory.seen_s != memory.step_s:
            said.append("heat: no temperature, the last pace is kept")
        # Under-voltage is a power supply or a cable too weak. The firmware then throttles as it
        # does for heat, so that its other flags are no news of heat.
        for word in FLAGS.values():
            if word in memory.flags:
                said.append(word if word == FLAGS[0] else f"firmware: {word}")
        return tuple(said)

    def _log_state(self, first: bool) -> None:
        memory = self._memory
        if memory.state == "unwatched":
            why = "keeps the last pace" if self._watched else "runs at full speed"
            _log.warning("heat: not watched, no temperature in %s; %s", self._settings.sensor, why)
        elif memory.state == "normal":
            _log.log(
                logging.DEBUG if first else logging.INFO,
                "heat: %.0f °C, full speed",
                memory.temperature_c,
            )
        else:
            _log.warning("%s", self._heat.degraded[0])
