"""The page about what was learnt: complete, self-contained, and true to what it is given."""

from __future__ import annotations

import base64
import math
import shlex
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from html_page import Page

from edge_app.enrol import Learning, promise, threshold_of
from edge_app.errors import InputError
from edge_app.learn_report import (
    MOST_MOSAIC,
    MOST_TICKS,
    axis_ticks,
    report_page,
    strip_plot,
    won_by,
    write_report,
)
from edge_app.learnt_pictures import LearntPicture
from edge_app.patches import Component

NASTY = "<b>ünïcode & \"quotes\" 'ticks'</b>.png#3"


class LearnPage(Page):
    """The page about what was learnt."""

    def pictures(self) -> list[np.ndarray]:
        """RGB pictures that the page holds, each checked for being inside it."""
        found = []
        for image in self.of("img"):
            head, _, content = image["src"].partition(",")
            assert head == "data:image/png;base64"
            data = np.frombuffer(base64.b64decode(content, validate=True), np.uint8)
            found.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])
            assert found[-1].shape[1::-1] == (int(image["width"]), int(image["height"]))
        return found


def pictures(count: int, size=(24, 40), names=None) -> list[LearntPicture]:
    rng = np.random.default_rng(0)
    names = names or [f"{index:03d}.png#0" for index in range(count)]
    return [
        LearntPicture(name, rng.integers(0, 256, (*size, 3), dtype=np.uint8), "good")
        for name in names
    ]


def learning(learnt, scores=None, least_like=(), dropped=(), limit=2.0, groups=None, scorer=None):
    count = len(learnt)
    scores = np.linspace(0.5, 1.5, count) if scores is None else np.asarray(scores, float)
    sections = {
        "scorer": scorer or {"kind": "lof", "k": 5, "feature_scaling": "minmax"},
        "threshold": {
            "value": limit,
            "method": "largest held-out score",
            "wanted_rate": 0.01,
            "supported_rate": 1 / (count + 1),
            "images": count,
        },
        "alignment": {"recipe": "pose"},
        "presence": None,
    }
    reference = {"image_ids": np.array([p.image_id for p in learnt]), "scores": scores}
    groups = count if groups is None else groups
    return Learning(
        reference, sections, list(learnt), list(least_like), list(dropped), [], groups, 1.0
    )


def manifest(taught: Learning, **changes) -> dict:
    return {
        "part": "bracket",
        "made": {"at": "2026-11-21T10:00:00+00:00", "command": "edge-app enroll good --out B"},
        "input": {"size": [96, 128], "region": [0.2, 0.1, 0.8, 0.9]},
        "encoder": {
            "dtype": "float32",
            "patch_shape": [3, 3, 8],
            "map_shapes": [[3, 3, 8], [12, 16, 8]],
            "map_layers": ["block_13", "block_6"],
        },
        "decoder": None,
        "files": {"encoder.tflite": {"bytes": 1_234_567}, "reference.npz": {"bytes": 83_200}},
        "manifest_sha256": "0123456789abcdef",
        **taught.sections,
        **changes,
    }


def page_of(taught: Learning, at_hand, trials=None, reason=None, **changes) -> LearnPage:
    return LearnPage(report_page(manifest(taught, **changes), taught, at_hand, trials, reason))


TRIALS = [
    dict(name="gauss", drawn_auroc=0.95, low=0.93, high=0.97, bytes=3000, chosen=True, note=""),
    dict(name="<lof>", drawn_auroc=0.8, low=0.7, high=0.85, bytes=90, chosen=False, note="a & b"),
    dict(name="place", drawn_auroc=None, low=None, high=None, bytes=0, chosen=False, note="large"),
]


