"""
Write the page about what was learnt: is there a picture among the good ones that should not be?

One HTML file with its pictures in it, for a person with a browser and no network. Nothing in it
runs and nothing is fetched: its own security policy forbids both.
"""

from __future__ import annotations

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.enrol import Learning, promise, threshold_of
from edge_app.errors import InputError
from edge_app.learnt_pictures import LearntPicture
from edge_app.patches import read_components

# Long sides of the pictures, pixels, and how many of each there are at most. PNG of pure noise, the
# worst there is, comes to 4 bytes a pixel in base64: 1.6 MB in all.
ODD_SIDE, MOST_ODD = 128, 12
MOSAIC_SIDE, MOST_MOSAIC = 76, 24
SAMPLE_SIDE, MEAN_SIDE = 96, 160
# Of the plot, pixels; across, everything is in percent of the page's width.
PLOT_HEIGHT, PLOT_TOP, PLOT_AXIS = 210, 34, 164
DOT_RADIUS = 4
# Dots closer than this, percent of the width, are stacked: a dot's width on a page of 600 pixels.
DOT_BIN = 1.4
# Axis labels that fit a telephone's width.
MOST_TICKS = 6
# The logarithm is taken where it shows the middle half of the scores so much wider.
LOG_GAIN = 2.0

REMOVE = '<pre tabindex="0">edge-app enroll --bundle BUNDLE --out NEW --remove ID</pre>'
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #fff; --card: #f4f6f8;
  --line: #d0d7de; --dot: #0a66c2; --odd: #b35900; --limit: #b3202c; --good: #e3f2e6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3adb8; --page: #14171b; --card: #1f242a; --line: #3a424b;
    --dot: #6cb2ff; --odd: #ffb057; --limit: #ff7b7b; --good: #1c3a25; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, ul { margin: .4rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
.soft, figcaption span { color: var(--soft); font-size: .875rem; }
code { font: .8125rem/1.4 ui-monospace, monospace; background: var(--card); padding: .1em .3em;
  border-radius: 3px; }
p:not(.soft) code { white-space: nowrap; }
pre { font: .8125rem/1.4 ui-monospace, monospace; background: var(--card); padding: .5rem .6rem;
  margin: .5rem 0; border-radius: 6px; overflow-x: auto; max-width: 46rem; }
.cards { display: grid; gap: .75rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: 6px; }
figure code { display: inline-block; margin-top: .3rem; background: var(--page); }
figure img { display: block; margin: 0 0 .4rem; max-width: 100%; height: auto; }
figcaption { font-size: .875rem; line-height: 1.4; }
figcaption b, figcaption span { display: block; }
.none { display: grid; place-items: center; height: 5rem; margin-bottom: .4rem; padding: .5rem;
  border: 1px dashed var(--line); color: var(--soft); font-size: .8125rem; text-align: center; }
