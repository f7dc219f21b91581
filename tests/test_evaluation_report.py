"""The page about a bundle on a set: complete, self-contained, and true to what was measured."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from html_page import Page

pytest.importorskip("matplotlib", reason="needs the tools extra")

from edge_app.bundle import load_bundle  # noqa: E402
from edge_app.cli import main as edge_app  # noqa: E402
from edge_app.config import load_config  # noqa: E402
from edge_app.inspector import Inspector  # noqa: E402
from edge_app.records import Verdict  # noqa: E402
from edge_app.sources.folder import read_picture  # noqa: E402
from tools.__main__ import main as tools  # noqa: E402
from tools.evaluate import Judged, SeeingInspector, figures_of, judge  # noqa: E402
from tools.evaluation_report import kept_promises, report_page, shows_anything  # noqa: E402
from tools.inspection_set import TestPicture, read_inspection_set  # noqa: E402
from tools.leak_probe import Separation, separation  # noqa: E402
from tools.report_gallery import outlined  # noqa: E402
from tools.report_groups import judgement, rarity_auroc, saved_as, two_dimensions  # noqa: E402
from tools.report_html import text  # noqa: E402
from tools.report_measures import (  # noqa: E402
    Count,
    WorkingPoint,
    auroc_interval,
    dead_filters,
    first_layer,
    high_frequency_share,
    noise_share,
    working_points,
)
from tools.report_plots import FILTER_GAP, WEIGHT_SIDE, filter_grid, scatter_plot  # noqa: E402

NASTY = '<i>bent & $x_1$"<b'


class EvaluationPage(Page):
    """The page about what a bundle does."""

    def __init__(self, page: str) -> None:
        super().__init__(page)
        self.source = page

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures by their names, each checked for being inside the page."""
        found = {}
        for image in self.of("img"):
            head, _, content = image["src"].partition(",")
            assert head in ("data:image/png;base64", "data:image/jpeg;base64")
            data = np.frombuffer(base64.b64decode(content, validate=True), np.uint8)
            picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            assert picture.shape[1::-1] == (int(image["width"]), int(image["height"]))
            found[image["alt"]] = picture
        return found

    def marks(self) -> list[str]:
        """Tones of the marked sentences."""
        return [p["class"][5:] for p in self.of("p") if p.get("class", "").startswith("mark ")]

    def rows(self, name: str) -> list[str]:
        """Lines of a table, each as text."""
        table = re.search(rf'aria-label="{name}".*?</table>', self.source, re.S).group(0)
        return [
            " ".join(re.sub(r"<[^>]*>", " ", row).split())
            for row in re.findall(r"<tr>.*?</tr>", table, re.S)
        ]


def write(frames, folder, suffix=".png", options=()):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{index}{suffix}"), frame, list(options))


