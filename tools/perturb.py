"""
Perturb: how much a bundle's figures suffer when the part or the station changes.

Every test picture, good or defective, is changed as a whole before the device's own code sees it:
turned, shifted, scaled, made darker or brighter, compressed. Image AUROC, false rejects, misses and
verdicts withheld stand beside those of the pictures as they are.

What comes into view is filled as the background goes on. No part is pushed out of view or into its
rim: turned and scaled pictures are moved back in, shifts are drawn from the room there is. Where a
part reaches the edge of the view, or a texture, a rail or a fixture does, the picture is not moved
at all, because what lies beyond the edge is not known; the table says how many are left as they
are. The light turns with the picture: how a part shines that is turned alone is not seen here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_app.arguments import seed, whole_from_1
from edge_app.bundle import load_bundle
from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.foreground import EDGE_FACTOR, FIND_SIDE, RIM_SHARE, Viewer, foreground, otsu, pieces
from edge_app.inspector import Inspector
from edge_app.learn_align import LEAST_CONTRAST
from edge_app.preprocess import region_box
from edge_app.records import Frame, Verdict
from edge_app.sources.folder import read_picture
from tools.evaluate import add_arguments, align_anyway
from tools.figures import write_figures
from tools.inspection_set import (
    InspectionSet,
    TestPicture,
    read_inspection_set,
    refuse_one_sided,
)

AS_IT_IS = "as it is"
# The largest of the small turns, degrees: what a fixture leaves free.
SMALL_TURN_DEG = 5.0
# The farthest shift, as a share of the frame each way.
MOST_SHIFT = 0.1
# A lamp that ages or is switched off, the sun that comes in.
BRIGHTNESS = (0.7, 0.85, 1.15, 1.3)
# A camera nearer or farther than it was.
SCALES = (0.95, 1.05)
JPEG_QUALITY = 50

# Angles tried until a long part fits into the view; one that fits at a tenth of all angles is left
# as it is once in eight.
MOST_DRAWS = 20
# Pieces of foreground below this share of the largest are specks, and may leave the view.
SPECK_SHARE = 0.05
# A moved part stays out of the rim that the device fits the background to, or the place would be
# what is tested; and, in pixels of the searched picture, one more that its outline may be off and
# half of one from a pixel's centre to its border.
EDGE_MARGIN = RIM_SHARE * FIND_SIDE + 1.5
# Blur that parts what goes on beyond the edge (shadow, vignette) from grain, pixels of the searched
# picture: about half the rim that the background is fitted to.
SMOOTH_SIGMA = 2.0
# Beyond the edge a shadow fades by e in this share of the view's long side.
FADE_SHARE = 0.1
# Grain beyond so many standard deviations is no grain but the edge of something.
GRAIN_LIMIT = 4.0

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perturb``."""
    parser.description = __doc__
    parser.epilog = (
        "example:\n"
        "  python -m tools perturb --bundle models/nut --data parts/nut --json perturb.json"
    )
    add_arguments(parser)
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of angles, shifts and the choice of pictures",
    )
    parser.add_argument(
        "--pictures",
        type=whole_from_1,
        metavar="N",
        help="take so many test pictures, good and defective in their proportion (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Perturb; see the module's docstring."""
    inspection_set = read_inspection_set(args.data)
    chosen = choose_pictures(inspection_set, args.pictures, args.seed)
    bundle = load_bundle(args.bundle)
    inspector = Inspector(bundle, load_config().decision, "single", args.threads, heatmaps=False)
    if args.json is not None:
        _refuse_unwritable(args.json)
    rows = perturb(inspector, inspection_set.test, chosen, args.seed)
    n_good = sum(not inspection_set.test[index].is_anomaly for index in chosen)
    figures = {
        "data": inspection_set.name,
        "seed": args.seed,
        "images": {"test_good": n_good, "test_defective": len(chosen) - n_good},
        "threshold": inspector.threshold,
        "rows": rows,
        "bundle_sha256": bundle.sha256,
    }
    print(table(figures))
    write_figures(args.json, figures)
    return 0


def _refuse_unwritable(path: Path) -> None:
    """Find out before minutes of work, not after, that the figures cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To open it finds a folder of that name too, and leaves what is there.
        path.open("a").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def choose_pictures(inspection_set: InspectionSet, count: int | None, seed: int) -> list[int]:
    """
    Which test pictures to take.

    Parameters
    ----------
    inspection_set : InspectionSet
    count : int or None
        At most so many; None for all.
    seed : int

    Returns
    -------
    list of int
        Indices into ``inspection_set.test``, ascending; good and defective ones in the proportion
        of the set, at least one of each.

    Raises
    ------
    InputError
        If the set lacks good or defective pictures, or `count` is below 2.
    """
    refuse_one_sided(inspection_set)
    good = [index for index, one in enumerate(inspection_set.test) if not one.is_anomaly]
    defective = [index for index, one in enumerate(inspection_set.test) if one.is_anomaly]
    total = len(good) + len(defective)
    if count is None or count >= total:
        return sorted(good + defective)
    if count < 2:
        raise InputError(
            f"--pictures is {count}, wanted at least 2: one good and one defective picture"
        )
    n_good = min(max(round(count * len(good) / total), 1), count - 1)
    rng = np.random.default_rng(seed)
    taken = [*rng.permutation(good)[:n_good], *rng.permutation(defective)[: count - n_good]]
    return sorted(int(index) for index in taken)


def perturbations() -> dict[str, Change]:
    """
    The changes, by the name of their row.

    Returns
    -------
    dict of str to callable
        Each takes a picture, ndarray of uint8, shape (H, W, 3), BGR, which it leaves unchanged, and
        a numpy Generator, its only source of chance. It returns the changed picture, of the same
        shape and dtype, or the very object it was given where it leaves the picture as it is.
    """
    changes: dict[str, Change] = {
        AS_IT_IS: lambda frame_bgr, rng: frame_bgr,
        "rotation": lambda frame_bgr, rng: _turn(frame_bgr, rng, 0.0, 360.0),
        f"rotation up to {SMALL_TURN_DEG:g} degrees": lambda frame_bgr, rng: _turn(
            frame_bgr, rng, -SMALL_TURN_DEG, SMALL_TURN_DEG
        ),
        "shift": _shift,
    }
    for factor in BRIGHTNESS:
        changes[f"brightness x{factor:g}"] = _brightness(factor)
    changes[f"JPEG quality {JPEG_QUALITY}"] = _jpeg
    for factor in SCALES:
        changes[f"scale {factor:g}"] = _scale(factor)
    return changes


def _brightness(factor: float) -> Change:
    table = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)
    return lambda frame_bgr, rng: table[frame_bgr]


def _jpeg(frame_bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, data = cv2.imencode(".jpg", frame_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def _turn(
    frame_bgr: np.ndarray, rng: np.random.Generator, least_deg: float, most_deg: float
) -> np.ndarray:
    """Turned about the middle of the frame, counter-clockwise by an angle from a range."""
    scene = _look(frame_bgr)
    height, width = frame_bgr.shape[:2]
    for _ in range(MOST_DRAWS):
        turn = cv2.getRotationMatrix2D(
            ((width - 1) / 2, (height - 1) / 2), rng.uniform(least_deg, most_deg), 1.0
        )
        matrix = _kept_in_view(turn, scene)
        if matrix is not None:
            return _moved(frame_bgr, matrix, scene)
    return frame_bgr


def _scale(factor: float) -> Change:
    def scale(frame_bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scene = _look(frame_bgr)
        height, width = frame_bgr.shape[:2]
        zoom = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0.0, factor)
        matrix = _kept_in_view(zoom, scene)
        return frame_bgr if matrix is None else _moved(frame_bgr, matrix, scene)

    return scale


def _shift(frame_bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted by whole pixels, which needs no resampling, as far as there is room."""
    scene = _look(frame_bgr)
    still = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    room = _room(still, scene)
    if room is None:
        return frame_bgr
    reach = MOST_SHIFT * np.array(frame_bgr.shape[1::-1])
    # A part that lies nearer to the edge than the margin may stay there.
    low = np.ceil(np.clip(room[0], -reach, 0)).astype(int)
    high = np.floor(np.clip(room[1], 0, reach)).astype(int)
    still[:, 2] = rng.integers(low, high + 1)
    return _moved(frame_bgr, still, scene)


@dataclass(frozen=True)
class _Scene:
    """
    What is known of a frame before it is moved.

    Attributes
    ----------
    shape : tuple of int
        (height, width) of the frame.
    outline : ndarray of float64, shape (n, 2)
        Convex hull of the part, (x, y) in pixels of the frame; (0, 2) where there is none.
    reaches_edge : bool
        Whether the part reaches the edge of the frame, so that more of it may lie beyond.
    margin : float
        How far from the edge of the frame a moved part stays, pixels.
    plane : ndarray of float64, shape (3, 3)
        Background, see `foreground.Background.plane`.
    part : ndarray of uint8, shape (h, w)
        1 where the searched picture is no background.
    """

    shape: tuple[int, int]
    outline: np.ndarray
    reaches_edge: bool
    margin: float
    plane: np.ndarray
    part: np.ndarray


def _look(frame_bgr: np.ndarray) -> _Scene:
    view = Viewer(zoom=1).look(frame_bgr)
    threshold = max(otsu(view.search), LEAST_CONTRAST)
    # Above the plain threshold lie shadows too, which often reach the edge where the part does not,
    # and have to go on beyond it.
    mask = foreground(view.search, EDGE_FACTOR * threshold)
    found = pieces(mask)
    outline, reaches_edge = np.empty((0, 2)), False
    if found:
        large = [piece for piece in found if piece.area >= SPECK_SHARE * found[0].area]
        points = cv2.convexHull(np.concatenate([piece.contour for piece in large]))[:, 0]
        last = np.array(view.search.shape[::-1]) - 1
        reaches_edge = bool((points == 0).any() or (points == last).any())
        outline = points @ view.to_view[:2, :2].T + view.to_view[:2, 2]
    margin = EDGE_MARGIN * float(view.to_view[0, 0])
    part = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    return _Scene(frame_bgr.shape[:2], outline, reaches_edge, margin, view.plane, part)


def _room(matrix: np.ndarray, scene: _Scene) -> tuple[np.ndarray, np.ndarray] | None:
    """Smallest and largest further move (x, y) that keeps the part in view; None: there is none."""
    if scene.reaches_edge:
        return None
    if not len(scene.outline):
        return np.full(2, -np.inf), np.full(2, np.inf)
    points = scene.outline @ matrix[:, :2].T + matrix[:, 2]
    low = scene.margin - points.min(axis=0)
    high = np.array(scene.shape[::-1]) - 1 - scene.margin - points.max(axis=0)
    return None if (low > high).any() else (low, high)


def _kept_in_view(matrix: np.ndarray, scene: _Scene) -> np.ndarray | None:
    """`matrix` with the smallest move that keeps the part in view; None where none does."""
    room = _room(matrix, scene)
    if room is None:
        return None
    matrix = matrix.copy()
    matrix[:, 2] += np.clip(0.0, *room)
    return matrix


def _moved(frame_bgr: np.ndarray, matrix: np.ndarray, scene: _Scene) -> np.ndarray:
    """
    The frame moved by `matrix`, shape (2, 3), from its pixels to those of the result.

    What lies outside is the plane of the background, which goes on; on it what departs from the
    plane at the edge (a shadow, a vignette), fading; on that the grain, mirrored at the edge. At
    the edge the three are the frame itself, so that no new edge appears.
    """
    height, width = scene.shape
    to_frame = cv2.invertAffineTransform(matrix).astype(np.float32)
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    from_x = to_frame[0, 0] * x + to_frame[0, 1] * y + to_frame[0, 2]
    from_y = to_frame[1, 0] * x + to_frame[1, 1] * y + to_frame[1, 2]
    beyond = np.hypot(
        from_x - np.clip(from_x, 0, width - 1), from_y - np.clip(from_y, 0, height - 1)
    )
    levels, shade, grain = _background(frame_bgr, scene)

    def warped(picture: np.ndarray, flags: int, border: int) -> np.ndarray:
        return cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderMode=border)

    moved = warped(frame_bgr, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE)
    outside = beyond > 0.5
    if not outside.any():
        return moved
    fade = np.exp(-beyond / (FADE_SHARE * max(height, width)))
    fill = levels(from_x, from_y)
    fill += fade[..., None] * warped(shade, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    fill += warped(grain, cv2.INTER_CUBIC, cv2.BORDER_REFLECT_101)
    moved[outside] = np.clip(np.rint(fill[outside]), 0, 255).astype(np.uint8)
    return moved


def _background(
    frame_bgr: np.ndarray, scene: _Scene
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray, np.ndarray]:
    """
    The background as a sum of three.

    Returns
    -------
    levels : callable
        The plane at places x, y (pixels of the frame, arrays of any one shape), float32.
    shade : ndarray of float32, shape (H, W, 3)
        How the background departs from the plane, blurred; the part left out.
    grain : ndarray of float32, shape (H, W, 3)
        What is left; 0 where the part is.
    """
    height, width = scene.shape
    middle, right, down = scene.plane.astype(np.float32)

    def levels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across, along = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
        return middle + across[..., None] * right + along[..., None] * down

    rest = frame_bgr - levels(
        *np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    )
    seen = 1 - scene.part.astype(np.float32)
    rows, columns = seen.shape
    small = cv2.resize(rest, (columns, rows), interpolation=cv2.INTER_AREA) * seen[..., None]
    weight = cv2.GaussianBlur(seen, (0, 0), SMOOTH_SIGMA)
    # Deep inside the part there is no background; any weight will do.
    small = cv2.GaussianBlur(small, (0, 0), SMOOTH_SIGMA) / np.maximum(weight, 1e-3)[..., None]
    shade = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    visible = cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)
    grain = rest - shade
    found = np.abs(grain[visible > 0.5])
    # 1.4826 times the median of the absolute values is a normal distribution's deviation.
    limit = GRAIN_LIMIT * 1.4826 * float(np.median(found)) if found.size else 0.0
    return levels, shade, np.clip(grain, -limit, limit) * visible[..., None]


