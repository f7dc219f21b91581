"""Text: the size asked for is the size drawn, whichever font OpenCV has."""

from __future__ import annotations

import numpy as np
import pytest

from edge_app.live import text

SENTENCES = ["OK", "UNKNOWN", "limit 2.91", "gpqy |", "83°C", "false rejects 0.0% (0.0% to 1.8%)"]


def ink(said: str, px: int, bold: bool) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is drawn, around (100, 200)."""
    canvas = np.zeros((400, 2400, 3), np.uint8)
    text.draw(canvas, said, (100, 200), px, (255, 255, 255), bold)
    rows, columns = np.nonzero(canvas.max(axis=2) > 60)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("px", [9, 14, 40])
@pytest.mark.parametrize("bold", [False, True])
@pytest.mark.parametrize("said", SENTENCES)
def test_ink_stays_in_the_measured_box(said, px, bold):
    left, top, right, bottom = ink(said, px, bold)
    # A stroke is drawn around its line: half of it lies outside the font's own box.
    slack = max(px // 7, 2)
    assert left >= 100 - slack
    assert right <= 100 + text.width(said, px, bold) + slack
    assert bottom <= 200 + text.below(px) + slack
    assert top >= 200 - px * 1.35 - slack


@pytest.mark.parametrize("px", [12, 30, 90])
def test_a_capital_is_as_high_as_asked(px):
    _, top, _, bottom = ink("H", px, False)
    assert abs((bottom - top) - px) <= max(2, 0.12 * px)


@pytest.mark.parametrize("most", [60, 150, 600])
def test_fitting_fits_and_wastes_little(most):
    px = text.fitting("UNKNOWN", most, 200, bold=True)
    assert text.width("UNKNOWN", px, True) <= most
    assert px == 200 or text.width("UNKNOWN", px + 2, True) > 0.9 * most


def test_shortened_and_wrapped_never_exceed():
    said = "part: not where the good parts lay, nor anywhere near it, which is a pity"
    assert text.width(text.shortened(said, 120, 12), 12) <= 120
    lines = text.wrapped(said, 150, 12, 2)
    assert len(lines) == 2 and lines[1].endswith("...")
    assert all(text.width(line, 12) <= 150 for line in lines)
    whole = text.wrapped(said, 5000, 12, 2)
    assert whole == [said]


def test_a_word_wider_than_the_line_is_cut():
    (line,) = text.wrapped("w" * 80, 100, 12, 2)
    assert text.width(line, 12) <= 100


def test_what_opencv_4_cannot_draw_is_spelt():
    assert text.plain("Größe … 3 µm – 83 °C ✓") == "Grosse ... 3 um - 83 °C ?"
