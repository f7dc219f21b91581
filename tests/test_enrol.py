"""Learning from good pictures among which one is not good."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_app.bundle import load_bundle, write_bundle
from edge_app.cli import main
from edge_app.config import load_config
from edge_app.enrol import fixed_limits, known_pictures
from edge_app.errors import BundleError
from edge_app.knowledge import Teacher, known_from, limits_stay, pictures_of
from edge_app.learnt_pictures import pack
from edge_app.quality import MOST


def enrol(folder, base_path, out, *more):
    argv = ["enroll", folder, "--bundle", base_path, "--out", out, "--align", "none", *more]
    assert main([str(arg) for arg in argv]) == 0
    return load_bundle(out)


@pytest.fixture(scope="module")
def grain():
    """Twelve pictures of one grainy surface under slightly different light."""
    generator = np.random.default_rng(5)
    surface = cv2.GaussianBlur(generator.normal(size=(160, 160)), (0, 0), 3)
    surface = 128 + 60 * surface / surface.std()
    pictures = []
    for _ in range(12):
        picture = surface * generator.uniform(0.9, 1.1) + generator.normal(0, 4, surface.shape)
        pictures.append(cv2.cvtColor(np.clip(picture, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR))
    return pictures


def strange_picture(kind, good):
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, good.shape, dtype=np.uint8)
    if kind == "plain":
        return np.full_like(good, 90)
    blob = good.copy()
    cv2.circle(blob, (80, 80), 25, (0, 0, 255), -1)
    return blob


def write_grain(folder, pictures):
    folder.mkdir()
    for name, picture in pictures.items():
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


def reenrol(*argv):
    assert main([str(arg) for arg in ("enroll", *argv)]) == 0
    return load_bundle(argv[argv.index("--out") + 1])


@pytest.fixture
def uneven(grain, base_path, tmp_path):
    """
    Of grain of which one picture, the last, is darker than the others and another brighter: the
    bundle, the one of all but the dark one, and the dark one's id.
    """
    pictures = {f"{index:02d}": picture for index, picture in enumerate(grain)}
    pictures["00"] = cv2.convertScaleAbs(grain[0], alpha=1.15)
    rest = dict(pictures)
    pictures["dark"] = cv2.convertScaleAbs(grain[-1], alpha=0.85)
    whole = enrol(write_grain(tmp_path / "good", pictures), base_path, tmp_path / "b")
    without = enrol(write_grain(tmp_path / "rest", rest), base_path, tmp_path / "without")
    name = next(str(k) for k in whole.reference["image_ids"] if str(k).startswith("dark"))
    return whole, without, name


def test_a_picture_taken_out_leaves_the_limits_as_if_it_had_never_been(uneven, tmp_path):
    whole, without, name = uneven
    assert whole.manifest["quality"]["highlights"][0] < without.manifest["quality"]["highlights"][0]
    argv = ["--remove", name, "--bundle", whole.path, "--out", tmp_path / "taken"]
    taken = reenrol(*argv)
    assert taken.manifest["quality"] == without.manifest["quality"]
    assert np.array_equal(taken.reference["measures"], without.reference["measures"])
    # And put in again, as if it had come with the others.
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "dark.png").write_bytes((tmp_path / "good" / "dark.png").read_bytes())
    argv = [tmp_path / "dark", "--add", "--bundle", taken.path, "--out", tmp_path / "back"]
    assert reenrol(*argv).manifest["quality"] == whole.manifest["quality"]


def test_the_last_picture_taken_out_in_the_live_window_leaves_no_trace_either(uneven, encoder):
    whole, without, name = uneven
    known = known_from(whole)
    assert limits_stay(known) == ""
    teacher = Teacher(encoder, load_config().enroll)
    left, taken = teacher.without_last(known, lambda *_: None)
    assert taken == name
    assert left.bundle.manifest["quality"] == without.manifest["quality"]
    assert left.pictures[-1].measures == pictures_of(known)[-2].measures is not None


def test_a_bundle_that_did_not_keep_what_its_pictures_measured_keeps_its_limits(uneven, tmp_path):
    whole, _, name = uneven
    reference = {key: array for key, array in whole.reference.items() if key != "measures"}
    content = [whole.manifest, whole.encoder, None, reference, whole.learnt()]
    old = write_bundle(tmp_path / "old", *content)
    argv = ["--remove", name, "--bundle", old.path, "--out", tmp_path / "taken"]
    assert reenrol(*argv).manifest["quality"] == old.manifest["quality"]
    assert "limits of light and sharpness stay" in limits_stay(known_from(old))
    # What is added to it can be taken out again.
    bright = cv2.convertScaleAbs(cv2.imread(str(tmp_path / "good" / "00.png")), alpha=1.1)
    folder = write_grain(tmp_path / "more", {"bright": bright})
    # As a false alarm, or it would look odd and set no limits.
    argv = [folder, "--add", "--false-alarms", "--bundle", old.path, "--out", tmp_path / "more-b"]
    more = reenrol(*argv)
    assert more.manifest["quality"]["highlights"][1] > old.manifest["quality"]["highlights"][1]
    name = next(str(k) for k in more.reference["image_ids"] if str(k).startswith("bright"))
    # It is the last one: the limits follow it, though not the others.
    assert pictures_of(known_from(more))[-1].image_id == name
    assert limits_stay(known_from(more)) == ""
    argv = ["--remove", name, "--bundle", more.path, "--out", tmp_path / "less-b"]
    less = reenrol(*argv)
    assert less.manifest["quality"] == old.manifest["quality"]
    assert "limits of light and sharpness stay" in limits_stay(known_from(less))


def test_light_of_the_empty_station_stays_in_the_limits(grain, base_path, tmp_path):
    generator = np.random.default_rng(1)

    def station():
        return generator.integers(30, 40, (*grain[0].shape[:2], 1), dtype=np.uint8).repeat(3, 2)

    pictures = {}
    for index, surface in enumerate(grain):
        pictures[f"{index:02d}"] = station()
        pictures[f"{index:02d}"][40:120, 40:120] = surface[40:120, 40:120]
    empty = write_grain(tmp_path / "empty", {str(index): station() for index in range(3)})
    folder = write_grain(tmp_path / "good", pictures)
    whole = enrol(folder, base_path, tmp_path / "b", "--empty", empty)
    (folder / "03.png").unlink()
    without = enrol(folder, base_path, tmp_path / "without", "--empty", empty)
    name = next(str(k) for k in whole.reference["image_ids"] if str(k).startswith("03"))
    argv = ["--remove", name, "--bundle", whole.path, "--out", tmp_path / "taken"]
    taken = reenrol(*argv)
    assert taken.manifest["quality"] == without.manifest["quality"]
    assert taken.manifest["quality"]["highlights"][0] < 45
    # An edge-app of before reads no other field in the manifest; what stays is in the reference.
    assert set(whole.manifest["quality"]) == {"images", *MOST}
    assert whole.reference["fixed_measures"].shape == (2, len(MOST))
    assert whole.reference["fixed_images"] == 0


def thinned(bundle, path, kept, reference=()):
    """The bundle with only some of its pictures kept, and other arrays."""
    pictures = [picture for picture in known_pictures(bundle) if picture.image_id in kept]
    content = [bundle.manifest, bundle.encoder, None, {**bundle.reference, **dict(reference)}]
    return write_bundle(path, *content, pack(pictures, 2**24))


def test_pictures_that_were_learnt_but_not_kept_stay_in_the_limits(uneven, encoder, tmp_path):
    whole, _, name = uneven
    dark = whole.manifest["quality"]["highlights"][0]
    kept = [str(k) for k in whole.reference["image_ids"] if str(k) != name][2:9]
    few = thinned(whole, tmp_path / "few", kept)
    lost = fixed_limits(few, kept)
    # One of the six was odd from the start.
    assert lost.highlights[0] == dark and lost.images == 5
    argv = ["--remove", kept[0], "--bundle", few.path, "--out", tmp_path / "taken"]
    taken = reenrol(*argv)
    # Nor are they lost by the next one, which the window takes out, and the one after.
    teacher, known = Teacher(encoder, load_config().enroll), known_from(taken)
    for left in (6, 5, 4):
        assert known.size == left
        quality = known.bundle.manifest["quality"]
        assert quality["highlights"][0] == dark
        assert left < quality["images"] <= lost.images + left
        assert fixed_limits(known.bundle, [p.image_id for p in pictures_of(known)]) == lost
        known, _ = teacher.without_last(known, lambda *_: None)


def test_a_lost_picture_that_looked_odd_widens_no_limit(uneven, tmp_path):
    whole, _, name = uneven
    ids = [str(k) for k in whole.reference["image_ids"]]
    measures = whole.reference["measures"].copy()
    measures[ids.index(name), list(MOST).index("highlights")] = 255.0
    kept = [k for k in ids if k != name]
    few = thinned(whole, tmp_path / "few", kept, {"measures": measures})
    assert fixed_limits(few, kept) is None


@pytest.mark.parametrize(
    "name, array, said",
    [
        ("measures", np.zeros((3, 6)), "array measures is float64 of shape"),
        ("measures", np.full((13, 6), -5.0), "array measures has shadows -5, wanted 0 to 255"),
        ("measures", np.full((13, 6), 2.0), "array measures has clipped_share 2, wanted 0 to 1"),
        ("measures", np.full((13, 6), np.inf), "array measures has shadows inf"),
        ("fixed_measures", np.zeros((1, 6)), "array fixed_measures is float64 of shape"),
        ("fixed_measures", np.full((2, 6), 300.0), "array fixed_measures has shadows 300"),
        ("fixed_measures", np.array([[0.5] * 6, [0.4] * 6]), "array fixed_measures has shadows"),
        ("fixed_measures", np.full((2, 6), np.nan), "array fixed_measures has shadows nan"),
        ("fixed_images", np.array(-1), "array fixed_images is -1"),
        ("fixed_images", np.array(0.5), "array fixed_images is 0.5"),
    ],
)
def test_broken_measures_are_refused(name, array, said, uneven, tmp_path):
    whole, _, _ = uneven
    ids = whole.reference["image_ids"].tolist()
    assert len(ids) == 13
    fixed = {"fixed_measures": np.zeros((2, 6)), "fixed_images": np.array(2)}
    broken = thinned(whole, tmp_path / "broken", ids, {**fixed, name: array})
    with pytest.raises(BundleError, match=rf"reference\.npz: {said}"):
        fixed_limits(broken, ids)
    if name == "measures":
        with pytest.raises(BundleError, match=said):
            known_pictures(broken)


def test_how_many_pictures_stay_in_the_limits_must_be_said(uneven, tmp_path):
    whole, _, _ = uneven
    fixed, ids = {"fixed_measures": np.zeros((2, 6))}, whole.reference["image_ids"].tolist()
    broken = thinned(whole, tmp_path / "broken", ids, fixed)
    with pytest.raises(BundleError, match="array fixed_images is missing"):
        fixed_limits(broken, ())


@pytest.mark.parametrize("kind", ["noise", "plain", "blob"])
def test_one_strange_picture_among_twelve_is_named_and_sets_no_limit(
    kind, grain, base_path, tmp_path, capsys
):
    (tmp_path / "good").mkdir()
    for index, picture in enumerate(grain[:-1]):
        cv2.imwrite(str(tmp_path / "good" / f"{index:02d}.png"), picture)
    clean = enrol(tmp_path / "good", base_path, tmp_path / "clean")
    strange = strange_picture(kind, grain[-1])
    cv2.imwrite(str(tmp_path / "good" / "strange.png"), strange)
    capsys.readouterr()
    bundle = enrol(tmp_path / "good", base_path, tmp_path / "b")
    said = capsys.readouterr().out
    assert "least like the rest: strange.png" in said
    assert "the threshold does not count strange.png" in said
    limit = bundle.manifest["threshold"]["value"]
    scores = dict(zip(bundle.reference["image_ids"], bundle.reference["scores"], strict=True))
    assert next(v for k, v in scores.items() if k.startswith("strange")) > 1.5 * limit
    assert limit == pytest.approx(clean.manifest["threshold"]["value"], rel=0.35)
    dropped = enrol(tmp_path / "good", base_path, tmp_path / "c", "--drop-outliers")
    assert not any(str(k).startswith("strange") for k in dropped.reference["image_ids"])


def test_a_picture_strange_as_a_whole_does_not_make_the_axes_its_own(base_path, tmp_path, capsys):
    # Surfaces that differ from each other: held against these, noise among eight is hidden by axes
    # in which it has a part.
    generator = np.random.default_rng(2)
    (tmp_path / "good").mkdir()
    for index in range(7):
        surface = cv2.GaussianBlur(generator.normal(size=(160, 160)), (0, 0), 4)
        picture = np.clip(128 + 50 * surface / surface.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "good" / f"{index}.png"), picture)
    noise = generator.integers(0, 256, (160, 160), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "good" / "strange.png"), noise)
    enrol(tmp_path / "good", base_path, tmp_path / "b")
    assert "least like the rest: strange.png" in capsys.readouterr().out


def test_a_person_who_says_that_it_is_good_is_believed(grain, base_path, tmp_path, capsys):
    (tmp_path / "good").mkdir()
    (tmp_path / "alarm").mkdir()
    for index, picture in enumerate(grain[:-1]):
        cv2.imwrite(str(tmp_path / "good" / f"{index:02d}.png"), picture)
    cv2.imwrite(str(tmp_path / "alarm" / "strange.png"), strange_picture("blob", grain[-1]))
    first = enrol(tmp_path / "good", base_path, tmp_path / "b")
    argv = ["enroll", tmp_path / "alarm", "--add", "--false-alarms", "--bundle", tmp_path / "b"]
    assert main([str(arg) for arg in [*argv, "--out", tmp_path / "b2"]]) == 0
    assert "does not count" not in capsys.readouterr().out
    second = load_bundle(tmp_path / "b2").manifest["threshold"]["value"]
    assert second > 1.5 * first.manifest["threshold"]["value"]


def test_pictures_that_the_device_would_refuse_are_not_learnt(grain, base_path, tmp_path, capsys):
    (tmp_path / "good").mkdir()
    (tmp_path / "more").mkdir()
    for index, picture in enumerate(grain[:-1]):
        cv2.imwrite(str(tmp_path / "good" / f"{index:02d}.png"), picture)
    cv2.imwrite(str(tmp_path / "good" / "black.png"), np.zeros_like(grain[0]))
    cv2.imwrite(str(tmp_path / "good" / "white.png"), np.full_like(grain[0], 255))
    bundle = enrol(tmp_path / "good", base_path, tmp_path / "b")
    said = capsys.readouterr().err
    assert "black.png#" in said and "white.png#" in said and "black or white" in said
    assert len(bundle.reference["image_ids"]) == len(grain) - 1
    assert bundle.manifest["quality"]["dark_share"][1] < 0.5
    # What is added must be such as the bundle would judge.
    cv2.imwrite(str(tmp_path / "more" / "dark.png"), grain[-1] // 3)
    cv2.imwrite(str(tmp_path / "more" / "sharp.png"), grain[-1])
    argv = ["enroll", tmp_path / "more", "--add", "--false-alarms", "--bundle", tmp_path / "b"]
    assert main([str(arg) for arg in [*argv, "--out", tmp_path / "b2"]]) == 0
    assert "dark.png#0: quality: too dark" in capsys.readouterr().err
    second = load_bundle(tmp_path / "b2")
    assert len(second.reference["image_ids"]) == len(grain)
