"""Where the map lands, what it says, and when the decoder is called at all."""

from __future__ import annotations

import numpy as np
import pytest

from edge_app.align import Aligner, Alignment, on_frame
from edge_app.config import load_config
from edge_app.errors import BundleError
from edge_app.heatmap import ColourScale, difference_map, overlay
from edge_app.inspector import Inspector
from edge_app.records import Frame, Verdict


def inspector(bundle, mode="single", heatmap="auto"):
    return Inspector(bundle, load_config().decision, mode, heatmap=heatmap)


def test_a_frame_that_is_not_ng_never_calls_the_decoder(nut_bundle, still_frames):
    inspects = inspector(nut_bundle, heatmap="decoder")
    calls = 0
    seen = set()
    frames = still_frames["good"][:10] + still_frames["bad"][::6] + still_frames["empty"][:3]
    for index, frame_bgr in enumerate([*frames, None]):
        (result,) = inspects.inspect(Frame(index, "test", frame_bgr))
        verdict = result.decision.verdict
        calls += verdict is Verdict.NG
        seen.add(verdict)
        assert inspects.decoder.calls == calls
        assert (result.overlay_bgr is not None) == (verdict is Verdict.NG)
        assert ("heatmap" in result.latency_ms) == (verdict is Verdict.NG)
    assert seen == {Verdict.OK, Verdict.NG, Verdict.EMPTY, Verdict.UNKNOWN}


def test_a_part_calls_the_decoder_once_and_only_when_it_is_ng(nut_bundle, clip_frames):
    inspects = inspector(nut_bundle, "part", "decoder")
    ng_parts = 0
    for index, frame_bgr in enumerate(clip_frames):
        for result in inspects.inspect(Frame(index, "clip", frame_bgr)):
            ng_parts += result.event == "part" and result.decision.verdict is Verdict.NG
            assert inspects.decoder.calls == ng_parts
    assert ng_parts > 0


def test_difference_of_a_perfect_redraw_is_zero():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert difference_map(pixels, pixels.astype(np.float32) / 255, 0.02).max() < 1e-6


def test_difference_is_the_mean_over_colours():
    pixels = np.full((32, 32, 3), 255, np.uint8)
    redraw = np.ones((32, 32, 3), np.float32)
    redraw[..., 0] = 0.4
    np.testing.assert_allclose(difference_map(pixels, redraw, 0.0), 0.2, atol=1e-6)
    np.testing.assert_allclose(difference_map(pixels, redraw, 0.05), 0.2, atol=1e-6)


@pytest.mark.parametrize("region", [None, (0.25, 0.5, 0.75, 1.0)])
def test_the_map_lands_on_the_right_pixels_of_the_full_frame(region):
    height, width = 240, 320
    difference = np.zeros((96, 96), np.float32)
    difference[24:36, 60:72] = 1.0  # centre at (30 / 96, 66 / 96) of the region
    aligned = Aligner(Alignment("none"), (96, 96), region).align(
        np.zeros((height, width, 3), np.uint8)
    )
    scaled = ColourScale(0.1, 0.9).apply(difference)
    map_01 = on_frame(scaled, aligned.matrix, (height, width, 3))
    assert map_01.shape == (height, width)
    left, top, right, bottom = region or (0, 0, 1, 1)
    rows, columns = np.nonzero(map_01 > 0.5)
    want_row = (top + (bottom - top) * 30 / 96) * height
    want_column = (left + (right - left) * 66 / 96) * width
    assert abs(rows.mean() + 0.5 - want_row) < 1 and abs(columns.mean() + 0.5 - want_column) < 1
    if region:
        assert map_01[: int(top * height)].max() == 0 and map_01[:, : int(left * width)].max() == 0


@pytest.mark.parametrize("kind", ["patch", "decoder"])
def test_a_drawn_defect_glows_where_it_was_drawn(nut_bundle, still_frames, kind):
    inspects = inspector(nut_bundle, heatmap=kind)
    frame = still_frames["good"][0].copy()
    height, width = frame.shape[:2]
    row, column = int(height * 0.32), int(width * 0.36)
    frame[row - 9 : row + 9, column - 9 : column + 9] = (40, 60, 150)
    (result,) = inspects.inspect(Frame(0, "test", frame))
    assert result.decision.verdict is Verdict.NG
    # The strongest defects are beyond the end of the scale over some area: its middle counts.
    peak = np.argwhere(result.map_01 >= 0.99 * result.map_01.max()).mean(axis=0)
    assert abs(peak[0] - row) <= 14 and abs(peak[1] - column) <= 14


def test_a_heatmap_that_the_bundle_lacks_is_refused(pooled_bundle):
    with pytest.raises(BundleError, match="has no patch heatmap, it has none"):
        inspector(pooled_bundle, heatmap="patch")


@pytest.mark.parametrize("kind", ["patch", "decoder"])
def test_good_parts_do_not_glow_and_bad_ones_do(nut_bundle, still_frames, kind):
    # A scale stretched per picture would paint something red on every good part too.
    inspects = inspector(nut_bundle, heatmap=kind)

    def painted_red(frames):
        shares = []
        for index, frame_bgr in enumerate(frames):
            frame = Frame(index, "test", frame_bgr)
            seen = inspects.look(frame, inspects.aligner.align(frame_bgr))
            shares.append((inspects.heatmap(seen) > 0.75).mean())
        return np.mean(shares)

    good, bad = painted_red(still_frames["good"][::6]), painted_red(still_frames["bad"][::6])
    assert good < 0.003 and bad > 4 * good


def test_overlay_leaves_unpainted_pixels_alone():
    frame = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    map_01 = np.zeros((40, 50), np.float32)
    map_01[10:20, 10:20] = 1.0
    painted = overlay(frame, map_01)
    changed = (painted != frame).any(axis=2)
    assert changed[10:20, 10:20].mean() > 0.95
    changed[10:20, 10:20] = False
    assert not changed.any()
