"""The threshold dial: it moves along the held-out scores and says what good parts say of it."""

from __future__ import annotations

import pytest

from edge_app.dial import MOST_STEPS, Dial
from edge_app.held_out import false_reject_interval

SCORES = [3.0, 1.0, 2.0, 4.0]


def dial(value: float = 5.0, **section) -> Dial:
    return Dial.of(SCORES, {"value": value, "groups": 4, **section})


def test_down_rejects_one_more_good_picture_each():
    now, rates = dial(), []
    for _ in range(5):
        rates.append(now.expected()[0])
        now = now.down()
    assert rates == [0.0, 0.0, 0.25, 0.5, 0.75]  # 5 (calibrated), 4, 3, 2, 1


def test_up_goes_back_the_same_way():
    moved = dial().down().down()
    assert moved.value == 3.0
    assert moved.up().up().value == 5.0
    assert moved.up().up() == dial()


def test_it_ends_below_and_above():
    low = high = dial()
    for _ in range(100):
        low, high = low.down(), high.up()
    assert low.value == 1.0
    assert high.value == pytest.approx(5.0 * (1 + 0.05 * MOST_STEPS))
    assert high.expected()[0] == 0.0


def test_interval_counts_near_duplicates_once():
    apart = dial(2.0)
    twins = Dial.of(SCORES, {"value": 2.0, "groups": 2})
    assert apart.expected() == (0.5, *false_reject_interval(2, 4))
    assert twins.expected() == (0.5, *false_reject_interval(1, 2))
    assert twins.expected()[2] > apart.expected()[2]


def test_a_moved_threshold_knows_where_it_was_calibrated():
    moved = dial(3.0, calibrated=5.0)
    assert moved.calibrated == 5.0
    assert 5.0 in moved.stops


def test_without_groups_each_picture_counts():
    old = Dial.of(SCORES, {"value": 5.0})
    assert old.groups == 4


def test_sentence_names_rate_and_interval():
    assert dial(2.0).sentence() == "50.0% (6.8% to 93.2%) false rejects expected"
