"""The thermal watch: on simulated boards, and with sensors that lie, vanish or never were."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest

from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.thermal import (
    BLIND_DUTY,
    BLIND_S,
    NORMAL_AFTER_S,
    Memory,
    Reading,
    Sensors,
    ThermalWatch,
    interval_after,
    step,
)
from tools.thermal_bench import Board, boards, kept_share, plot, simulate, table, variations

SETTINGS = load_config().thermal
TARGET_C = SETTINGS.target_c
NAMED = {board.name: board for board in variations()}


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Fixed:
    """Sensors that say what they are told."""

    def __init__(self, temperature_c, *flags):
        self.temperature_c, self.flags, self.reads = temperature_c, frozenset(flags), 0

    def read(self):
        self.reads += 1
        return Reading(self.temperature_c, self.flags)


def loop(watch, clock, seconds, work_s=0.03, frame_s=1 / 30):
    """The frame loop for some seconds; returns when inspections started, seconds."""
    starts = []
    end_s = clock.now_s + seconds
    while clock.now_s < end_s:
        if watch.due():
            starts.append(clock.now_s)
            clock.now_s += work_s
            watch.worked(work_s)
            clock.now_s += max(frame_s - work_s, 0.0)
        else:
            clock.now_s += frame_s
    return starts


def settle(temperature_c, seconds=120.0, sensors=None):
    clock = Clock()
    sensors = sensors or Fixed(temperature_c)
    watch = ThermalWatch(SETTINGS, clock, sensors)
    loop(watch, clock, seconds)
    return watch, clock, sensors


# --- The loop on boards that it does not know


@pytest.mark.parametrize("board", boards(), ids=lambda board: board.name)
def test_an_unknown_board_settles_at_the_target_and_keeps_its_throughput(board):
    board = replace(board, hours=1.5)
    controlled = simulate(board, SETTINGS, seed=1)
    assert controlled.highest_c < 80
    assert controlled.swing_k < 3
    assert abs(controlled.mean_c - TARGET_C) < 0.5
    best = board.best_duty(0.0, TARGET_C)
    assert controlled.settled_duty > 0.9 * best
    assert kept_share(board, controlled, TARGET_C) > 0.9
    # The bench itself: what has no control gets too hot, what has the best constant duty does not.
    free = replace(board, work_ms=300.0)  # full load as well, in fewer steps
    assert simulate(free, SETTINGS, seed=1, controlled=False).highest_c > 85
    heated_c = board.ambient_c + board.resistance_kw * (3.0 + 3.5 * best)
    assert heated_c == pytest.approx(TARGET_C)


@pytest.mark.parametrize("name", ["start at 79 °C", "start at 90 °C, 120 J/K"])
def test_a_hot_start_cools_down_and_stays_down(name):
    board = replace(NAMED[name], hours=2.0)
    controlled = simulate(board, SETTINGS, seed=2)
    assert controlled.highest_c < 76.5
    assert controlled.states[0] == ("hot" if board.start_c < 81 else "paused")
    assert controlled.states[-1] == "warm"
    assert kept_share(board, controlled, TARGET_C) > 0.85  # a hot board starts in debt


@pytest.mark.parametrize(
    "name", ["ambient 25 to 40 °C", "the same, 120 J/K", "ambient 40 to 25 °C"]
)
def test_a_jump_of_the_ambient_temperature_is_held(name):
    board = replace(NAMED[name], hours=2.5)
    controlled = simulate(board, SETTINGS, seed=3)
    assert controlled.highest_c < 78  # not even hot: heatmaps stay
    assert set(controlled.states) <= {"normal", "warm"}
    assert kept_share(board, controlled, TARGET_C) > 0.9
    assert controlled.swing_k < 3


def test_an_encoder_that_gets_slower_rests_longer_and_heats_no_more():
    board = replace(NAMED["46 to 300 ms a frame"], hours=2.0)
    controlled = simulate(board, SETTINGS, seed=4)
    after = controlled.seconds > 3600
    assert controlled.temperature_c[after].max() < TARGET_C + 1
    assert controlled.settled_duty > 0.97 * board.best_duty(0.0, TARGET_C)


@pytest.mark.parametrize("work_ms", [3.0, 30.0, 300.0])
def test_the_interval_is_no_slower_for_being_made_of_whole_frames(work_ms):
    # The largest duty is 0.07: at 3 ms an inspection every 44 ms, in between one and two frames.
    board = Board("", 10.0, 42.6, 60.0, work_ms=work_ms, hours=2.0)
    controlled = simulate(board, SETTINGS, seed=5)
    assert controlled.highest_c < 77
    assert controlled.settled_duty > 0.93 * board.best_duty(0.0, TARGET_C)


def test_a_board_that_is_cool_enough_at_full_speed_is_never_slowed_and_does_not_wind_up():
    # It settles at 73 °C, 2 K below the target, for 2 hours; then the air gets 15 K warmer.
    board = replace(NAMED["cool: 8 °C"], hours=3.0, step_at_h=2.0, step_to_c=23.0)
    controlled = simulate(board, SETTINGS, seed=6)
    before = controlled.seconds < 2 * 3600
    assert controlled.busy_s[before][-1] > 0.999 * controlled.seconds[before][-1]
    assert controlled.highest_c < 78


def test_an_encoder_that_waits_for_the_camera_does_not_wind_up():
    # 3 ms of 33 can never use more than a duty of 0.09, so that 1 and 0.2 look alike to it. Wound
    # up to 1 it would reach 77.6 °C, as without control.
    board = Board("", 10.0, 40.0, 30.0, work_ms=3.0, hours=2.5, step_at_h=2.0, step_to_c=44.5)
    controlled = simulate(board, SETTINGS, seed=7)
    before = controlled.seconds < 2 * 3600
    assert controlled.busy_s[before][-1] > 0.0899 * controlled.seconds[before][-1]
    assert controlled.highest_c < 76.5


def test_a_fan_takes_no_throughput_and_does_not_fill_the_log():
    controlled = simulate(replace(NAMED["fan: 5 K/W from 70 °C"], hours=2.0), SETTINGS, seed=8)
    assert controlled.duty > 0.99
    assert len(controlled.states) <= 6  # in 2 hours with a fan cycle every 200 s


def test_where_no_duty_is_cool_enough_the_board_pauses():
    # Idle it is at 85 °C already.
    board = Board("", 10.0, 55.0, 30.0, hours=1.0)
    controlled = simulate(board, SETTINGS, seed=9)
    assert controlled.states[-1] == "paused"
    assert controlled.settled_duty == 0


def test_steps_at_odd_times_settle_as_well():
    """A source of one frame in 0.9 s, then of one in 3 s: fewer and longer steps."""
    clock, sensors = Clock(), Fixed(40.0)
    watch = ThermalWatch(SETTINGS, clock, sensors)
    highest_c = 0.0
    for frame_s, work_s in ((0.9, 0.8), (3.0, 1.2), (0.9, 0.8)):
        until_s = clock.now_s + 5400
        while clock.now_s < until_s:
            if watch.due():
                parts = ((work_s, 6.5), (frame_s - work_s, 3.0))
            else:
                parts = ((frame_s, 3.0),)
            for seconds, watts in parts:
                clock.now_s += seconds
                decay = math.exp(-seconds / 300)
                final_c = 40 + 10 * watts
                sensors.temperature_c = final_c + (sensors.temperature_c - final_c) * decay
                if watts > 3:
                    watch.worked(seconds)
            highest_c = max(highest_c, sensors.temperature_c)
        assert abs(sensors.temperature_c - TARGET_C) < 1.5
    assert highest_c < 78


# --- Pace


def test_without_heat_every_frame_is_due():
    watch, clock, sensors = settle(50.0)
    assert len(loop(watch, clock, 10.0)) >= 300
    assert watch.heat.interval_s == 0
    assert watch.heat.state == "normal" and watch.heat.degraded == ()


def test_the_sensor_is_read_once_a_second():
    watch, clock, sensors = settle(50.0, seconds=60.0)
    assert 59 <= sensors.reads <= 61


def test_intervals_between_frames_come_out_on_average():
    # 30 ms at a duty of 0.6: 50 ms, where the camera offers 33 or 67.
    clock, sensors = Clock(), Fixed(TARGET_C)
    watch = ThermalWatch(SETTINGS, clock, sensors)
    watch._memory = Memory(state="warm", duty=0.6, integral=0.6, temperature_c=TARGET_C)
    starts = loop(watch, clock, 20.0)
    assert (starts[-1] - starts[0]) / (len(starts) - 1) == pytest.approx(0.05, rel=0.02)
    assert watch.heat.interval_s == pytest.approx(0.05, rel=0.02)


def test_what_a_pause_of_the_line_saved_is_one_inspection_at_most():
    clock, sensors = Clock(), Fixed(TARGET_C)
    watch = ThermalWatch(SETTINGS, clock, sensors)
    watch._memory = Memory(state="warm", duty=0.1, integral=0.1, temperature_c=TARGET_C)
    loop(watch, clock, 5.0)
    clock.now_s += 3600
    starts = loop(watch, clock, 3.0)  # every 0.3 s
    assert len([start for start in starts if start < starts[0] + 0.3]) <= 3


def test_longer_work_rests_longer_up_to_the_slowest_pace():
    memory = Memory(state="warm", duty=0.25)
    assert interval_after(memory, 0.03, SETTINGS) == pytest.approx(0.12)
    assert interval_after(memory, 0.3, SETTINGS) == pytest.approx(1.2)
    assert interval_after(memory, 30.0, SETTINGS) == SETTINGS.slowest_s
    assert interval_after(replace(memory, duty=0.0), 0.03, SETTINGS) == SETTINGS.slowest_s
    assert interval_after(replace(memory, duty=1.0), 0.03, SETTINGS) == 0


def test_a_clock_that_goes_back_changes_nothing():
    runs = []
    for jump_s in (0.0, -50_000.0):
        clock = Clock()
        watch = ThermalWatch(SETTINGS, clock, Fixed(76.0))
        loop(watch, clock, 30.0)
        clock.now_s += jump_s
        assert watch.heat.state == "warm"
        starts = loop(watch, clock, 30.0)
        runs.append((len(starts), watch.heat.temperature_c))
    # The frame time in which it jumped is lost, no more.
    assert abs(runs[0][0] - runs[1][0]) <= 1
    assert runs[0][1] == pytest.approx(runs[1][1], abs=0.05)


def test_what_a_heat_pause_takes_is_not_what_an_inspection_takes():
    watch, clock, sensors = settle(75.0)
    sensors.temperature_c = 84.0
    while watch.heat.state != "paused":
        loop(watch, clock, 0.5)
    loop(watch, clock, 30.0, work_s=0.0)
    sensors.temperature_c = 74.0
    while watch.heat.state == "paused":
        clock.now_s += 1.0
        watch.due()
    assert watch.heat.interval_s > 0.1  # a small duty of 30 ms, not of 0


# --- States


def test_states_have_hysteresis_and_say_so_once(caplog):
    caplog.set_level(logging.INFO, "edge_app.thermal")
    clock, sensors = Clock(), Fixed(60.0)
    watch = ThermalWatch(SETTINGS, clock, sensors)
    seen = []
    for temperature_c, seconds in [
        (60, 90), (74.5, 90), (77.6, 90), (78.4, 90), (77.0, 90), (76.0, 90), (82, 90), (79, 90),
        (75.5, 90), (74.5, 90), (60, NORMAL_AFTER_S - 30), (60, 90),
    ]:  # fmt: skip
        sensors.temperature_c = temperature_c
        loop(watch, clock, seconds)
        seen.append(watch.heat.state)
    assert seen == [
        "normal", "warm", "warm", "hot", "hot", "warm", "paused", "paused",
        "paused", "warm", "warm", "normal",
    ]  # fmt: skip
    # From 76 to 82 it is hot on the way.
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(", ")[-1].split(" at ")[0] for text in said] == [
        "slowed down", "heatmaps off", "slowed down", "heatmaps off", "heat: paused", "slowed down",
        "full speed",
    ]  # fmt: skip


def test_each_state_says_what_is_degraded():
    for temperature_c, wanted in [
        (60.0, ()),
        (75.0, ("heat: 75 °C, slowed down",)),
        (79.0, ("heat: 79 °C, heatmaps off",)),
        (83.0, ("heat: paused at 83 °C",)),
    ]:
        assert settle(temperature_c)[0].heat.degraded == wanted


def test_a_heat_pause_is_told_at_the_slowest_pace_and_ends_at_once():
    watch, clock, sensors = settle(83.0)
    starts = loop(watch, clock, 100.0, work_s=0.0)
    assert 9 <= len(starts) <= 11
    assert watch.heat.interval_s == SETTINGS.slowest_s
    sensors.temperature_c = 40.0
    loop(watch, clock, 20.0)
    assert watch.heat.state == "warm" and watch.heat.interval_s == 0


@pytest.mark.parametrize("limits", [(75.0, 75.0, 75.0), (75.0, 75.0, 76.0)])
def test_limits_that_coincide_do_not_flutter(limits):
    settings = replace(SETTINGS, target_c=limits[0], hot_c=limits[1], pause_at_c=limits[2])
    board = replace(boards()[0], hours=1.0, start_c=74.0)
    controlled = simulate(board, settings, seed=10)
    assert len(controlled.states) <= 12  # noise alone would change it several times a minute


# --- Sensors


def test_sysfs_files_are_read(tmp_path):
    sensor, throttled = tmp_path / "temp", tmp_path / "get_throttled"
    sensor.write_text("74991\n")
    throttled.write_text("50005\n")  # hexadecimal, without 0x
    reading = Sensors(sensor, throttled, tmp_path).read()
    assert reading.temperature_c == pytest.approx(74.991)
    assert reading.flags == {
        "under-voltage", "throttled", "under-voltage since boot", "throttled since boot",
    }  # fmt: skip
    throttled.write_text("a000a\n")
    assert Sensors(sensor, throttled, tmp_path).read().flags == {
        "frequency capped", "soft limit", "frequency capped since boot", "soft limit since boot",
    }  # fmt: skip


def test_newer_kernels_tell_of_under_voltage_elsewhere(tmp_path):
    for number, name in enumerate(("cpu_thermal", "rpi_volt")):
        (tmp_path / f"hwmon{number}").mkdir()
        (tmp_path / f"hwmon{number}" / "name").write_text(name + "\n")
    alarm = tmp_path / "hwmon1" / "in0_lcrit_alarm"
    sensors = Sensors(tmp_path / "none", tmp_path / "none", tmp_path)
    alarm.write_text("1\n")
    assert sensors.read().flags == {"under-voltage"}
    alarm.write_text("0\n")
    assert sensors.read().flags == frozenset()
    alarm.unlink()
    assert sensors.read() == Reading(None)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hot", b"\xff\xfe\x00", b"75.2", b"0", b"62", b"nan", b"9" * 5000]
)
def test_nonsense_in_the_files_is_no_reading(tmp_path, content):
    (tmp_path / "temp").write_bytes(content)
    (tmp_path / "flags").write_bytes(b"zz" + content)
    sensors = Sensors(tmp_path / "temp", tmp_path / "flags", tmp_path)
    clock = Clock()
    watch = ThermalWatch(SETTINGS, clock, sensors)
    loop(watch, clock, 5.0)
    assert watch.heat.temperature_c is None and watch.heat.flags == frozenset()
    assert Sensors(tmp_path, tmp_path, tmp_path / "temp").read() == Reading(None)  # folders


@pytest.mark.parametrize("wild_c", [-40.0, 200.0, math.nan, math.inf, None])
def test_a_temperature_that_cannot_be_is_none(wild_c):
    memory = Memory(state="warm", duty=0.5, temperature_c=75.0, seen_s=0.0, step_s=0.0)
    after = step(memory, Reading(wild_c), 0.03, 1.0, SETTINGS)
    assert (after.duty, after.temperature_c, after.state) == (0.5, 75.0, "warm")


@pytest.mark.parametrize("wild_c", [0.5, 124.0])
def test_a_single_wild_reading_changes_nothing(wild_c):
    watch, clock, sensors = settle(75.0)
    before = watch.heat
    sensors.temperature_c = wild_c
    loop(watch, clock, 1.0)
    sensors.temperature_c = 75.0
    loop(watch, clock, 3.0)
    assert watch.heat.state == before.state
    assert watch.heat.temperature_c == pytest.approx(75.0, abs=0.01)


def test_a_machine_without_sensors_runs_and_says_so_once(tmp_path, caplog):
    settings = replace(SETTINGS, sensor=str(tmp_path / "no"), throttled=str(tmp_path / "no"))
    clock = Clock()
    sensors = Sensors(settings.sensor, settings.throttled, tmp_path)
    watch = ThermalWatch(settings, clock, sensors)
    assert len(loop(watch, clock, 200.0)) >= 6000
    assert watch.heat.state == "unwatched" and watch.heat.degraded == ()
    assert len(caplog.records) == 1
    assert "not watched" in caplog.text and settings.sensor in caplog.text


def test_a_sensor_that_vanishes_leaves_the_pace_and_after_a_minute_says_so(caplog):
    watch, clock, sensors = settle(77.0)
    interval_s = watch.heat.interval_s
    assert interval_s > 0.05
    sensors.temperature_c = None
    loop(watch, clock, BLIND_S - 3)
    assert watch.heat.interval_s == interval_s
    assert watch.heat.state == "warm"
    assert watch.heat.degraded == (
        "heat: 77 °C, slowed down",
        "heat: no temperature, the last pace is kept",
    )
    caplog.clear()
    loop(watch, clock, 600.0)
    assert watch.heat.state == "unwatched" and watch.heat.temperature_c is None
    assert watch.heat.degraded == ("heat: not watched, the sensor is lost",)
    assert 0.03 < watch.heat.interval_s <= max(interval_s, 0.03 / BLIND_DUTY) + 1e-9
    assert len(caplog.records) == 1 and "keeps the last pace" in caplog.text
    # It comes back, and all goes on.
    sensors.temperature_c = 60.0
    loop(watch, clock, 5.0)
    assert watch.heat.temperature_c == pytest.approx(60.0)
    assert watch.heat.state == "normal"


def test_a_sensor_lost_in_a_heat_pause_does_not_end_the_inspection():
    watch, clock, sensors = settle(83.0)
    sensors.temperature_c = None
    loop(watch, clock, BLIND_S - 3, work_s=0.0)
    assert watch.heat.state == "paused" and watch.heat.temperature_c == pytest.approx(83.0)
    loop(watch, clock, 10.0)
    assert watch.heat.state == "unwatched"
    starts = loop(watch, clock, 60.0)
    assert 0.03 * len(starts) / 60 == pytest.approx(BLIND_DUTY, rel=0.1)


def test_under_voltage_is_no_heat_and_stays_known(caplog):
    watch, clock, sensors = settle(50.0, sensors=Fixed(50.0, "under-voltage", "throttled"))
    assert watch.heat.state == "normal" and watch.heat.interval_s == 0
    assert watch.heat.degraded == ("under-voltage", "firmware: throttled")
    # The kernel has the firmware forget every 2 s.
    sensors.flags = frozenset()
    loop(watch, clock, 60.0)
    assert watch.heat.degraded == ()
    assert watch.heat.flags == {"under-voltage since boot", "throttled since boot"}
    sensors.flags = frozenset({"under-voltage"})
    loop(watch, clock, 5.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["throttled since boot", "under-voltage since boot"]


# --- The bench


def test_the_bench_prints_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    short = [replace(board, hours=0.05, work_ms=300.0) for board in boards()]
    rows = [
        (board, simulate(board, SETTINGS, 0), simulate(board, SETTINGS, 0, controlled=False))
        for board in short
    ]
    lines = table(rows, TARGET_C).splitlines()
    assert len(lines) == 8 and all(len(line) <= 100 for line in lines)
    plot(rows, SETTINGS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="cannot be written"):
        plot(rows, SETTINGS, tmp_path / "none" / "plot.png")
