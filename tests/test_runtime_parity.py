"""What counts as the same judgement under two runtimes."""

from __future__ import annotations

import sys

import pytest

from edge_app.errors import EdgeAppError
from tools.__main__ import main
from tools.runtime_parity import compare


def line(frame, score, verdict="OK", threshold=1.0):
    return {"frame": frame, "score": score, "verdict": verdict, "threshold": threshold}


def test_differences_are_relative_and_the_band_forgives():
    first = [line(0, 0.5), line(1, 0.9995), line(2, 2.0, "NG"), line(3, None, "EMPTY")]
    second = [line(0, 0.5005), line(1, 1.0002, "NG"), line(2, 2.0, "NG"), line(3, None, "EMPTY")]
    figures = compare(first, second)
    assert figures["frames"] == 3
    assert figures["largest_difference"] == pytest.approx(1e-3, rel=2e-3)
    assert (figures["verdicts_differ"], figures["verdicts_outside_band"]) == (1, 0)


def test_a_verdict_far_from_the_threshold_counts():
    figures = compare([line(0, 0.5)], [line(0, 0.5, "NG")])
    assert figures["verdicts_outside_band"] == 1


def test_runs_over_other_frames_are_refused():
    with pytest.raises(EdgeAppError, match="1 and 2 frames"):
        compare([line(0, 1.0)], [line(0, 1.0), line(1, 1.0)])


def test_an_interpreter_agrees_with_itself(nut_path, clip_path, capsys):
    argv = ["runtime-parity", "--bundle", nut_path, "--source", clip_path, "--python"]
    assert main([*map(str, argv), sys.executable]) == 0
    assert "largest 0.0e+00; 0 verdicts differ" in capsys.readouterr().out


def test_no_interpreter_is_said(nut_path, clip_path, capsys):
    argv = ["runtime-parity", "--bundle", nut_path, "--source", clip_path, "--python", "nowhere"]
    assert main([str(arg) for arg in argv]) == 2
    assert "is no program" in capsys.readouterr().err
