"""From results to events, episodes and counts."""

from __future__ import annotations

import numpy as np
import pytest

from edge_app.chronicle import Chronicle
from edge_app.clock import Now
from edge_app.decision import Rules, State, decide, finish
from edge_app.records import (
    Counts,
    Decision,
    Event,
    Finding,
    Frame,
    PartVerdict,
    Result,
    Verdict,
)

HOUR_S = 3600.0
START_S = 490_000 * HOUR_S


def picture(level):
    return np.full((4, 6, 3), level, np.uint8)


def frame_of(index, level=None, problem=None):
    return Frame(index, "camera:0", None if level is None else picture(level), problem)


def result_of(frame, verdict, reason=None, score=None, part=None, overlay=None):
    decision = Decision(verdict, score, score, reason, part)
    return Result("frame", frame, decision, 0.0, 1.0, "ab", overlay_bgr=overlay)


def part_of(part, verdict, reason=None, score=None, frame=None, overlay=None, usable=5, ng=4):
    closed = PartVerdict(part, verdict, reason, score, 3, 1, 6, usable, ng, 1)
    decision = Decision(verdict, score, score, reason, part, closed)
    frame = frame or Frame(3, "camera:0", None)
    return Result("part", frame, decision, 0.0, 1.0, "ab", overlay_bgr=overlay)


class Line:
    """Drives a chronicle, one frame a second."""

    def __init__(self, mode, merge_s=5.0, second=0.0):
        self.chronicle = Chronicle(mode, merge_s)
        self.second = second
        self.kept = []

    def now(self):
        return Now(START_S + self.second, 50.0 + self.second)

    def see(self, frame, *results, seconds=1.0):
        kept = self.chronicle.see(frame, results, self.now())
        self.second += seconds
        self.kept += kept
        return [item for item in kept if isinstance(item, Event)]

    def view(self, verdict, level=9, score=None, reason=None, seconds=1.0, overlay=None):
        frame = frame_of(int(self.second), level)
        result = result_of(frame, verdict, reason, score, overlay=overlay)
        return self.see(frame, result, seconds=seconds)

    def finish(self):
        kept = self.chronicle.finish(self.now())
        self.kept += kept
        return [item for item in kept if isinstance(item, Event)]

    def counted(self):
        sums = {}
        for item in self.kept:
            if isinstance(item, Counts):
                for name, count in item.counts.items():
                    sums[name] = sums.get(name, 0) + count
        return sums


def test_an_ng_part_is_one_event_with_its_evidence():
    line = Line("part")
    assert line.see(frame_of(1, 1), result_of(frame_of(1, 1), Verdict.NG, score=2.0, part=4)) == []
    best, overlay = frame_of(2, 2), picture(77)
    result = part_of(4, Verdict.NG, score=1.5, frame=best, overlay=overlay)
    empty = frame_of(7, 7)
    (event,) = line.see(empty, result, result_of(empty, Verdict.EMPTY))
    assert (event.kind, event.verdict, event.part) == ("ng", Verdict.NG, 4)
    assert (event.score, event.threshold, event.bundle_sha256) == (1.5, 1.0, "ab")
    assert event.frame_bgr is best.frame_bgr and event.overlay_bgr is overlay
    assert event.detail == "Part 4 is NG on 4 of 5 frames: score 1.5, limit 1"
    assert event.data["usable"] == 5 and event.frames == 6 and event.episode is None
    assert (event.time_s, event.boot_s) == (START_S + 1, 51.0)


def test_an_unknown_part_shows_the_last_of_its_frames_with_a_picture():
    line = Line("part")
    for index, level in ((1, 11), (2, 12), (3, None)):
        frame = frame_of(index, level)
        line.see(frame, result_of(frame, Verdict.UNKNOWN, "quality: dark", part=4))
    unknown = part_of(4, Verdict.UNKNOWN, "frames: 0 usable, wanted 3 (last: quality: dark)")
    empty = frame_of(5, 99)
    (event,) = line.see(empty, unknown, result_of(empty, Verdict.EMPTY))
    assert event.kind == "unknown" and event.frame_bgr[0, 0, 0] == 12
    assert event.detail.startswith("Part 4 could not be judged: frames: 0 usable")
    # The next part has nothing of this one.
    (event,) = line.see(empty, part_of(5, Verdict.UNKNOWN, "frames: 0 usable, wanted 3"))
    assert event.frame_bgr is None


def test_an_ng_part_without_a_kept_frame_shows_its_last_one():
    line = Line("triggered")
    frame = frame_of(1, 11)
    in_part = result_of(frame, Verdict.NG, score=2.0, part=0)
    (event,) = line.see(frame, in_part, part_of(0, Verdict.NG, score=2.0))
    assert event.frame_bgr is frame.frame_bgr


