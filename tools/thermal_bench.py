"""
Thermal bench: the device's own thermal watch on simulated boards that it knows nothing of.

A board is C dT/dt = P - (T - ambient) / R, with 3 W idle and 6.5 W under full load. Its sensor has
1 K of noise (sigma) and the steps of a Raspberry Pi 4's. What stands in the table: the largest
constant duty (share of time spent on inspections) that holds the target, and how much of its
throughput the controlled loop keeps, over the whole run and in its second half; of the second half
also the mean temperature and the swing (peak to peak), in true temperatures; the highest
temperature, and the highest without control. Temperatures are in degrees Celsius, swings in kelvin.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_app.arguments import refuse_unwritable, seed
from edge_app.config import ThermalConfig, load_config
from edge_app.errors import InputError
from edge_app.thermal import READ_EVERY_S, Reading, ThermalWatch

IDLE_W = 3.0
# What full load adds: 6.5 W in all.
SPAN_W = 3.5
NOISE_K = 1.0
# One step of the converter of a Raspberry Pi 4 (the slope in the kernel's bcm2711_thermal.c).
SENSOR_STEP_K = 0.487
# Pictures a second of the camera.
FPS = 30.0
# MobileNetV2 in float32 at 224 px on a Raspberry Pi 4 (XNNPACK's own table): longer than the 33 ms
# between two frames, so that full speed is full load.
WORK_MS = 46.0
# A board without load is followed in steps of so many seconds: its shortest time constant is 150.
IDLE_STEP_S = 0.1
# 8 inches wide: 800 px, as wide as a page shows it.
PLOT_DPI = 100
# Time from which on the swing is measured, as a share of the run.
SETTLED_SHARE = 0.5


@dataclass(frozen=True)
class Board:
    """
    A board, its surroundings and its work.

    Attributes
    ----------
    name : str
    resistance_kw : float
        From the board to the air, kelvin per watt.
    ambient_c : float
        Degrees Celsius.
    capacity_jk : float
        Joules per kelvin.
    work_ms : float
        Time that an inspection takes, milliseconds.
    start_c : float or None
        Temperature at the start, degrees Celsius; None for the ambient's.
    hours : float
    step_at_h, step_to_c : float or None
        When the ambient temperature jumps, and to what, degrees Celsius.
    slower_at_h, slower_ms : float or None
        When the inspection takes another time, and which, milliseconds.
    fan_kw : float or None
        Resistance while the fan turns; it comes on at 70 °C and goes off at 65 °C.
    """

    name: str
    resistance_kw: float
    ambient_c: float
    capacity_jk: float
    work_ms: float = WORK_MS
    start_c: float | None = None
    hours: float = 3.0
    step_at_h: float | None = None
    step_to_c: float | None = None
    slower_at_h: float | None = None
    slower_ms: float | None = None
    fan_kw: float | None = None

    def ambient_at_c(self, now_s: float) -> float:
        """The ambient temperature, degrees Celsius."""
        if self.step_at_h is not None and now_s >= self.step_at_h * 3600:
            return self.step_to_c
        return self.ambient_c

    def work_at_s(self, now_s: float) -> float:
        """Time that an inspection takes, seconds."""
        if self.slower_at_h is not None and now_s >= self.slower_at_h * 3600:
            return self.slower_ms / 1000
        return self.work_ms / 1000

    def best_duty(self, now_s: float, target_c: float) -> float:
        """The largest constant duty that settles at the target or below, 0 to 1."""
        resistance = self.resistance_kw if self.fan_kw is None else self.fan_kw
        room_w = (target_c - self.ambient_at_c(now_s)) / resistance - IDLE_W
        # A fast encoder waits for the camera.
        work_s = self.work_at_s(now_s)
        most = work_s / (math.ceil(work_s * FPS - 1e-9) / FPS) if work_s * FPS < 1 else 1.0
        return min(max(room_w / SPAN_W, 0.0), most)


@dataclass
class Plant:
    """The simulated board: its true temperature, and its sensor."""

    board: Board
    rng: np.random.Generator
    now_s: float = 0.0
    temperature_c: float = math.nan
    # Since the last reading.
    highest_c: float = -math.inf
    busy_s: float = 0.0
    fan: bool = False
    trace: list[tuple[float, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        start_c = self.board.start_c
        self.temperature_c = self.board.ambient_c if start_c is None else start_c

    def advance(self, until_s: float, busy: bool) -> None:
        """Go on to a time; the solution is exact while ambient, load and fan stay."""
        dt = until_s - self.now_s
        if dt <= 0:
            return
        board = self.board
        resistance = board.fan_kw if self.fan else board.resistance_kw
        power_w = IDLE_W + (SPAN_W if busy else 0.0)
        final_c = board.ambient_at_c(self.now_s) + resistance * power_w
        decay = math.exp(-dt / (resistance * board.capacity_jk))
        self.temperature_c = final_c + (self.temperature_c - final_c) * decay
        self.now_s = until_s
        self.highest_c = max(self.highest_c, self.temperature_c)
        if busy:
            self.busy_s += dt
        if board.fan_kw is not None:
            self.fan = self.temperature_c >= (65.0 if self.fan else 70.0)

    def read(self) -> Reading:
        """What the sensor says; the true temperature goes into `trace`, once a second."""
        highest_c = max(self.highest_c, self.temperature_c)
        self.trace.append((self.now_s, self.temperature_c, highest_c, self.busy_s))
        self.highest_c = -math.inf
        noisy_c = self.temperature_c + NOISE_K * self.rng.standard_normal()
        return Reading(SENSOR_STEP_K * round(noisy_c / SENSOR_STEP_K))


@dataclass(frozen=True)
class Outcome:
    """
    What a run showed.

    Attributes
    ----------
    highest_c : float
        Highest true temperature, degrees Celsius; of a run that starts above the target, from when
        it was first there.
    swing_k : float
        Peak to peak of the true temperature in the second half, kelvin.
    mean_c : float
        Mean of it there, degrees Celsius.
    duty : float
        Share of the whole run that was spent on inspections.
    settled_duty : float
        The same of the second half.
    inspections : int
    states : tuple of str
        In their order.
    seconds, temperature_c, busy_s : ndarray of float64, shape (n,)
        Once a second: the time, the true temperature, the time spent on inspections so far.
    """

    highest_c: float
    swing_k: float
    mean_c: float
    duty: float
    settled_duty: float
    inspections: int
    states: tuple[str, ...]
    seconds: np.ndarray
    temperature_c: np.ndarray
    busy_s: np.ndarray


def simulate(board: Board, settings: ThermalConfig, seed: int, controlled: bool = True) -> Outcome:
    """
    Run the frame loop of a live camera on a board.

    The camera's slot is one picture deep: what comes while an inspection lasts replaces what was
    there, and the newest is looked at next.

    Parameters
    ----------
    board : Board
    settings : ThermalConfig
    seed : int
        Of the sensor's noise.
    controlled : bool
        False inspects every frame.
    """
    plant = Plant(board, np.random.default_rng(seed))
    now_s = 0.0
    watch = ThermalWatch(settings, lambda: now_s, plant) if controlled else None
    end_s = board.hours * 3600
    states = []
    inspections = 0
    frame = 0
    while True:
        # The newest frame that nobody has looked at: one is waiting, or the next one comes.
        frame = max(frame + 1, math.floor(now_s * FPS + 1e-6))
        now_s = max(now_s, frame / FPS)
        if now_s >= end_s:
            break
        if watch is None:
            plant.advance(now_s, busy=False)
            if not plant.trace or now_s - plant.trace[-1][0] >= READ_EVERY_S:
                plant.read()
        else:
            # Between two readings an idle board needs few steps.
            if now_s - plant.now_s >= IDLE_STEP_S:
                plant.advance(now_s, busy=False)
            due = watch.due()
            if watch.heat.state not in states[-1:]:
                states.append(watch.heat.state)
            if due and watch.heat.state == "paused":
                watch.worked(0.0)  # the pause is told, nothing is inspected
            if not due or watch.heat.state == "paused":
                continue
        plant.advance(now_s, busy=False)
        work_s = board.work_at_s(now_s)
        now_s += work_s
        plant.advance(now_s, busy=True)
        if watch is not None:
            watch.worked(work_s)
        inspections += 1
    seconds, temperature_c, peak_c, busy_s = np.array(plant.trace).T
    started_hot = board.start_c is not None and board.start_c > settings.target_c
    counted = int(np.argmax(temperature_c <= settings.target_c)) if started_hot else 0
    settled = seconds >= SETTLED_SHARE * end_s
    first = int(np.argmax(settled))
    span_s = seconds[-1] - seconds[first]
    return Outcome(
        float(peak_c[counted:].max()),
        float(np.ptp(temperature_c[settled])),
        float(temperature_c[settled].mean()),
        plant.busy_s / now_s,
        float((busy_s[-1] - busy_s[first]) / span_s),
        inspections,
        tuple(states),
        seconds,
        temperature_c,
        busy_s,
    )


def kept_share(board: Board, outcome: Outcome, target_c: float) -> float:
    """
    Throughput of the whole run over that of the best constant duty that holds the target.

    Where ambient or work change, the best duty of each time. It is above 1 where a cold board took
    up heat at full speed first.
    """
    edges = [0.0, *(h * 3600 for h in (board.step_at_h, board.slower_at_h) if h is not None)]
    edges.append(float(outcome.seconds[-1]))
    best_s = sum(
        board.best_duty(start, target_c) * (end - start)
        for start, end in zip(edges, edges[1:], strict=False)
    )
    return float(outcome.busy_s[-1]) / best_s


def boards() -> list[Board]:
    """Those of the requirement, all combinations, from cold."""
    found = []
    for resistance, ambient in ((10.0, 25.0), (10.0, 40.0), (5.0, 55.0)):
        for capacity in (30.0, 120.0):
            name = f"{resistance:g} K/W, {ambient:g} °C, {capacity:g} J/K"
            found.append(Board(name, resistance, ambient, capacity))
    return found


def variations() -> list[Board]:
    """One thing changed at a time: work, start, ambient, a fan."""
    bare, heavy, warm = boards()[0], boards()[1], boards()[3]
    return [
        replace(bare, name="3 ms a frame", work_ms=3.0),
        replace(warm, name="3 ms, 42.6 °C, 120 J/K", work_ms=3.0, ambient_c=42.6),
        replace(bare, name="30 ms a frame", work_ms=30.0),
        replace(bare, name="300 ms a frame", work_ms=300.0),
        replace(warm, name="300 ms, 40 °C, 120 J/K", work_ms=300.0),
        replace(bare, name="start at 79 °C", start_c=79.0),
        replace(heavy, name="start at 90 °C, 120 J/K", start_c=90.0),
        replace(bare, name="ambient 25 to 40 °C", step_at_h=1.0, step_to_c=40.0),
        replace(heavy, name="the same, 120 J/K", step_at_h=1.0, step_to_c=40.0),
        replace(bare, name="ambient 40 to 25 °C", ambient_c=40.0, step_at_h=1.0, step_to_c=25.0),
        replace(bare, name="46 to 300 ms a frame", slower_at_h=1.0, slower_ms=300.0),
        replace(bare, name="fan: 5 K/W from 70 °C", fan_kw=5.0),
        replace(bare, name="cool: 8 °C", ambient_c=8.0),
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``thermal-bench``."""
    parser.description = __doc__
    parser.epilog = "example:\n  python -m tools thermal-bench --plot docs/thermal.png"
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the six boards")


