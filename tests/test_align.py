"""Aligning a drawn part whose place is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_app.align import (
    Aligner,
    Alignment,
    alignment_arrays,
    alignment_section,
    lit,
    on_frame,
    part_weight,
    read_alignment,
)
from edge_app.learn_align import learn_alignment
from edge_app.pose import PoseSearch, similarity
from edge_app.preprocess import Preprocessing, prepare, shrink

SIZE = (64, 128)
FRAME = (240, 320)
LONG = 150  # length of the part, pixels of the frame


def draw_part() -> tuple[np.ndarray, np.ndarray]:
    """A bolt, four times as large as in the frames: grey picture and mask, middle at the middle."""
    height, width = 4 * 80, 4 * (LONG + 10)
    picture, mask = np.full((height, width), 60, np.float32), np.zeros((height, width), np.float32)
    middle = height // 2
    cv2.rectangle(mask, (40, middle - 30), (width - 60, middle + 30), 1, cv2.FILLED)
    cv2.rectangle(mask, (40, middle - 110), (120, middle + 110), 1, cv2.FILLED)
    cv2.circle(mask, (width - 60, middle), 50, 1, cv2.FILLED)
    cv2.rectangle(picture, (200, middle - 10), (400, middle + 10), 110, cv2.FILLED)
    cv2.circle(picture, (width - 60, middle), 20, 130, cv2.FILLED)
    return picture, mask


PART, MASK = draw_part()


def place(angle: float, x: float, y: float, scale: float = 1.0) -> np.ndarray:
    """From pixels of the drawing to pixels of a frame, shape (3, 3)."""
    matrix = similarity(scale / 4, math.radians(angle), (x, y))
    matrix[:2, 2] -= matrix[:2, :2] @ ((PART.shape[1] - 1) / 2, (PART.shape[0] - 1) / 2)
    return matrix


def put(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The frame with a part in it; drawn at four times the size, so its edges are soft."""
    height, width = frame.shape[:2]
    large = np.array([[4.0, 0, 1.5], [0, 4, 1.5], [0, 0, 1]]) @ matrix
    size = 4 * width, 4 * height
    part, mask = (cv2.warpAffine(one, large[:2], size) for one in (PART * MASK, MASK))
    small = (width, height)
    part, mask = (cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in (part, mask))
    out = frame * (1 - mask[..., None]) + part[..., None]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def bare(shape=FRAME, seed=0, level=190.0) -> np.ndarray:
    height, width = shape
    slope = np.linspace(-8, 8, width)[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    return np.clip(level + slope + noise, 0, 255).astype(np.uint8)


def frame_of(angle=0.0, x=160.0, y=120.0, scale=1.0, seed=0) -> np.ndarray:
    return put(bare(seed=seed), place(angle, x, y, scale))


@pytest.fixture(scope="session")
def bolt() -> Alignment:
    rng = np.random.default_rng(5)
    frames = [
        frame_of(rng.uniform(0, 360), rng.uniform(130, 190), rng.uniform(105, 135), seed=seed)
        for seed in range(12)
    ]
    learnt = learn_alignment(frames, None)
    assert learnt.alignment.recipe == "pose"
    return learnt.alignment


@pytest.fixture(scope="session")
def aligner(bolt) -> Aligner:
    return Aligner(bolt, SIZE)


def in_crop(matrix: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Where the drawing's middle, head and tip lie in the crop, shape (2, 3)."""
    height, width = PART.shape
    points = np.array([[width / 2, 80, width - 60], [height / 2] * 3, [1, 1, 1]])
    return (np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ placed @ points)[:2]


@pytest.fixture(scope="session")
def usual(aligner) -> np.ndarray:
    """Where these points usually lie."""
    aligned = aligner.align(frame_of())
    return in_crop(aligned.matrix, place(0, 160, 120))


@pytest.mark.parametrize(
    ("angle", "x", "y", "scale"),
    [
        (0, 160, 120, 1.0),
        (180, 160, 120, 1.0),
        (37, 150.3, 117.8, 1.0),
        (-71, 171.5, 121.2, 1.05),
        (123, 140.7, 124.4, 0.95),
        (211, 165.2, 110.9, 1.0),
        (92, 192, 120, 1.0),
    ],
)
def test_every_pose_gives_the_same_crop(aligner, usual, angle, x, y, scale):
    placed = place(angle, x, y, scale)
    aligned = aligner.align(put(bare(seed=99), placed))
    assert (aligned.empty, aligned.problem) == (False, None)
    assert aligned.agreement > 0.97
    # 0.3 pixels of the frame; a pixel of the crop is about 1.2.
    assert np.abs(in_crop(aligned.matrix, placed) - usual).max() < 0.3


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_light_neither_moves_the_crop_nor_changes_it(aligner, usual, factor):
    frame = frame_of(37)
    aligned = aligner.align(frame)
    changed = aligner.align(cv2.convertScaleAbs(frame, alpha=factor))
    assert (changed.empty, changed.problem) == (False, None)
    assert np.abs(in_crop(changed.matrix, place(37, 160, 120)) - usual).max() < 0.3
    difference = np.abs(changed.pixels_rgb.astype(int) - aligned.pixels_rgb)
    assert difference.mean() < 2


def test_jpeg_does_not_move_the_crop(aligner, usual):
    _, data = cv2.imencode(".jpg", frame_of(37), [cv2.IMWRITE_JPEG_QUALITY, 50])
    aligned = aligner.align(cv2.imdecode(data, cv2.IMREAD_COLOR))
    assert np.abs(in_crop(aligned.matrix, place(37, 160, 120)) - usual).max() < 0.3


@pytest.mark.parametrize("grow", [1, 2, 3, 5])
def test_pixels_lie_where_the_matrix_says_at_any_resolution(bolt, usual, grow):
    # A bright dot on the shaft; the larger frames are halved before they are cut.
    frame = frame_of(25)
    shape = (FRAME[0] * grow, FRAME[1] * grow)
    frame = cv2.resize(frame, shape[::-1], interpolation=cv2.INTER_CUBIC)
    placed = np.array([[grow, 0, (grow - 1) / 2], [0, grow, (grow - 1) / 2], [0, 0, 1]])
    placed = placed @ place(25, 160, 120)
    dot = (placed @ (450, PART.shape[0] / 2, 1))[:2]
    y, x = np.mgrid[: shape[0], : shape[1]]
    glow = np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * (2.5 * grow) ** 2))
    plain = Aligner(replace(bolt, light="none", target_bgr=None), SIZE)
    lighter = np.clip(frame + 100 * glow[..., None], 0, 255).astype(np.uint8)
    aligned = plain.align(lighter)
    assert np.abs(in_crop(aligned.matrix, placed) - usual).max() < 0.3
    seen = aligned.pixels_rgb[..., 0].astype(float)
    # The same cut from the frame without the dot.
    full = np.vstack([aligned.matrix, [0, 0, 1]])
    expected = np.linalg.inv(full) @ (*dot, 1)
    left, top = np.floor(expected[:2]).astype(int) - 5
    patch = seen[top : top + 12, left : left + 12]
    patch = np.clip(patch - np.median(patch) - 8, 0, None)
    y, x = np.mgrid[top : top + 12, left : left + 12]
    centre = np.array([(x * patch).sum(), (y * patch).sum()]) / patch.sum()
    assert centre == pytest.approx(expected[:2], abs=0.3)


