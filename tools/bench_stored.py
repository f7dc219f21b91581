"""
How many good embeddings need to be stored: AUROC and milliseconds an image over their number.

The table of one of the articles (anomaly detection with DOC features on a Raspberry Pi), made with
the device's own scorers: pooled embeddings of N good pictures, image AUROC on the test split, and
what one image costs, encoder and scoring on one thread, one image a call and several. The encoder
is exported for each batch size and gives the embedding alone; bundles keep batch 1. Beside each row
stand what raw pixels reach with the same N pictures: the distance to their mean, and to the k
nearest of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from edge_app.arguments import refuse_unwritable, seed, whole_from_1
from edge_app.encoder import quantise, read_float
from edge_app.errors import EdgeAppError, InputError
from edge_app.learn_neighbours import ScorerSettings, fit_scorer, refuse_too_few
from edge_app.preprocess import Preprocessing, prepare
from edge_app.runtime import open_interpreter
from edge_app.scorer import (
    BOUND_MARGIN,
    DENSITY_EPSILON,
    FEATURE_SCALINGS,
    SCORERS,
    FeatureScaling,
    NeighbourScorer,
    build_scorer,
)
from edge_app.sources.folder import read_picture
from tools.figures import write_figures
from tools.inspection_set import InspectionSet, read_inspection_set, refuse_one_sided
from tools.metrics import image_auroc

if TYPE_CHECKING:
    import keras

# The numbers of the article's table.
STORED = (6000, 3000, 1000, 500, 100, 50)
BATCHES = (1, 20)
# Side of the input where only weights are given: pictures as small as the article's gain nothing by
# more, and 32 would leave MobileNetV2 a single cell.
SIZE = 64
# Raw pixels are compared at the pictures' own size up to this side, else at this size: as the
# trivial mean picture of `evaluate`.
MOST_RAW_SIDE = 64
# Each timing is the median of so many blocks, and a block holds at least so many pictures; blocks
# of all that is compared take turns, so that whatever else the machine does meets all of them.
ROUNDS, BLOCK = 9, 40
# Two exports of one network may round differently, and so turn round a pair of scores that are as
# good as equal; more than this is not rounding.
SAME_AUROC = 5e-4


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench-stored``."""
    parser.description = (
        "AUROC and milliseconds an image over the number of stored good embeddings, beside what\n"
        "raw pixels reach. The test split is read: choose nothing by this table."
    )
    parser.epilog = (
        "example:\n"
        "  python -m tools unpack-idx --idx fashion_mnist --good 7 --defect 9 --out sets/sneaker\n"
        "  python -m tools bench-stored --run runs/sneaker --data sets/sneaker --json stored.json"
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="RUN", help="folder made by train-encoder")
    source.add_argument(
        "--weights",
        metavar="W",
        help="a MobileNetV2 weights file (.weights.h5), or 'imagenet' (downloads alpha 0.35)",
    )
    add("--data", type=Path, required=True, metavar="DIR", help="a set in the layout of MVTec AD")
    add(
        "--stored",
        type=whole_from_1,
        nargs="+",
        default=list(STORED),
        metavar="N",
        help="numbers of good pictures to store; a smaller number takes some of those of the "
        "larger",
    )
    add(
        "--batches",
        type=whole_from_1,
        nargs="+",
        default=list(BATCHES),
        metavar="B",
        help="images of one call",
    )
    add(
        "--scorer",
        choices=SCORERS,
        nargs="+",
        default=list(SCORERS),
        help="over the embeddings",
    )
    add(
        "--neighbours",
        type=whole_from_1,
        default=5,
        metavar="K",
        help="of lof, knn and the raw pixels' knn",
    )
    add(
        "--feature-scaling",
        choices=FEATURE_SCALINGS,
        default="minmax",
        help="of the embeddings",
    )
    add("--seed", type=seed, default=0, metavar="N", help="of the stored subset")
    add(
        "--size",
        type=whole_from_1,
        metavar="PX",
        help=f"side of the encoder's input (default: the RUN's; {SIZE} with --weights)",
    )
    add(
        "--embedding-layer",
        metavar="L",
        help="layer that is averaged (default: the RUN's; out_relu with --weights)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure; see the module's docstring."""
    from threadpoolctl import threadpool_limits

    from tools.network import encoder_from, layers_of

    inspection_set = read_inspection_set(args.data)
    settings = [ScorerSettings(k, args.neighbours, args.feature_scaling) for k in args.scorer]
    stored = sizes(args.stored, len(inspection_set.train_good))
    refuse_too_few(stored[-1], settings[0])
    if args.json is not None:
        refuse_unwritable(args.json)
    size = (args.size, args.size) if args.size else None
    if args.run is None:
        alpha = 0.35 if args.weights == "imagenet" else None
        encoder = encoder_from(
            args.weights, size or (SIZE, SIZE), args.embedding_layer, None, alpha
        )
    else:
        if not args.run.is_dir():
            raise InputError(f"{args.run}: no such RUN folder")
        encoder = encoder_from(args.run, size, args.embedding_layer)
    # One thread also for the scorers' matrix products, whatever the environment says.
    with threadpool_limits(1):
        figures = bench(encoder, inspection_set, stored, args.batches, settings, args.seed)
    figures["encoder"] |= {
        "weights": str(args.run or args.weights),
        "embedding_layer": layers_of(encoder)[0],
    }
    most = len(inspection_set.train_good)
    if max(args.stored) > most:
        print(f"--stored {max(args.stored)}: there are {most} good pictures, so all are stored")
    _print(figures)
    write_figures(args.json, figures)
    return 0


def sizes(wanted: Sequence[int], most: int) -> list[int]:
    """The numbers wanted, none above `most`, each once, the largest first."""
    return sorted({min(count, most) for count in wanted}, reverse=True)


class BatchEncoder:
    """
    A TFLite encoder of a fixed batch with the embedding as its only output.

    Parameters
    ----------
    model : bytes
        From `embedding_model` by `tools.convert.to_tflite`; input scaled ``x / 127.5 - 1``.

    Attributes
    ----------
    batch : int
    size : tuple of int
        (height, width) of the input.
    dim : int
    runtime_name : str
    """

    def __init__(self, model: bytes) -> None:
        self._interpreter = open_interpreter(model, 1)
        (self._takes,) = self._interpreter.get_input_details()
        (self._gives,) = self._interpreter.get_output_details()
        self.batch, *size, _ = (int(n) for n in self._takes["shape"])
        self.size = tuple(size)
        self.dim = int(self._gives["shape"][1])
        self.runtime_name = self._interpreter.runtime_name
        self._table = quantise(np.arange(256) / 127.5 - 1.0, self._takes)

    def encode(self, pixels_rgb: np.ndarray) -> np.ndarray:
        """
        Embeddings of as many pictures as the batch holds.

        Parameters
        ----------
        pixels_rgb : ndarray of uint8, shape (batch, *size, 3)

        Returns
        -------
        ndarray of float32, shape (batch, dim)
        """
        # As one tall picture: OpenCV's table is several times faster than numpy's.
        tall = pixels_rgb.reshape(-1, self.size[1], 3)
        values = cv2.LUT(tall, self._table).reshape(pixels_rgb.shape)
        self._interpreter.set_tensor(self._takes["index"], values)
        self._interpreter.invoke()
        if self.batch == 1:
            return read_float(self._interpreter, self._gives)[None]
        return self._interpreter.get_tensor(self._gives["index"]).copy()

    def encode_all(self, pixels_rgb: np.ndarray) -> np.ndarray:
        """Embeddings of any number of pictures, shape (n, *size, 3); the last call is filled up."""
        embeddings = np.empty((len(pixels_rgb), self.dim), np.float32)
        for first in range(0, len(pixels_rgb), self.batch):
            rows = np.arange(first, first + self.batch).clip(max=len(pixels_rgb) - 1)
            answer = self.encode(pixels_rgb[rows])
            embeddings[first : first + self.batch] = answer[: len(embeddings) - first]
        return embeddings


def embedding_model(encoder: keras.Model) -> keras.Model:
    """The encoder with nothing but its embedding; no layer deeper than that remains in it."""
    import keras

    return keras.Model(encoder.inputs[0], encoder.outputs[0], name="embedding_only")


class BatchScorer:
    """
    `NeighbourScorer` for several embeddings at once: one matrix product tells the nearest rows.

    Scores are the device's to rounding. The product gives ``|r|^2 - 2 r q`` of every row r and
    query q; rows that its rounding cannot tell from the k-th nearest are measured exactly.

    Parameters
    ----------
    kind : {'lof', 'knn'}
    k : int
    feature_scaling : {'none', 'l2', 'minmax'}
    arrays : mapping of str to ndarray
        `embeddings`, shape (n, d), and what `fit_scorer` gave for them.
    """

    def __init__(
        self, kind: str, k: int, feature_scaling: str, arrays: Mapping[str, np.ndarray]
    ) -> None:
        self.kind, self.k = kind, k
        self._scaling = FeatureScaling(
            feature_scaling, arrays.get("scaling_low"), arrays.get("scaling_span")
        )
        self._k_distance, self._density = arrays.get("k_distance"), arrays.get("density")
        scaled = self._scaling.apply(arrays["embeddings"])
        # Distances do not change when the origin moves to the middle, but float32 keeps more of
        # their digits there.
        self._centre = scaled.mean(axis=0)
        self._rows = (scaled - self._centre).astype(np.float32)
        self._rows_sq = np.einsum("ij,ij->i", self._rows, self._rows)

    def score(self, embeddings: np.ndarray) -> np.ndarray:
        """
        Anomaly scores.

        Parameters
        ----------
        embeddings : ndarray of float32, shape (b, d)

        Returns
        -------
        ndarray of float64, shape (b,)
            Higher is more anomalous; NaN where an embedding is not finite.
        """
        queries = (self._scaling.apply(embeddings) - self._centre).astype(np.float32)
        queries_sq = np.einsum("ij,ij->i", queries, queries)
        finite = np.isfinite(queries_sq)
        queries[~finite] = 0.0
        near = queries @ self._rows.T
        near *= -2.0
        near += self._rows_sq
        least = np.partition(near, self.k - 1, axis=1)[:, self.k - 1]
        rounding = BOUND_MARGIN * (np.abs(least) + 3 * np.where(finite, queries_sq, 0.0))
        which, rows = (near <= (least + rounding)[:, None]).nonzero()
        distance_sq = np.empty(len(rows), np.float32)
        # As many at a time as there are neighbours in all: where many rows are as near as each
        # other, their differences would fill the memory.
        step = max(1, len(queries) * self.k)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            difference = self._rows[rows[part]] - queries[which[part]]
            np.einsum("ij,ij->i", difference, difference, out=distance_sq[part])
        # Of equal distances the first row's counts, as on the device.
        order = np.lexsort((rows, distance_sq, which))
        starts = np.searchsorted(which[order], np.arange(len(queries)))
        nearest = order[starts[:, None] + np.arange(self.k)]
        distances = np.sqrt(distance_sq[nearest], dtype=np.float64)
        if self.kind == "knn":
            scores = distances.mean(axis=1)
        else:
            neighbours = rows[nearest]
            reach = np.maximum(distances, self._k_distance[neighbours])
            density = 1.0 / (reach.mean(axis=1) + DENSITY_EPSILON)
            scores = self._density[neighbours].mean(axis=1) / density
        return np.where(finite, scores, np.nan)


@dataclass(frozen=True)
class _Embedded:
    """Embeddings, raw grey pixels and a few pictures to time on."""

    good: np.ndarray
    test: dict[int, np.ndarray]
    good_raw: np.ndarray
    test_raw: np.ndarray
    timed_rgb: np.ndarray
    is_anomaly: list[bool]


def bench(
    encoder: keras.Model,
    inspection_set: InspectionSet,
    stored: Sequence[int],
    batches: Sequence[int],
    settings: Sequence[ScorerSettings],
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Measure.

    Parameters
    ----------
    encoder : keras.Model
        As from `tools.network.build_encoder`.
    inspection_set : InspectionSet
    stored : sequence of int
        Numbers of good pictures to store, each at most as many as there are.
    batches : sequence of int
        Images of one call.
    settings : sequence of ScorerSettings
        Of kind 'lof' or 'knn', all with the same k.
    seed : int
        Of the order in which the good pictures are taken; a smaller number takes the first of it.
    progress : bool
        Whether to show progress bars on stderr.

    Returns
    -------
    dict
        `set`, `seed`, `neighbours`, `feature_scaling`, `threads`, `runtime`, `images` {`good`,
        `defective`} of the test split, `encoder` {`size`, `embedding_dim`, `multiply_adds`,
        `bytes` by batch}, `batch_agreement` {`embedding`, `auroc`}: largest differences between
        the exports; and `rows`, of each number: `stored`, `raw_pixels` {`mean_picture`, `knn`}
        (image AUROC) and for each scorer's kind `image_auroc`, and by batch `ms` an image,
        `encoder_ms` and `score_ms`, of which it is the sum.

    Raises
    ------
    InputError
        If a picture cannot be decoded, the test split has one class only, or the numbers are too
        few for the neighbours.
    EdgeAppError
        If two exports disagree on an AUROC by more than `SAME_AUROC`.
    """
    from tools.convert import to_tflite
    from tools.network import multiply_adds

    refuse_one_sided(inspection_set)
    is_anomaly = [picture.is_anomaly for picture in inspection_set.test]
    for count in stored:
        refuse_too_few(count, settings[0])
    model = embedding_model(encoder)
    batches = sorted(set(batches))
    files = {batch: to_tflite(model, "float32", batch=batch) for batch in batches}
    encoders = {batch: BatchEncoder(content) for batch, content in files.items()}
    embedded = _embed(encoders, inspection_set, seed, progress)
    rows, off, timed = [], 0.0, {}
    bar = _bar(len(stored) * len(settings), "scoring", "scorer", progress)
    with bar:
        for count in stored:
            row: dict[str, Any] = {"stored": count}
            row["raw_pixels"] = _raw_figures(embedded, count, settings[0].k)
            for one in settings:
                arrays = {"embeddings": embedded.good[:count]}
                arrays |= fit_scorer(arrays["embeddings"], one)
                scorers = {batch: _scorer(one, arrays, batch) for batch in batches}
                aurocs = [
                    image_auroc(_scores(scorers[batch], batch, embedded.test[batch]), is_anomaly)
                    for batch in batches
                ]
                off = max(off, max(aurocs) - min(aurocs))
                row[one.kind] = {"image_auroc": aurocs[0]}
                timed |= {(count, one.kind, batch): scorers[batch] for batch in batches}
                bar.update()
            rows.append(row)
    if not off <= SAME_AUROC:
        raise EdgeAppError(
            f"the AUROC differs by {off:.4f} between the batch sizes {batches}, wanted "
            f"{SAME_AUROC} at most: one of the exports says something else"
        )
    times = _times(encoders, timed, embedded.timed_rgb, progress)
    for row in rows:
        for one in settings:
            for name in ("ms", "encoder_ms", "score_ms"):
                row[one.kind][name] = {
                    str(batch): times[row["stored"], one.kind, batch][name] for batch in batches
                }
    first = embedded.test[batches[0]]
    return {
        "set": inspection_set.name,
        "seed": seed,
        "neighbours": settings[0].k,
        "feature_scaling": settings[0].feature_scaling,
        "threads": 1,
        "runtime": encoders[batches[0]].runtime_name,
        "images": {"good": is_anomaly.count(False), "defective": is_anomaly.count(True)},
        "encoder": {
            "size": list(encoders[batches[0]].size),
            "embedding_dim": encoders[batches[0]].dim,
            "multiply_adds": multiply_adds(model),
            "bytes": {str(batch): len(content) for batch, content in files.items()},
        },
        "batch_agreement": {
            "embedding": max(float(np.abs(embedded.test[b] - first).max()) for b in batches),
            "auroc": off,
        },
        "rows": rows,
    }


def _bar(total: int, what: str, unit: str, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, delay=2, leave=False, disable=not progress)


def _embed(
    encoders: Mapping[int, BatchEncoder],
    inspection_set: InspectionSet,
    seed: int,
    progress: bool,
) -> _Embedded:
    """Each picture is read once; good ones by the largest batch, test pictures by every export."""
    largest = encoders[max(encoders)]
    order = np.random.default_rng(seed).permutation(len(inspection_set.train_good))
    good_paths = [inspection_set.train_good[row] for row in order]
    test_paths = [picture.path for picture in inspection_set.test]
    raw_size = _raw_size(good_paths[0])
    good, good_raw, test_raw = [], [], []
    test: dict[int, list[np.ndarray]] = {batch: [] for batch in encoders}
    timed: list[np.ndarray] = []
    with _bar(len(good_paths) + len(test_paths), "embedding", "picture", progress) as bar:
        for chunk_rgb, grey in _chunks(good_paths, largest, raw_size):
            good.append(largest.encode_all(chunk_rgb))
            good_raw.append(grey)
            bar.update(len(grey))
        for chunk_rgb, grey in _chunks(test_paths, largest, raw_size):
            for batch, encoder in encoders.items():
                test[batch].append(encoder.encode_all(chunk_rgb))
            test_raw.append(grey)
            if not timed:
                timed.append(chunk_rgb)
            bar.update(len(grey))
    return _Embedded(
        np.concatenate(good),
        {batch: np.concatenate(parts) for batch, parts in test.items()},
        np.concatenate(good_raw),
        np.concatenate(test_raw),
        timed[0],
        [picture.is_anomaly for picture in inspection_set.test],
    )


def _chunks(
    paths: Sequence[Path], encoder: BatchEncoder, raw_size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """RGB pictures as the encoder takes them and flat grey ones of `raw_size`, float32."""
    recipe = Preprocessing(encoder.size)
    step = encoder.batch * -(-BLOCK // encoder.batch)
    for first in range(0, len(paths), step):
        frames = [read_picture(path) for path in paths[first : first + step]]
        pixels_rgb = np.stack([prepare(frame, recipe) for frame in frames])
        yield pixels_rgb, np.stack([_raw(frame, raw_size) for frame in frames])


def _raw_size(path: Path) -> tuple[int, int]:
    height, width = read_picture(path).shape[:2]
    if max(height, width) <= MOST_RAW_SIDE:
        return height, width
    return MOST_RAW_SIDE, MOST_RAW_SIDE


def _raw(frame_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    if grey.shape != size:
        grey = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA)
    return grey.reshape(-1)


def _raw_figures(embedded: _Embedded, count: int, k: int) -> dict[str, float]:
    good = embedded.good_raw[:count]
    away = np.linalg.norm(embedded.test_raw - good.mean(axis=0), axis=1)
    nearest = BatchScorer("knn", k, "none", {"embeddings": good})
    scores = np.concatenate(
        [
            nearest.score(embedded.test_raw[first : first + BLOCK])
            for first in range(0, len(embedded.test_raw), BLOCK)
        ]
    )
    return {
        "mean_picture": image_auroc(away, embedded.is_anomaly),
        "knn": image_auroc(scores, embedded.is_anomaly),
    }


def _scorer(
    settings: ScorerSettings, arrays: Mapping[str, np.ndarray], batch: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of embeddings (batch, d): one at a time by the device's scorer."""
    recipe = settings.kind, settings.k, settings.feature_scaling, arrays
    if batch > 1:
        return BatchScorer(*recipe).score
    scorer: NeighbourScorer = build_scorer(*recipe)
    return lambda embeddings: np.array([scorer.score(one) for one in embeddings])


def _scores(
    scorer: Callable[[np.ndarray], np.ndarray], batch: int, embeddings: np.ndarray
) -> np.ndarray:
    parts = range(0, len(embeddings), batch)
    return np.concatenate([scorer(embeddings[first : first + batch]) for first in parts])


def _times(
    encoders: Mapping[int, BatchEncoder],
    scorers: Mapping[tuple[int, str, int], Callable[[np.ndarray], np.ndarray]],
    pictures_rgb: np.ndarray,
    progress: bool,
) -> dict[tuple[int, str, int], dict[str, float]]:
    """Milliseconds an image of each, medians over blocks that take turns."""
    taken: dict[tuple[int, str, int], list[tuple[float, float]]] = {key: [] for key in scorers}
    clock = time.perf_counter
    with _bar((ROUNDS + 1) * len(scorers), "timing", "block", progress) as bar:
        for _ in range(ROUNDS + 1):
            for key, scorer in scorers.items():
                batch = key[2]
                calls = -(-BLOCK // batch)
                encode_s = score_s = 0.0
                for call in range(calls):
                    rows = np.arange(call * batch, (call + 1) * batch) % len(pictures_rgb)
                    pixels_rgb = pictures_rgb[rows]
                    started = clock()
                    embeddings = encoders[batch].encode(pixels_rgb)
                    between = clock()
                    scorer(embeddings)
                    encode_s += between - started
                    score_s += clock() - between
                taken[key].append((encode_s / calls / batch * 1e3, score_s / calls / batch * 1e3))
                bar.update()
    figures = {}
    for key, pairs in taken.items():
        # The first round warms up.
        encoder_ms, score_ms = np.median(pairs[1:], axis=0)
        figures[key] = {
            "ms": float(encoder_ms + score_ms),
            "encoder_ms": float(encoder_ms),
            "score_ms": float(score_ms),
        }
    return figures


def _print(figures: Mapping[str, Any]) -> None:
    encoder, images, rows = figures["encoder"], figures["images"], figures["rows"]
    kinds = [kind for kind in SCORERS if kind in rows[0]]
    batches = list(rows[0][kinds[0]]["ms"])
    print(
        f"{figures['set']}: {images['good']} good and {images['defective']} defective test "
        f"pictures; {encoder['embedding_layer']} at {encoder['size'][1]} x {encoder['size'][0]}, "
        f"{encoder['embedding_dim']} numbers, {encoder['multiply_adds'] / 1e6:.1f} million "
        f"multiply-adds; k {figures['neighbours']}, {figures['feature_scaling']}, "
        f"{figures['runtime']}, 1 thread"
    )
    head = f"{'stored':>7}"
    for kind in kinds:
        head += f"{kind + ' AUROC':>12}" + "".join(f"{'ms, batch ' + b:>14}" for b in batches)
    print(head + f"{'raw mean':>12}{'raw knn':>10}")
    for row in rows:
        line = f"{row['stored']:>7}"
        for kind in kinds:
            line += f"{row[kind]['image_auroc']:>12.4f}"
            line += "".join(f"{row[kind]['ms'][batch]:>14.3f}" for batch in batches)
        raw = row["raw_pixels"]
        print(line + f"{raw['mean_picture']:>12.4f}{raw['knn']:>10.4f}")
    agreement = figures["batch_agreement"]
    print(
        f"ms an image, encoder and scoring; the exports of batch {', '.join(batches)} differ by "
        f"{agreement['embedding']:.1g} in an embedding, {agreement['auroc']:.1g} in an AUROC\n"
        "raw: AUROC of the distance to the mean of the stored pictures, and to the k nearest of "
        "them, on raw pixels"
    )
