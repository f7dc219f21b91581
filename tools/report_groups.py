"""
Do pictures fall apart by what is no defect?

A perfect score may measure light, camera, day or file format. So good pictures of training and test
are looked at side by side, and a linear rule is asked to tell them, and the file formats, apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_app.held_out import near_duplicate_groups, thumbnail
from edge_app.inspector import Inspector
from edge_app.records import Frame
from edge_app.sources.folder import read_picture
from tools.evaluate import Judged, align_anyway
from tools.inspection_set import InspectionSet
from tools.leak_probe import Separation, probe
from tools.metrics import image_auroc
from tools.picture_files import read_header
from tools.report_html import mark, table, text
from tools.report_plots import scatter_plot

# Pictures of train/good that are drawn and probed, and good ones in all, at most: near-duplicates
# are looked for among all pairs, and more of them would change neither the picture nor the probe.
MOST_TRAIN, MOST_PROBED = 600, 1200
# From this AUROC on a linear rule tells two groups of good pictures apart so well that what it goes
# by can stand in for the defect. 0.5 is chance; 0.75 is right in three pairs of four.
SUSPICIOUS_AUROC = 0.75
# Colours that a plot has room for. With more kinds of JPEG quality than this, formats alone count.
MOST_KINDS = 5
SPLITS = ("train good", "test good", "test defective")


def judgement(one: str, other: str, found: Separation | None) -> tuple[str, str]:
    """
    How suspicious it is that a linear rule tells two groups of good pictures apart.

    Parameters
    ----------
    one, other : str
        Names of the groups.
    found : Separation or None
        From `tools.leak_probe.probe`; None with too few pictures.

    Returns
    -------
    tone, sentence : str
        For a mark: 'red' from an AUROC of `SUSPICIOUS_AUROC` on, 'amber' where it is surely above
        0.5, else 'fine'; '' where nobody can tell.
    """
    if found is None:
        return "", f"Too few pictures to ask a linear rule to tell {one} from {other}."
    told = (
        f"A linear rule tells {one} ({found.pictures[0]}) from {other} ({found.pictures[1]}) with "
        f"an AUROC of {found.auroc:.2f}, on pictures it was not fitted on"
    )
    # A probe that finds nothing lies below 0.5 as often as above.
    if found.auroc <= 0.5 or found.lower <= 0.5:
        return "fine", f"{told}: no more than chance. They do not fall apart."
    if found.auroc < SUSPICIOUS_AUROC:
        return "amber", (
            f"{told}. They differ a little, by something that is no defect; not enough to stand in "
            "for one."
        )
    return "red", (
        f"{told}. That is suspicious: both are good parts, so something that is no defect sets "
        "them apart. Compare light, camera, day, part variant and compression before trusting a "
        "figure of this page."
    )


def saved_as(paths: Sequence[Path]) -> list[str]:
    """
    How each picture was saved: format, and JPEG's quality where there are few of them.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of str
        By the content of the files, whatever they are called.
    """
    headers = [read_header(path) for path in paths]
    kinds = [header.saved_as for header in headers]
    if len(set(kinds)) <= MOST_KINDS:
        return kinds
    return [header.file_format or "no picture" for header in headers]


def rarity_auroc(train: Sequence[str], test: Sequence[str], is_anomaly: Sequence[bool]) -> float:
    """
    Image AUROC of nothing but how rare a picture's format is among the good ones learnt.

    Parameters
    ----------
    train, test : sequence of str
        Formats of train/good, at least one, and of the test split.
    is_anomaly : sequence of bool
        Of the test split; both there.

    Returns
    -------
    float
        0 to 1; 0.5 where the format says nothing.
    """
    known = Counter(train)
    return image_auroc([-known[name] / len(train) for name in test], is_anomaly)


def groups_section(
    inspector: Inspector,
    inspection_set: InspectionSet,
    judged: Sequence[Judged],
    progress: bool = True,
) -> str:
    """
    Embeddings in two dimensions, by split and by file format, and what a linear rule tells apart.

    Parameters
    ----------
    inspector : Inspector
        Pictures of train/good go through its aligner and encoder.
    inspection_set : InspectionSet
    judged : sequence of Judged
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    section : str
        HTML.
    """
    paths = _spread(inspection_set.train_good, MOST_TRAIN)
    train, thumbnails = _encode(inspector, paths, progress)
    good = [one for one in judged if not one.picture.is_anomaly]
    tested = good + [one for one in judged if one.picture.is_anomaly]
    embeddings = np.concatenate([train, [one.embedding for one in tested]])
    files = [*paths, *(one.picture.path for one in tested)]
    formats = np.array(saved_as(files))
    split = np.repeat([0, 1, 2], [len(train), len(good), len(tested) - len(good)])
    lines = [
        "<h2>Do pictures fall apart by what is no defect?</h2>",
        "<p>Each dot is a picture as the encoder sees it: its pooled embedding, standardised, "
        "along the two axes that tell most pictures apart (principal components). Defective "
        "pictures may lie apart. Good pictures of training and test should lie among each other, "
        "and no file format by itself: if they fall apart, light, camera, day or compression "
        "differ, and a perfect score may measure just that.</p>",
    ]
    if not np.isfinite(embeddings).all():
        lines.append("<p>Some embeddings are not finite numbers: they cannot be drawn.</p>")
        return "\n".join([*lines, *_formats(formats, split)])
    flat, explained = two_dimensions(embeddings)
    by_split = [(name, split == row) for row, name in enumerate(SPLITS)]
    by_format = [(kind, formats == kind) for kind in _most_first(formats)]
    lines.append(
        f'<div class="plots">{scatter_plot("split", flat, by_split, explained)}'
        f"{scatter_plot('format', flat, by_format, explained)}</div>"
    )
    probed = np.array(_spread(range(len(good)), MOST_PROBED - len(train)), int)
    rows = np.concatenate([np.arange(len(train)), len(train) + probed])
    thumbnails = np.concatenate([thumbnails, [good[row].thumbnail for row in probed]])
    twins = near_duplicate_groups(thumbnails)
    questions = [(SPLITS[0], SPLITS[1], split[rows] == 0)]
    kinds = _most_first(formats[rows])
    if len(kinds) == 2:
        questions.append((f"good {kinds[0]}", f"good {kinds[1]}", formats[rows] == kinds[0]))
    elif len(kinds) > 2:
        questions += [(f"good {k}", "other good files", formats[rows] == k) for k in kinds]
    for one, other, is_one in questions:
        first, second = rows[is_one], rows[~is_one]
        order = np.argsort(~is_one, kind="stable")
        found = probe(embeddings[first], embeddings[second], 0.0, twins[order])
        lines.append(mark(*judgement(one, other, found)))
    return "\n".join([*lines, *_formats(formats, split)])


def _encode(
    inspector: Inspector, paths: Sequence[Path], progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and thumbnails of pictures."""
    from tqdm import tqdm

    bar = tqdm(
        paths,
        desc="encoding train/good",
        unit="picture",
        delay=2,
        leave=False,
        disable=not progress,
    )
    embeddings, thumbnails = [], []
    for path in bar:
        pixels_rgb = align_anyway(inspector, Frame(0, str(path), read_picture(path))).pixels_rgb
        embeddings.append(inspector.encoder.encode(pixels_rgb).embedding)
        thumbnails.append(thumbnail(pixels_rgb))
    return np.stack(embeddings), np.stack(thumbnails)