def in_region(
    change: Change,
    frame_bgr: np.ndarray,
    region: tuple[float, float, float, float] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """
    A frame whose region of interest has been changed; the very same where it is left as it is.

    What lies outside the region is not looked at by the device, so that to its eyes the region is
    the whole frame; and what a real turn would bring into it from there is not known to be
    background.
    """
    x0, y0, x1, y1 = region_box(region, frame_bgr.shape)
    inside = frame_bgr[y0:y1, x0:x1]
    changed = change(inside, rng)
    if changed is inside:
        return frame_bgr
    frame_bgr = frame_bgr.copy()
    frame_bgr[y0:y1, x0:x1] = changed
    return frame_bgr


def perturb(
    inspector: Inspector,
    pictures: Sequence[TestPicture],
    chosen: Sequence[int],
    seed: int,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """
    Figures of a bundle on changed pictures.

    Parameters
    ----------
    inspector : Inspector
        In mode `single`.
    pictures : sequence of TestPicture
        All of the set.
    chosen : sequence of int
        Indices of those to take; a picture's chance depends on its own index and `seed` only.
    seed : int
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    dict of str to dict
        For each name of `perturbations` what `row_figures` gives; `difference`, the image AUROC
        less that of the pictures as they are; and `unchanged`, how many pictures were left as they
        are because they could not be moved.

    Raises
    ------
    InputError
        If a picture cannot be read.

    Notes
    -----
    A picture that the device calls EMPTY or UNKNOWN has a score all the same, as in ``evaluate``.
    """
    from tqdm import tqdm

    changes = perturbations()
    is_anomaly = [pictures[index].is_anomaly for index in chosen]
    scores: dict[str, list[float]] = {name: [] for name in changes}
    verdicts: dict[str, list[Verdict]] = {name: [] for name in changes}
    unchanged = dict.fromkeys(changes, 0)
    with tqdm(
        total=len(chosen) * len(changes),
        desc="inspecting",
        unit="picture",
        delay=2,
        disable=not progress,
    ) as bar:
        for index in chosen:
            path = pictures[index].path
            frame_bgr = read_picture(path)
            for name, change in changes.items():
                rng = np.random.default_rng((seed, index))
                changed_bgr = in_region(change, frame_bgr, inspector.recipe.region, rng)
                unchanged[name] += name != AS_IT_IS and changed_bgr is frame_bgr
                verdict, score = _judge(inspector, Frame(index, str(path), changed_bgr))
                verdicts[name].append(verdict)
                scores[name].append(score)
                bar.update()
    rows = {name: row_figures(scores[name], verdicts[name], is_anomaly) for name in changes}
    for name, row in rows.items():
        row["difference"] = row["image_auroc"] - rows[AS_IT_IS]["image_auroc"]
        row["unchanged"] = unchanged[name]
    return rows


def _judge(inspector: Inspector, frame: Frame) -> tuple[Verdict, float]:
    (result,) = inspector.inspect(frame)
    verdict, score = result.decision.verdict, result.decision.score
    if score is None:
        score = inspector.look(frame, align_anyway(inspector, frame)).score
    return verdict, score


def row_figures(
    scores: Sequence[float], verdicts: Sequence[Verdict], is_anomaly: Sequence[bool]
) -> dict[str, Any]:
    """
    The figures of one row of the table.

    Parameters
    ----------
    scores : sequence of float, shape (n,)
        Higher is more anomalous.
    verdicts : sequence of Verdict, shape (n,)
    is_anomaly : sequence of bool, shape (n,)

    Returns
    -------
    dict
        `image_auroc`; `false_reject_rate` (good pictures that are NG); `miss_rate` (defective ones
        that are OK); `no_verdict_share` (all that are UNKNOWN or EMPTY). All 0 to 1.

    Raises
    ------
    InputError
        If a score is not finite or one of the two classes is missing.
    """
    from tools.metrics import image_auroc

    auroc = image_auroc(scores, is_anomaly)
    pairs = list(zip(verdicts, is_anomaly, strict=True))
    good = [verdict for verdict, anomaly in pairs if not anomaly]
    defective = [verdict for verdict, anomaly in pairs if anomaly]
    withheld = [verdict for verdict in verdicts if verdict in (Verdict.UNKNOWN, Verdict.EMPTY)]
    return {
        "image_auroc": auroc,
        "false_reject_rate": good.count(Verdict.NG) / len(good),
        "miss_rate": defective.count(Verdict.OK) / len(defective),
        "no_verdict_share": len(withheld) / len(pairs),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as text, a line for each row."""
    images = figures["images"]
    count = images["test_good"] + images["test_defective"]
    heads = ("image AUROC", "difference", "false rejects", "missed", "no verdict", "unchanged")
    wide = max(map(len, figures["rows"]))
    lines = [
        f"{figures['data']}: {images['test_good']} good and {images['test_defective']} defective "
        f"test pictures, threshold {figures['threshold']:.4g}, seed {figures['seed']}",
        "  ".join([" " * wide, *heads]),
    ]
    for name, row in figures["rows"].items():
        cells = [
            f"{row['image_auroc']:.4f}",
            "" if name == AS_IT_IS else f"{row['difference']:+z.4f}",
            f"{row['false_reject_rate']:.1%}",
            f"{row['miss_rate']:.1%}",
            f"{row['no_verdict_share']:.1%}",
            str(row["unchanged"] or ""),
        ]
        if row["unchanged"] == count:
            # A difference of nothing would read as a test that was passed.
            cells[:-1] = [""] * (len(cells) - 1)
        padded = [cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)]
        lines.append("  ".join([name.ljust(wide), *padded]))
    if any(row["unchanged"] for row in figures["rows"].values()):
        lines.append(
            "unchanged: so many pictures were left as they are, because their part, or something\n"
            "else that is no plain background, reaches the edge of the view, or the part would\n"
            "not fit into it; a row of nothing else is left empty"
        )
    return "\n".join(line.rstrip() for line in lines)
