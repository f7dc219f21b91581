"""Verdicts per frame and per part."""

from __future__ import annotations

import pytest

from edge_app.decision import Rules, State, decide, finish, open_part
from edge_app.records import Finding, Verdict

OK, NG, UNKNOWN, EMPTY = Verdict.OK, Verdict.NG, Verdict.UNKNOWN, Verdict.EMPTY


def play(rules, findings):
    """Verdicts of the frames, and the verdicts on parts as they close."""
    state, decisions, closed = State(), [], []
    for index, finding in enumerate(findings):
        decision, state = decide(finding, index, state, rules)
        decisions.append(decision)
        if decision.closed:
            closed.append(decision.closed)
    last, state = finish(state, rules)
    return decisions, closed + ([last] if last else [])


def scores(*values):
    return [Finding(value) for value in values]


def empty(count):
    return [Finding(None, empty=True)] * count


def test_single_frames_stand_alone_and_count_parts():
    decisions, closed = play(Rules("single", 1.0), [*scores(0.5, 1.5), *empty(1), *scores(0.9)])
    assert [d.verdict for d in decisions] == [OK, NG, EMPTY, OK]
    assert [d.part for d in decisions] == [0, 1, None, 2]
    assert not closed


def test_score_equal_to_the_threshold_is_ok():
    decisions, _ = play(Rules("single", 1.0), scores(1.0))
    assert decisions[0].verdict is OK


