"""
Evaluate: what a bundle does on labelled images, through the device's own code.

Every picture goes the way it goes on the device, one frame at a time; the figures are read off what
came out. Beside them stand the trivial figures of the same set. With --report they become one page
for a browser: curves, working points, the pictures that matter, and what could fake the figures.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.align import Aligned
from edge_app.arguments import refuse_unwritable, whole_from_1
from edge_app.bundle import load_bundle
from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.heatmap import ColourScale
from edge_app.held_out import thumbnail
from edge_app.inspector import Inspector, SeeingInspector
from edge_app.preprocess import prepare, region_box
from edge_app.records import Frame, Verdict
from edge_app.sources.folder import printable, read_picture
from tools.figures import write_figures
from tools.inspection_set import (
    InspectionSet,
    TestPicture,
    read_inspection_set,
    read_mask,
    refuse_one_sided,
)

# Maps as they are, not clipped to the overlay's colours: clipping would tie them.
BARE = ColourScale(0.0, 1.0)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    parser.description = __doc__
    parser.epilog = (
        "example:\n  python -m tools evaluate --bundle models/nut --data parts/nut --json nut.json "
        "--report nut.html"
    )
    add_arguments(parser)
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=Path,
        help="write a page that needs nothing but a browser: ROC curve, working points, "
        "histograms, embeddings, first-layer filters, heatmaps, timings, manifest",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that measures a bundle on a set."""
    parser.add_argument("--bundle", required=True, metavar="B", help="folder of the bundle")
    parser.add_argument(
        "--data", required=True, metavar="DIR", type=Path, help="a set in the layout of MVTec AD"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    parser.add_argument(
        "--threads",
        type=whole_from_1,
        default=1,
        metavar="N",
        help="of the TFLite runtime",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate a bundle; see the module's docstring."""
    from tools.check_data import check, warn

    _refuse_same_file(args.json, args.report)
    inspection_set = read_inspection_set(args.data)
    refuse_one_sided(inspection_set)
    bundle = load_bundle(args.bundle)
    for path in (args.json, args.report):
        if path is not None:
            refuse_unwritable(path)
    warn(args.data)
    config = load_config()
    inspector = SeeingInspector(
        bundle, config.decision, "single", args.threads, heatmaps=False, quality=config.quality
    )
    judged = judge(inspector, inspection_set)
    figures = figures_of(inspector, inspection_set, judged)
    _print(figures, inspection_set)
    write_figures(args.json, figures)
    if args.report is not None:
        from tools.evaluation_report import write_report

        findings = check(args.data)
        command = shlex.join(["python", "-m", "tools", *args.typed])
        write_report(args.report, inspector, inspection_set, judged, figures, command, findings)
        print(f"report: {printable(args.report)}")
    return 0


def _refuse_same_file(figures: Path | None, page: Path | None) -> None:
    """The page would be written over the figures."""
    if figures is not None and page is not None and figures.resolve() == page.resolve():
        raise InputError(
            f"{printable(page)}: got for both --json and --report, wanted two different files"
        )


@dataclass(frozen=True)
class Judged:
    """
    One test picture, judged.

    Attributes
    ----------
    picture : TestPicture
    verdict : Verdict
    reason : str or None
        Why it is UNKNOWN.
    score : float
        Also where the device gives none; higher is more anomalous.
    latency_ms : dict of str to float
        Milliseconds of each stage.
    loop_ms : float or None
        From frame to decision; None where the device stopped before the score.
    maps : dict of str to ndarray of float32, shape (H, W)
        Each kind of heatmap, unscaled; empty where no pixel figure counts it.
    mask : ndarray of bool, shape (H, W), or None
        Where the defect is, if `maps` is not empty.
    embedding : ndarray of float32, shape (d,)
    thumbnail : ndarray of float32
        By which near-duplicates are known.
    """

    picture: TestPicture
    verdict: Verdict
    reason: str | None
    score: float
    latency_ms: dict[str, float]
    loop_ms: float | None
    maps: dict[str, np.ndarray]
    mask: np.ndarray | None
    embedding: np.ndarray
    thumbnail: np.ndarray


def judge(
    inspector: Inspector, inspection_set: InspectionSet, progress: bool = True
) -> list[Judged]:
    """
    Every test picture through the inspector.

    Parameters
    ----------
    inspector : Inspector
        In mode `single`, with the device's quality settings. A `SeeingInspector` aligns and encodes
        each picture once, another twice.
    inspection_set : InspectionSet
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    list of Judged
        In the order of the set.
    """
    from tqdm import tqdm

    has_masks = any(picture.mask_path for picture in inspection_set.test)
    kinds = inspector.heatmap_kinds if has_masks else ()
    bar = tqdm(
        inspection_set.test, desc="inspecting", unit="picture", delay=2, disable=not progress
    )
    return [_judge(inspector, index, picture, kinds) for index, picture in enumerate(bar)]


def figures_of(
    inspector: Inspector,
    inspection_set: InspectionSet,
    judged: Sequence[Judged],
    progress: bool = True,
) -> dict[str, Any]:
    """
    Figures of a bundle on a set.

    Parameters
    ----------
    inspector : Inspector
    inspection_set : InspectionSet
    judged : sequence of Judged
        From `judge` with these two.
    progress : bool
        Whether to show progress bars on stderr.

    Returns
    -------
    dict
        `image_auroc`; `pixel_auroc` and `au_pro` of the map that overlays show (None without
        masks or map), and of each kind of map under `heatmaps`; `per_defect`, `trivial`,
        `threshold`, `false_reject_rate` (good pictures that are NG), `miss_rate` (defective ones
        that are OK), `latency_ms` from frame to decision, `images` with the counts of verdicts,
        `bundle_sha256`. What is not UTF-8 in a name is written as backslash escapes.

    Notes
    -----
    A picture that the device calls EMPTY or UNKNOWN has a score all the same here, so that the
    AUROC speaks of every picture; the rates speak of the verdicts.
    """
    from tools.metrics import au_pro, image_auroc, pixel_auroc
    from tools.trivial import trivial_figures

    inspection_set = replace(inspection_set, name=printable(inspection_set.name))
    scores = [one.score for one in judged]
    is_anomaly = [one.picture.is_anomaly for one in judged]
    heatmaps = {}
    masked = [one for one in judged if one.mask is not None]
    masks = [one.mask for one in masked]
    kinds = inspector.heatmap_kinds if masked else ()
    for kind in kinds:
        maps = [one.maps[kind] for one in masked]
        heatmaps[kind] = {"pixel_auroc": pixel_auroc(maps, masks), "au_pro": au_pro(maps, masks)}
    shown = heatmaps.get(next(iter(kinds), None), {})
    good = [one for one in judged if not one.picture.is_anomaly]
    defective = [one for one in judged if one.picture.is_anomaly]
    latencies = [one.loop_ms for one in judged if one.loop_ms is not None]
    return {
        "data": inspection_set.name,
        "image_auroc": image_auroc(scores, is_anomaly),
        "pixel_auroc": shown.get("pixel_auroc"),
        "au_pro": shown.get("au_pro"),
        "per_defect": _per_defect(good, defective),
        "trivial": trivial_figures(inspection_set, progress),
        "threshold": inspector.threshold,
        "false_reject_rate": _share(good, Verdict.NG),
        "miss_rate": _share(defective, Verdict.OK),
        "latency_ms": {
            "p50": float(np.percentile(latencies, 50)) if latencies else None,
            "p95": float(np.percentile(latencies, 95)) if latencies else None,
        },
        "images": {
            "train_good": len(inspection_set.train_good),
            "test_good": _counts(good),
            "test_defective": _counts(defective),
        },
        "heatmaps": heatmaps,
        "bundle_sha256": inspector.bundle.sha256,
    }


def _judge(
    inspector: Inspector, index: int, picture: TestPicture, kinds: tuple[str, ...]
) -> Judged:
    frame = Frame(index, str(picture.path), read_picture(picture.path))
    inspector.seen = None
    (result,) = inspector.inspect(frame)
    seen = inspector.seen or inspector.look(frame, align_anyway(inspector, frame))
    maps: dict[str, np.ndarray] = {}
    mask = None
    if kinds and (picture.mask_path or not picture.is_anomaly):
        maps = {kind: inspector.heatmap(seen, kind, BARE) for kind in kinds}
        mask = np.zeros(frame.frame_bgr.shape[:2], bool)
        if picture.mask_path is not None:
            mask = read_mask(picture.mask_path, mask.shape)
    return Judged(
        picture,
        result.decision.verdict,
        result.decision.reason,
        seen.score,
        result.latency_ms,
        result.loop_ms,
        maps,
        mask,
        seen.encoding.embedding,
        thumbnail(seen.pixels_rgb),
    )


def align_anyway(inspector: Inspector, frame: Frame) -> Aligned:
    """The aligned picture; where no part was found, the region of interest as it is."""
    aligned = inspector.aligner.align(frame.frame_bgr)
    if aligned.pixels_rgb is not None:
        return aligned
    pixels_rgb = prepare(frame.frame_bgr, inspector.recipe)
    x0, y0, x1, y1 = region_box(inspector.recipe.region, frame.frame_bgr.shape)
    across, down = (x1 - x0) / pixels_rgb.shape[1], (y1 - y0) / pixels_rgb.shape[0]
    matrix = np.array([[across, 0, x0 + (across - 1) / 2], [0, down, y0 + (down - 1) / 2]])
    return Aligned(pixels_rgb, matrix, aligned.empty, aligned.problem, None)


def _share(judged: Sequence[Judged], verdict: Verdict) -> float:
    return sum(one.verdict is verdict for one in judged) / len(judged)


def _counts(judged: Sequence[Judged]) -> dict[str, int]:
    counts = {str(verdict): sum(one.verdict is verdict for one in judged) for verdict in Verdict}
    return {"images": len(judged), **{name: n for name, n in counts.items() if n}}


def _per_defect(good: list[Judged], defective: list[Judged]) -> dict[str, dict[str, Any]]:
    from tools.metrics import image_auroc

    figures = {}
    # Folders of foreign archives have names that are not UTF-8 and no encoding can write.
    for defect in sorted({printable(one.picture.defect) for one in defective}):
        these = [one for one in defective if printable(one.picture.defect) == defect]
        both = good + these
        figures[defect] = {
            "image_auroc": image_auroc(
                [one.score for one in both], [one.picture.is_anomaly for one in both]
            ),
            "miss_rate": _share(these, Verdict.OK),
            "images": len(these),
        }
    return figures


def _print(figures: dict[str, Any], inspection_set: InspectionSet) -> None:
    trivial = figures["trivial"]
    print(f"{figures['data']}: {len(inspection_set.test)} test pictures")
    best = max((k for k in trivial if not k.startswith("mean_picture_")), key=trivial.get)
    print(f"image AUROC  {figures['image_auroc']:.4f}   (trivial: {best} {trivial[best]:.4f})")
    for name, key in (("pixel AUROC", "pixel_auroc"), ("AU-PRO", "au_pro")):
        if figures[key] is not None:
            beside = trivial[f"mean_picture_{key}"]
            print(f"{name:12} {figures[key]:.4f}   (trivial: |picture - mean| {beside:.4f})")
    for kind, row in figures["heatmaps"].items():
        print(
            f"  {kind + ' map':20} pixel AUROC {row['pixel_auroc']:.4f}  AU-PRO {row['au_pro']:.4f}"
        )
    for defect, row in figures["per_defect"].items():
        print(
            f"  {defect:20} AUROC {row['image_auroc']:.4f}  missed {row['miss_rate']:.1%}"
            f"  of {row['images']}"
        )
    images = figures["images"]
    good, defective = images["test_good"]["images"], images["test_defective"]["images"]
    print(
        f"at threshold {figures['threshold']:.4g}: "
        f"false rejects {figures['false_reject_rate']:.1%} of {good} good, "
        f"missed {figures['miss_rate']:.1%} of {defective} defective"
    )
    latency = figures["latency_ms"]
    if latency["p50"] is not None:
        print(f"frame to decision: {latency['p50']:.2f} ms median, {latency['p95']:.2f} ms 95 %")
