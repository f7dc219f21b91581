"""What perturbing does to a picture, and to the figures of a bundle."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle
from edge_app.errors import InputError
from edge_app.records import Verdict
from tools.__main__ import main as tools
from tools.inspection_set import TestPicture, read_inspection_set
from tools.perturb import (
    AS_IT_IS,
    BRIGHTNESS,
    choose_pictures,
    in_region,
    perturb,
    perturbations,
    row_figures,
    table,
)

CHANGES = perturbations()
MOVING = [name for name in CHANGES if name.startswith(("rotation", "shift", "scale"))]
HEIGHT, WIDTH = 120, 160


class Drawn:
    """In the place of a generator: the numbers that a test wants drawn."""

    def __init__(self, *, angle=None, shift=None):
        self.angle, self.shift = angle, shift

    def uniform(self, low, high):
        assert low <= self.angle <= high
        return self.angle

    def integers(self, low, high):
        self.low, self.high = low, high
        return np.clip(self.shift, low, np.asarray(high) - 1)


def station(seed=0, slope=0.0, noise=2.0, grey=False) -> np.ndarray:
    """A light background, brighter to the right by `slope` grey levels, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    levels = np.array([170.0, 180.0, 190.0]) if not grey else np.full(3, 180.0)
    ramp = np.linspace(-slope / 2, slope / 2, WIDTH)[None, :, None]
    grain = rng.normal(0, noise, (HEIGHT, WIDTH, 1 if grey else 3))
    return np.clip(np.rint(levels + ramp + grain), 0, 255).astype(np.uint8)


def with_dot(x=100, y=45, radius=7, **options) -> np.ndarray:
    frame = station(**options)
    cv2.circle(frame, (x, y), radius, (30, 30, 30), -1)
    return frame


def dot(frame) -> tuple[float, float, float]:
    """x, y and area of what is dark."""
    y, x = (frame.mean(axis=2) < 100).nonzero()
    return float(x.mean()), float(y.mean()), float(len(x))


def seeded(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_rows_are_those_of_the_table():
    assert list(CHANGES) == [
        "as it is", "rotation", "rotation up to 5 degrees", "shift",
        "brightness x0.7", "brightness x0.85", "brightness x1.15", "brightness x1.3",
        "JPEG quality 50", "scale 0.95", "scale 1.05",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(120, 160), (97, 61), (9, 300), (8, 8), (1, 1)])
def test_shape_and_type_are_kept_and_the_picture_is_left_alone(name, shape):
    frame = seeded().integers(0, 256, (*shape, 3), np.uint8)
    before = frame.copy()
    changed = CHANGES[name](frame, seeded())
    assert changed.shape == frame.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("name", CHANGES)
