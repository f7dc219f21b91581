"""A part that lies anywhere at any angle, from enrolling to the heatmap on the full frame."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.cli import main
from edge_app.config import load_config
from edge_app.inspector import Inspector
from edge_app.records import Frame, Verdict

HEIGHT, WIDTH = 240, 320


def part_picture() -> tuple[np.ndarray, np.ndarray]:
    """A bracket with two holes, no two sides alike, and its mask; 60 x 140 pixels."""
    mask = np.zeros((60, 140), np.uint8)
    cv2.fillPoly(mask, [np.array([[4, 6], [100, 6], [136, 30], [100, 54], [30, 54], [4, 40]])], 255)
    cv2.circle(mask, (24, 24), 9, 0, -1)
    cv2.circle(mask, (96, 30), 14, 0, -1)
    rng = np.random.default_rng(5)
    grain = cv2.GaussianBlur(rng.normal(0, 30, mask.shape), (0, 0), 1.5)
    picture = np.clip(85 + grain[..., None] + np.array([0, 8, 20]), 0, 255)
    picture[:, 50:56] += 40  # an engraved line
    return picture.astype(np.float32), mask.astype(np.float32) / 255


def frame_with(
    places: list[tuple[float, float, float]],
    seed: int,
    defect: tuple[int, int] | None = None,
    gain: float = 1.0,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Parts at (x, y, degrees) on a plain ground, and where the first one's defect lies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    frame = np.dstack([190 + 0.05 * x - 0.04 * y] * 3)
    at = None
    for index, (centre_x, centre_y, degrees) in enumerate(places):
        picture, mask = part_picture()
        if defect is not None and index == 0:
            cv2.circle(picture, defect, 6, (30, 30, 150), -1)
        matrix = cv2.getRotationMatrix2D((69.5, 29.5), degrees, 1.0)
        matrix[:, 2] += centre_x - 69.5, centre_y - 29.5
        size = (WIDTH, HEIGHT)
        alpha = cv2.warpAffine(mask, matrix, size)[..., None]
        frame = frame * (1 - alpha) + cv2.warpAffine(picture, matrix, size) * alpha
        if defect is not None and index == 0:
            at = tuple(matrix @ np.array([*defect, 1.0]))
    frame = gain * frame + rng.normal(0, 2.0, frame.shape)
    return np.clip(frame, 0, 255).astype(np.uint8), at


def anywhere(rng: np.random.Generator) -> tuple[float, float, float]:
    return rng.uniform(110, 210), rng.uniform(95, 145), rng.uniform(0, 360)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, base_path):
    root = tmp_path_factory.mktemp("anywhere")
    (root / "good").mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        frame, _ = frame_with([anywhere(rng)], index, gain=rng.uniform(0.9, 1.1))
        cv2.imwrite(str(root / "good" / f"{index:02d}.png"), frame)
    argv = ["enroll", root / "good", "--bundle", base_path, "--out", root / "b"]
    assert main([str(arg) for arg in argv]) == 0
    return load_bundle(root / "b")


@pytest.fixture
def inspector(bundle):
    return Inspector(bundle, load_config().decision, "single")


def judge(inspector, frame_bgr):
    (result,) = inspector.inspect(Frame(0, "drawn", frame_bgr))
    return result


def test_enroll_finds_the_pose_by_itself(bundle):
    assert bundle.manifest["alignment"]["recipe"] == "pose"
    assert bundle.manifest["alignment"]["aspect"] == pytest.approx(140 / 60, rel=0.25)
    assert bundle.manifest["presence"] is None


def test_good_parts_pass_at_any_angle_and_brightness(inspector):
    rng = np.random.default_rng(1)
    verdicts = []
    for index in range(24):
        frame, _ = frame_with([anywhere(rng)], 100 + index, gain=(0.75, 1.0, 1.25)[index % 3])
        verdicts.append(judge(inspector, frame).decision.verdict)
    assert verdicts.count(Verdict.OK) >= 22


def test_a_defect_is_found_and_painted_where_it_lies(inspector):
    rng = np.random.default_rng(2)
    hits, found = [], 0
    for index in range(12):
        frame, at = frame_with([anywhere(rng)], 200 + index, defect=(70, 40))
        result = judge(inspector, frame)
        found += result.decision.verdict is Verdict.NG
        if result.map_01 is not None:
            peak = np.argwhere(result.map_01 >= 0.99 * result.map_01.max()).mean(axis=0)
            hits.append(float(np.hypot(peak[1] - at[0], peak[0] - at[1])))
    assert found >= 11
    # A patch is sixteen of 160 pixels of the crop: about 16 of the frame's along the part.
    assert np.median(hits) < 10 and max(hits) < 40


def test_an_empty_station_is_empty(inspector):
    for seed in range(5):
        frame, _ = frame_with([], seed)
        assert judge(inspector, frame).decision.verdict is Verdict.EMPTY


def test_two_parts_and_cut_parts_are_unknown(inspector):
    two, _ = frame_with([(90, 60, 10), (220, 180, 200)], 0)
    result = judge(inspector, two)
    assert result.decision.verdict is Verdict.UNKNOWN and "twice" in result.decision.reason
    cut, _ = frame_with([(300, 120, 5)], 0)
    result = judge(inspector, cut)
    assert result.decision.verdict is Verdict.UNKNOWN and "cut" in result.decision.reason


def test_a_folder_of_parts_by_the_command_line(bundle, tmp_path):
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(3)
    for index in range(3):
        frame, _ = frame_with([anywhere(rng)], 300 + index)
        cv2.imwrite(str(tmp_path / "new" / f"{index}.png"), frame)
    out = tmp_path / "v.jsonl"
    argv = ["inspect", tmp_path / "new", "--bundle", bundle.path, "--json", out]
    assert main([str(arg) for arg in argv]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 3 and all("align" in line["latency_ms"] for line in lines)


def test_bench_measures_an_aligned_bundle_without_a_source(bundle, tmp_path):
    out = tmp_path / "bench.json"
    argv = ["bench", "--bundle", bundle.path, "--frames", 5, "--json", out]
    assert main([str(arg) for arg in argv]) == 0
    figures = json.loads(out.read_text())
    assert figures["stages_ms"]["align"] > 0
    assert figures["reference_bytes"] <= 4_000_000