def test_a_region_is_searched_alone_and_the_matrix_leads_to_the_frame(bolt, usual):
    placed = place(10, 160, 120)
    wide = np.hstack([np.zeros((240, 200, 3), np.uint8), put(bare(), placed)])
    aligned = Aligner(bolt, SIZE, (200 / 520, 0.0, 1.0, 1.0)).align(wide)
    assert (aligned.empty, aligned.problem) == (False, None)
    moved = similarity(1, 0, (200, 0)) @ placed
    assert np.abs(in_crop(aligned.matrix, moved) - usual).max() < 0.3


@pytest.mark.parametrize(
    "frame",
    [
        bare(seed=3),
        cv2.convertScaleAbs(bare(seed=3), alpha=0.5),
        np.zeros((*FRAME, 3), np.uint8),
        np.full((*FRAME, 3), 255, np.uint8),
    ],
    ids=["bare", "dim", "black", "white"],
)
def test_a_frame_without_a_part_is_empty(aligner, frame):
    aligned = aligner.align(frame)
    assert aligned.empty and aligned.problem is None


def test_a_crumb_is_no_part_but_has_a_crop_to_score(aligner):
    frame = bare()
    cv2.circle(frame, (100, 100), 8, (50, 50, 50), cv2.FILLED)
    aligned = aligner.align(frame)
    assert aligned.empty and aligned.pixels_rgb.shape == (*SIZE, 3)