def test_the_seed_decides(name):
    frame = with_dot()
    one, same, other = (CHANGES[name](frame, seeded(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    by_chance = name.startswith(("rotation", "shift"))
    assert np.array_equal(one, other) != by_chance


@pytest.mark.parametrize("name", CHANGES)
def test_grey_pictures_stay_grey(name):
    changed = CHANGES[name](with_dot(grey=True, slope=30), seeded(3))
    assert (changed == changed[..., :1]).all()


def test_as_it_is_changes_nothing():
    frame = with_dot()
    assert CHANGES[AS_IT_IS](frame, seeded()) is frame


@pytest.mark.parametrize("factor", BRIGHTNESS)
def test_brightness_is_exact(factor):
    frame = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    wanted = [[min(round(int(v) * factor), 255)] * 3 for v in range(256)]
    got = CHANGES[f"brightness x{factor:g}"](frame, seeded()).reshape(256, 3)
    np.testing.assert_array_equal(got, wanted)


def test_jpeg_is_that_of_quality_50():
    frame = with_dot()
    data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    got = CHANGES["JPEG quality 50"](frame, seeded())
    np.testing.assert_array_equal(got, cv2.imdecode(data, cv2.IMREAD_COLOR))


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 200.0])
def test_a_turned_dot_is_where_it_should_be(angle):
    x, y, area = dot(with_dot())
    got_x, got_y, got_area = dot(CHANGES["rotation"](with_dot(), Drawn(angle=angle)))
    # Counter-clockwise as seen, and y points down; about the middle of the frame.
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    turn = np.radians(angle)
    wanted_x = cx + np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
    wanted_y = cy - np.sin(turn) * (x - cx) + np.cos(turn) * (y - cy)
    assert (got_x, got_y) == pytest.approx((wanted_x, wanted_y), abs=0.2)
    assert got_area == pytest.approx(area, rel=0.08)


def test_small_turns_are_small():
    angles = []
    for seed in range(20):
        x, y, _ = dot(CHANGES["rotation up to 5 degrees"](with_dot(150, 60, 3), seeded(seed)))
        angles.append(np.degrees(np.arctan2((HEIGHT - 1) / 2 - y, x - (WIDTH - 1) / 2)))
    assert -5.6 < min(angles) < -2 and 2 < max(angles) < 5.6


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_scaled_dot_is_where_it_should_be(factor):
    x, y, area = dot(with_dot(radius=12))
    got_x, got_y, got_area = dot(CHANGES[f"scale {factor:g}"](with_dot(radius=12), seeded()))
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    wanted = cx + factor * (x - cx), cy + factor * (y - cy)
    assert (got_x, got_y) == pytest.approx(wanted, abs=0.2)
    assert got_area == pytest.approx(area * factor**2, rel=0.04)


def test_a_shift_is_by_whole_pixels_up_to_a_tenth():
    frame = with_dot(80, 60)
    drawn = Drawn(shift=(5, -3))
    moved = CHANGES["shift"](frame, drawn)
    np.testing.assert_array_equal(drawn.low, (-16, -12))
    np.testing.assert_array_equal(drawn.high, (17, 13))  # exclusive
    np.testing.assert_array_equal(moved[:-3, 5:], frame[3:, :-5])


@pytest.mark.parametrize(("x", "shift"), [(140, 16), (19, -16)])
def test_a_shift_stops_before_the_rim(x, shift):
    radius = 7
    frame = with_dot(x, 60, radius)
    got_x, _, area = dot(CHANGES["shift"](frame, Drawn(shift=(shift, 0))))
    assert area == dot(frame)[2]
    assert 1 <= abs(got_x - x) < 16
    assert 0.03 * WIDTH < got_x - radius and got_x + radius < 0.97 * WIDTH
    away, _, _ = dot(CHANGES["shift"](frame, Drawn(shift=(-shift, 0))))
    assert away == x - shift


def test_a_turn_that_would_push_the_part_out_moves_it_back_in():
    # In the corner, farther from the middle than the frame is high.
    frame = with_dot(146, 14)
    for angle in (30.0, 60.0, 140.0):
        turned = CHANGES["rotation"](frame, Drawn(angle=angle))
        x, y, area = dot(turned)
        assert area == pytest.approx(dot(frame)[2], rel=0.08)
        assert 7 < x < WIDTH - 8 and 7 < y < HEIGHT - 8


def test_a_part_too_long_for_an_angle_is_turned_by_another():
    frame = station()
    cv2.line(frame, (18, 60), (142, 60), (30, 30, 30), 8)
    lengths = []
    for seed in range(10):
        turned = CHANGES["rotation"](frame, seeded(seed))
        y, x = (turned.mean(axis=2) < 100).nonzero()
        lengths.append(np.hypot(np.ptp(x), np.ptp(y)))
        assert turned is not frame
    assert min(lengths) > 120
    # Upright it has no room: the frame is left as it is.
    assert CHANGES["rotation"](frame, Drawn(angle=90.0)) is frame


@pytest.mark.parametrize("name", MOVING)
def test_what_reaches_the_edge_is_not_moved(name):
    for frame in (with_dot(WIDTH - 4, 60, 8), with_dot(60, 2, 8)):
        assert CHANGES[name](frame, seeded()) is frame
    near = with_dot(WIDTH - 14, 60, 8)
    assert CHANGES[name](near, seeded(1)) is not near


@pytest.mark.parametrize("name", MOVING)
def test_an_empty_station_may_be_moved(name):
    frame = station(slope=40)
    assert CHANGES[name](frame, seeded(1)) is not frame


@pytest.mark.parametrize("slope", [0.0, 60.0])
@pytest.mark.parametrize("angle", [10.0, 45.0, 90.0])
def test_the_background_goes_on_beyond_the_edge(slope, angle):
    turned = CHANGES["rotation"](with_dot(slope=slope), Drawn(angle=angle))
    # Where the plane lies after the turn, everywhere but at the dot.
    turn = np.radians(angle)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    across = np.cos(turn) * (x - (WIDTH - 1) / 2) - np.sin(turn) * (y - (HEIGHT - 1) / 2)
    plane = np.array([170.0, 180.0, 190.0]) + (across / (WIDTH - 1) * slope)[..., None]
    rest = turned - plane
    rest = rest[cv2.dilate(np.uint8(turned.mean(axis=2) < 120), np.ones((15, 15))) == 0]
    # A second dot, a border of another level or a smear would be off by tens.
    assert np.abs(rest).max() < 14
    assert np.abs(rest.mean()) < 0.5


def test_the_filling_is_as_grainy_as_the_background():
    moved = CHANGES["shift"](station(noise=4.0), Drawn(shift=(16, 12))).astype(np.float64)
    for axis in (0, 1):
        filled, kept = (np.diff(part, axis=axis).std() for part in (moved[:, :16], moved[12:, 16:]))
        assert filled == pytest.approx(kept, rel=0.1)


def test_neither_part_nor_dirt_comes_in_mirrored():
    frame = with_dot(140, 60, 10)
    # Less dark than the part, so that it is none of it.
    frame[30:33, 150:153] -= 40
    moved = CHANGES["shift"](frame, Drawn(shift=(-16, 0)))
    filled = moved[:, WIDTH - 16 :] - np.array([170.0, 180.0, 190.0])
    assert np.abs(filled).max() < 16
    # A ghost of a few grey levels would show in the mean over some pixels.
    assert np.abs(cv2.blur(filled, (5, 5))[54:67]).max() < 4


# The last shadow is above Otsu's threshold where it reaches the edge.
@pytest.mark.parametrize(("x", "depth", "width"), [(140, 45, 14), (149, 45, 14), (140, 100, 20)])
def test_a_shadow_at_the_edge_has_no_edge_of_its_own(x, depth, width):
    # A part near the edge, or two pixels from it, and its shadow that goes on beyond.
    frame = station(noise=1.0).astype(np.float32)
    at_y, at_x = np.mgrid[0:HEIGHT, 0:WIDTH]
    away = np.hypot(at_x - x, at_y - 60) / width
    frame -= depth * np.exp(-(away**2))[..., None]
    frame = np.clip(frame, 0, 255).astype(np.uint8)
    cv2.circle(frame, (x, 60), 8, (30, 30, 30), -1)
    moved = CHANGES["shift"](frame, Drawn(shift=(-12, 0)))
    assert moved is not frame
    moved = moved.astype(np.float64)
    edge = WIDTH - 12
    step = moved[50:71, edge : edge + 2].mean(axis=1) - moved[50:71, edge - 2 : edge].mean(axis=1)
    assert np.abs(step.mean(axis=0)).max() < 4


def test_only_the_region_is_changed():
    frame = with_dot(100, 45)
    region = (0.25, 0.1, 0.95, 0.9)
    changed = in_region(CHANGES["brightness x0.7"], frame, region, seeded())
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[12:108, 40:152] = False
    np.testing.assert_array_equal(changed[outside], frame[outside])
    assert (changed[~outside] < frame[~outside]).all()
    assert in_region(CHANGES[AS_IT_IS], frame, region, seeded()) is frame


def test_figures_of_a_row_by_hand():
    ok, ng, unknown, empty = Verdict.OK, Verdict.NG, Verdict.UNKNOWN, Verdict.EMPTY
    row = row_figures(
        [0.1, 0.5, 0.2, 0.3, 0.6, 0.4, 0.9, 0.8],
        [ok, ng, ok, unknown, ng, ok, empty, unknown],
        [False] * 4 + [True] * 4,
    )
    # 0.6, 0.9 and 0.8 are above all good ones, 0.4 above three of four.
    assert row == {
        "image_auroc": 15 / 16,
        "false_reject_rate": 1 / 4,
        "miss_rate": 1 / 4,
        "no_verdict_share": 3 / 8,
    }


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="not finite"):
        row_figures([0.1, float("nan")], [Verdict.OK] * 2, [False, True])