def _spread(items: Sequence, most: int) -> list:
    """So many of them at most, evenly over the sequence."""
    if len(items) <= most:
        return list(items)
    return [items[row] for row in np.linspace(0, len(items) - 1, most).astype(int)]


def _most_first(formats: np.ndarray) -> list[str]:
    kinds, counts = np.unique(formats, return_counts=True)
    return [str(kinds[row]) for row in np.argsort(-counts, kind="stable")]


def two_dimensions(embeddings: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """
    Principal components of standardised embeddings.

    Parameters
    ----------
    embeddings : ndarray of float, shape (n, d)
        Finite; n and d at least 2.

    Returns
    -------
    flat : ndarray of float64, shape (n, 2)
    explained : (float, float)
        The share of the variance along each axis; 0 where all pictures are the same.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(embeddings.astype(np.float64))
    if not scaled.any():
        return np.zeros((len(scaled), 2)), (0.0, 0.0)
    axes = PCA(2, svd_solver="full").fit(scaled)
    first, second = axes.explained_variance_ratio_
    return axes.transform(scaled), (float(first), float(second))


def _formats(formats: np.ndarray, split: np.ndarray) -> list[str]:
    """How often each file format comes in each split, and whether it gives the class away."""
    kinds = _most_first(formats)
    if len(kinds) == 1:
        return [
            f"<p>All pictures are saved as {text(kinds[0])}: the format gives nothing away.</p>"
        ]
    rows = [
        [text(kind), *(str(int(((formats == kind) & (split == row)).sum())) for row in range(3))]
        for kind in kinds
    ]
    of_test = split > 0
    auroc = rarity_auroc(list(formats[~of_test]), list(formats[of_test]), split[of_test] == 2)
    said = (
        "How rare a picture's file format is in train/good, and nothing else, orders the test "
        f"pictures with an AUROC of {auroc:.2f}"
    )
    if auroc >= SUSPICIOUS_AUROC:
        said += ": the format can stand in for the defect, and no figure here is to be trusted"
    tone = "red" if auroc >= SUSPICIOUS_AUROC else ""
    return [table("formats", ("format", *SPLITS), rows), mark(tone, f"{said}.")]