def test_noise_and_shadow_over_the_whole_view_never_pass(aligner):
    noise = np.random.default_rng(0).integers(0, 256, (*FRAME, 3)).astype(np.uint8)
    y, x = np.mgrid[-1:1:240j, -1:1:320j]
    shadow = np.clip(200 - 70 * (x**2 + y**2), 0, 255)[..., None].repeat(3, axis=2).astype(np.uint8)
    for frame in (noise, shadow):
        aligned = aligner.align(frame)
        assert aligned.empty or aligned.problem is not None


@pytest.mark.parametrize("x", [70, 40, 255])
def test_a_part_over_the_edge_is_cut(aligner, x):
    aligned = aligner.align(frame_of(3, x=x))
    assert aligned.problem == "part: cut by the edge of the view"
    assert aligned.pixels_rgb is not None


def test_a_part_that_lacks_only_its_tip_is_cut(aligner):
    frame = frame_of(0, x=160)
    assert aligner.align(frame).problem is None
    assert aligner.align(frame[:, : 160 + LONG // 2 - 9]).problem is not None


def test_two_parts_are_one_too_many(aligner):
    frame = put(frame_of(0, y=60), place(170, 160, 185))
    assert aligner.align(frame).problem == "part: found twice"


def test_two_parts_that_touch_are_one_too_many(aligner):
    frame = put(frame_of(0, y=100), place(0, 160, 145))
    assert aligner.align(frame).problem == "part: found twice"


def test_a_part_out_of_the_view_is_cut_even_where_the_edge_shows_nothing(aligner):
    # As behind a mask, or where the lens leaves the corners bare.
    frame = frame_of(0, x=236)
    assert aligner.align(frame).problem is None
    frame = frame_of(0, x=275)
    frame[:, -10:] = bare()[:, -10:]
    assert aligner.align(frame).problem == "part: cut by the edge of the view"


def test_something_else_is_not_recognised(aligner):
    frame = bare()
    cv2.circle(frame, (160, 120), 75, (150, 150, 150), cv2.FILLED)
    assert aligner.align(frame).problem == "part: not recognised"


def test_a_stranger_at_the_edge_does_not_make_the_part_cut(aligner):
    frame = frame_of(0)
    frame[220:, 10:40] = 60
    assert aligner.align(frame).problem is None


def draw_defect(kind: str, placed: np.ndarray, frame: np.ndarray) -> np.ndarray:
    middle = PART.shape[0] / 2
    corners = {
        "blob": [(300, middle - 110), (380, middle - 110), (380, middle - 20), (300, middle - 20)],
        "gap": [(300, middle - 60), (360, middle - 60), (360, middle + 60), (300, middle + 60)],
        "short": [(520, middle - 60), (660, middle - 60), (660, middle + 60), (520, middle + 60)],
        "half": [(340, middle - 60), (660, middle - 60), (660, middle + 60), (340, middle + 60)],
    }[kind]
    points = placed @ np.column_stack([np.array(corners), np.ones(4)]).T
    level = 60 if kind == "blob" else 190
    return cv2.fillConvexPoly(
        frame.copy(), np.rint(points[:2].T).astype(np.int32), (level, level, level)
    )


@pytest.mark.parametrize("kind", ["blob", "gap", "short", "half"])
def test_a_defective_part_is_aligned_and_judged(aligner, usual, kind):
    placed = place(37, 160, 120)
    aligned = aligner.align(draw_defect(kind, placed, put(bare(), placed)))
    assert (aligned.empty, aligned.problem) == (False, None)
    # The right way round, and near enough for the defect to lie in its own place.
    assert np.abs(in_crop(aligned.matrix, placed) - usual).max() < (
        5 if kind in ("blob", "gap") else 12
    )


def test_centre_moves_and_does_not_turn():
    places = [(150, 110)] * 4 + [(170, 130)] * 4
    frames = [frame_of(0, x, y, seed=seed) for seed, (x, y) in enumerate(places)]
    alignment = learn_alignment(frames, None, "centre").alignment
    centring = Aligner(alignment, SIZE)
    matrix = centring.align(frame_of(0, 150, 110)).matrix
    moved = centring.align(frame_of(0, 172.5, 121.25)).matrix
    assert moved[:, :2] == pytest.approx(matrix[:, :2])
    assert moved[:, 2] - matrix[:, 2] == pytest.approx([22.5, 11.25], abs=0.3)
    assert matrix[0, 1] == matrix[1, 0] == 0


@pytest.mark.parametrize("shape", [(240, 320), (97, 131), (480, 640)])
@pytest.mark.parametrize("region", [None, (0.1, 0.2, 0.8, 0.9)])
def test_none_gives_what_prepare_gives(shape, region):
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    aligned = Aligner(Alignment("none"), (48, 64), region).align(frame)
    assert np.array_equal(aligned.pixels_rgb, prepare(frame, Preprocessing((48, 64), region)))
    assert (aligned.empty, aligned.problem, aligned.agreement) == (False, None, None)


def test_the_matrix_of_none_leads_to_the_frame():
    ramp = np.mgrid[:240, :320].astype(np.float32)
    aligned = Aligner(Alignment("none"), (48, 64), (0.25, 0.5, 1.0, 1.0)).align(
        np.zeros((240, 320, 3), np.uint8)
    )
    for axis, values in enumerate(ramp[::-1]):
        small = shrink(values[120:, 80:], (48, 64))
        x, y = 20, 30
        assert small[y, x] == pytest.approx(aligned.matrix[axis] @ (x, y, 1), abs=0.01)


def test_white_balance_brings_each_colour_to_its_target():
    picture = np.full((40, 40, 3), (100, 150, 200), np.uint8)
    assert lit(picture, np.array([100, 150, 200]), "white balance", (120, 120, 120))[0, 0] == (
        pytest.approx([120, 120, 120], abs=1)
    )
    one = lit(picture, np.array([100.0, 150, 200]), "gain", (120, 120, 120))[0, 0]
    assert one == pytest.approx([80, 120, 160], abs=1)
    aligner = Aligner(Alignment("none", "white balance", (120.0, 130.0, 140.0)), (32, 32))
    # The frame is BGR, the crop RGB.
    assert aligner.align(picture).pixels_rgb[0, 0] == pytest.approx([140, 130, 120], abs=1)


def test_light_is_never_taken_for_more_than_twice_as_strong():
    picture = np.full((40, 40, 3), 10, np.uint8)
    assert lit(picture, np.full(3, 10.0), "gain", (200, 200, 200)).max() == 20


def test_a_map_lies_on_the_frame_where_the_part_is(aligner):
    placed = place(37, 160, 120)
    aligned = aligner.align(put(bare(), placed))
    head = (placed @ (80, PART.shape[0] / 2, 1))[:2]
    for grid in ((64, 128), (8, 16)):
        rows, columns = grid
        anomaly = np.zeros(grid, np.float32)
        x, y = (np.linalg.inv(np.vstack([aligned.matrix, [0, 0, 1]])) @ (*head, 1))[:2]
        anomaly[int((y + 0.5) * rows / SIZE[0]), int((x + 0.5) * columns / SIZE[1])] = 1
        whole = on_frame(anomaly, aligned.matrix, FRAME, SIZE)
        assert whole.shape == FRAME and whole.dtype == np.float32
        peak = np.unravel_index(whole.argmax(), FRAME)[::-1]
        cell = SIZE[1] / columns * 1.2
        assert np.linalg.norm(peak - head) <= 0.75 * cell + 1
    ones = on_frame(np.ones((4, 8), np.float32), aligned.matrix, FRAME, SIZE)
    assert set(np.unique(ones)) == {0.0, 1.0}
    area = SIZE[0] * SIZE[1] * abs(np.linalg.det(aligned.matrix[:, :2]))
    # Little of the crop reaches out of the frame.
    assert ones.sum() == pytest.approx(area, rel=0.02)


def test_nan_stays_nan_on_the_frame():
    anomaly = np.ones((4, 4), np.float32)
    anomaly[1, 1] = np.nan
    whole = on_frame(anomaly, np.array([[2.0, 0, 5], [0, 2, 5]]), (30, 30), (8, 8))
    assert np.isnan(whole).any() and whole[0, 0] == 0


def test_the_weight_is_whole_on_the_part_and_nothing_on_bare_background(bolt):
    weight = part_weight(bolt, (16, 32))
    assert weight.shape == (16, 32) and weight.dtype == np.float32
    assert 0 <= weight.min() and weight.max() <= 1
    assert weight[8, 2:-2].min() == 1
    # Above and below the shaft, between head and tip.
    middle = weight[:, 16]
    assert middle[8] == 1 and middle[1] == 0 and middle[-2] == 0
    assert (part_weight(Alignment("none"), (5, 7)) == 1).all()


def test_what_is_written_is_read(bolt):
    for alignment in (bolt, Alignment("none"), Alignment("none", "gain", (80.0, 90.0, 100.0))):
        section = json.loads(json.dumps(alignment_section(alignment)))
        arrays = alignment_arrays(alignment)
        again = read_alignment(section, arrays)
        assert alignment_section(again) == section
        for name, array in alignment_arrays(again).items():
            assert np.array_equal(array, arrays[name]) and array.dtype == np.float32
    assert read_alignment({"recipe": "none"}, {}) == Alignment("none")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"recipe": "twist"}, "recipe"),
        ({"light": "flash"}, "light"),
        ({"target_bgr": None}, "target_bgr"),
        ({"target_bgr": [1, 2]}, "target_bgr"),
        ({"target_bgr": [50, 50, float("nan")]}, "target_bgr"),
        ({"light": "none"}, "target_bgr"),
        ({"threshold": None}, "threshold"),
        ({"threshold": 0}, "threshold"),
        ({"zoom": 3}, "zoom"),
        ({"zoom": True}, "zoom"),
        ({"area": float("inf")}, "area"),
        ({"touch": -0.1}, "touch"),
        ({"aspect": 1.0}, "aspect"),
        ({"agreement": "0.9"}, "agreement"),
    ],
)
def test_a_wrong_field_is_named(bolt, change, names):
    section = alignment_section(bolt) | change
    with pytest.raises(ValueError, match=names):
        read_alignment(section, alignment_arrays(bolt))