def test_an_ng_part_without_a_kept_frame_shows_its_clearest_one():
    """The last is often half out of view, and nobody could learn it as good."""
    line = Line("part")
    for index, score in ((1, 2.0), (2, 3.0), (3, 2.5)):
        frame = frame_of(index, 10 + index)
        line.see(frame, result_of(frame, Verdict.NG, score=score, part=0))
    frame = frame_of(4, 14)
    line.see(frame, result_of(frame, Verdict.UNKNOWN, "part: cut by the edge of the view", part=0))
    (event,) = line.see(frame_of(5, 15), part_of(0, Verdict.NG, score=2.5))
    assert event.frame_bgr[0, 0, 0] == 12
    # The next part has nothing of this one.
    (event,) = line.see(frame_of(6, 16), part_of(1, Verdict.NG, score=2.5))
    assert event.frame_bgr is None


def test_a_frame_that_heat_kept_from_being_looked_at_is_evidence_still():
    line = Line("part")
    taken = frame_of(1, 11)
    blind = frame_of(1, None, "heat: paused at 82 °C")
    line.see(taken, result_of(blind, Verdict.UNKNOWN, "heat: paused", part=0))
    (event,) = line.see(frame_of(2, 1), part_of(0, Verdict.UNKNOWN, "frames: 0 usable"))
    assert event.frame_bgr is taken.frame_bgr


def test_ok_parts_are_counted_only():
    line = Line("part")
    assert line.see(frame_of(1, 1), part_of(0, Verdict.OK, score=0.5)) == []
    line.finish()
    assert line.counted() == {"part OK": 1}


def test_a_run_of_ng_frames_is_an_episode():
    line = Line("continuous")
    assert line.view(Verdict.OK, score=0.5) == []
    first = line.view(Verdict.NG, level=1, score=1.2, overlay=picture(2))
    assert [event.ended_s for event in first] == [None] and first[0].kind == "ng"
    assert first[0].frame_bgr[0, 0, 0] == 1 and first[0].overlay_bgr[0, 0, 0] == 2
    assert first[0].detail == "The view is NG: score 1.2, limit 1"
    assert line.view(Verdict.NG, level=3, score=1.9, overlay=picture(4)) == []
    assert line.view(Verdict.NG, level=5, score=1.4) == []
    over = [line.view(Verdict.OK, score=0.5) for _ in range(7)]
    assert [len(events) for events in over] == [0, 0, 0, 0, 1, 0, 0]
    (ended,) = over[4]
    assert ended.episode == first[0].episode and ended.kind == "ng"
    assert (ended.time_s, ended.ended_s) == (START_S + 1, START_S + 3)
    assert (ended.frames, ended.score, ended.boot_s) == (3, 1.9, 51.0)
    assert ended.frame_bgr[0, 0, 0] == 3 and ended.overlay_bgr[0, 0, 0] == 4
    assert ended.detail == "The view was NG for 2.0 s (3 frames), highest score 1.9, limit 1"
    assert line.finish() == []


def test_the_end_of_an_episode_shows_nothing_new_where_its_first_frame_was_the_worst():
    line = Line("continuous")
    line.view(Verdict.NG, score=1.9)
    line.view(Verdict.NG, score=1.2)
    (ended,) = line.finish()
    assert ended.frame_bgr is None and ended.overlay_bgr is None and ended.score == 1.9


def test_short_gaps_are_bridged_and_long_ones_are_not():
    line = Line("continuous")
    begun = line.view(Verdict.NG, score=2.0)
    for _ in range(3):
        assert line.view(Verdict.OK, score=0.5) == []
    assert line.view(Verdict.NG, score=2.0) == []  # 4 s after the last
    ended = [event for _ in range(5) for event in line.view(Verdict.OK, score=0.5)]
    again = line.view(Verdict.NG, score=2.0)  # 6 s after
    assert [(event.ended_s, event.frames) for event in ended] == [(START_S + 4, 2)]
    assert [event.ended_s for event in again] == [None]
    assert again[0].episode != begun[0].episode == ended[0].episode


def test_few_frames_end_an_episode_just_as_well():
    line = Line("continuous")
    line.view(Verdict.NG, score=2.0, seconds=4.0)
    assert line.view(Verdict.OK, score=0.5, seconds=4.0) == []
    ended, begun = line.view(Verdict.NG, score=2.0)  # 8 s after the last, and seen OK between
    assert ended.ended_s == START_S and begun.ended_s is None


def test_slowed_down_by_heat_an_episode_lasts():
    line = Line("continuous")
    assert len(line.view(Verdict.NG, score=2.0)) == 1
    for _ in range(5):
        for _ in range(9):
            assert line.see(frame_of(0, 1)) == []  # left out: says nothing of the view
        assert line.view(Verdict.NG, score=2.0) == []
    assert len(line.view(Verdict.OK, score=0.5, seconds=6)) == 0
    assert len(line.view(Verdict.OK, score=0.5)) == 1