@pytest.fixture(scope="module")
def parts(tmp_path_factory, still_frames):
    """A set of 6 good and 3 defective pictures from the shipped clip, one without its part."""
    out = tmp_path_factory.mktemp("data") / "parts"
    good, bad = (
        still_frames["good"][:60:10],
        still_frames["bad"][:20:10] + still_frames["empty"][:1],
    )
    for folder, frames in (("train/good", good[:1]), ("test/good", good), ("test/bad", bad)):
        (out / folder).mkdir(parents=True)
        for index, frame in enumerate(frames):
            cv2.imwrite(str(out / folder / f"{index}.png"), frame)
    return out


def test_chosen_pictures_keep_their_proportion(parts):
    inspection_set = read_inspection_set(parts)
    assert choose_pictures(inspection_set, None, 0) == list(range(9))
    assert choose_pictures(inspection_set, 99, 0) == list(range(9))
    chosen = choose_pictures(inspection_set, 3, 0)
    assert chosen == sorted(set(chosen)) and sum(index >= 6 for index in chosen) == 1
    assert chosen == choose_pictures(inspection_set, 3, 0)
    assert len({tuple(choose_pictures(inspection_set, 3, seed)) for seed in range(9)}) > 1
    assert sum(index >= 6 for index in choose_pictures(inspection_set, 2, 0)) == 1
    with pytest.raises(InputError, match="at least 2"):
        choose_pictures(inspection_set, 1, 0)