def test_needs_nothing_but_itself():
    learnt = pictures(30)
    text = report_page(
        manifest(learning(learnt)), learning(learnt), learnt, TRIALS, "the pictures agree best"
    )
    page = LearnPage(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "form", "base", "a"}
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert all(name[:2] != "on" for _, attributes in page.elements for name in attributes)
    (policy,) = [m["content"] for m in page.of("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert page.pictures()


def test_says_what_was_learnt():
    learnt = pictures(12)
    learnt[3] = LearntPicture(learnt[3].image_id, learnt[3].pixels_rgb, "false alarm")
    taught = learning(learnt, groups=9)
    text = page_of(taught, learnt, reason="pose: it left least unexplained").text
    assert "bracket" in text and "edge-app enroll good --out B" in text
    assert "2026-11-21 10:00:00 UTC" in text
    assert "12 good images learnt, 1 of them once called NG by mistake" in text
    sentences = [threshold_of(taught.sections["threshold"]).sentence(), *promise(taught)]
    assert len(sentences) == 3
    for sentence in sentences:
        assert sentence[1:] in text
    assert "Alignment pose:" in text and "(it left least unexplained)" in text
    for detail in ("128 x 96 pixels", "lof", "83 kB", "1.2 MB", "left 0.2", "largest held-out"):
        assert detail in text


def test_names_the_components():
    component = asdict(Component("gauss", 1, 48, blur=3, share=2))
    scorer = {
        "kind": "patches",
        "k": 5,
        "feature_scaling": "none",
        "components": [component],
        "image_score": "max",
        "smoothing": 1.0,
    }
    learnt = pictures(5)
    cells = page_of(learning(learnt, scorer=scorer), learnt).inside("td")
    assert ["gauss block_6", "12 x 16", "48"] == cells[-3:]


def test_names_are_text_and_nothing_else():
    learnt = pictures(6, names=[NASTY, *(f"{index}#0" for index in range(5))])
    left_out = pictures(1, names=["<script>alert(1)</script>"])
    taught = learning(
        learnt,
        [3.0, 1, 1, 1, 1, 1],
        least_like=[(NASTY, 3.0)],
        dropped=[("<script>alert(1)</script>", 4.0)],
    )
    made = {"at": "<i>now", "command": "fit '<i>&amp;'"}
    page = page_of(taught, learnt + left_out, TRIALS, "<i>because", part="<i>part</i>", made=made)
    tags = {tag for tag, _ in page.elements}
    assert "i" not in tags and "script" not in tags
    assert NASTY in page.inside("bdi") and "<script>alert(1)</script>" in page.inside("bdi")
    assert NASTY in [image["alt"] for image in page.of("img")]
    assert f"{NASTY}: 3" in page.inside("title")
    assert "<i>part</i>" in page.inside("bdi") and "fit '<i>&amp;'" in page.inside("code")
    assert "<lof>" in page.text and "a & b" in page.text and "<i>because" in page.text


def test_strange_pictures_come_with_score_share_and_command():
    learnt = pictures(8, names=[NASTY, *(f"{index}#0" for index in range(7))])
    scores = [3.0, 1.5, 1, 1, 1, 1, 1, math.nan]
    odd = [("6#0", math.nan), (NASTY, 3.0), ("0#0", 1.5)]
    page = page_of(learning(learnt, scores, least_like=odd), learnt)
    commands = [shlex.split(c) for c in page.inside("code") if c.startswith("--remove ")]
    assert commands == [["--remove", "6#0"], ["--remove", NASTY], ["--remove", "0#0"]]
    assert page.inside("span")[:3] == [
        "has no score: it cannot be judged",
        "score 3, 150% of the threshold: would be NG",
        "score 1.5, 75% of the threshold",
    ]
    assert "--drop-outliers" in page.inside("code")
    assert np.array_equal(page.pictures()[1], learnt[0].pixels_rgb)
    assert "1 have no finite score" in page.text


def test_nothing_strange_shows_the_three_highest():
    learnt = pictures(6)
    page = page_of(learning(learnt, [0.5, 1.2, 0.3, 1.1, 1.3, 0.4]), learnt)
    assert "No picture stands out" in page.text
    commands = [shlex.split(c)[1] for c in page.inside("code") if c.startswith("--remove ")]
    assert commands == ["004.png#0", "001.png#0", "003.png#0"]


def test_left_out_pictures_are_shown_and_not_to_be_removed():
    everything = pictures(7)
    left_out = [(picture.image_id, 9.0) for picture in everything[:2]]
    page = page_of(learning(everything[2:], dropped=left_out), everything)
    names = page.inside("bdi")
    assert names.count("000.png#0") == names.count("001.png#0") == 1
    assert "2 more images left out" in page.text
    assert not [c for c in page.inside("code") if "000.png" in c or "001.png" in c]
    assert any(np.array_equal(p, everything[0].pixels_rgb) for p in page.pictures())


def test_pictures_not_kept_are_named_only():
    learnt = pictures(6)
    taught = learning(learnt, [1, 1, 1, 1, 1, 3], least_like=[("005.png#0", 3.0)])
    page = page_of(taught, [])
    assert page.pictures() == []
    assert "005.png#0" in page.inside("bdi") and "picture not kept" in page.text
    assert not [c for c in page.inside("code") if c.startswith("--remove ")]


def circles(page: Page) -> list[tuple[float, str]]:
    return [(float(c["cx"].rstrip("%")), c["fill"]) for c in page.of("circle")]


def threshold_line(page: Page) -> float:
    (line,) = [line for line in page.of("line") if line["stroke"] == "var(--limit)"]
    assert line["x1"] == line["x2"]
    return float(line["x1"].rstrip("%"))


@pytest.mark.parametrize("limit", [1.25, 5.0, -1.0])
def test_dots_lie_on_their_side_of_the_threshold(limit):
    scores = np.sort(np.random.default_rng(1).uniform(0, 2, 50))
    ids = [f"{score:.6f}" for score in scores]
    page = LearnPage(strip_plot(ids, scores, limit, {ids[-1]}))
    dots = circles(page)
    assert len(dots) == 50 and dots == sorted(dots)
    assert all(0 < x < 100 for x, _ in dots)
    line = threshold_line(page)
    assert 0 < line < 100
    assert sum(x > line for x, _ in dots) == (scores > limit).sum()
    assert [fill for _, fill in dots].index("none") == 49  # the ring, drawn last
    assert len({(c["cx"], c["cy"]) for c in page.of("circle")}) == 50
    assert page.of("svg")[0]["role"] == "img" and "threshold" in page.inside("title")[0]


def test_the_axis_is_logarithmic_where_that_shows_more():
    scores = np.linspace(0.8, 1.2, 40)
    ids = [str(index) for index in range(41)]
    even = LearnPage(strip_plot(ids[:40], scores, 1.5, set()))
    assert "held-out score, linear" in even.text
    far = LearnPage(strip_plot(ids, np.append(scores, 60.0), 1.5, set()))
    assert "held-out score, logarithmic" in far.text
    # 40 of the 41 lie between 0.8 and 1.2: on a linear axis they would take 0.6 % of it.
    dots = [x for x, _ in circles(far)]
    assert dots[39] - dots[0] > 7
    below_zero = LearnPage(strip_plot(ids, np.append(scores - 1, 60.0), 1.5, set()))
    assert "linear" in below_zero.text


def test_equal_scores_are_drawn_too():
    page = LearnPage(strip_plot(["a", "b"], np.array([1.0, 1.0]), 1.0, set()))
    assert [x for x, _ in circles(page)] == [50, 50] and threshold_line(page) == 50


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(0.9, 1.9), (0.02, 700), (3e-9, 4e-9), (1, 1e12), (99.9, 100.2), (2, 2.9)]
)
def test_ticks_are_few_and_inside(low, high, logarithmic):
    ticks = axis_ticks(low, high, logarithmic)
    assert 2 <= len(ticks) <= MOST_TICKS
    assert ticks == sorted(ticks) and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-12)


