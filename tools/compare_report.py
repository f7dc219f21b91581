"""What a comparison came to: the table on the screen, the same as CSV, and a page with pictures."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_app.heatmap import overlay
from edge_app.sources.folder import printable, read_picture
from tools.compare_run import PICTURES, SHOWN_SIDE, Outcome, shown_defects
from tools.inspection_set import read_inspection_set, read_mask
from tools.methods.registry import METHODS
from tools.report_gallery import outlined
from tools.report_html import STYLE, image, mark, table, text

# Our own default must come so close to the best, and cost least of those above this.
OURS, NEAR, WORTH = "ours", 0.005, 0.9
TABLE, PAGE = "table.csv", "report.html"
# A map is painted from the 99th percentile of good pictures on, fully at so many times that.
RED_OVER_LOW = 3.0


@dataclass(frozen=True)
class Line:
    """
    One way to a score over all its seeds.

    Attributes
    ----------
    data, alignment, method, score : str
    seeds : int
    auroc, low, high : float
        Mean, smallest and largest image AUROC over the seeds.
    maps : dict of str to (float, float, float, int)
        Mean pixel AUROC, AU-PRO and milliseconds of each kind of map, and on how many pictures.
    score_ms : float
    parameters, size_bytes : int
    fit_s : float
    """

    data: str
    alignment: str
    method: str
    score: str
    seeds: int
    auroc: float
    low: float
    high: float
    maps: dict[str, tuple[float, float, float, int]]
    score_ms: float
    parameters: int
    size_bytes: int
    fit_s: float

    @property
    def name(self) -> str:
        """Method and score, as the table names them."""
        return f"{self.method}, {self.score}" if self.score else self.method


def lines_of(outcomes: Sequence[Outcome]) -> list[Line]:
    """
    The table's lines: by set and alignment, the best first.

    Parameters
    ----------
    outcomes : sequence of Outcome
    """
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.data, outcome.alignment, outcome.method), []).append(outcome)
    lines = []
    for (data, alignment, method), runs in groups.items():
        # Not every seed draws every map: the articles' decoder is trained for one.
        drawn = {kind: [run.maps[kind] for run in runs if kind in run.maps] for kind in kinds(runs)}
        maps = {
            kind: (
                float(np.mean([figures.pixel_auroc for figures in of_seeds])),
                float(np.mean([figures.au_pro for figures in of_seeds])),
                float(np.mean([figures.ms for figures in of_seeds])),
                of_seeds[0].pictures,
            )
            for kind, of_seeds in drawn.items()
        }
        for number, score in enumerate(runs[0].image_auroc):
            aurocs = [run.image_auroc[score] for run in runs]
            lines.append(
                Line(
                    data,
                    alignment,
                    method,
                    score,
                    len(runs),
                    float(np.mean(aurocs)),
                    min(aurocs),
                    max(aurocs),
                    # A method's maps are one, however many scores are made of it.
                    {} if number else maps,
                    float(np.median([run.score_ms for run in runs])),
                    runs[0].parameters,
                    runs[0].size_bytes,
                    float(np.mean([run.fit_s for run in runs])),
                )
            )
    order = {key: number for number, key in enumerate(dict.fromkeys(_set_of(o) for o in outcomes))}
    return sorted(lines, key=lambda line: (order[line.data, line.alignment], -line.auroc))


def kinds(runs: Sequence[Outcome]) -> list[str]:
    """Kinds of map that any of some runs has drawn."""
    return list(dict.fromkeys(kind for run in runs for kind in run.maps))


def _set_of(outcome: Outcome) -> tuple[str, str]:
    return outcome.data, outcome.alignment


def verdict(lines: Sequence[Line]) -> str:
    """
    Whether our default earns its place on one set: a sentence.

    Parameters
    ----------
    lines : sequence of Line
        Of one set and alignment.
    """
    ours = [line for line in lines if line.method == OURS]
    if not ours:
        return "our default was not among what was compared"
    mine = max(ours, key=lambda line: line.auroc)
    best = max(lines, key=lambda line: line.auroc)
    if best.auroc - mine.auroc > NEAR:
        return (
            f"{best.name} beats our default by {best.auroc - mine.auroc:.4f} "
            f"({best.auroc:.4f} against {mine.auroc:.4f})"
        )
    place = "first" if best.method == OURS else f"within {NEAR} of the first ({best.name})"
    worthy = [line for line in lines if line.auroc > WORTH and line.method != OURS]
    cheaper = [line for line in worthy if line.score_ms < mine.score_ms]
    if mine.auroc <= WORTH:
        return f"our default is {place}, at {mine.auroc:.4f}: no method is above {WORTH}"
    if not cheaper:
        return f"our default is {place}, and the cheapest of those above {WORTH}"
    named = ", ".join(f"{line.name} {line.score_ms:.2f} ms" for line in cheaper[:3])
    return (
        f"our default is {place}; cheaper than its {mine.score_ms:.2f} ms and above {WORTH}: "
        f"{named}"
    )


def write_all(folder: Path, outcomes: Sequence[Outcome], typed: Sequence[str]) -> None:
    """Print the tables; write the CSV and the page."""
    lines = lines_of(outcomes)
    for data, alignment in dict.fromkeys((line.data, line.alignment) for line in lines):
        these = [line for line in lines if (line.data, line.alignment) == (data, alignment)]
        print(f"\n{data}, alignment {alignment}")
        _print(these)
        print(verdict(these))
    _write_csv(folder / TABLE, lines)
    page = report_page(folder, outcomes, lines, shlex.join(["python", "-m", "tools", *typed]))
    temporary = folder / f".{PAGE}"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, folder / PAGE)
    print(f"\ntable: {printable(folder / TABLE)}\npage: {printable(folder / PAGE)}")


HEAD = (
    "method",
    "image AUROC",
    "over seeds",
    "map",
    "pixel AUROC",
    "AU-PRO",
    "ms",
    "map ms",
    "parameters",
    "MB",
    "fit s",
)


def _cells(line: Line) -> Iterable[tuple[str, ...]]:
    """A line as text; a further one for each further map."""
    spread = f"{line.low:.4f} to {line.high:.4f}" if line.seeds > 1 else "1 seed"
    costs = (
        f"{line.score_ms:.2f}",
        f"{line.parameters:,}",
        f"{line.size_bytes / 1e6:.2f}",
        f"{line.fit_s:.0f}",
    )
    first = (line.name, f"{line.auroc:.4f}", spread)
    maps = [
        (kind, f"{pixel:.4f}", f"{pro:.4f}", f"{ms:.1f}")
        for kind, (pixel, pro, ms, _) in line.maps.items()
    ] or [("", "", "", "")]
    for number, (kind, pixel, pro, ms) in enumerate(maps):
        shown = first if not number else ("", "", "")
        cost = costs if not number else ("", "", "", "")
        yield (*shown, kind, pixel, pro, cost[0], ms, *cost[1:])


def _print(lines: Sequence[Line]) -> None:
    rows = [HEAD, *(cells for line in lines for cells in _cells(line))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        left = [row[0].ljust(widths[0])]
        rest = [
            cell.ljust(width) if column in (2, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if column
        ]
        print("  ".join([*left, *rest]).rstrip())


def _write_csv(path: Path, lines: Sequence[Line]) -> None:
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["data", "alignment", "method", "score", "seeds", "image_auroc", "lowest", "highest"]
            + ["map", "pixel_auroc", "au_pro", "map_pictures", "score_ms", "map_ms"]
            + ["parameters", "bytes", "fit_s", "paper"]
        )
        for line in lines:
            start = [line.data, line.alignment, line.method, line.score, line.seeds]
            start += [line.auroc, line.low, line.high]
            maps = line.maps or {"": ("", "", "", "")}
            for kind, (pixel, pro, ms, pictures) in maps.items():
                writer.writerow(
                    [*start, kind, pixel, pro, pictures, line.score_ms, ms]
                    + [line.parameters, line.size_bytes, round(line.fit_s, 1)]
                    + [METHODS[line.method].paper]
                )
    os.replace(temporary, path)


def report_page(
    folder: Path, outcomes: Sequence[Outcome], lines: Sequence[Line], command: str
) -> str:
    """
    The page: for each set the table, the curves, and heatmaps side by side; nothing is fetched.

    Parameters
    ----------
    folder : Path
        Where the runs lie.
    outcomes : sequence of Outcome
    lines : sequence of Line
    command : str
        That makes the page again.
    """
    sections = ["<h1>Every method on the same pictures</h1>", _reading()]
    for data, alignment in dict.fromkeys((line.data, line.alignment) for line in lines):
        these = [line for line in lines if (line.data, line.alignment) == (data, alignment)]
        runs = [o for o in outcomes if (o.data, o.alignment) == (data, alignment)]
        said = verdict(these)
        tone = "amber" if "beats our default" in said else "fine"
        sections += [
            f"<h2>{text(data)}, {_aligned(alignment)}</h2>",
            mark(tone, said[0].upper() + said[1:] + "."),
            table(
                f"methods on {text(data)}",
                HEAD,
                [[text(cell) for cell in cells] for line in these for cells in _cells(line)],
            ),
            _curves(these, runs),
            _heatmaps(folder, runs),
        ]
    sections += [
        _articles({line.method for line in lines}),
        f'<p class="soft"><code>{text(command)}</code></p>',
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Methods compared</title>\n<style>{STYLE}{SIDE_BY_SIDE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


SIDE_BY_SIDE = """
.maps td { padding: 2px; text-align: center; } .maps td:first-child { text-align: left; }
.maps img { margin: 0; min-width: 4rem; height: auto; }
.soft code { overflow-wrap: anywhere; }
@media screen { body { max-width: 76rem; } }
"""


def _reading() -> str:
    return (
        "<p>Image AUROC is the mean over the seeds; a threshold plays no part in it. Pixel AUROC "
        "and AU-PRO speak of the map in the same row. Milliseconds are from the decoded picture to "
        "its score, one picture at a time on one thread, alignment among it; those of a map come "
        "on top. MB are what a score needs on the disk.</p>"
    )


def _aligned(alignment: str) -> str:
    return "pictures whole" if alignment == "none" else f"aligned ({text(alignment)})"


def _curves(lines: Sequence[Line], runs: Sequence[Outcome]) -> str:
    """ROC curves of the best few, ours among them."""
    from tools.report_plots import SERIES, roc_curves_plot

    chosen = list(lines[: len(SERIES)])
    ours = [line for line in lines if line.method == OURS]
    if ours and ours[0] not in chosen:
        chosen[-1] = ours[0]
    curves = []
    for line in chosen:
        (run, *_) = [run for run in runs if run.method == line.method]
        curves.append((line.name, np.array(run.scores[line.score]), np.array(run.is_anomaly)))
    name = f"roc-{runs[0].data}-{runs[0].alignment}"
    return f'<div class="plots">{roc_curves_plot(curves, name)}</div>'


def _heatmaps(folder: Path, runs: Sequence[Outcome]) -> str:
    """A row for each method's map, a column for each defect."""
    first: dict[str, Outcome] = {}
    for run in runs:
        first.setdefault(run.method, run)
    rows, shown = [], []
    for run in first.values():
        where = folder / run.data / run.alignment / run.method / f"seed_{run.seed}"
        if not run.maps and not (where / PICTURES).is_file():
            continue
        if not shown:
            shown = _shown(run)
            if not shown:
                return ""
            cells = [image(_outlined(*one), SHOWN_SIDE, one[2]) for one in shown]
            rows.append(["the defect, outlined", *cells])
        try:
            drawn = np.load(where / PICTURES, allow_pickle=False)
        except (OSError, ValueError):
            continue
        for kind in dict.fromkeys(key.partition("/")[0] for key in drawn.files):
            cells = [
                image(_painted(frame, drawn[f"{kind}/{number}"], drawn[f"{kind}/low"]), SHOWN_SIDE,
                      f"{run.method}, {kind}, {name}")
                for number, (frame, _, name) in enumerate(shown)
            ]  # fmt: skip
            rows.append([text(f"{run.method}, {kind}"), *cells])
    if not rows:
        return ""
    head = ["map", *(name for _, _, name in shown)]
    explained = (
        "<h3>Heatmaps side by side</h3><p>Each map is painted from what the good pictures' 99th "
        f"percentile is, red from {RED_OVER_LOW:g} times that on; the first seed.</p>"
    )
    return f'{explained}<div class="maps">{table("heatmaps", head, rows)}</div>'