def test_after_a_long_time_without_a_look_it_is_another_episode():
    line = Line("continuous")
    line.view(Verdict.NG, score=2.0, seconds=61.0)
    ended, begun = line.view(Verdict.NG, score=2.0)
    assert ended.ended_s == START_S and begun.ended_s is None
    assert ended.episode != begun.episode


@pytest.mark.parametrize("mode", ["continuous", "part"])
def test_unknown_outside_parts_is_an_episode_for_each_kind_of_reason(mode):
    line = Line(mode)
    begun = line.view(Verdict.UNKNOWN, level=None, reason="camera: lost (why), next try in 1 s")
    begun += line.view(Verdict.UNKNOWN, level=None, reason="camera: lost (why), next try in 2 s")
    begun += line.view(Verdict.UNKNOWN, level=3, reason="quality: dark")
    assert [(event.kind, event.reason) for event in begun] == [
        ("unknown", "camera: lost (why), next try in 1 s"),
        ("unknown", "quality: dark"),
    ]
    assert begun[0].frame_bgr is None and begun[1].frame_bgr[0, 0, 0] == 3
    ended = {event.episode: event for event in line.finish()}
    assert [ended[event.episode].frames for event in begun] == [2, 1]
    assert ended[begun[0].episode].detail.startswith("Not judged for 1.0 s (2 frames): camera:")
    line.finish()
    assert line.counted()["unknown camera"] == 2 and line.counted()["unknown quality"] == 1


def test_an_ng_frame_outside_a_part_is_no_episode_where_parts_are_judged():
    line = Line("part")
    assert line.view(Verdict.NG, score=2.0) == [] and line.finish() == []


def test_the_wall_clock_may_be_set_meanwhile():
    chronicle = Chronicle("continuous")
    frame = frame_of(0, 1)
    ng = result_of(frame, Verdict.NG, score=2.0)
    begun = chronicle.see(frame, [ng], Now(100.0, 50.0))
    kept = chronicle.see(frame, [ng], Now(START_S, 52.0))
    assert [type(item) for item in kept] == [Counts] and kept[0].hour == 0
    ended = [item for item in chronicle.finish(Now(START_S, 52.0)) if isinstance(item, Event)]
    assert begun[0].time_s == 100.0 and ended[0].ended_s == 102.0


def test_counts_come_every_10_seconds_and_by_their_hour():
    line = Line("continuous", second=HOUR_S - 15.0)
    for _ in range(30):
        line.view(Verdict.OK, score=0.5)
    line.finish()
    counts = [item for item in line.kept if isinstance(item, Counts)]
    assert [(item.hour, item.counts["frame OK"]) for item in counts] == [
        (490_000, 10),
        (490_000, 5),
        (490_001, 10),
        (490_001, 5),
    ]
    assert line.chronicle.totals == {"frame OK": 30}


def test_counts_are_those_of_the_decisions():
    """A part of three good frames, an empty view and a lost camera, through the real decision."""
    line, rules, state = Line("part"), Rules("part", 1.0), State()
    lost = Finding(None, reason="camera: lost", in_part=False, lost=True)
    findings = (
        [Finding(0.5)] * 3 + [Finding(None, empty=True)] * 2 + [lost] * 2 + [Finding(2.0)] * 4
    )
    for index, finding in enumerate(findings):
        decision, state = decide(finding, index, state, rules)
        frame = frame_of(index, 1)
        results = [result_of(frame, decision.verdict, decision.reason, part=decision.part)]
        if decision.closed is not None:
            it = decision.closed
            results.insert(0, part_of(it.part, it.verdict, it.reason, it.score))
        line.see(frame, *results)
    closed, state = finish(state, rules)
    line.see(frame, part_of(closed.part, closed.verdict, closed.reason, closed.score))
    line.finish()
    assert line.counted() == line.chronicle.totals == {
        "frame OK": 3,
        "frame EMPTY": 2,
        "frame UNKNOWN": 2,
        "unknown camera": 2,
        "frame NG": 4,
        "part OK": 1,
        "part NG": 1,
    }  # fmt: skip
    events = [item for item in line.kept if isinstance(item, Event)]
    assert [(event.kind, event.part, bool(event.ended_s)) for event in events] == [
        ("unknown", None, False),
        ("ng", 1, False),
        ("unknown", None, True),
    ]


def test_nothing_is_held_after_the_end():
    line = Line("part")
    frame = frame_of(1, 11)
    line.see(frame, result_of(frame, Verdict.UNKNOWN, "quality: dark", part=0))
    line.finish()
    (event,) = line.see(frame_of(2, 1), part_of(0, Verdict.UNKNOWN, "frames: 0 usable"))
    assert event.frame_bgr is None