def test_mosaic_is_bounded_and_the_mean_is_of_all():
    learnt = pictures(MOST_MOSAIC + 30)
    learnt.append(LearntPicture("left out", np.full((24, 40, 3), 255, np.uint8), "good"))
    page = page_of(learning(learnt[:-1]), learnt)
    names = [image["alt"] for image in page.of("img")]
    start = len(names) - 1 - MOST_MOSAIC
    assert names[-1] == "mean picture" and len(set(names[start:-1])) == MOST_MOSAIC
    assert names[start] == "000.png#0" and names[-2] == learnt[-2].image_id
    assert "left out" not in names
    mean = np.mean([picture.pixels_rgb for picture in learnt[:-1]], axis=0)
    assert np.abs(page.pictures()[-1] - mean).max() <= 0.5


def test_what_was_tried_marks_the_winner():
    learnt = pictures(5)
    page = page_of(learning(learnt), learnt, TRIALS)
    assert [row.get("class") for row in page.of("tr")[1:4]] == ["chosen", None, None]
    cells = page.inside("td")
    assert cells[:4] == ["gauss (chosen)", "0.9500", "0.9300 to 0.9700", "3 kB"]
    assert cells[4:9] == ["<lof>", "0.8000", "0.7000 to 0.8500", "90 bytes", "a & b"]
    assert cells[9:14] == ["place", "–", "–", "–", "large"]
    assert won_by(TRIALS) in page.text
    assert "What was tried" not in page_of(learning(learnt), learnt).text