@pytest.fixture(scope="module")
def parts(tmp_path_factory, still_frames):
    """Good and defective parts of the clip, one folder with a name that is markup; two masks."""
    root = tmp_path_factory.mktemp("parts")
    good, bad = still_frames["good"], still_frames["bad"]
    write(good[0:84:4], root / "train" / "good")
    write(good[2:84:8], root / "test" / "good")
    write(bad[0::12], root / "test" / NASTY)
    write(still_frames["empty"][:2], root / "test" / "gone")
    mask = np.zeros(bad[0].shape[:2], np.uint8)
    mask[80:140, 120:200] = 255
    masks = root / "ground_truth" / NASTY
    masks.mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(masks / f"{index}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def nut_page(parts, nut_path, tmp_path_factory) -> EvaluationPage:
    out = tmp_path_factory.mktemp("report") / "page.html"
    argv = ["evaluate", "--bundle", nut_path, "--data", parts, "--report", out]
    assert tools([str(arg) for arg in argv]) == 0
    return EvaluationPage(out.read_text(encoding="utf-8"))


def page_of(bundle, root) -> EvaluationPage:
    config = load_config()
    inspector = SeeingInspector(
        bundle, config.decision, "single", 1, heatmaps=False, quality=config.quality
    )
    inspection_set = read_inspection_set(root)
    judged = judge(inspector, inspection_set, progress=False)
    figures = figures_of(inspector, inspection_set, judged, progress=False)
    return EvaluationPage(
        report_page(inspector, inspection_set, judged, figures, "again", progress=False)
    )


def test_needs_nothing_but_itself(nut_page):
    page = nut_page.source
    tags = {tag for tag, _ in nut_page.elements}
    assert not tags & {"script", "link", "iframe", "object", "form", "base", "a", "image"}
    assert "http:" not in page and "https:" not in page
    # Of a plot's own shapes only.
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert set(re.findall(r'href="(.)', page)) <= {"#"}
    assert all(name[:2] != "on" for _, attributes in nut_page.elements for name in attributes)
    (policy,) = [m["content"] for m in nut_page.of("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert len(page) < 2_000_000


def test_has_every_section(nut_page):
    assert nut_page.inside("h2") == [
        "Can the pictures be trusted?",
        "Where the threshold may stand",
        "How good and defective pictures score",
        "Which defects it finds",
        "The pictures that matter",
        "Do pictures fall apart by what is no defect?",
        "What the encoder's first layer looks for",
        "How long it takes",
        "The bundle, and this page again",
    ]
    plots = [svg["aria-labelledby"] for svg in nut_page.of("svg")]
    assert plots == [
        f"{name}-title" for name in ("roc", "rates", "scores", "split", "format", "latency")
    ]
    assert nut_page.of("details") and '"manifest_sha256"' in nut_page.text
    assert "python -m tools evaluate --bundle" in nut_page.text
    assert [row.split()[0] for row in nut_page.rows("times")][1:] == [
        "quality", "locate", "align", "encode", "score", "decide", "frame"
    ]  # fmt: skip


def test_a_plot_refers_to_nothing_of_another_and_follows_the_page(nut_page):
    ids = [attributes["id"] for _, attributes in nut_page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = re.findall(r'(?:url\(|href=")#([^")]+)', nut_page.source)
    assert used and set(used) <= set(ids)
    # Colours of the page, none of matplotlib's own.
    svg = "".join(re.findall(r"<svg.*?</svg>", nut_page.source, re.S))
    assert "var(--ink)" in svg and "var(--dot)" in svg
    assert not re.search(r"(fill|stroke): ?#", svg) and "<style" not in svg


def test_names_are_text_and_nothing_else(nut_page):
    assert not nut_page.of("i")
    assert NASTY in nut_page.inside("bdi")
    assert f"defective: {NASTY}; score" in nut_page.text
    assert any(name.startswith(NASTY) for name in nut_page.pictures())
    assert text("caf\udce9<&\"'") == "caf\\udce9&lt;&amp;&quot;&#x27;"


def test_the_figures_stand_beside_the_best_trivial_one(nut_page, parts, nut_bundle):
    inspector = Inspector(nut_bundle, load_config().decision, "single", 1, heatmaps=False)
    inspection_set = read_inspection_set(parts)
    judged = judge(inspector, inspection_set, progress=False)
    figures = figures_of(inspector, inspection_set, judged, progress=False)
    trivial = {k: v for k, v in figures["trivial"].items() if not k.startswith("mean_picture_")}
    best = max(trivial, key=trivial.get)
    image, pixel, pro = nut_page.rows("figures")[1:]
    assert image.startswith(f"image AUROC {figures['image_auroc']:.4f} ")
    assert image.endswith(f"{trivial[best]:.4f} ({best.replace('_', ' ')})")
    assert pixel.startswith(f"pixel AUROC {figures['pixel_auroc']:.4f} ")
    assert pro.startswith(f"AU-PRO {figures['au_pro']:.4f} ")
    for row in nut_page.rows("defects")[1:]:
        defect = "gone" if row.startswith("gone") else NASTY
        assert f" {figures['per_defect'][defect]['image_auroc']:.4f} " in row.replace(
            text(NASTY), ""
        )


@pytest.mark.parametrize(
    ("auroc", "interval", "tone"),
    [(0.99, (0.95, 1.0), "fine"), (0.9, (0.7, 0.97), "amber"), (0.7, (0.6, 0.8), "red")],
)
def test_says_whether_the_bundle_shows_anything(auroc, interval, tone):
    got, sentence = shows_anything(auroc, interval, "mean picture", 0.75, (10, 10))
    assert got == tone and "mean picture" in sentence and "trivial score" in sentence
    # The mean picture knows something of parts.
    assert "knows nothing" not in sentence
    for few in ((9, 200), (200, 9)):
        got, sentence = shows_anything(auroc, interval, "mean picture", 0.75, few)
        assert got == "" and f"{few[0]} good and {few[1]} defective" in sentence


def clopper_pearson(count, of):
    from scipy.stats import beta

    low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, of - count) if count < of else 1.0
    return f"{count / of:.1%} {low:.1%} to {high:.1%}"


def test_working_points_are_the_held_out_scores_own(nut_page, parts, nut_bundle):
    from scipy.optimize import brentq

    # Independent of `calibrate`: the conformal quantile by its rank; the exponential tail of those
    # that are not unlike the rest by the product of its gaps.
    held = np.sort(nut_bundle.reference["scores"])
    low = held[int(np.ceil((len(held) + 1) * 0.95)) - 1]
    usual = held
    for _ in range(9):
        first, median, third = np.percentile(usual, (25, 50, 75), method="hazen")
        usual = held[held <= median + 5 * max(third - median, median - first)]
    n = len(usual)
    assert 0.9 * len(held) < n < len(held)
    half = np.arange(1, n // 2 + 1)

    def excess(growth):
        log_rate = np.log((n // 2 + 1) / (n + 1)) + np.log(half / (half + growth)).sum()
        return log_rate - np.log(0.01 / len(held))

    base = usual[n - n // 2 - 1]
    high = base + brentq(excess, 1, 4) * (usual[-1] - base)
    own = nut_bundle.manifest["threshold"]["value"]
    inspector = Inspector(nut_bundle, load_config().decision, "single", 1, heatmaps=False)
    verdicts = judge(inspector, read_inspection_set(parts), progress=False)
    for row, (name, threshold) in zip(
        nut_page.rows("working points")[1:],
        (("low", low), ("bundle's own", own), ("high", high)),
        strict=True,
    ):
        cells = [clopper_pearson(int((held > threshold).sum()), len(held))]
        for defective, wanted in ((False, ("NG",)), (True, ("NG",)), (True, ("OK",))):
            these = [one for one in verdicts if one.picture.is_anomaly == defective]
            moved = [
                "NG" if one.score > threshold else "OK"
                for one in these
                if one.verdict in ("OK", "NG")
            ]
            cells.append(clopper_pearson(sum(v in wanted for v in moved), len(these)))
        assert row.startswith(f"{text(name)} {threshold:.4g} ")
        assert row.endswith(" ".join(cells))
    assert "2 of the 7 defective test pictures the device does not judge" in nut_page.text


def test_the_low_point_is_what_the_device_would_calibrate(tmp_path, base_path, still_frames):
    # Frames of a clip: many near-duplicates, which must be counted as the device counts them.
    write(still_frames["good"][0:84:2], tmp_path / "good")
    argv = ["enroll", tmp_path / "good", "--bundle", base_path, "--out", tmp_path / "b"]
    argv += ["--rate", "0.05", "--scorer", "lof"]
    assert edge_app([str(arg) for arg in argv]) == 0
    bundle = load_bundle(tmp_path / "b")
    section = bundle.manifest["threshold"]
    assert section["groups"] < section["images"]
    points = {point.name: point for point in working_points(bundle, section["value"])}
    assert points["low"].threshold == points["own"].threshold == section["value"]
    assert points["high"].threshold > bundle.reference["scores"].max()


def test_a_count_and_its_interval():
    assert Count(0, 10).interval == (0.0, pytest.approx(1 - 0.025**0.1))
    assert np.isnan(Count(0, 0).share) and Count(0, 0).interval == (0.0, 1.0)


def test_auroc_interval():
    rng = np.random.default_rng(1)
    good, bad = rng.normal(0, 1, 400), rng.normal(1, 1, 400)
    low, high = auroc_interval(good, bad)
    # The truth is Phi(1 / sqrt 2) = 0.760; the standard error of Hanley and McNeil is 0.017.
    assert low < 0.760 < high and 0.055 < high - low < 0.078
    few = auroc_interval(good[:25], bad[:25])
    assert few[1] - few[0] > 2.5 * (high - low)
    assert auroc_interval(good, bad) == (low, high)


def test_the_interval_of_a_perfect_auroc_tells_few_pictures_from_many():
    for n, wanted in ((1, 0.0), (10, 0.86), (100, 0.98)):
        first, second = np.arange(n), n + np.arange(n)
        low, high = auroc_interval(first, second)
        assert low == pytest.approx(wanted, abs=0.02) and high == 1
        assert low == max(separation(first, second).lower, 0)
        assert auroc_interval(second, first) == (0, pytest.approx(1 - low))
    # One pair the wrong way round is no better evidence than none.
    swapped = auroc_interval([0, 1, 2, 3, 4, 5, 6, 7, 8, 10], [9, *range(11, 20)])
    assert swapped[0] <= auroc_interval(range(10), range(10, 20))[0] + 1e-9
    low, high = auroc_interval(np.ones(5), np.ones(7))
    assert 0.1 < low < 0.3 and low + high == pytest.approx(1)


def judged_as(verdict, score):
    return Judged(
        TestPicture(Path("p.png"), "good", None), verdict, None, score, {}, None, {}, None,
        np.zeros(2), np.zeros(2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("above", "of", "wanted", "tone"),
    [
        (5, 6, 0.05, "red"),
        (1, 6, 0.05, None),
        (0, 60, 0.05, None),
        (0, 200, 0.05, "amber"),
        (0, 0, 0.05, None),
        (1, 60, 5e-5, "red"),
    ],
)
def test_says_where_the_test_excludes_what_was_wanted(above, of, wanted, tone):
    good = [judged_as(Verdict.NG, 2.0)] * above + [judged_as(Verdict.OK, 0.5)] * (of - above)
    # Those without a verdict are no evidence, whatever their score.
    good += [judged_as(Verdict.UNKNOWN, 0.5)] * 50
    found = kept_promises(good, [WorkingPoint("low", 1.0, "made up", wanted, (0.0, 0.0, 1.0))])
    assert [got for got, _ in found] == [tone] * (tone is not None)
    for _, said in found:
        assert f"low: {above} of {of} above it" in said
        interval = clopper_pearson(above, of).split(" ", 1)[1]
        assert f"{interval}, wanted {100 * wanted:.2g}%" in said


def test_a_broken_promise_stands_under_the_table(parts, nut_bundle, tmp_path):
    shutil.copytree(parts / "train", tmp_path / "s" / "train")
    shutil.copytree(parts / "test" / "gone", tmp_path / "s" / "test" / "gone")
    # Defective parts under a false name.
    shutil.copytree(parts / "test" / NASTY, tmp_path / "s" / "test" / "good")
    page = page_of(nut_bundle, tmp_path / "s")
    (said,) = re.findall(r'<p class="mark red">(More good test pictures[^<]*)', page.source)
    assert "low: 5 of 5 above it, 47.8% to 100.0%, wanted 5%" in said
    assert page.source.index("working points") < page.source.index(said)


def test_three_thresholds_at_one_place(base_path, tmp_path, still_frames):
    write(still_frames["good"][0:84:28], tmp_path / "good")
    argv = ["enroll", tmp_path / "good", "--bundle", base_path, "--out", tmp_path / "b"]
    assert edge_app([str(arg) for arg in argv]) == 0
    bundle = load_bundle(tmp_path / "b")
    points = working_points(bundle, bundle.manifest["threshold"]["value"])
    assert len({point.threshold for point in points}) == 1
    rates = [point.wanted_rate for point in points]
    assert rates == sorted(rates, reverse=True)
    write(still_frames["good"][3:84:28], tmp_path / "s" / "train" / "good")
    write(still_frames["good"][3:84:28], tmp_path / "s" / "test" / "good")
    write(still_frames["bad"][::20], tmp_path / "s" / "test" / "bent")
    page = page_of(bundle, tmp_path / "s")
    assert "All three stand at one place" in page.text and "usual order" not in page.text


def test_first_layer_of_float_and_int8(nut_bundle):
    filters = first_layer(nut_bundle.encoder)
    quantised = first_layer(load_bundle(nut_bundle.path.parent / "nut_int8").encoder)
    assert filters.shape == quantised.shape == (16, 3, 3, 3)
    step = np.abs(filters).max(axis=(1, 2, 3), keepdims=True) / 127
    assert (np.abs(filters - quantised) <= 0.51 * step + 1e-9).all()
    assert high_frequency_share(quantised) == pytest.approx(high_frequency_share(filters), abs=0.01)
    # The decoder sees no colours.
    assert first_layer(nut_bundle.decoder) is None


def test_smooth_filters_are_told_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(64, 3, 3, 3)).astype(np.float32)
    assert noise_share(noise) == pytest.approx(1 / 3)
    assert high_frequency_share(noise) == pytest.approx(1 / 3, abs=0.04)
    ramp = np.ones((4, 3, 3, 3), np.float32) * np.array([-1, 0, 1], np.float32)[:, None]
    assert high_frequency_share(ramp) == pytest.approx(0, abs=1e-9)
    checks = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32)
    assert high_frequency_share(checks[None, :, :, None].repeat(3, 3)) == pytest.approx(1)
    # A dead filter has no say.
    assert high_frequency_share(np.concatenate([ramp, 1e-9 * noise[:4]])) < 1e-6


def test_the_grid_shows_each_filter(nut_page, nut_bundle):
    filters = first_layer(nut_bundle.encoder)
    grid = filter_grid(filters)
    assert np.array_equal(nut_page.pictures()["first-layer filters"], grid)
    side = 3 * WEIGHT_SIDE + FILTER_GAP
    alive = np.flatnonzero(~dead_filters(filters))
    assert 0 < len(alive) < 16
    for row in range(16):
        y, x = row // 8 * side, row % 8 * side
        shown = grid[
            y : y + side - FILTER_GAP : WEIGHT_SIDE, x : x + side - FILTER_GAP : WEIGHT_SIDE
        ]
        assert (shown[..., 3] == 255).all()
        weights = filters[row, :, :, ::-1]
        if row not in alive:
            assert np.ptp(shown[..., :3]) <= 1
            continue
        place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
        assert shown[place] == (255 if weights[place] > 0 else 1)
    assert (grid[3 * WEIGHT_SIDE : side, :, 3] == 0).all()
    assert "16 filters of 3 x 3 pixels" in nut_page.text and "smooth" in nut_page.text


def test_pictures_come_with_verdict_truth_and_redraw(nut_page):
    captions = [span for span in nut_page.inside("span") if "; score" in span]
    assert len(captions) == len(nut_page.of("figure")) - 1
    assert any(span.startswith("good; score") for span in captions)
    names = nut_page.pictures()
    assert sum(name.endswith(", redrawn") for name in names) > 3
    assert "Not judged: 2 pictures" in nut_page.inside("h3")
    assert nut_page.inside("b").count("EMPTY") == 2


def test_a_defect_is_outlined_and_not_covered():
    frame = np.full((300, 200, 3), 100, np.uint8)
    mask = np.zeros((300, 200), bool)
    mask[100:140, 50:90] = True
    shown = outlined(frame, mask)
    assert shown.shape == frame.shape and (shown[mask] == 100).all()
    assert (shown[96, 60:80] == 255).all() or (shown[97, 60:80] == 255).all()
    assert np.array_equal(outlined(frame, None), frame)
    hair = np.zeros((3000, 2000), bool)
    hair[1000, 500:1500] = True
    small = outlined(np.full((3000, 2000, 3), 100, np.uint8), hair)
    assert small.shape == (300, 200, 3) and (small == 255).any()


def test_pooled_scores_without_masks_heatmap_and_decoder(parts, pooled_bundle, tmp_path):
    shutil.copytree(parts / "train", tmp_path / "s" / "train")
    shutil.copytree(parts / "test", tmp_path / "s" / "test")
    page = page_of(pooled_bundle, tmp_path / "s")
    assert "no masks" in page.rows("figures")[2] and "no heatmap" not in page.rows("figures")[2]
    assert "This bundle has no heatmap." in page.text and "outlined" not in page.text
    assert not any(name.endswith(", redrawn") for name in page.pictures())
    assert len(page.of("svg")) == 6
    shutil.copytree(parts / "ground_truth", tmp_path / "s" / "ground_truth")
    page = page_of(pooled_bundle, tmp_path / "s")
    assert "no heatmap" in page.rows("figures")[2]


def test_a_handful_of_pictures(nut_bundle, still_frames, tmp_path):
    write(still_frames["good"][:1], tmp_path / "s" / "train" / "good")
    write(still_frames["good"][40:41], tmp_path / "s" / "test" / "good")
    write(still_frames["empty"][:1], tmp_path / "s" / "test" / "gone")
    page = page_of(nut_bundle, tmp_path / "s")
    assert "Too few pictures to ask a linear rule" in page.text
    assert "says nothing" not in page.text and len(page.of("svg")) == 6
    assert clopper_pearson(0, 1) in page.rows("working points")[1]


def test_the_format_of_the_defects_is_a_red_flag(parts, nut_bundle, tmp_path, nut_page):
    # The article's accident: good pictures as JPEG, defective ones as PNG.
    assert "All pictures are saved as PNG" in nut_page.text
    root = tmp_path / "s"
    for split in ("train", "test"):
        frames = [read_picture(path) for path in sorted((parts / split / "good").iterdir())]
        write(frames, root / split / "good", ".jpg", (cv2.IMWRITE_JPEG_QUALITY, 90))
    shutil.copytree(parts / "test" / NASTY, root / "test" / NASTY)
    page = page_of(nut_bundle, root)
    assert page.rows("formats")[1:] == ["JPEG of quality 90 21 11 0", "PNG 0 0 5"]
    assert "with an AUROC of 1.00: the format can stand in for the defect" in page.text
    assert re.search('<p class="mark red">[^<]*the format can stand in', page.source)
    assert not re.search('<p class="mark red">[^<]*the format can stand in', nut_page.source)


def test_formats_by_content_and_rarity(tmp_path):
    grey = np.full((32, 32, 3), 90, np.uint8)
    for index, quality in enumerate(range(40, 100, 8)):
        cv2.imwrite(str(tmp_path / f"{index}.jpg"), grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
    cv2.imwrite(str(tmp_path / "p.png"), grey)
    (tmp_path / "p.png").rename(tmp_path / "9.jpg")
    paths = sorted(tmp_path.iterdir())
    assert saved_as(paths[:2]) == ["JPEG of quality 40", "JPEG of quality 48"]
    assert saved_as(paths) == ["JPEG"] * 8 + ["PNG"]
    assert rarity_auroc(["a"], ["a", "a", "b"], [False, False, True]) == 1
    assert rarity_auroc(["a", "b"], ["a", "b", "a", "b"], [False, False, True, True]) == 0.5


@pytest.mark.parametrize(
    ("auroc", "lower", "tone"), [(0.9, 0.8, "red"), (0.6, 0.55, "amber"), (0.6, 0.45, "fine"),
                                 (0.3, 0.6, "fine")],
)  # fmt: skip
def test_judges_what_falls_apart(auroc, lower, tone):
    got, sentence = judgement("one", "other", Separation(auroc, lower, (40, 30)))
    assert got == tone and "one (40) from other (30)" in sentence
    assert judgement("one", "other", None) == (
        "", "Too few pictures to ask a linear rule to tell one from other."
    )  # fmt: skip


def test_embeddings_in_two_dimensions():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(40, 1))
    flat, explained = two_dimensions(hidden @ rng.normal(size=(1, 12)) * 5 + 1)
    assert explained[0] == pytest.approx(1) and flat.shape == (40, 2)
    assert abs(np.corrcoef(flat[:, 0], hidden[:, 0])[0, 1]) == pytest.approx(1)
    same, nothing = two_dimensions(np.ones((5, 7)))
    assert not same.any() and nothing == (0.0, 0.0)
    svg = scatter_plot("p", flat, [("<i> $a$", np.ones(40, bool))], explained)
    assert "&lt;i&gt; $a$ (40)" in svg
    # Many dots become one picture in the page, not a megabyte of shapes.
    many = np.repeat(flat, 50, axis=0)
    svg = scatter_plot("p", many, [("all", np.ones(2000, bool))], explained)
    assert len(svg) < 200_000 and "data:image/png;base64" in svg