def _shown(run: Outcome) -> list[tuple[np.ndarray, np.ndarray | None, str]]:
    """The pictures of the defects that are shown, their masks and names; none if they are gone."""
    data_dir = Path(run.data_dir)
    if not data_dir.is_dir():
        return []
    found = []
    for picture in shown_defects(read_inspection_set(data_dir)):
        frame = read_picture(picture.path)
        masked = read_mask(picture.mask_path, frame.shape[:2]) if picture.mask_path else None
        found.append((frame, masked, printable(picture.defect)))
    return found


def _outlined(frame: np.ndarray, masked: np.ndarray | None, _: str) -> np.ndarray:
    return outlined(frame, masked)


def _painted(frame: np.ndarray, anomaly: np.ndarray, low: np.ndarray) -> np.ndarray:
    size = anomaly.shape[1], anomaly.shape[0]
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    scale = max(float(low), 1e-12)
    return overlay(small, np.clip((anomaly / scale - 1) / (RED_OVER_LOW - 1), 0, 1))


def _articles(methods: set[str]) -> str:
    rows = [
        [text(method.title), text(method.paper), text(method.reported)]
        for name, method in METHODS.items()
        if name in methods
    ]
    return "<h2>Where they come from</h2>" + table(
        "papers", ("method", "paper", "what its article reports"), rows
    )