@pytest.mark.parametrize(
    ("chosen", "other", "said"),
    [
        ((0.95, 0.93, 0.97), (0.8, 0.7, 0.85), "won by 0.1500 AUROC over b, the next; their"
         " intervals do not overlap."),
        ((0.95, 0.9, 0.97), (0.93, 0.91, 0.95), "won by 0.0200 AUROC over b, the next; their"
         " intervals overlap, so the difference may be chance."),
        ((0.9, None, None), (0.93, 0.91, 0.95), "was chosen although b had 0.0300 AUROC more."),
        ((1.0, 0.9, 1.0), (1.0, 0.9, 1.0), "was chosen, level with b; their intervals overlap, so"
         " the difference may be chance."),
        ((0.9, 0.8, 1.0), (math.nan, None, None), "was chosen; there is no other figure to compare"
         " it with."),
    ],
)  # fmt: skip
def test_by_how_much_it_won(chosen, other, said):
    trials = [
        dict(name=name, drawn_auroc=figures[0], low=figures[1], high=figures[2], chosen=won)
        for name, figures, won in (("a", chosen, True), ("b", other, False))
    ]
    assert won_by(trials) == f"a {said}"
    trials[0]["chosen"] = False
    assert won_by(trials) == "None of them was chosen."


def test_three_hundred_pictures_of_noise_stay_below_two_megabytes(tmp_path):
    few = pictures(8, (224, 224))
    learnt = [
        LearntPicture(f"{'ü' * 80}{index}#0", few[index % 8].pixels_rgb, "good")
        for index in range(300)
    ]
    odd = [(picture.image_id, 3.0) for picture in learnt[:40]]
    dropped = [(picture.image_id, 3.0) for picture in learnt[280:]]
    taught = learning(learnt[:280], least_like=odd, dropped=dropped)
    path = tmp_path / "new" / "folder" / "page.html"
    write_report(path, manifest(taught), taught, learnt, TRIALS)
    assert path.stat().st_size < 2_000_000
    page = LearnPage(path.read_text(encoding="utf-8"))
    assert max(max(picture.shape) for picture in page.pictures()) <= 160
    alternatives = {image["alt"] for image in page.of("img")}
    assert odd[0][0] in alternatives and dropped[0][0] in alternatives
    # Those without a picture of their own are named nevertheless.
    assert {name for name, _ in odd + dropped} <= set(page.inside("bdi"))


def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path):
    learnt = pictures(4)
    taught = learning(learnt)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"page\.html: cannot be written: .*file is no folder$"):
        write_report(tmp_path / "file" / "page.html", manifest(taught), taught, learnt)
    with pytest.raises(InputError, match="cannot be written: Not a directory$"):
        write_report(tmp_path / "file" / "a" / "page.html", manifest(taught), taught, learnt)
    with pytest.raises(InputError, match="cannot be written: Is a directory$"):
        write_report(tmp_path, manifest(taught), taught, learnt)


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path):
    learnt = pictures(4, names=["a", "b", "c", "caf\udce9.png#0"])
    taught = learning(learnt)
    write_report(tmp_path / "page.html", manifest(taught), taught, learnt)
    assert "caf\\udce9.png#0" in (tmp_path / "page.html").read_text(encoding="utf-8")
