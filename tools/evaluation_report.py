"""
Write the page about a bundle on labelled pictures: what it does, where it fails, what to trust.

One HTML file with its pictures in it, for a person with a browser and no network. Nothing in it
runs and nothing is fetched: its own security policy forbids both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.bundle import Bundle
from edge_app.errors import InputError
from edge_app.inspector import Inspector
from edge_app.records import LOOP_STAGES
from edge_app.sources.folder import printable, read_picture
from tools.evaluate import Judged
from tools.inspection_set import InspectionSet
from tools.leak_probe import LEAST_PICTURES
from tools.report_gallery import gallery
from tools.report_groups import groups_section
from tools.report_html import STYLE, count, image, mark, table, text
from tools.report_measures import (
    JUDGED,
    NOISY,
    SMOOTH,
    Count,
    WorkingPoint,
    auroc_interval,
    called,
    dead_filters,
    first_layer,
    high_frequency_share,
    noise_share,
    working_points,
)
from tools.report_plots import (
    NAMES,
    filter_grid,
    histogram_plot,
    latency_plot,
    rates_plot,
    roc_plot,
)

if TYPE_CHECKING:
    from tools.check_data import Findings

# Side of the pictures in the table of defects, pixels, and how many lines have one, at most.
THUMB_SIDE, MOST_EXAMPLES = 64, 40


def write_report(
    path: Path,
    inspector: Inspector,
    inspection_set: InspectionSet,
    judged: Sequence[Judged],
    figures: Mapping[str, Any],
    command: str,
    findings: Findings | None = None,
    progress: bool = True,
) -> None:
    """
    Write the page about a bundle on a set.

    Parameters
    ----------
    path : Path
        Overwritten if it exists.
    inspector : Inspector
        The one that judged; the pictures that are shown, and those of train/good, go through it.
    inspection_set : InspectionSet
    judged : sequence of Judged
        From `tools.evaluate.judge`.
    figures : mapping
        From `tools.evaluate.figures_of`.
    command : str
        That makes this page again.
    findings : tools.check_data.Findings, optional
        What is wrong with the pictures themselves.
    progress : bool
        Whether to show a progress bar on stderr.

    Raises
    ------
    InputError
        If `path` cannot be written, or a picture can no longer be read.
    """
    page = report_page(
        inspector, inspection_set, judged, figures, command, findings=findings, progress=progress
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be written: {error.strerror}") from None


def report_page(
    inspector: Inspector,
    inspection_set: InspectionSet,
    judged: Sequence[Judged],
    figures: Mapping[str, Any],
    command: str,
    findings: Findings | None = None,
    progress: bool = True,
) -> str:
    """
    The page as text; parameters as for `write_report`.

    Returns
    -------
    page : str
        HTML; all names in it are escaped.
    """
    bundle = inspector.bundle
    points = working_points(bundle, inspector.threshold)
    held = np.asarray(bundle.reference["scores"], np.float64)
    good = np.array([one.score for one in judged if not one.picture.is_anomaly])
    bad = np.array([one.score for one in judged if one.picture.is_anomaly])
    sections = [
        _heading(bundle, figures, auroc_interval(good, bad)),
        _findings(findings) if findings is not None else "",
        _threshold(judged, points),
        f'<div class="plots">{roc_plot(good, bad, points)}'
        f"{rates_plot(held, good, bad, points)}</div>",
        "<h2>How good and defective pictures score</h2>\n<p>Higher is more anomalous. What the "
        "columns share no threshold tells apart. The held-out good pictures should lie where the "
        "good ones of the test lie; if they lie lower, the test was taken under other conditions "
        "than the pictures learnt.</p>\n"
        f'<div class="plots">{histogram_plot(held, good, bad, points)}</div>',
        _defects(judged, points, figures),
        gallery(inspector, judged),
        groups_section(inspector, inspection_set, judged, progress),
        _filters(bundle.encoder),
        _time(judged),
        _manifest(bundle.manifest, command),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    title = f"{text(bundle.manifest['part'])} on {text(figures['data'])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _heading(bundle: Bundle, figures: Mapping[str, Any], interval: tuple[float, float]) -> str:
    """The figures of merit beside what trivial scores reach."""
    trivial, images = figures["trivial"], figures["images"]
    n_good, n_bad = images["test_good"]["images"], images["test_defective"]["images"]
    alone = {k: v for k, v in trivial.items() if not k.startswith("mean_picture_")}
    best = max(alone, key=alone.get)
    auroc, low, high = figures["image_auroc"], *interval
    beside = f"{alone[best]:.4f} ({_plain(best)})"
    rows = [("image AUROC", f"{auroc:.4f}", f"{low:.4f} to {high:.4f}", beside)]
    for name, key in (("pixel AUROC", "pixel_auroc"), ("AU-PRO", "au_pro")):
        value, of_mean = figures[key], trivial[f"mean_picture_{key}"]
        missing = "no masks" if of_mean is None else "no heatmap"
        shown = missing if value is None else f"{value:.4f}"
        beside = "–" if of_mean is None else f"{of_mean:.4f} (|picture − mean picture|)"
        rows.append((name, shown, "–", beside))
    head = ("figure", "this bundle", "95 % interval", "best trivial score")
    others = ", ".join(f"{_plain(name)} {value:.4f}" for name, value in alone.items())
    part, made = bundle.manifest["part"], bundle.manifest["made"]["at"][:10]
    return "\n".join(
        [
            f"<h1>What <bdi>{text(part)}</bdi> does on <bdi>{text(figures['data'])}</bdi></h1>",
            f'<p class="soft">Bundle <code>{text(bundle.path.name)}</code>, '
            f"{text(bundle.sha256[:12])}, made {text(made)}; test split of "
            f"{count(n_good, 'good picture')} and {count(n_bad, 'defective one')}.</p>",
            table("figures", head, ([text(cell) for cell in row] for row in rows)),
            mark(*shows_anything(auroc, interval, _plain(best), alone[best], (n_good, n_bad))),
            '<p class="soft">AUROC is how often a defective picture scores above a good one: 0.5 '
            "is guessing, 1 is always. Its interval comes from resampling the pictures, and near 0 "
            "or 1, where resampling shows too little, from their number (Hanley and McNeil). "
            f"Trivial scores, each one number a picture: {text(others)}.</p>",
        ]
    )


def _plain(name: str) -> str:
    return name.replace("_", " ")


def shows_anything(
    auroc: float,
    interval: tuple[float, float],
    best: str,
    trivial: float,
    pictures: tuple[int, int],
) -> tuple[str, str]:
    """
    Whether a bundle does what a trivial score does not.

    Parameters
    ----------
    auroc : float
    interval : (float, float)
        Of it.
    best : str
        Name of the best trivial score.
    trivial : float
        Its AUROC.
    pictures : (int, int)
        So many good ones and so many defective ones.

    Returns
    -------
    tone, sentence : str
        For a mark; without a tone, and without a verdict, below `leak_probe.LEAST_PICTURES` of
        either kind.
    """
    if min(pictures) < LEAST_PICTURES:
        return "", (
            f"Too few pictures for a verdict on the bundle: {pictures[0]} good and {pictures[1]} "
            f"defective, wanted at least {LEAST_PICTURES} of each."
        )
    if trivial < interval[0]:
        return "fine", (
            f"The bundle shows something: {best}, the best of the trivial scores, reaches "
            f"{trivial:.4f}, which lies below the whole interval."
        )
    if trivial < auroc:
        return "amber", (
            f"Not shown to be better than {best} alone, a trivial score: its {trivial:.4f} lies "
            "inside the interval. More test pictures would tell."
        )
    return "red", (
        f"The bundle shows nothing: {best} alone, a trivial score, orders the pictures at least as "
        f"well ({trivial:.4f})."
    )


def _findings(findings: Findings) -> str:
    """What is wrong with the pictures themselves."""
    marks = "\n".join(
        mark({"red": "red", "amber": "amber"}.get(severity, ""), sentence)
        for severity, sentence in findings.sentences
    )
    return f"<h2>Can the pictures be trusted?</h2>\n<p>{text(findings.verdict)}</p>\n{marks}"


def _threshold(judged: Sequence[Judged], points: Sequence[WorkingPoint]) -> str:
    """The working points, what is to be expected of them and what they did."""
    good = [one for one in judged if not one.picture.is_anomaly]
    defective = [one for one in judged if one.picture.is_anomaly]
    rows = []
    for point in points:
        above, missed = called(defective, point.threshold)
        rows.append(
            [
                f"<b>{text(NAMES[point.name])}</b>",
                f"{point.threshold:.4g}",
                _percent(point.wanted_rate),
                _with_interval(*point.expected),
                _share(called(good, point.threshold)[0]),
                _share(above),
                _share(missed),
            ]
        )
    head = (
        "threshold",
        "at",
        "wanted",
        "held-out good above",
        "test good above",
        "defects above",
        "defects OK",
    )
    at = {point.name: point for point in points}
    methods = "".join(
        f"<li><b>{text(NAMES[name])}</b>, for {_percent(at[name].wanted_rate)} of good parts: "
        f"{text(at[name].method)}.</li>"
        for name in ("low", "high", "own")
    )
    low, own, high = (at[name].threshold for name in ("low", "own", "high"))
    order = ""
    if low == own == high:
        order = (
            "<p>All three stand at one place: the held-out good pictures are too few, or too much "
            "alike, to set them apart.</p>\n"
        )
    elif not low <= own <= high:
        order = (
            "<p>The three do not stand in the usual order, low, own, high: the bundle's own was "
            "set in another way than theirs.</p>\n"
        )
    unjudged = [sum(one.verdict not in JUDGED for one in rows) for rows in (good, defective)]
    aside = (
        f"<p>{unjudged[0]} of the {len(good)} good and {unjudged[1]} of the {len(defective)} "
        "defective test pictures the device does not judge (EMPTY or UNKNOWN): in the table they "
        "are neither above nor OK, though each has a score in the curves.</p>\n"
        if any(unjudged)
        else ""
    )
    return (
        "<h2>Where the threshold may stand</h2>\n"
        "<p>Above the <b>low</b> threshold a part is different from usual: have a person look at "
        "it; about one good part in twenty comes along. Above the <b>high</b> one it is clearly no "
        "good part: sort it out without asking.</p>\n"
        + table("working points", head, rows)
        + "".join(f"\n{mark(*found)}" for found in kept_promises(good, points))
        + f"\n{aside}<ul>{methods}</ul>\n{order}"
        '<p class="soft">All three are set by scores of held-out good pictures alone, near-'
        "duplicates counted once; no test picture has a say. The high one stands where of a "
        "hundred sets of this size, of good parts alone, one would have a picture beyond it, if "
        "the tail of the held-out scores, without the pictures least like the rest, goes on as it "
        "begins: so few pictures cannot prove a rate so low. Wanted is the share of good parts "
        "above it. Below each share: its exact 95 % interval (Clopper and Pearson).</p>"
    )


def kept_promises(good: Sequence[Judged], points: Sequence[WorkingPoint]) -> list[tuple[str, str]]:
    """
    Whether as many good test pictures score above the thresholds as was wanted.

    Parameters
    ----------
    good : sequence of Judged
        Of good parts. What the device does not judge does not count.
    points : sequence of WorkingPoint

    Returns
    -------
    list of (tone, sentence)
        For marks: 'red' where the exact 95 % interval lies above what was wanted, 'amber' where it
        lies below; none where it holds it.
    """
    sure = [one for one in good if one.verdict in JUDGED]
    beyond: dict[str, list[str]] = {"red": [], "amber": []}
    for point in points:
        above, _ = called(sure, point.threshold)
        low, high = above.interval
        if low <= point.wanted_rate <= high:
            continue
        beyond["red" if point.wanted_rate < low else "amber"].append(
            f"{NAMES[point.name]}: {above.count} of {above.of} above it, {low:.1%} to {high:.1%}, "
            f"wanted {_percent(point.wanted_rate)}"
        )
    said = {
        "red": "More good test pictures score above a threshold than was wanted",
        "amber": "Fewer good test pictures score above a threshold than was wanted",
    }
    why = {
        "red": "The good parts of the test are not like those learnt, or of those learnt too few "
        "were held out to set it. Expect good parts to be rejected as often as here.",
        "amber": "It stands higher than it need: a lower one would find more.",
    }
    return [
        (tone, f"{said[tone]} ({'; '.join(found)}). {why[tone]}")
        for tone, found in beyond.items()
        if found
    ]


def _percent(rate: float) -> str:
    """A rate with as many digits as it needs."""
    return f"{100 * rate:.2g}%"


def _share(counted: Count) -> str:
    return _with_interval(counted.share, *counted.interval)


def _with_interval(share: float, low: float, high: float) -> str:
    return f'{share:.1%}<span class="soft">{low:.1%} to {high:.1%}</span>'


def _defects(
    judged: Sequence[Judged], points: Sequence[WorkingPoint], figures: Mapping[str, Any]
) -> str:
    """One line a kind of defect, with the picture of it that scores lowest."""
    rows = []
    for defect, row in figures["per_defect"].items():
        these = [one for one in judged if printable(one.picture.defect) == defect]
        hardest = min(these, key=lambda one: one.score)
        name, view = hardest.picture.path.name, ""
        if len(rows) < MOST_EXAMPLES:
            view = image(read_picture(hardest.picture.path), THUMB_SIDE, f"{defect}: {name}")
        missed = [called(these, point.threshold)[1] for point in points]
        unjudged = sum(one.verdict not in JUDGED for one in these)
        rows.append(
            [
                f"<bdi>{text(defect)}</bdi>",
                str(len(these)),
                f"{row['image_auroc']:.4f}",
                *(f"{part.count} ({part.share:.0%})" for part in missed),
                str(unjudged or "–"),
                f"{view}<bdi>{text(name)}</bdi>, {hardest.score:.4g}",
            ]
        )
    of_points = (f"OK, {NAMES[point.name]}" for point in points)
    head = ("defect", "pictures", "AUROC", *of_points, "not judged", "hardest, its score")
    return (
        "<h2>Which defects it finds</h2>\n<p>OK is what slips through at each of the three "
        "thresholds. Not judged is EMPTY or UNKNOWN: no part found, or none that can be "
        "judged.</p>\n" + table("defects", head, rows)
    )


def _filters(encoder: bytes) -> str:
    """The encoder's first-layer filters, and whether they are smooth."""
    heading = "<h2>What the encoder's first layer looks for</h2>"
    filters = first_layer(encoder)
    if filters is None:
        return (
            f"{heading}\n<p>This encoder has no first convolution over colours that can be read: "
            "no filters to show.</p>"
        )
    share, noise = high_frequency_share(filters), noise_share(filters)
    if share < SMOOTH * noise:
        tone, said = "fine", "The filters are smooth, edges and colours: the encoder has learnt."
    elif share < NOISY * noise:
        tone, said = "amber", "The filters are half smooth, half noise: it has not learnt much."
    else:
        tone, said = "red", (
            "The filters look like noise: the encoder has not learnt to see, and what it tells "
            "apart may be chance or the file format."
        )  # fmt: skip
    said += (
        f" {share:.0%} of their energy lies in high frequencies; white noise has {noise:.0%}, "
        "encoders trained on ImageNet 10 to 14 %."
    )
    dead = int(dead_filters(filters).sum())
    unused = f" {dead} of them are as good as zero and answer to nothing." if dead else ""
    grid = filter_grid(filters)
    size = f"{filters.shape[2]} x {filters.shape[1]} pixels"
    return (
        f"{heading}\n<p>{len(filters)} filters of {size} over red, green and blue, each stretched "
        f"by itself; grey is zero.{unused}</p>\n"
        f"<figure>{image(grid, max(grid.shape), 'first-layer filters', lossless=True)}</figure>\n"
        + mark(tone, said)
    )