.mosaic { display: flex; flex-wrap: wrap; gap: 4px; margin: .75rem 0; }
.mosaic img { display: block; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
td.name { white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
td.long { white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
tr.chosen { background: var(--good); font-weight: 600; }
svg { display: block; width: 100%; margin: .75rem 0; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); }
"""


def write_report(
    path: Path | str,
    manifest: Mapping[str, Any],
    learning: Learning,
    pictures: Sequence[LearntPicture],
    trials: Sequence[Mapping[str, Any]] | None = None,
    reason: str | None = None,
) -> None:
    """
    Write the page about what was learnt.

    Parameters
    ----------
    path : path
        Overwritten if it exists; its folders are made.
    manifest : mapping
        Of the bundle that was written, with its `files`.
    learning : Learning
    pictures : sequence of LearntPicture
        Of the pictures learnt or left out, those at hand; the others are shown by name only.
    trials : sequence of mapping, optional
        What ``fit`` tried: `name` (str), `drawn_auroc`, `low`, `high` (float 0 to 1 or None: AUROC
        on drawn defects and its 95 % interval), `bytes` (int), `chosen` (bool), `note` (str).
    reason : str, optional
        Why this alignment was taken.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    path = Path(path)
    page = report_page(manifest, learning, pictures, trials, reason)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name may hold bytes that are no text in any encoding.
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except FileExistsError:
        # So says mkdir of a file where the folder should be.
        raise InputError(f"{path}: cannot be written: {path.parent} is no folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def report_page(
    manifest: Mapping[str, Any],
    learning: Learning,
    pictures: Sequence[LearntPicture],
    trials: Sequence[Mapping[str, Any]] | None = None,
    reason: str | None = None,
) -> str:
    """
    The page as text; parameters as for `write_report`.

    Returns
    -------
    page : str
        HTML; all names in it are escaped.
    """
    at_hand = {picture.image_id: picture for picture in pictures}
    part = _text(manifest["part"])
    sections = [
        _heading(manifest, learning, reason),
        _odd_ones(learning, at_hand),
        _scores(learning, at_hand),
        _mosaic(learning, at_hand),
        _trials(trials) if trials else "",
        _details(manifest, learning),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{part}: what was learnt</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _heading(
    manifest: Mapping[str, Any],
    learning: Learning,
    reason: str | None,
) -> str:
    count = len(learning.pictures)
    alarms = sum(picture.kind == "false alarm" for picture in learning.pictures)
    learnt = f"{_count(count, 'good image')} learnt"
    if alarms:
        learnt += f", {alarms} of them once called NG by mistake"
    if learning.dropped:
        learnt += f"; {_count(len(learning.dropped), 'more image')} left out"
    recipe = manifest["alignment"]["recipe"]
    alignment = {
        "none": "none: the view is taken as it is",
        "centre": "centre: the part is moved to the middle",
        "pose": "pose: the part is moved to the middle and turned to one direction",
    }.get(recipe, recipe)
    if reason:
        # learn_align's reasons begin with the recipe, which stands here already.
        alignment += f" ({reason.removeprefix(f'{recipe}: ')})"
    sentences = [
        learnt,
        threshold_of(manifest["threshold"]).sentence(),
        *promise(learning),
        f"alignment {alignment}",
    ]
    items = "".join(f"<li>{_text(_sentence(sentence))}</li>" for sentence in sentences)
    made = manifest["made"]
    when = made["at"].replace("T", " ").replace("+00:00", " UTC")
    return (
        f"<h1>What was learnt of <bdi>{_text(manifest['part'])}</bdi></h1>\n"
        f'<p class="soft">{_text(when)}, by <code>{_text(made["command"])}</code></p>\n'
        f"<ul>{items}</ul>"
    )


def _odd_ones(learning: Learning, at_hand: Mapping[str, LearntPicture]) -> str:
    """The pictures least like the rest, those left out, and what to do about them."""
    limit = learning.sections["threshold"]["value"]
    blocks = ["<h2>Look at these pictures first</h2>"]
    # Of both lists together, a third at least for those left out if there are so many: a page of
    # all pictures would be too large to open.
    most = MOST_ODD - min(len(learning.dropped), MOST_ODD // 3)
    if learning.least_like:
        count = len(learning.least_like)
        blocks.append(
            f"<p>{_count(count, 'picture')} {'is' if count == 1 else 'are'} least like the rest. "
            "If the part is good and the picture is in order, leave it: it belongs to what good "
            "parts look like. If not, take it out, into a new bundle:</p>"
            f"{REMOVE}<p>To leave out all of them at once, learn anew with "
            "<code>--drop-outliers</code>.</p>"
        )
        shown = min(count, most)
        blocks.append(_cards(learning.least_like, at_hand, limit, shown, removable=True))
    else:
        ids, scores = _held_out(learning)
        highest = np.argsort(-scores, kind="stable")[:3]
        blocks.append(
            "<p>No picture stands out from the rest. These scored highest all the same; if one of "
            f"them shows a bad part, take it out, into a new bundle:</p>{REMOVE}"
        )
        rows = [(ids[row], float(scores[row])) for row in highest]
        blocks.append(_cards(rows, at_hand, limit, len(rows), removable=True))
        shown = len(rows)
    if learning.dropped:
        blocks.append(
            "<h3>Left out</h3><p>These were unlike the rest and were not learnt. The score is that "
            "from before they were left out. If they are good parts, learn anew without "
            "<code>--drop-outliers</code>.</p>"
        )
        blocks.append(_cards(learning.dropped, at_hand, limit, MOST_ODD - shown, removable=False))
    return "\n".join(blocks)


def _cards(
    rows: Sequence[tuple[str, float]],
    at_hand: Mapping[str, LearntPicture],
    limit: float,
    most: int,
    removable: bool,
) -> str:
    """The first so many as pictures, the others as a table."""
    cards = []
    for name, score in rows[:most]:
        lines = f"<span>{_text(_of_limit(score, limit))}</span>"
        # What is not kept cannot be taken out.
        if removable and name in at_hand:
            lines += f"<code>--remove {_text(shlex.quote(name))}</code>"
        cards.append(_figure(name, at_hand, ODD_SIDE, lines))
    text = f'<div class="cards">{"".join(cards)}</div>' if cards else ""
    if rows[most:]:
        lines = "".join(
            f'<tr><td class="long"><bdi>{_text(name)}</bdi></td>'
            f'<td class="long">{_text(_of_limit(score, limit))}</td></tr>'
            for name, score in rows[most:]
        )
        text += _table("further pictures", "<th>picture</th><th>held out</th>", lines)
    return text


def _figure(name: str, at_hand: Mapping[str, LearntPicture], side: int, lines: str) -> str:
    picture = at_hand.get(name)
    view = '<div class="none">picture not kept</div>'
    kind = ""
    if picture is not None:
        view = _image(picture.pixels_rgb, side, name)
        if picture.kind != "good":
            kind = f"<span>{_text(picture.kind)}</span>"
    return (
        f"<figure>{view}<figcaption><b><bdi>{_text(name)}</bdi></b>{kind}{lines}</figcaption>"
        "</figure>"
    )


def _of_limit(score: float, limit: float) -> str:
    """A score beside the threshold, in words."""
    if math.isnan(score):
        return "has no score: it cannot be judged"
    text = f"score {score:.4g}"
    if limit > 0 and math.isfinite(score):
        share = score / limit
        text += f", {share:.0%} of" if share < 10 else f", {share:.0f} times"
        text += " the threshold"
    return text + (": would be NG" if score > limit else "")


def _scores(learning: Learning, at_hand: Mapping[str, LearntPicture]) -> str:
    """The held-out scores as a plot, with an ordinary, a middling and the strangest picture."""
    ids, scores = _held_out(learning)
    limit = float(learning.sections["threshold"]["value"])
    finite = np.isfinite(scores)
    above = int((scores[finite] > limit).sum())
    sentence = (
        "Each dot is one good picture, scored by what the others taught; further right is less "
        f"like them. {above} of {len(scores)} lie above the threshold."
    )
    if not finite.all():
        sentence += f" {int((~finite).sum())} have no finite score and are not drawn."
    order = np.flatnonzero(finite)[np.argsort(scores[finite], kind="stable")]
    if not len(order):
        return f"<h2>How the good pictures score</h2><p>{sentence}</p>"
    named = {"most ordinary": order[0], "median": order[len(order) // 2], "strangest": order[-1]}
    figures = "".join(
        _figure(ids[row], at_hand, SAMPLE_SIDE, f"<span>{what}, score {scores[row]:.4g}</span>")
        for what, row in named.items()
    )
    marked = {name for name, _ in learning.least_like}
    plot = strip_plot([ids[row] for row in order], scores[order], limit, marked)
    return (
        f"<h2>How the good pictures score</h2>\n<p>{sentence}</p>\n{plot}\n"
        f'<div class="cards">{figures}</div>'
    )


def strip_plot(ids: Sequence[str], scores: np.ndarray, limit: float, marked: set[str]) -> str:
    """
    Scores as dots on one axis, with the threshold.

    Parameters
    ----------
    ids : sequence of str
    scores : ndarray of float, shape (n,)
        Finite, ascending; higher is more anomalous.
    limit : float
    marked : set of str
        Ids drawn as rings.

    Returns
    -------
    svg : str
        Its logarithmic or linear axis, whichever shows the middle half of the scores wider.
    """
    values = np.asarray(scores, np.float64)
    low, high = min(float(values[0]), limit), max(float(values[-1]), limit)
    logarithmic = low > 0 and _middle(np.log(values), limit=math.log(limit)) > LOG_GAIN * _middle(
        values, limit
    )
    turn = np.log if logarithmic else np.asarray
    start, end = float(turn(low)), float(turn(high))
    # Six percent of air on each side, so that no dot is cut; any width where all are the same.
    air = 0.06 * (end - start) or max(abs(end), 1.0)

    def percent(value: float | np.ndarray) -> Any:
        return 100 * (turn(value) - start + air) / (end - start + 2 * air)

    across = percent(values)
    bins = np.round(across / DOT_BIN).astype(int)
    _, first, sizes = np.unique(bins, return_index=True, return_counts=True)
    rank = np.arange(len(values)) - np.repeat(first, sizes)
    middle = (PLOT_TOP + PLOT_AXIS) / 2
    room = PLOT_AXIS - PLOT_TOP - 4 * DOT_RADIUS
    step = min(2 * DOT_RADIUS + 1.0, room / max(int(sizes.max()) - 1, 1))
    # Where they must overlap, smaller ones show more.
    radius = min(DOT_RADIUS, max(2.0, step))
    # Up and down from the middle in turn.
    down = middle + step * ((rank + 1) // 2) * np.where(rank % 2, 1, -1)
    dots = []
    # The rings last, on top.
    order = sorted(range(len(values)), key=lambda row: ids[row] in marked)
    for name, value, x, y in ((ids[row], values[row], across[row], down[row]) for row in order):
        odd = name in marked
        look = 'fill="none" stroke="var(--odd)" stroke-width="2.5"' if odd else 'fill="var(--dot)"'
        dots.append(
            f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{radius:g}" {look} opacity=".8">'
            f"<title>{_text(name)}: {value:.4g}</title></circle>"
        )
    line = float(percent(limit))
    anchor, away = ("end", -6) if line > 50 else ("start", 6)
    ticks = ""
    for tick in axis_ticks(low, high, logarithmic):
        x = f"{percent(tick):.2f}%"
        ticks += (
            f'<line x1="{x}" x2="{x}" y1="{PLOT_AXIS}" y2="{PLOT_AXIS + 5}" stroke="var(--soft)"/>'
            f'<text x="{x}" y="{PLOT_AXIS + 20}" text-anchor="middle">{tick:.4g}</text>'
        )
    scale = "logarithmic" if logarithmic else "linear"
    ring = "; rings: least like the rest" if marked else ""
    title = f"Held-out scores of {len(values)} good pictures and the threshold {limit:.4g}"
    described = (
        f"From {values[0]:.4g} to {values[-1]:.4g}, median {np.median(values):.4g}; "
        f"{int((values > limit).sum())} above the threshold; {scale} axis"
    )
    return (
        f'<svg height="{PLOT_HEIGHT}" role="img" aria-labelledby="strip-title strip-described">'
        f'<title id="strip-title">{title}</title><desc id="strip-described">{described}</desc>'
        f'<rect x="{line:.2f}%" y="{PLOT_TOP - 14}" width="{100 - line:.2f}%" '
        f'height="{PLOT_AXIS - PLOT_TOP + 14}" fill="var(--limit)" opacity=".1"/>'
        f'<line x1="0" x2="100%" y1="{PLOT_AXIS}" y2="{PLOT_AXIS}" stroke="var(--soft)"/>{ticks}'
        f"{''.join(dots)}"
        f'<line x1="{line:.2f}%" x2="{line:.2f}%" y1="4" y2="{PLOT_AXIS}" stroke="var(--limit)" '
        f'stroke-width="2"/><text x="{line:.2f}%" dx="{away}" y="16" text-anchor="{anchor}">'
        f"threshold {limit:.4g}</text>"
        f'<text x="50%" y="{PLOT_AXIS + 40}" text-anchor="middle">held-out score, {scale}{ring}'
        "</text></svg>"
    )


def _middle(values: np.ndarray, limit: float) -> float:
    """The share of the axis that the middle half of the values takes."""
    whole = max(float(values.max()), limit) - min(float(values.min()), limit)
    low, high = np.percentile(values, (25, 75))
    return float(high - low) / whole if whole > 0 else 0.0


def axis_ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers from `low` to `high`, `MOST_TICKS` of them at most."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [digit * 10.0**decade for decade in decades for digit in digits]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if 3 <= len(ticks) <= MOST_TICKS:
                return ticks
        if len(ticks) > MOST_TICKS:
            return ticks[:: -(-len(ticks) // MOST_TICKS)]
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    # The last digit leaves at most MOST_TICKS; counting, not adding up, keeps rounding out.
    for digit in (1, 2, 2.5, 5, 10, 20):
        step = digit * power
        counts = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(counts) <= MOST_TICKS:
            break
    return [step * count for count in counts]


def _mosaic(learning: Learning, at_hand: Mapping[str, LearntPicture]) -> str:
    """Some of the pictures as they were compared, and the mean of all."""
    views = [at_hand[p.image_id] for p in learning.pictures if p.image_id in at_hand]
    heading = "<h2>Do the parts lie alike?</h2>"
    if not views:
        return f"{heading}<p>The pictures were not kept.</p>"
    rows = np.linspace(0, len(views) - 1, min(len(views), MOST_MOSAIC)).round().astype(int)
    crops = "".join(_image(views[row].pixels_rgb, MOSAIC_SIDE, views[row].image_id) for row in rows)
    total = np.zeros(views[0].pixels_rgb.shape, np.float64)
    for view in views:
        total += view.pixels_rgb
    mean = np.rint(total / len(views)).astype(np.uint8)
    which = "All pictures" if len(rows) == len(views) else f"{len(rows)} of {len(views)} pictures"
    return (
        f"{heading}\n<p>{which} as they are compared, after alignment. A mean picture with crisp "
        "edges says that the parts lie alike; a blurred or double one says that they do not, and "
        "small defects will be missed.</p>\n"
        f'<div class="mosaic">{crops}</div>\n<div class="cards"><figure>'
        f"{_image(mean, MEAN_SIDE, 'mean picture')}<figcaption><b>mean picture</b>"
        f"<span>of {_count(len(views), 'picture')}</span></figcaption></figure></div>"
    )


def _trials(trials: Sequence[Mapping[str, Any]]) -> str:
    """What fit tried, the winner marked."""
    lines = []
    for trial in trials:
        chosen = bool(trial["chosen"])
        interval = "–"
        if _known(trial["low"]) and _known(trial["high"]):
            interval = f"{trial['low']:.4f} to {trial['high']:.4f}"
        auroc = f"{trial['drawn_auroc']:.4f}" if _known(trial["drawn_auroc"]) else "–"
        lines.append(
            f"<tr{' class=chosen' if chosen else ''}>"
            f'<td class="name">{_text(trial["name"])}{" (chosen)" if chosen else ""}</td>'
            f"<td>{auroc}</td><td>{interval}</td>"
            f"<td>{_bytes(trial['bytes']) if trial['bytes'] else '–'}</td>"
            f'<td class="long">{_text(trial["note"] or "")}</td></tr>'
        )
    head = "<th>scorer</th><th>AUROC</th><th>95 % interval</th><th>reference</th><th>note</th>"
    return (
        "<h2>What was tried</h2>\n<p>Each scorer had to tell held-out good pictures from the same "
        "pictures with a defect drawn on them. AUROC is how often it put the defect higher: 0.5 is "
        f"guessing, 1 is always.</p>\n<p>{_text(won_by(trials))}</p>\n"
        + _table("what was tried", head, "".join(lines))
    )


def won_by(trials: Sequence[Mapping[str, Any]]) -> str:
    """
    By how much the chosen one won, one sentence.

    Parameters
    ----------
    trials : sequence of mapping
        As for `write_report`.
    """
    chosen = next((trial for trial in trials if trial["chosen"]), None)
    if chosen is None:
        return "None of them was chosen."
    others = [t for t in trials if t is not chosen and _known(t["drawn_auroc"])]
    if not others or not _known(chosen["drawn_auroc"]):
        return f"{chosen['name']} was chosen; there is no other figure to compare it with."
    best = max(others, key=lambda trial: trial["drawn_auroc"])
    lead = chosen["drawn_auroc"] - best["drawn_auroc"]
    # As the table prints it: a lead nobody can see there is none.
    if abs(lead) < 5e-5:
        said = f"{chosen['name']} was chosen, level with {best['name']}"
    elif lead > 0:
        said = f"{chosen['name']} won by {lead:.4f} AUROC over {best['name']}, the next"
    else:
        said = f"{chosen['name']} was chosen although {best['name']} had {-lead:.4f} AUROC more"
    ends = [chosen["low"], chosen["high"], best["low"], best["high"]]
    if not all(_known(end) for end in ends):
        return f"{said}."
    if chosen["low"] <= best["high"] and best["low"] <= chosen["high"]:
        return f"{said}; their intervals overlap, so the difference may be chance."
    return f"{said}; their intervals do not overlap."


def _details(manifest: Mapping[str, Any], learning: Learning) -> str:
    """What else the manifest says that a person may ask for."""
    given, encoder = manifest["input"], manifest["encoder"]
    scorer, threshold = manifest["scorer"], manifest["threshold"]
    files = manifest["files"]
    height, width = given["size"]
    region = given["region"]
    rows = [
        ("input", f"{width} x {height} pixels"),
        (
            "region of interest",
            "left {:g}, top {:g}, right {:g}, bottom {:g} of the frame".format(*region)
            if region
            else "the whole frame",
        ),
        ("encoder", f"{encoder['dtype']}, {_bytes(files['encoder.tflite']['bytes'])}"),
        ("scorer", scorer["kind"]),
    ]
    if scorer["kind"] == "patches":
        rows += [
            ("picture's score", f"{scorer['image_score']} of the map"),
            (
                "smoothing of the map",
                f"Gaussian, sigma {scorer['smoothing']:g} of a cell",
            ),
        ]
    else:
        scaling = scorer["feature_scaling"]
        rows.append(("neighbours", f"{scorer['k']}, feature scaling {scaling}"))
    rows += [
        ("threshold's method", threshold["method"]),
        ("reference", _bytes(files["reference.npz"]["bytes"])),
        ("decoder", manifest["decoder"]["kind"] if manifest["decoder"] else "none"),
        ("empty station", "known" if manifest["presence"] else "not learnt"),
        ("time in the encoder", f"{learning.encode_s:.2f} s"),
        ("bundle's hash", manifest.get("manifest_sha256", "")[:12]),
    ]
    lines = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="long">{_text(value)}</td></tr>'
        for name, value in rows
    )
    text = "<h2>Details</h2>\n" + _table("details", "", lines)
    if scorer["kind"] != "patches":
        return text
    layers = encoder.get("map_layers") or ()
    shapes = encoder.get("map_shapes") or [encoder["patch_shape"]]
    lines = "".join(
        f'<tr><td class="name">{_text(c.label(layers))}</td>'
        f"<td>{_text(' x '.join(map(str, shapes[c.map][:2])))}</td><td>{c.axes}</td></tr>"
        for c in read_components(scorer)
    )
    head = "<th>kind and layer</th><th>grid</th><th>axes</th>"
    return text + "<h3>Components of the scorer</h3>\n" + _table("components", head, lines)


def _held_out(learning: Learning) -> tuple[list[str], np.ndarray]:
    """Ids and held-out scores of the pictures learnt."""
    ids = [str(name) for name in learning.reference["image_ids"]]
    return ids, np.asarray(learning.reference["scores"], np.float64)


def _table(name: str, head: str, lines: str) -> str:
    """A table that scrolls by itself where the page is narrow; reached by keyboard too."""
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return (
        f'<div class="wide" role="region" aria-label="{name}" tabindex="0">'
        f"<table>{top}<tbody>{lines}</tbody></table></div>"
    )


def _image(pixels_rgb: np.ndarray, side: int, name: str) -> str:
    """A picture of `side` pixels at most, inside the page."""
    height, width = pixels_rgb.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    if scale < 1:
        pixels_rgb = cv2.resize(pixels_rgb, size, interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(pixels_rgb[:, :, ::-1])
    _, content = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    encoded = base64.b64encode(content).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{encoded}" width="{size[0]}" height="{size[1]}" '
        f'alt="{_text(name)}" title="{_text(name)}">'
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _sentence(text: str) -> str:
    """With a capital at its start and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
