"""
Plots of the evaluation's page, drawn by matplotlib as SVG that stands inside the page.

Colours are the page's own, by name, so that a plot is legible on a light and a dark page.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.learn_report import axis_ticks
from tools.report_measures import WorkingPoint, dead_filters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that matplotlib writes and no plot would use, and the page's that take their place.
INK, SOFT, LINE, GOOD, HELD, BAD, ODD = (f"#0f1e{number:02x}" for number in range(7))
CSS = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    GOOD: "--dot",
    HELD: "--held",
    BAD: "--limit",
    ODD: "--odd",
}
SERIES = (HELD, GOOD, BAD, ODD, SOFT)
# Beside the colours, for who cannot tell them apart.
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
# Inches; at 9 points the letters are legible where a telephone shows the plot at two thirds.
SIZE = (5.0, 3.4)
STYLES = {"low": ":", "own": "-", "high": "--"}
NAMES = {"low": "low", "own": "bundle's own", "high": "high"}
BINS = 32
# More dots than this go into the page as one picture: each takes 100 bytes as SVG.
MOST_DOTS = 1500
# Where the median would lie in the first fifth of a linear axis, a logarithmic one shows more.
LOG_FROM = 5.0
# Side of a filter's weight, and the gap between filters, in pixels of the grid.
WEIGHT_SIDE, FILTER_GAP = 16, 8
FILTERS_A_ROW = 8


def _drawn(plot: Callable[..., str]) -> Callable[..., str]:
    """A plot drawn with letters that are text, and a name in it with nothing but its letters."""

    @functools.wraps(plot)
    def draw(*args: Any) -> str:
        import matplotlib

        settings = {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9,
        }
        with matplotlib.rc_context(settings):
            return plot(*args)

    return draw


@_drawn
def roc_plot(good: np.ndarray, bad: np.ndarray, points: Sequence[WorkingPoint]) -> str:
    """
    Receiver operating characteristic of the test split, with the working points on it.

    Parameters
    ----------
    good, bad : ndarray of float, at least one each
        Finite scores, higher is more anomalous.
    points : sequence of WorkingPoint

    Returns
    -------
    svg : str
    """
    from sklearn.metrics import roc_curve

    figure, axes = _blank("good parts above the threshold", "defects above the threshold")
    scores = np.concatenate([good, bad])
    false, true, _ = roc_curve(np.repeat([0, 1], [len(good), len(bad)]), scores)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    axes.plot(false, true, color=GOOD, linewidth=2)
    for point, marker in zip(points, ("^", "o", "s"), strict=False):
        at = (float((good > point.threshold).mean()), float((bad > point.threshold).mean()))
        axes.plot(
            *at, marker, color=BAD, markersize=8, fillstyle="none", markeredgewidth=1.5,
            label=f"{NAMES[point.name]}: {point.threshold:.4g}", clip_on=False, zorder=5,
        )  # fmt: skip
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    _legend(axes, "lower right")
    said = f"ROC curve of {len(good)} good and {len(bad)} defective test pictures"
    return _inline(figure, "roc", said)


@_drawn
def roc_curves_plot(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], name: str) -> str:
    """
    ROC curves of several scores on the same pictures.

    Parameters
    ----------
    curves : sequence of (str, ndarray of float, ndarray of bool)
        Name, scores and which are of defects; at most as many as `SERIES`.
    name : str
        Of the plot, unique in the page.

    Returns
    -------
    svg : str
    """
    from sklearn.metrics import roc_curve

    figure, axes = _blank("good parts above the threshold", "defects above the threshold")
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for (label, scores, is_anomaly), colour, style in zip(curves, SERIES, LINES, strict=False):
        false, true, _ = roc_curve(is_anomaly, scores)
        axes.plot(false, true, linestyle=style, color=colour, linewidth=1.8, label=label)
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    _legend(axes, "lower right")
    identifier = re.sub(r"[^A-Za-z0-9-]", "-", name)
    return _inline(figure, identifier, f"ROC curves of {len(curves)} methods")


@_drawn
def rates_plot(
    held: np.ndarray, good: np.ndarray, bad: np.ndarray, points: Sequence[WorkingPoint]
) -> str:
    """
    What a threshold costs at each place: good parts above it, defects not above it.

    Parameters
    ----------
    held, good, bad : ndarray of float
        Scores of the held-out good, the test's good and defective pictures.
    points : sequence of WorkingPoint

    Returns
    -------
    svg : str
    """
    figure, axes = _blank("threshold", "share of pictures")
    edge = _score_axis(axes, held, good, bad, [point.threshold for point in points])
    for scores, colour, name, style, turned in (
        (held, HELD, "held-out good above", "--", False),
        (good, GOOD, "test good above", "-", False),
        (bad, BAD, "defects missed", "-", True),
    ):
        if not len(scores):
            continue
        places = np.concatenate([[edge[0]], np.sort(scores), [edge[1]]])
        above = np.concatenate([np.arange(len(scores), -1, -1) / len(scores), [0.0]])
        share = 1 - above if turned else above
        axes.step(places, share, where="post", color=colour, linestyle=style, label=name)
    _mark(axes, points, named=False)
    _percent(axes.yaxis)
    axes.set_ylim(0, 1.01)
    _legend(axes, "best")
    return _inline(figure, "rates", "Good parts above and defects missed at each threshold")


@_drawn
def histogram_plot(
    held: np.ndarray, good: np.ndarray, bad: np.ndarray, points: Sequence[WorkingPoint]
) -> str:
    """
    Histograms of the scores; each group's columns sum to one. Parameters as for `rates_plot`.

    Returns
    -------
    svg : str
    """
    figure, axes = _blank("score", "share of the group")
    low, high = _score_axis(axes, held, good, bad, [point.threshold for point in points])
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    edges = spaced(low, high, BINS + 1)
    for scores, name, look in (
        (bad, "test, defective", {"color": BAD, "alpha": 0.5}),
        (good, "test, good", {"color": GOOD, "alpha": 0.5}),
        (held, "train good, held out", {"edgecolor": HELD, "histtype": "step", "linewidth": 1.6}),
    ):
        if len(scores):
            weights = np.full(len(scores), 1 / len(scores))
            axes.hist(scores, edges, weights=weights, label=f"{name} ({len(scores)})", **look)
    _mark(axes, points, named=True)
    _percent(axes.yaxis)
    _legend(axes, "best")
    return _inline(figure, "scores", "Histograms of the scores of good and defective pictures")


@_drawn
def scatter_plot(
    name: str,
    axes_xy: np.ndarray,
    groups: Sequence[tuple[str, np.ndarray]],
    explained: tuple[float, float],
) -> str:
    """
    Embeddings in two dimensions.

    Parameters
    ----------
    name : str
        Of the panel, a word.
    axes_xy : ndarray of float, shape (n, 2)
    groups : sequence of (str, ndarray of bool, shape (n,))
        Each with a colour of its own as far as there are colours; drawn in this order.
    explained : (float, float)
        Share of the variance along each axis.

    Returns
    -------
    svg : str
    """
    labels = [f"axis {row}, {share:.0%} of the variance" for row, share in enumerate(explained, 1)]
    figure, axes = _blank(*labels, size=(5.0, 4.0))
    for row, (label, inside) in enumerate(groups):
        axes.scatter(
            *axes_xy[inside].T,
            s=16,
            marker="o^xsD"[row % len(SERIES)],
            c=SERIES[row % len(SERIES)],
            alpha=0.65,
            linewidths=0.9,
            label=f"{label} ({int(inside.sum())})",
            rasterized=len(axes_xy) > MOST_DOTS,
        )
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.margins(0.05)
    figure.legend(
        loc="outside upper center", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK,
        handletextpad=0.3, columnspacing=1.0,
    )  # fmt: skip
    return _inline(figure, name, f"Embeddings of {len(axes_xy)} pictures in two dimensions")


@_drawn
def latency_plot(loop_ms: np.ndarray) -> str:
    """
    Histogram of the times from frame to decision.

    Parameters
    ----------
    loop_ms : ndarray of float, at least one
        Milliseconds. What is beyond twice their 99th percentile is drawn at the edge: one hiccup of
        the machine would flatten all the rest.

    Returns
    -------
    svg : str
    """
    most = 2 * float(np.percentile(loop_ms, 99))
    figure, axes = _blank("frame to decision, milliseconds", "pictures")
    axes.hist(np.minimum(loop_ms, most), BINS, color=GOOD, alpha=0.7)
    for share, style in ((50, "-"), (95, "--")):
        at = float(np.percentile(loop_ms, share))
        axes.axvline(at, color=BAD, linestyle=style, linewidth=1.3, label=f"{share} %: {at:.2f} ms")
    axes.yaxis.get_major_locator().set_params(integer=True)
    _legend(axes, "best")
    return _inline(figure, "latency", f"Times from frame to decision of {len(loop_ms)} pictures")


def filter_grid(filters: np.ndarray) -> np.ndarray:
    """
    First-layer filters as small colour pictures side by side.

    Grey is zero; each filter is stretched by its own largest weight, but those that are as good as
    zero stay grey.

    Parameters
    ----------
    filters : ndarray of float32, shape (k, height, width, 3)
        Over RGB.

    Returns
    -------
    grid : ndarray of uint8, shape (rows, columns, 4)
        BGR and opacity; the gaps show the page.
    """
    count, height, width = filters.shape[:3]
    across = min(count, FILTERS_A_ROW)
    down = -(-count // across)
    tall, wide = height * WEIGHT_SIDE + FILTER_GAP, width * WEIGHT_SIDE + FILTER_GAP
    grid = np.zeros((down * tall - FILTER_GAP, across * wide - FILTER_GAP, 4), np.uint8)
    dead = dead_filters(filters)
    for row, weights in enumerate(filters):
        largest = 1.0 if dead[row] else float(np.abs(weights).max())
        pixels = np.clip(weights[:, :, ::-1] / largest * 127 + 128, 0, 255).astype(np.uint8)
        square = np.ones((WEIGHT_SIDE, WEIGHT_SIDE, 1), np.uint8)
        y, x = row // across * tall, row % across * wide
        place = grid[y : y + tall - FILTER_GAP, x : x + wide - FILTER_GAP]
        place[..., :3] = np.kron(pixels, square)
        place[..., 3] = 255
    return grid


def _blank(across: str, up: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.tick_params(colors=SOFT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    return figure, axes


def _score_axis(axes: Axes, *scores: Any) -> tuple[float, float]:
    """Sets the axis of the scores, logarithmic where that shows more; returns its ends."""
    values = np.concatenate([np.asarray(group, np.float64) for group in scores])
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and high > LOG_FROM * float(np.median(values))
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlabel(f"{axes.get_xlabel()} (logarithmic)", color=INK)
        ends = low / 1.05, high * 1.05
    else:
        # Any width where all are the same.
        air = 0.03 * (high - low) or max(abs(high), 1.0) / 2
        ends = low - air, high + air
    axes.set_xlim(*ends)
    axes.set_xticks(axis_ticks(low, high, logarithmic))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    return ends


def _mark(axes: Axes, points: Sequence[WorkingPoint], named: bool) -> None:
    for point in points:
        label = f"{NAMES[point.name]}: {point.threshold:.4g}" if named else None
        style = STYLES[point.name]
        axes.axvline(point.threshold, color=INK, linestyle=style, linewidth=1.2, label=label)


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def _legend(axes: Axes, where: str) -> None:
    axes.legend(loc=where, frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.6)


def _inline(figure: Figure, name: str, said: str) -> str:
    """A figure as SVG for inside a page: nothing is fetched, no name or rule leaves it."""
    import matplotlib

    content = io.StringIO()
    # The same plot gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are drawn by the browser's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format="svg", transparent=True)
    svg = content.getvalue()
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    # Ids are unique in a plot only.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)
    for colour, variable in CSS.items():
        body = body.replace(colour, f"var({variable})")
    said = html.escape(said)
    return (
        f'<svg class="plot" viewBox="{box}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{said}</title>{body}'
    )