def _time(judged: Sequence[Judged]) -> str:
    """How long each stage took."""
    heading = "<h2>How long it takes</h2>"
    loops = np.array([one.loop_ms for one in judged if one.loop_ms is not None])
    if not len(loops):
        return f"{heading}\n<p>No picture went all the way to a verdict.</p>"
    of_stages = [
        (stage, [one.latency_ms[stage] for one in judged if stage in one.latency_ms])
        for stage in LOOP_STAGES
    ]
    rows = [
        [name, *(f"{np.percentile(times, at):.2f}" for at in (50, 95))]
        for name, times in (*of_stages, ("<b>frame to decision</b>", loops))
        if len(times)
    ]
    return (
        f"{heading}\n<p>On the machine that made this page, one picture at a time, without reading "
        "the file and without the heatmap, which only an NG part gets.</p>\n"
        f'<div class="plots">{table("times", ("stage", "median, ms", "95 %, ms"), rows)}'
        f"{latency_plot(loops)}</div>"
    )


def _manifest(manifest: Mapping[str, Any], command: str) -> str:
    content = json.dumps(manifest, indent=2, ensure_ascii=False)
    return (
        "<h2>The bundle, and this page again</h2>\n"
        f'<pre tabindex="0">{text(command)}</pre>\n'
        "<details><summary>manifest.json</summary>"
        f'<pre tabindex="0">{text(content)}</pre></details>'
    )