@pytest.mark.parametrize("mode", ["single", "continuous", "part"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_score_is_unknown_never_ok(mode, bad):
    decisions, _ = play(Rules(mode, 1.0), [*scores(0.5, bad)])
    assert decisions[1].verdict is UNKNOWN
    assert decisions[1].score is None and "finite" in decisions[1].reason


def test_continuous_starts_from_real_scores():
    # The article's average of ten started at zero would call the first nine frames good.
    decisions, _ = play(Rules("continuous", 1.0, smoothing_frames=10), scores(1.5))
    assert decisions[0].verdict is NG and decisions[0].score_smoothed == 1.5


def test_continuous_smooths_one_outlier_away_and_reports_both_scores():
    rules = Rules("continuous", 1.0, smoothing_frames=5)
    decisions, _ = play(rules, scores(0.5, 0.5, 0.5, 0.5, 2.0))
    assert decisions[-1].verdict is OK
    assert decisions[-1].score == 2.0
    assert decisions[-1].score_smoothed == pytest.approx(0.8)


def test_continuous_hysteresis_holds_the_alarm():
    rules = Rules("continuous", 1.0, smoothing_frames=1, hysteresis=0.1)
    decisions, _ = play(rules, scores(0.95, 1.05, 0.95, 0.89, 0.95))
    assert [d.verdict for d in decisions] == [OK, NG, NG, OK, OK]


def test_continuous_unknown_and_empty_clear_the_memory():
    rules = Rules("continuous", 1.0, smoothing_frames=5)
    unknown = Finding(None, reason="frame: dark")
    decisions, _ = play(rules, [*scores(2.0), unknown, *scores(0.5), *empty(1), *scores(0.5)])
    # The alarm is kept: the average starts anew, but has to fall below the lower limit.
    assert [d.verdict for d in decisions] == [NG, UNKNOWN, OK, EMPTY, OK]
    assert decisions[1].reason == "frame: dark"


def part_rules(**changes):
    return Rules("part", 1.0, **changes)


def test_a_part_gives_one_verdict_from_the_share_of_its_frames():
    frames = [*empty(2), *scores(0.5, 1.5, 1.5), *empty(2), *scores(0.5, 0.6, 1.5), *empty(3)]
    decisions, closed = play(part_rules(ng_share=0.5), frames)
    assert [(p.part, p.verdict) for p in closed] == [(0, NG), (1, OK)]
    assert (closed[0].usable, closed[0].ng, closed[0].score) == (3, 2, 1.5)
    assert (closed[0].first_frame, closed[0].last_frame, closed[0].frame) == (2, 4, 3)
    assert (closed[1].score, closed[1].frame) == (0.6, 8)  # the second of three decides
    assert [d.part for d in decisions[:8]] == [None, None, 0, 0, 0, None, None, 1]


def test_one_empty_frame_does_not_end_a_part():
    frames = [*scores(0.5, 0.5), *empty(1), *scores(0.5, 0.5), *empty(2)]
    _, closed = play(part_rules(empty_frames=2), frames)
    assert len(closed) == 1 and closed[0].usable == 4


def test_too_few_usable_frames_are_unknown_with_the_reason():
    cut = Finding(None, reason="part: cut by the edge of the view")
    _, closed = play(part_rules(least_usable_frames=3), [cut, *scores(0.1, 0.1), cut, *empty(2)])
    (part,) = closed
    assert part.verdict is UNKNOWN and (part.usable, part.unknown) == (2, 2)
    assert "2 usable, wanted 3" in part.reason and "cut by the edge" in part.reason


def test_nothing_carries_over_to_the_next_part():
    frames = [*scores(9, 9, 9), *empty(2), *scores(0.1, 0.1, 0.1), *empty(2)]
    _, closed = play(part_rules(), frames)
    assert [p.verdict for p in closed] == [NG, OK]


def test_the_part_in_view_at_the_end_is_judged():
    _, closed = play(part_rules(), scores(2, 2, 2))
    assert [p.verdict for p in closed] == [NG]


def test_an_unreadable_frame_opens_no_part():
    blind = Finding(None, reason="frame: lost", in_part=False)
    decisions, closed = play(part_rules(), [blind, blind, *empty(2)])
    assert [d.verdict for d in decisions[:2]] == [UNKNOWN, UNKNOWN] and not closed


BLIND = Finding(None, reason="frame: lost", in_part=False)


def test_parts_do_not_grow_together_over_unreadable_frames():
    frames = [*scores(0.1, 0.1, 0.1, 0.1, 0.1), *[BLIND] * 50, *scores(2, 2, 2)]
    _, closed = play(part_rules(), frames)
    assert [p.verdict for p in closed] == [UNKNOWN, NG]
    assert closed[0].reason == "view: lost (frame: lost)"
    assert (closed[0].last_frame, closed[1].first_frame) == (4, 55)
    mixed = [*scores(0.1, 0.1, 0.1), *empty(1), BLIND, *empty(1), *scores(2, 2, 2)]
    _, closed = play(part_rules(), mixed)
    assert [p.verdict for p in closed] == [UNKNOWN, NG]


def test_one_unreadable_frame_within_a_part_changes_nothing():
    _, closed = play(part_rules(), [*scores(0.1, 0.1), BLIND, *scores(0.1), *empty(2)])
    assert [(p.verdict, p.usable, p.unknown) for p in closed] == [(OK, 3, 1)]


def test_a_part_ng_before_the_blackout_stays_ng():
    _, closed = play(part_rules(), [*scores(2, 2, 2), BLIND, BLIND])
    assert [p.verdict for p in closed] == [NG]


@pytest.mark.parametrize(("ng", "verdict"), [(6, OK), (7, NG)])
def test_the_share_is_met_exactly(ng, verdict):
    # 0.07 * 100 is a little more than 7 in floating point.
    frames = scores(*[2.0] * ng, *[0.1] * (100 - ng))
    _, closed = play(part_rules(ng_share=0.07), frames)
    assert [p.verdict for p in closed] == [verdict]


def test_continuous_scores_before_a_blackout_do_not_vouch_after_it():
    rules = Rules("continuous", 1.0, smoothing_frames=5)
    decisions, _ = play(rules, [*scores(0.1, 0.1, 0.1, 0.1, 0.1), BLIND, *scores(2.4)])
    assert decisions[-1].verdict is NG


def triggered(findings, **rules):
    """One announced part made of these findings, and the decisions on its frames."""
    rules = Rules("triggered", 1.0, **rules)
    state, decisions = open_part(State(), 0), []
    for index, finding in enumerate(findings):
        decision, state = decide(finding, index, state, rules)
        decisions.append(decision)
    return finish(state, rules)[0], decisions


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [([0.5, 0.5, 2.0], Verdict.OK), ([0.5, 2.0, 2.0], Verdict.NG), ([2.0] * 3, Verdict.NG)],
)
def test_an_announced_part_gets_one_verdict(scores, verdict):
    part, decisions = triggered([Finding(score) for score in scores])
    assert (part.verdict, part.part, part.usable) == (verdict, 0, 3)
    assert [decision.part for decision in decisions] == [0, 0, 0]


def test_an_announced_part_that_is_not_in_view_is_unknown_not_empty():
    part, decisions = triggered([Finding(None, empty=True)] * 3)
    assert part.verdict is Verdict.UNKNOWN
    assert "none in view" in part.reason
    assert {decision.verdict for decision in decisions} == {Verdict.UNKNOWN}


def test_an_announced_part_outlasts_empty_and_unreadable_frames():
    blind = Finding(None, reason="unreadable: frame", in_part=False)
    usable = [Finding(0.5)] * 3
    part, _ = triggered([usable[0], Finding(None, empty=True), blind, *usable[1:]])
    assert (part.verdict, part.usable, part.unknown) == (Verdict.OK, 3, 2)


def test_between_announced_parts_no_frame_belongs_to_one():
    rules, state = Rules("triggered", 1.0), State()
    decision, state = decide(Finding(None, reason="camera: lost", in_part=False), 0, state, rules)
    assert (decision.verdict, decision.part, state.open_part) == (Verdict.UNKNOWN, None, None)
    _, state = finish(open_part(state, 1), rules)
    assert open_part(state, 2).open_part.part == 1


LOST = Finding(None, reason="camera: lost", in_part=False, lost=True)


def test_a_camera_lost_for_a_moment_ends_the_part_in_view():
    _, closed = play(part_rules(), [*scores(0.1, 0.1, 0.1), LOST, *scores(*[9.0] * 3), *empty(2)])
    assert [p.verdict for p in closed] == [UNKNOWN, NG]
    assert "camera: lost" in closed[0].reason


def test_an_announced_part_over_which_the_camera_was_lost_is_not_ok():
    part, _ = triggered([Finding(0.5), LOST, Finding(0.5), Finding(0.5), Finding(0.5)])
    assert part.verdict is UNKNOWN and "camera: lost" in part.reason