@pytest.mark.parametrize("name", ["threshold", "otsu_share", "level", "area", "touch", "agreement"])
def test_a_missing_field_is_named(bolt, name):
    section = alignment_section(bolt)
    del section[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_alignment(section, alignment_arrays(bolt))


def test_wrong_arrays_are_named(bolt):
    section, arrays = alignment_section(bolt), alignment_arrays(bolt)
    template, silhouette = arrays["align_template"], arrays["align_silhouette"]
    bad = template.copy()
    bad[0, 0] = np.nan
    for name, array in [
        ("align_template", None),
        ("align_silhouette", None),
        ("align_template", template[None]),
        ("align_template", template.astype(np.int32)),
        ("align_template", bad),
        ("align_template", np.zeros_like(template)),
        ("align_silhouette", silhouette[:-1]),
        ("align_silhouette", silhouette + 1),
        ("align_silhouette", 0 * silhouette),
    ]:
        changed = {key: value for key, value in arrays.items() if key != name}
        if array is not None:
            changed[name] = array
        with pytest.raises(ValueError, match=name):
            read_alignment(section, changed)


def test_a_frame_of_another_kind_is_refused(aligner):
    with pytest.raises(ValueError, match="uint8"):
        aligner.align(np.zeros((240, 320), np.uint8))


def test_the_search_tells_the_two_ends_apart(bolt):
    search = PoseSearch(bolt.template, "pose")
    height, width = bolt.template.shape
    canvas = np.zeros((240, 320), np.float32)
    canvas[60 : 60 + height, 60 : 60 + width] = bolt.template
    for picture, wanted in ((canvas, 0.0), (canvas[::-1, ::-1].copy(), math.pi)):
        maps = [picture]
        while len(maps) < 4:
            maps.append(cv2.resize(maps[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        y, x = np.mgrid[:240, :320]
        centre = (x * picture).sum() / picture.sum(), (y * picture).sum() / picture.sum()
        agreement, matrix = search.pose(maps, centre)
        assert agreement > 0.99
        assert math.cos(math.atan2(matrix[1, 0], matrix[0, 0]) - wanted) > 0.999
