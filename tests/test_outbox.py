"""The queue before a sink: bounded, in order, tried again, told on the edge, never in the way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edge_app.backoff import Backoff
from edge_app.errors import InputError
from edge_app.outbox import CLOSE_S, GivenUp, Outbox, bare
from edge_app.records import Counts, Decision, Event, Frame, Result, Verdict

# Far more than anything here takes; whoever waits for it has failed.
LIMIT_S = 20.0


class Recorder:
    """A sink that keeps what it gets; it may be shut, so that `emit` blocks, and told to fail."""

    name = "recorder"

    def __init__(self):
        self.batches = []
        self.tries = []
        self.errors = []
        self.closed = 0
        self.open = threading.Event()
        self.open.set()
        self.changed = threading.Condition()

    def emit(self, items):
        with self.changed:
            self.tries.append(list(items))
            self.changed.notify_all()
        assert self.open.wait(LIMIT_S)
        with self.changed:
            if self.errors:
                error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
                if error is not None:
                    raise error
            self.batches.append(list(items))
            self.changed.notify_all()

    def close(self):
        self.closed += 1

    @property
    def got(self):
        return [item for batch in self.batches for item in batch]

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT_S)

    def wait_for(self, count):
        self.wait(lambda: len(self.got) >= count)


QUICK = (0.001, 0.002)


@pytest.fixture
def sink():
    sink = Recorder()
    yield sink
    sink.open.set()


def test_items_come_in_order_and_the_sink_is_closed_once(sink):
    outbox = Outbox(sink)
    assert all([outbox.offer(number) for number in range(100)])
    assert outbox.close(LIMIT_S) and outbox.close(LIMIT_S)
    assert sink.got == list(range(100))
    assert sink.closed == 1 and outbox.waiting == 0
    assert (outbox.dropped, outbox.failures, outbox.failing) == (0, 0, None)


def test_what_waits_is_handed_over_in_batches(sink):
    sink.open.clear()
    outbox = Outbox(sink, batch=4)
    outbox.offer(0)
    sink.wait(lambda: sink.tries)
    for number in range(1, 10):
        outbox.offer(number)
    sink.open.set()
    assert outbox.close(LIMIT_S)
    assert sink.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_full_one_drops_the_oldest_and_counts_it_and_never_waits(sink):
    sink.open.clear()
    outbox = Outbox(sink, most=3)
    outbox.offer(0)
    sink.wait(lambda: sink.tries)  # in the sink's hands
    fits = [outbox.offer(number) for number in range(1, 6)]
    assert fits == [True, True, True, False, False]
    assert outbox.dropped == 2 and outbox.waiting == 4
    sink.open.set()
    assert outbox.close(LIMIT_S)
    assert sink.got == [0, 3, 4, 5]


def test_that_items_are_dropped_is_logged_once_each_time_that_it_begins(sink, caplog):
    outbox = Outbox(sink, most=2)
    for flood in (1, 2):
        sink.open.clear()
        outbox.offer("first")
        sink.wait(lambda tried=3 * flood - 2: len(sink.tries) == tried)  # in the sink's hands
        for number in range(6):
            outbox.offer(number)
        assert outbox.dropped == 4 * flood
        sink.open.set()
        sink.wait_for(3 * flood)
        end = time.monotonic() + LIMIT_S
        while outbox.waiting:  # until it has seen that the sink has taken all
            assert time.monotonic() < end
    assert outbox.close(LIMIT_S)
    said = "recorder: more than 2 wait: the oldest are dropped"
    assert caplog.messages == [said, said]


def test_a_batch_that_fails_is_offered_again_whole_and_told_once(sink):
    told = []
    sink.errors = [OSError("disk full"), OSError("disk full"), OSError("disk gone"), None]
    outbox = Outbox(sink, backoff=Backoff(*QUICK), on_change=told.append)
    outbox.offer("a")
    outbox.offer("b")
    sink.wait_for(2)
    assert outbox.close(LIMIT_S)
    assert sink.tries == [["a"]] * 4 + [["b"]]
    assert outbox.failures == 3 and outbox.dropped == 0 and outbox.failing is None
    assert told == ["recorder: disk full", "recorder: works again"]


def test_while_it_fails_the_oldest_goes_and_the_newest_stay(sink):
    sink.errors = [OSError("away")]
    outbox = Outbox(sink, most=2, backoff=Backoff(*QUICK))
    outbox.offer(0)
    sink.wait(lambda: len(sink.tries) >= 2)
    assert outbox.failing == "away"
    for number in range(1, 6):
        outbox.offer(number)
    with sink.changed:
        sink.errors = [None]
    assert outbox.close(LIMIT_S)
    assert sink.got[-2:] == [4, 5]
    assert outbox.dropped + len(sink.got) == 6
    assert sink.got == sorted(sink.got)


def test_what_is_given_up_is_not_offered_again(sink):
    told = []
    sink.errors = [GivenUp("refused with 404"), None]
    outbox = Outbox(sink, on_change=told.append)
    outbox.offer("a")
    outbox.offer("b")
    assert outbox.close(LIMIT_S)
    assert sink.got == ["b"]
    assert (outbox.failures, outbox.dropped) == (1, 1)
    assert told == ["recorder: refused with 404", "recorder: works again"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("frame"), "KeyError: 'frame'"),
        (InputError("out.db: cannot be written"), "out.db: cannot be written"),
        (TimeoutError(), "TimeoutError"),
        (OSError("two\nlines"), "two lines"),
    ],
)
def test_whatever_a_sink_raises_is_one_sentence(sink, error, sentence):
    told = []
    sink.errors = [error, None]
    outbox = Outbox(sink, backoff=Backoff(*QUICK), on_change=told.append)
    outbox.offer("a")
    sink.wait_for(1)
    outbox.close(LIMIT_S)
    assert told[0] == f"recorder: {sentence}"


def test_a_listener_that_fails_stops_nothing(sink):
    sink.errors = [OSError("away"), None]
    outbox = Outbox(sink, backoff=Backoff(*QUICK), on_change=lambda sentence: 1 / 0)
    outbox.offer("a")
    sink.wait_for(1)
    outbox.offer("b")
    assert outbox.close(LIMIT_S)
    assert sink.got == ["a", "b"]


def test_closing_tries_at_once_what_had_long_to_wait(sink):
    sink.errors = [OSError("away")]
    failed = threading.Event()
    outbox = Outbox(sink, backoff=Backoff(3600.0, 3600.0), on_change=lambda _: failed.set())
    outbox.offer("a")
    assert failed.wait(LIMIT_S)
    with sink.changed:
        sink.errors = [None]
    assert outbox.close(LIMIT_S)
    assert sink.got == ["a"] and sink.closed == 1


def test_closing_gives_up_when_its_time_is_over(sink):
    sink.errors = [OSError("away")]
    outbox = Outbox(sink, backoff=Backoff(*QUICK))
    outbox.offer("a")
    outbox.offer("b")
    assert not outbox.close(0.05)
    outbox._thread.join(LIMIT_S)
    assert sink.closed == 1 and outbox.dropped == 2 and outbox.waiting == 0
    assert not outbox.offer("c") and outbox.dropped == 3


def test_a_sink_that_hangs_is_left_behind(sink):
    sink.open.clear()
    outbox = Outbox(sink)
    outbox.offer("a")
    sink.wait(lambda: sink.tries)
    assert not outbox.close(0.0)
    assert outbox._thread.is_alive() and outbox._thread.daemon
    sink.open.set()
    outbox._thread.join(LIMIT_S)
    assert sink.closed == 1


def test_several_end_together(sink):
    """Each hangs; closed one after the other they still take one time to wait, and not three."""
    sink.open.clear()
    sinks = [sink, Recorder(), Recorder()]
    for other in sinks[1:]:
        other.open = sink.open
    outboxes = [Outbox(each) for each in sinks]
    for outbox in outboxes:
        outbox.offer("a")
    for outbox in outboxes:
        outbox.end(0.1)
    until = [outbox._until_s for outbox in outboxes]
    for outbox in outboxes:
        assert not outbox.close(3600.0)
    assert [outbox._until_s for outbox in outboxes] == until and CLOSE_S < 1


def test_what_a_sink_does_not_want_takes_no_place(sink):
    sink.wants = lambda item: item % 2 == 0
    sink.open.clear()
    outbox = Outbox(sink, most=3)
    assert all([outbox.offer(number) for number in range(6)])
    assert outbox.dropped == 0
    sink.open.set()
    assert outbox.close(LIMIT_S)
    assert sink.got == [0, 2, 4]


def test_a_problem_that_a_sink_knows_of_itself_is_shown(sink):
    outbox = Outbox(sink)
    sink.problem = "broker:1883 cannot be reached"
    assert outbox.failing == "broker:1883 cannot be reached"
    sink.problem = None
    assert outbox.failing is None
    outbox.close(LIMIT_S)


def test_nothing_is_lost_between_threads_that_offer(sink):
    outbox = Outbox(sink, most=10_000, batch=7)
    start = threading.Barrier(4)

    def offer(first):
        start.wait()
        for number in range(500):
            outbox.offer((first, number))

    threads = [threading.Thread(target=offer, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.close(LIMIT_S)
    assert len(sink.got) == 2000
    for first in range(4):
        assert [item for item in sink.got if item[0] == first] == [(first, n) for n in range(500)]


def test_without_pictures_nothing_else_is_gone():
    picture = np.zeros((4, 5, 3), np.uint8)
    frame = Frame(7, "camera", picture, captured_s=3.0)
    result = Result(
        "frame",
        frame,
        Decision(Verdict.NG, 2.0),
        1.0,
        1.5,
        "abc",
        overlay_bgr=picture,
        map_01=np.zeros((4, 5), np.float32),
        announced_s=2.0,
    )
    assert bare(result) == replace(
        result, frame=replace(frame, frame_bgr=None), overlay_bgr=None, map_01=None
    )
    event = Event("ng", 1.0, 2.0, "NG", frame_bgr=picture, overlay_bgr=picture)
    assert bare(event) == Event("ng", 1.0, 2.0, "NG")
    counts = Counts(1, {"part OK": 1})
    assert bare(counts) is counts