def run(args: argparse.Namespace) -> int:
    """Simulate; see the module's docstring."""
    if args.plot is not None:
        refuse_unwritable(args.plot)
    # What the watch logs belongs to a real board; without a handler it would be printed.
    logging.getLogger("edge_app.thermal").addHandler(logging.NullHandler())
    settings = load_config().thermal
    main = [(b, *_both(b, settings, args.seed)) for b in boards()]
    print(table(main, settings.target_c))
    print()
    print(table([(b, *_both(b, settings, args.seed)) for b in variations()], settings.target_c))
    if args.plot is not None:
        plot(main, settings, args.plot)
        print(f"plot: {args.plot}")
    return 0


Row = tuple[Board, Outcome, Outcome]


def _both(board: Board, settings: ThermalConfig, seed: int) -> tuple[Outcome, Outcome]:
    return simulate(board, settings, seed), simulate(board, settings, seed, controlled=False)


def table(rows: Sequence[Row], target_c: float) -> str:
    """The figures of some boards, as text."""
    lines = [
        f"{'':26} {'best':>6} {'whole':>7} {'second':>7} {'mean':>6} {'':>14} {'without':>7}",
        f"{'board':26} {'duty':>6} {'run':>7} {'half':>7} {'°C':>6} {'highest':>7} {'swing':>6} "
        f"{'control':>7}",
    ]
    for board, controlled, free in rows:
        best = board.best_duty(board.hours * 3600, target_c)
        lines.append(
            f"{board.name:26} {best:6.3f} {kept_share(board, controlled, target_c):7.1%} "
            f"{controlled.settled_duty / best:7.1%} {controlled.mean_c:6.2f} "
            f"{controlled.highest_c:7.2f} {controlled.swing_k:6.2f} {free.highest_c:7.2f}"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], settings: ThermalConfig, path: Path) -> None:
    """
    Draw temperature and duty over time, a column for each place, light and heavy boards in it.

    Parameters
    ----------
    rows : sequence of (Board, Outcome, Outcome)
        As `boards` orders them: two capacities of each place, one after the other.
    settings : ThermalConfig
    path : path
        A PNG file.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    minutes = 120
    colours = ("#c44e00", "#0b5fa5")  # apart for the colour-blind too
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(3, 2))
    for column in range(3):
        top, bottom = axes[:, column]
        pair = rows[2 * column : 2 * column + 2]
        for (board, controlled, free), colour in zip(pair, colours, strict=True):
            for outcome, dashes, label in (
                (free, (3, 1.5), f"{board.capacity_jk:g} J/K, without control"),
                (controlled, (), f"{board.capacity_jk:g} J/K, controlled"),
            ):
                at = outcome.seconds / 60
                shown = slice(0, int(np.searchsorted(at, minutes)), 10)
                line = {"color": colour, "lw": 1.6, "label": label}
                if dashes:
                    line.update(dashes=dashes, lw=1.1)
                top.plot(at[shown], outcome.temperature_c[shown], **line)
            # One point a minute: the mean duty of that minute.
            whole = np.arange(min(minutes, int(controlled.seconds[-1] / 60)) + 1)
            each = np.searchsorted(controlled.seconds, 60 * whole)
            duty = np.diff(controlled.busy_s[each]) / np.diff(controlled.seconds[each])
            bottom.plot(whole[:-1] + 0.5, 100 * duty, color=colour, lw=1.6)
        board = pair[0][0]
        best = 100 * board.best_duty(0.0, settings.target_c)
        bottom.axhline(best, color="0.35", lw=1, ls=":")
        bottom.text(minutes - 2, best + 9, f"best constant {best:.0f} %", ha="right", fontsize=9)
        top.axhline(settings.target_c, color="0.35", lw=1, ls=":")
        top.axhline(80, color="#a00000", lw=1)
        top.axhspan(80, 110, color="#a00000", alpha=0.07, lw=0)
        top.set_title(f"{board.resistance_kw:g} K/W at {board.ambient_c:g} °C", fontsize=11)
        bottom.set_xlabel("time, minutes")
        bottom.set_xticks(range(0, minutes + 1, 40))
        for one in (top, bottom):
            one.grid(alpha=0.25, lw=0.6)
            one.set_xlim(0, minutes)
    axes[0, 0].set_ylabel("board temperature, °C")
    axes[0, 0].set_ylim(20, 108)
    axes[1, 0].set_ylabel("time inspecting, %")
    axes[1, 0].set_ylim(0, 105)
    axes[0, 2].text(117, 93, "the firmware slows the clock\nfrom 80 °C on", ha="right", fontsize=9)
    axes[0, 2].text(117, 68, f"target {settings.target_c:g} °C", ha="right", fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9
    )
    try:
        figure.savefig(path, dpi=PLOT_DPI, pil_kwargs={"optimize": True})
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
