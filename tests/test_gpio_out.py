"""Output pins on gpiozero's mock: when a pulse is on, which lamp is, and pins that fail."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import time
from dataclasses import replace

import pytest

from edge_app.backoff import Backoff
from edge_app.config import load_config
from edge_app.errors import ConfigError, InputError
from edge_app.outbox import GivenUp, Outbox
from edge_app.records import Decision, Frame, PartVerdict, Result, Verdict
from edge_app.sinks import gpio
from edge_app.sinks.gpio import LampSink, RejectSink, Windows, lamp

LIMIT_S = 20.0
RED, YELLOW, GREEN, REJECT = 5, 6, 13, 26
DEFAULT = replace(
    load_config().gpio, red_pin=RED, yellow_pin=YELLOW, green_pin=GREEN, reject_pin=REJECT
)
# A pulse is never early, and late by no more than this on a machine that is busy with others.
LATEST_S = 2.0


@pytest.fixture
def pins():
    mock = pytest.importorskip("gpiozero.pins.mock", reason="needs gpiozero, and its mock pins")
    factory = mock.MockFactory()
    yield factory
    factory.reset()


def part_of(verdict, announced_s=None, part=0):
    closed = PartVerdict(part, verdict, None, None, 0, 0, 1, 2, 0, 0)
    decision = Decision(verdict, part=part, closed=closed)
    return Result(
        "part", Frame(0, "camera", None), decision, 0.0, 1.5, "abc", announced_s=announced_s
    )


def frame_of(verdict, part=None):
    return Result("frame", Frame(0, "camera", None), Decision(verdict, part=part), 0.0, 1.5, "abc")


def windows_of(*spans_s):
    windows = Windows()
    for span in spans_s:
        windows.add(*span)
    return windows


def test_windows_that_overlap_or_touch_are_one():
    assert windows_of((1, 2), (4, 5)).spans_s == [(1, 2), (4, 5)]
    assert windows_of((4, 5), (1, 2)).spans_s == [(1, 2), (4, 5)]
    assert windows_of((1, 3), (2, 4)).spans_s == [(1, 4)]
    assert windows_of((1, 2), (2, 3)).spans_s == [(1, 3)]
    assert windows_of((1, 2), (3, 4), (5, 6), (1.5, 5.5)).spans_s == [(1, 6)]
    assert windows_of((1, 9), (2, 3)).spans_s == [(1, 9)]


def test_a_pin_is_on_from_the_beginning_to_just_before_the_end():
    windows = windows_of((1.0, 2.0), (4.0, 5.0))
    assert windows.at(0.5) == (False, 1.0)
    assert windows.at(1.0) == (True, 2.0)
    assert windows.at(1.99) == (True, 2.0)
    assert windows.at(2.0) == (False, 4.0)
    assert windows.at(4.5) == (True, 5.0)
    assert windows.at(5.0) == (False, None) and windows.spans_s == []


def test_a_window_in_which_the_pin_was_never_on_is_missed():
    windows = windows_of((1, 2), (3, 4), (5, 6), (7, 8))
    windows.at(1.5)
    windows.begun = True
    windows.add(1.7, 2.5)  # goes on
    assert windows.at(3.5) == (True, 4) and windows.missed == 0
    assert windows.at(7.5) == (True, 8) and windows.missed == 2


def test_any_windows_are_their_union():
    random_of = random.Random(7)
    for _ in range(200):
        spans_s = [
            (start, start + random_of.randint(1, 6))
            for start in (random_of.randint(0, 40) for _ in range(random_of.randint(1, 12)))
        ]
        windows = windows_of(*spans_s)
        flat = [edge for span in windows.spans_s for edge in span]
        assert flat == sorted(set(flat))
        for now_s in range(50):
            wanted = any(start <= now_s < end for start, end in spans_s)
            assert windows.at(now_s)[0] == wanted


class Edges:
    """Each change of a mock pin from its rest, with its time; to be waited for."""

    def __init__(self, pin, rest=False):
        self.changed = threading.Condition()
        self.seen = []
        self.pin = pin
        set_state = pin._set_state

        def noted(value):
            set_state(value)
            with self.changed:
                before = self.seen[-1][1] if self.seen else rest
                if bool(value) != before:
                    self.seen.append((time.monotonic(), bool(value)))
                self.changed.notify_all()

        pin._set_state = noted

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, LIMIT_S), self.seen


def eventually(condition):
    """For what nobody announces."""
    pause = threading.Event()
    for _ in range(int(LIMIT_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("not in time")


@contextlib.contextmanager
def rejecting(pins, **settings):
    """A reject sink whose pin is open, with its edges from then on."""
    settings = replace(DEFAULT, **settings)
    edges = Edges(pins.pin(REJECT), rest=not settings.active_high)
    sink = RejectSink(settings, pins)
    try:
        yield sink, edges
    finally:
        sink.close()


def test_a_pulse_begins_after_its_delay_and_has_its_length(pins):
    with rejecting(pins, reject_delay_ms=120.0, reject_ms=200.0) as (sink, edges):
        announced_s = time.monotonic()
        sink.emit([part_of(Verdict.NG, announced_s)])
        assert edges.seen == []  # it does not wait for the pulse
        edges.wait_for(2)
    (on_s, on), (off_s, off) = edges.seen
    assert (on, off) == (True, False)
    assert 0.12 <= on_s - announced_s < 0.12 + LATEST_S
    assert 0.32 <= off_s - announced_s < 0.32 + LATEST_S


def test_pulses_that_overlap_are_one_and_others_are_each(pins):
    with rejecting(pins, reject_delay_ms=50.0, reject_ms=300.0) as (sink, edges):
        start_s = time.monotonic()
        for after_s in (0.0, 0.1, 0.2, 0.8):
            sink.emit([part_of(Verdict.NG, start_s + after_s)])
        edges.wait_for(4)
    assert [value for _, value in edges.seen] == [True, False, True, False]
    for (at_s, _), wanted_s in zip(edges.seen, (0.05, 0.55, 0.85, 1.15), strict=True):
        assert 0 <= at_s - start_s - wanted_s < LATEST_S
    assert sink.late == 0


def test_a_nearer_pulse_does_not_wait_for_a_farther_one(pins):
    with rejecting(pins, reject_delay_ms=0.0, reject_ms=300.0) as (sink, edges):
        now_s = time.monotonic()
        sink.emit([part_of(Verdict.NG, now_s + 3600)])
        sink.emit([part_of(Verdict.NG, now_s + 0.05)])
        edges.wait_for(2)
        assert edges.seen[1][0] - now_s < 10


def test_a_pulse_that_is_planned_while_the_pin_is_driven_is_not_slept_through(pins):
    pin = pins.pin(REJECT)
    set_state, built, sinks = pin._set_state, threading.Event(), []

    def planned(value):
        set_state(value)
        if not sinks:
            assert built.wait(LIMIT_S)
            sinks.append(sink)
            sink.emit([part_of(Verdict.NG, time.monotonic())])

    pin._set_state = planned
    edges = Edges(pin)
    sink = RejectSink(replace(DEFAULT, reject_ms=60_000.0), pins)
    built.set()
    edges.wait_for(1)
    sink.close()


def test_an_end_that_comes_while_the_pin_is_driven_is_not_slept_through(pins):
    pin = pins.pin(REJECT)
    set_state, ends = pin._set_state, []

    def ending(value):
        set_state(value)
        if value and not ends:
            ends.append(threading.Thread(target=sink.close, daemon=True))
            ends[0].start()
            eventually(lambda: sink._closing)

    pin._set_state = ending
    sink = RejectSink(replace(DEFAULT, reject_ms=60_000.0), pins)
    sink.emit([part_of(Verdict.NG, time.monotonic())])
    eventually(lambda: ends)
    ends[0].join(LIMIT_S)
    assert not sink._thread.is_alive() and not pin.state


def test_a_verdict_within_its_pulse_gives_the_rest_of_it(pins):
    with rejecting(pins, reject_delay_ms=0.0, reject_ms=1000.0) as (sink, edges):
        announced_s = time.monotonic() - 0.9
        sink.emit([part_of(Verdict.NG, announced_s)])
        edges.wait_for(2)
    assert edges.seen[1][0] - edges.seen[0][0] < 0.9
    assert sink.late == 0 and edges.seen[1][0] >= announced_s + 1.0


def test_a_verdict_after_its_pulse_is_counted_and_told_once(pins):
    told = []
    with rejecting(pins, reject_delay_ms=10.0, reject_ms=20.0) as (sink, edges):
        sink.close = lambda: None  # the outbox's close; the context closes it
        outbox = Outbox(sink, on_change=told.append)
        for part in range(3):
            outbox.offer(part_of(Verdict.NG, time.monotonic() - 5, part))
        assert outbox.close(LIMIT_S)
        del sink.close
        assert sink.late == 3 and outbox.dropped == 3 and edges.seen == []
    assert len(told) == 1
    assert told[0].startswith("reject: part 0 was not rejected: its verdict came 49")


def test_one_that_is_late_does_not_cost_the_others_theirs(pins):
    with rejecting(pins, reject_delay_ms=50.0, reject_ms=300.0) as (sink, edges):
        now_s = time.monotonic()
        with pytest.raises(GivenUp):
            sink.emit([part_of(Verdict.NG, now_s - 5), part_of(Verdict.NG, now_s)])
        edges.wait_for(2)


def test_which_parts_are_rejected(pins):
    with rejecting(pins, reject_unknown=True) as (sink, _):
        wanted = [verdict for verdict in Verdict if sink.wants(part_of(verdict))]
        assert wanted == [Verdict.NG, Verdict.UNKNOWN]
        assert not sink.wants(frame_of(Verdict.NG, part=0))
    pins.reset()
    with rejecting(pins, reject_unknown=False) as (sink, _):
        assert [verdict for verdict in Verdict if sink.wants(part_of(verdict))] == [Verdict.NG]


def test_the_end_switches_a_pulse_off_and_says_what_is_lost(pins, caplog):
    with rejecting(pins, reject_delay_ms=0.0, reject_ms=60_000.0) as (sink, edges):
        sink.emit([part_of(Verdict.NG, time.monotonic())])
        edges.wait_for(1)
        sink.emit([part_of(Verdict.NG, time.monotonic() + 3600)])
    assert [value for _, value in edges.seen][:2] == [True, False]
    assert "ended with 2 pulses due or under way" in caplog.text


def test_an_output_that_is_on_at_low_rests_high(pins):
    pin = pins.pin(REJECT)
    with rejecting(pins, reject_ms=60_000.0, active_high=False) as (sink, edges):
        sink.emit([part_of(Verdict.NG, time.monotonic())])
        edges.wait_for(1)
        assert edges.seen[0][1] is False and not pin.state
        sink.close()
        assert [value for _, value in edges.seen] == [False, True]


def test_a_pin_in_use_is_tried_again_until_it_is_free(pins, monkeypatch):
    from gpiozero import DigitalOutputDevice

    monkeypatch.setattr(gpio, "FIRST_S", 0.001)
    monkeypatch.setattr(gpio, "MOST_S", 0.01)
    other = DigitalOutputDevice(REJECT, pin_factory=pins)
    edges = Edges(pins.pin(REJECT))
    sink = RejectSink(replace(DEFAULT, reject_ms=60_000.0), pins)
    sink.emit([part_of(Verdict.NG, time.monotonic())])
    eventually(lambda: sink.problem is not None)
    assert sink.problem.startswith(f"GPIO {REJECT} cannot be driven")
    other.close()
    edges.wait_for(1)
    eventually(lambda: sink.problem is None)
    sink.close()


def test_a_pulse_that_its_pin_did_not_give_is_counted(pins, monkeypatch, caplog):
    from gpiozero import DigitalOutputDevice

    monkeypatch.setattr(gpio, "FIRST_S", 0.001)
    monkeypatch.setattr(gpio, "MOST_S", 0.01)
    other = DigitalOutputDevice(REJECT, pin_factory=pins)
    sink = RejectSink(replace(DEFAULT, reject_ms=5.0), pins)
    sink.emit([part_of(Verdict.NG, time.monotonic())])
    eventually(lambda: sink.late == 1)
    other.close()
    eventually(lambda: sink.problem is None)
    sink.close()
    assert "1 pulses were missed" in caplog.text


def shown_after(*results):
    shown = Verdict.UNKNOWN
    for result in results:
        shown = lamp(shown, result)
    return shown


OK, NG, UNKNOWN, EMPTY = Verdict.OK, Verdict.NG, Verdict.UNKNOWN, Verdict.EMPTY


@pytest.mark.parametrize(
    ("results", "wanted"),
    [
        ([], UNKNOWN),
        ([frame_of(EMPTY)], UNKNOWN),
        ([frame_of(OK)], OK),
        ([frame_of(OK), frame_of(NG)], NG),
        ([frame_of(OK), frame_of(UNKNOWN)], UNKNOWN),
        # Parts
        ([part_of(OK)], OK),
        ([part_of(NG), frame_of(EMPTY)], NG),
        ([part_of(OK), frame_of(EMPTY), frame_of(EMPTY)], OK),
        ([part_of(OK), frame_of(UNKNOWN), frame_of(EMPTY)], UNKNOWN),
        ([part_of(OK), frame_of(UNKNOWN), frame_of(EMPTY), part_of(NG)], NG),
        ([part_of(UNKNOWN), frame_of(EMPTY)], UNKNOWN),
        # A part's frames are not its verdict, but what cannot be seen is said at once
        ([part_of(NG), frame_of(OK, part=1)], NG),
        ([frame_of(EMPTY), frame_of(OK, part=0)], UNKNOWN),
        ([part_of(OK), frame_of(UNKNOWN, part=1)], UNKNOWN),
        ([part_of(OK), frame_of(UNKNOWN, part=1), frame_of(OK, part=1)], UNKNOWN),
    ],
)
def test_which_lamp_is_on(results, wanted):
    assert shown_after(*results) is wanted


def test_no_lamp_is_green_while_anything_is_unknown():
    """After any history: not right after an UNKNOWN, and not again before a verdict of OK."""
    said = [kind(verdict) for kind in (frame_of, part_of) for verdict in Verdict]
    for history in itertools.product(said, repeat=4):
        if shown_after(*history) is OK:
            verdicts = [result.decision.verdict for result in history]
            last_ok = max(i for i, verdict in enumerate(verdicts) if verdict is OK)
            assert UNKNOWN not in verdicts[last_ok:] and NG not in verdicts[last_ok:]


def lit(pins):
    return {name for name, pin in (("red", RED), ("yellow", YELLOW), ("green", GREEN)) if
            pins.pin(pin).state}  # fmt: skip


def test_the_lamps_show_it_and_never_two_at_once(pins):
    sink = LampSink(DEFAULT, pins)
    assert lit(pins) == {"yellow"}
    most = []
    for number in (RED, YELLOW, GREEN):
        pin = pins.pin(number)

        def noted(value, set_state=pin._set_state):
            set_state(value)
            most.append(len(lit(pins)))

        pin._set_state = noted
    seen = []
    for result in (part_of(OK), frame_of(EMPTY), part_of(NG), frame_of(UNKNOWN), part_of(OK)):
        if sink.wants(result):
            sink.emit([result])
        seen.append(lit(pins))
    assert seen == [{"green"}, {"green"}, {"red"}, {"yellow"}, {"green"}]
    assert max(most) == 1
    sink.close()
    assert lit(pins) == set()


def test_a_loop_that_hangs_is_not_green(pins, monkeypatch):
    monkeypatch.setattr(gpio, "LISTEN_S", 0.001)
    silent = [0.0]
    changed = threading.Condition()
    sink = LampSink(DEFAULT, pins, silent_s=lambda: silent[0])
    emit = sink.emit

    def told(items):
        emit(items)
        with changed:
            changed.notify_all()

    sink.emit = told

    def shows(wanted):
        with changed:
            return changed.wait_for(lambda: lit(pins) == wanted, LIMIT_S)

    assert sink.wants(part_of(OK))
    sink.emit(())
    assert shows({"green"})
    silent[0] = gpio.SILENT_S + 0.1
    assert shows({"yellow"})
    silent[0] = 0.0
    assert shows({"green"})  # the last part's verdict stands again
    sink.close()
    sink.emit(())
    assert lit(pins) == set()


def test_a_pin_that_fails_while_the_loop_is_silent_is_said_once(pins, monkeypatch, caplog):
    from gpiozero import DigitalOutputDevice

    monkeypatch.setattr(gpio, "LISTEN_S", 0.001)
    other = DigitalOutputDevice(GREEN, pin_factory=pins)
    silent, tries, changed = [0.0], [0], threading.Condition()
    sink = LampSink(DEFAULT, pins, silent_s=lambda: silent[0])
    emit = sink.emit

    def told(items):
        try:
            emit(items)
        finally:
            with changed:
                tries[0] += 1
                changed.notify_all()

    def after(more):
        with changed:
            wanted = tries[0] + more
            assert changed.wait_for(lambda: tries[0] >= wanted, LIMIT_S)

    def lines():
        return [record.getMessage() for record in caplog.records]

    sink.emit = told
    silent[0] = gpio.SILENT_S + 0.1
    after(5)  # tried again with each look
    (line,) = lines()
    assert line.startswith(f"lamps: GPIO {GREEN} cannot be driven") and "tried again" in line
    other.close()
    with changed:
        assert changed.wait_for(lambda: lit(pins) == {"yellow"}, LIMIT_S)
    silent[0] = 0.0
    after(1)
    assert lines()[1:] == ["lamps: work again"]
    sink.close()


def test_only_what_changes_the_lamp_waits_for_it(pins):
    sink = LampSink(DEFAULT, pins)
    results = [frame_of(verdict) for verdict in (UNKNOWN, UNKNOWN, OK, OK, NG, OK)]
    assert [sink.wants(result) for result in results] == [True, False, True, False, True, True]
    sink.close()


def test_a_lamp_without_a_pin_is_left_out(pins):
    sink = LampSink(replace(DEFAULT, red_pin=-1, yellow_pin=-1), pins)
    assert sink.wants(part_of(OK))
    sink.emit([part_of(OK)])
    assert lit(pins) == {"green"} and set(sink._devices) == {OK}
    sink.close()


def test_after_lamps_that_failed_the_newest_verdict_is_shown(pins):
    """Verdicts that nobody could see meanwhile are not played back."""
    from gpiozero import DigitalOutputDevice

    other = DigitalOutputDevice(GREEN, pin_factory=pins)
    sink = LampSink(DEFAULT, pins)
    with pytest.raises(InputError, match=f"GPIO {GREEN} cannot be driven"):
        sink.emit([part_of(OK)])
    failed = threading.Event()
    outbox = Outbox(sink, backoff=Backoff(0.001, 0.01), on_change=lambda _: failed.set())
    outbox.offer(frame_of(UNKNOWN))
    assert failed.wait(LIMIT_S)
    outbox.offer(part_of(OK))
    outbox.offer(part_of(NG))
    other.close()
    sink_closed = sink.close
    sink.close = lambda: None
    assert outbox.close(LIMIT_S)
    assert lit(pins) == {"red"}
    sink_closed()


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    for sink in (RejectSink, LampSink):
        with pytest.raises(ConfigError, match="needs gpiozero: sudo apt install python3-gpiozero"):
            sink(DEFAULT)