def perturb_argv(parts, nut_path, *more) -> list[str]:
    return [str(word) for word in ("perturb", "--bundle", nut_path, "--data", parts, *more)]


@pytest.fixture(scope="module")
def figures(parts, nut_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures") / "new" / "perturb.json"
    assert tools(perturb_argv(parts, nut_path, "--json", out, "--seed", "3")) == 0
    return json.loads(out.read_text())


class Recorder:
    """In the place of an inspector: keeps the frames and finds every one good."""

    recipe = SimpleNamespace(region=None)

    def __init__(self):
        self.frames: dict[int, list[np.ndarray]] = {}

    def inspect(self, frame):
        self.frames.setdefault(frame.index, []).append(frame.frame_bgr)
        return [SimpleNamespace(decision=SimpleNamespace(verdict=Verdict.OK, score=0.5))]


def test_a_pictures_chance_does_not_hang_on_the_others(tmp_path):
    pictures = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), with_dot(seed=index))
        pictures.append(TestPicture(path, "good" if index < 2 else "dirty", None))
    runs = []
    for chosen, seed in (([0, 3], 1), ([0, 1, 2, 3], 1), ([0, 3], 2)):
        recorder = Recorder()
        rows = perturb(recorder, pictures, chosen, seed, progress=False)
        assert {row["unchanged"] for row in rows.values()} == {0}
        runs.append(dict(zip(CHANGES, recorder.frames[3], strict=True)))
    for name in CHANGES:
        np.testing.assert_array_equal(runs[0][name], runs[1][name])
        same = np.array_equal(runs[0][name], runs[2][name])
        assert same != name.startswith(("rotation", "shift"))
    np.testing.assert_array_equal(runs[0][AS_IT_IS], with_dot(seed=3))


def test_pictures_left_as_they_are_are_counted(tmp_path):
    pictures = []
    for index, x in enumerate((WIDTH - 2, 100, 100)):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), with_dot(x))
        pictures.append(TestPicture(path, "good" if index < 2 else "dirty", None))
    rows = perturb(Recorder(), pictures, [0, 1, 2], 0, progress=False)
    assert {name: row["unchanged"] for name, row in rows.items()} == {
        name: int(name in MOVING) for name in CHANGES
    }


def test_the_json_holds_every_figure(figures, nut_path):
    assert set(figures) == {"data", "seed", "images", "threshold", "rows", "bundle_sha256"}
    assert figures["bundle_sha256"] == load_bundle(nut_path).sha256 and figures["seed"] == 3
    assert figures["images"] == {"test_good": 6, "test_defective": 3}
    assert list(figures["rows"]) == list(CHANGES)
    plain = figures["rows"][AS_IT_IS]
    assert plain["difference"] == 0 and plain["unchanged"] == 0
    assert plain["no_verdict_share"] >= 1 / 9
    for row in figures["rows"].values():
        assert set(row) == {
            "image_auroc", "false_reject_rate", "miss_rate", "no_verdict_share", "difference",
            "unchanged",
        }  # fmt: skip
        assert row["difference"] == row["image_auroc"] - plain["image_auroc"]


def test_the_unchanged_pictures_are_judged_as_evaluate_does(figures, parts, nut_path):
    from edge_app.config import load_config
    from edge_app.inspector import Inspector
    from tools.evaluate import figures_of, judge

    bundle = load_bundle(nut_path)
    inspector = Inspector(bundle, load_config().decision, "single", 1, heatmaps=False)
    whole = read_inspection_set(parts)
    wanted = figures_of(inspector, whole, judge(inspector, whole, False), False)
    got = figures["rows"][AS_IT_IS]
    for name in ("image_auroc", "false_reject_rate", "miss_rate"):
        assert got[name] == wanted[name]


def test_the_same_seed_gives_the_same_figures(parts, nut_path, tmp_path):
    runs = []
    for name in ("one", "again"):
        out = tmp_path / name
        assert tools(perturb_argv(parts, nut_path, "--json", out, "--pictures", "2")) == 0
        runs.append(json.loads(out.read_text()))
    assert runs[0] == runs[1]
    assert runs[0]["images"] == {"test_good": 1, "test_defective": 1}


def test_the_table_is_aligned_and_says_what_was_left(figures):
    row = dict(figures["rows"][AS_IT_IS], image_auroc=0.9, difference=-1e-17)
    rows = {AS_IT_IS: dict(row, difference=0.0), "scale 1.05": dict(row, unchanged=2)}
    head, names, plain, scaled, *note = table(dict(figures, rows=rows)).splitlines()
    assert "6 good and 3 defective" in head and "seed 3" in head
    for title, cell in (("image AUROC", "0.9000"), ("difference", "+0.0000"), ("unchanged", "2")):
        end = names.index(title) + len(title)
        assert scaled[:end].endswith(" " + cell)
    assert plain.index("0.9000") == scaled.index("0.9000") and "+" not in plain
    assert "reaches the edge" in " ".join(note)
    rows["scale 1.05"]["unchanged"] = 9
    assert table(dict(figures, rows=rows)).splitlines()[3].split() == ["scale", "1.05", "9"]
    del rows["scale 1.05"]
    assert "edge" not in table(dict(figures, rows=rows))


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--data", "{tmp}/nowhere"], 2, "no such folder"),
        (["--data", "{tmp}/one"], 2, "1 good and 0 defective"),
        (["--data", "{tmp}/text"], 2, "not a picture"),
        (["--pictures", "1"], 2, "at least 2"),
        (["--json", "{tmp}/file/x.json"], 2, "cannot be written"),
        (["--json", "{tmp}/one"], 2, "cannot be written"),
        (["--bundle", "{tmp}/one"], 78, "manifest.json"),
        (["--bundle", "{base}"], 78, "run edge-app enroll first"),
    ],
)
def test_bad_input(capsys, parts, nut_path, base_path, tmp_path, more, code, says):
    (tmp_path / "file").write_text("text")
    frame = cv2.imencode(".png", station())[1].tobytes()
    for folder, data in (("one", {"good": frame}), ("text", {"good": frame, "bad": b"text"})):
        (tmp_path / folder / "train" / "good").mkdir(parents=True)
        (tmp_path / folder / "train" / "good" / "1.png").write_bytes(frame)
        for name, content in data.items():
            (tmp_path / folder / "test" / name).mkdir(parents=True)
            (tmp_path / folder / "test" / name / "1.png").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path, base=base_path) for word in more]
    assert tools(perturb_argv(parts, nut_path, *words)) == code
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("tools perturb: ")]
    assert len(errors) == 1 and says in errors[0] and "Traceback" not in said.err
    assert said.out == "" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("more", [["--seed", "-1"], ["--threads", "0"], ["--pictures", "many"]])
def test_bad_numbers_are_refused(capsys, parts, nut_path, more):
    with pytest.raises(SystemExit) as stopped:
        tools(perturb_argv(parts, nut_path, *more))
    assert stopped.value.code == 2 and "wanted a whole number" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        tools(["perturb", "--help"])
    assert "example:\n  python -m tools perturb" in capsys.readouterr().out
