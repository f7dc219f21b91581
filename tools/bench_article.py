"""
Time the loop of the articles beside the device's own, on the same frames, in one run.

The loop of the articles (anomaly detection with DOC features in Keras, scored by scikit-learn) is
written here the way they wrote it: one Keras ``predict`` for each frame, MinMaxScaler,
LocalOutlierFactor, a moving average over ten frames, and in its second form the decoder and the
heatmap for EVERY frame. It is here to be measured; nothing else uses it.

Both loops get the same frames, the same encoder weights, the same references and the same input
scaling (pixels from 0 to 1), so with LOF they give the same scores. Frames are in memory before the
clock starts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from edge_app.align import Aligner, Alignment
from edge_app.bundle import Bundle, made_now, write_bundle
from edge_app.config import DEFAULT_FILE, load_config
from edge_app.encoder import Encoder
from edge_app.enrol import Encodings, gather
from edge_app.enrol import learn as learn_pictures
from edge_app.errors import InputError
from edge_app.inspector import Inspector
from edge_app.learn_neighbours import ScorerSettings
from edge_app.learnt_pictures import LearntPicture
from edge_app.preprocess import Preprocessing
from edge_app.records import Frame, Verdict

if TYPE_CHECKING:
    import keras
    from tqdm import tqdm

ALPHA = 0.5
SIZE = (96, 96)
PIXEL_SCALE = 1 / 255
N_NEIGHBORS = 5
AVERAGED_FRAMES = 10
# The resolution of the articles' camera.
FRAME_SHAPE = (240, 320, 3)
SEED = 0
SCORERS = ("knn", "lof")

# The first calls trace graphs, fill caches and let thread pools start; no loop should pay for it.
_WARM_UP_FRAMES = 10
# An OK frame must stay OK: the comparison without heatmaps is one of good parts passing by.
_FALSE_REJECT_RATE = 0.001
UNALIGNED = Alignment("none")


def configure(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options to a parser.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.description = (
        "Time the loop of the articles (Keras predict, MinMaxScaler, scikit-learn LOF) beside the "
        "device's own on the same frames, encoder weights and references: MobileNetV2 alpha "
        f"{ALPHA}, {SIZE[0]} pixels. The device's loop runs on one thread, Keras on as many as it "
        "wants."
    )
    parser.epilog = "example:\n  python -m tools bench-article --frames 200 --json bench.json"
    add = parser.add_argument
    add("--frames", type=int, default=200, metavar="N", help="frames to time (%(default)s)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help=f"MobileNetV2 alpha {ALPHA} weights (.weights.h5); random without it",
    )
    add(
        "--references",
        type=int,
        default=1000,
        metavar="N",
        help="embeddings of good parts to score against (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here too")


def run(args: argparse.Namespace) -> int:
    """
    Measure, print the table, write the JSON.

    Parameters
    ----------
    args : argparse.Namespace
        The options added by `configure`.

    Returns
    -------
    int
        0.

    Raises
    ------
    InputError
        If an option makes no sense, the weights do not fit or the JSON cannot be written.
    """
    if args.frames < 1:
        raise InputError(f"--frames: got {args.frames}, wanted at least 1")
    if args.references <= N_NEIGHBORS:
        raise InputError(
            f"--references: got {args.references}, wanted at least {N_NEIGHBORS + 1} "
            f"for {N_NEIGHBORS} neighbours"
        )
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: {args.json.parent} is no folder")
    figures = measure(args.frames, args.references, args.weights)
    print(table(figures))
    if args.json is not None:
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        try:
            args.json.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json {args.json}: cannot be written: {error.strerror}") from None
    return 0


def measure(n_frames: int, n_references: int, weights: Path | None) -> dict[str, Any]:
    """
    Time every loop.

    Parameters
    ----------
    n_frames, n_references : int
    weights : Path or None
        MobileNetV2 alpha 0.5 weights; None for random ones, which cost the same time.

    Returns
    -------
    dict
        ``loops``: for each loop ``median_ms``, and for the device's ``ng_frames`` and
        ``decoder_calls`` of the timed frames. ``article_over_ours``: ratios of the medians, the
        articles' loop in its form without heatmap over ours without decoder, and in its form with
        heatmap over ours with a decoder in the bundle. ``frames``, ``references``,
        ``frame_size``, ``weights``, ``threads``, ``runtime``.
    """
    import keras
    from tqdm import tqdm

    from tools.convert import to_tflite
    from tools.decoders import build_decoder
    from tools.network import build_encoder

    keras.utils.set_random_seed(SEED)
    keras_encoder = build_encoder(weights, SIZE, alpha=ALPHA, map_layers=())
    embedding, patches = keras_encoder.outputs
    shapes = (SIZE, embedding.shape[-1], tuple(patches.shape[1:]))
    standard_decoder = build_decoder("standard", *shapes)
    mobile_decoder = to_tflite(build_decoder("mobile", *shapes), "float32")
    encoder = to_tflite(keras_encoder, "float32")
    with tqdm(total=n_references, desc="references", unit="frame") as bar:
        learnt = learn(encoder, drawn_frames(n_references, SEED), lambda seen: bar.update())
    frames = [frame.frame_bgr for frame in drawn_frames(n_frames, SEED + 1)]

    loops: dict[str, dict[str, Any]] = {}
    with tqdm(total=(2 + 3 * len(SCORERS)) * n_frames, desc="timing", unit="frame") as bar:
        article_encoder = keras.Model(keras_encoder.inputs, embedding)
        for name, decoder in (("article", None), ("article_heatmap", standard_decoder)):
            loop = ArticleLoop(article_encoder, learnt.embeddings, decoder)
            warm_up(loop.inspect, frames)
            loops[name] = {"median_ms": timed(loop.inspect, frames, bar)}
        for kind in SCORERS:
            with one_thread():
                bar.set_description(f"learning the references, {kind}")
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "bench"
                    bundle = device_bundle(path, encoder, mobile_decoder, learnt, kind)
                bar.set_description("timing")
                inspector = device_inspector(bundle, heatmaps=False)
                loops[f"ours_{kind}"] = timed_device(inspector, frames, bar)
                inspector = device_inspector(bundle, heatmaps=True)
                loops[f"ours_{kind}_heatmap"] = timed_device(inspector, frames, bar)
                # Every score is above 0: what a frame costs when its heatmap is drawn.
                every_ng = {**bundle.manifest["threshold"], "value": 0.0}
                bundle = replace(bundle, manifest={**bundle.manifest, "threshold": every_ng})
                inspector = device_inspector(bundle, heatmaps=True)
                loops[f"ours_{kind}_heatmap_every_frame"] = timed_device(inspector, frames, bar)
    return {
        "frames": n_frames,
        "references": n_references,
        "frame_size": [FRAME_SHAPE[1], FRAME_SHAPE[0]],
        "weights": "random" if weights is None else weights.name,
        "threads": 1,
        "runtime": inspector.encoder.runtime_name,
        "loops": loops,
        "article_over_ours": {
            name.removeprefix("ours_"): loops[_article_twin(name)]["median_ms"] / loop["median_ms"]
            for name, loop in loops.items()
            if name.startswith("ours_")
        },
    }


def _article_twin(name: str) -> str:
    return "article_heatmap" if "heatmap" in name else "article"


def table(figures: dict[str, Any]) -> str:
    """
    The figures of `measure` as text for a person.

    Returns
    -------
    str
        Lines without a final line break.
    """
    width, height = figures["frame_size"]
    lines = [
        f"{figures['frames']} frames of {width}x{height}, {figures['references']} references, "
        f"MobileNetV2 alpha {ALPHA} at {SIZE[0]} px, weights {figures['weights']}; "
        f"ours: {figures['runtime']} float32, {figures['threads']} thread",
        f"{'loop':<52}{'ms/frame':>10}{'NG':>6}{'decoder':>9}{'article/ours':>14}",
    ]
    for name, loop in figures["loops"].items():
        line = f"{_TITLES[name]:<52}{loop['median_ms']:>10.3f}"
        if name.startswith("ours_"):
            ratio = figures["article_over_ours"][name.removeprefix("ours_")]
            line += f"{loop['ng_frames']:>6}{loop['decoder_calls']:>9}{ratio:>14.1f}"
        lines.append(line)
    lines.append("NG: frames judged NG; decoder: calls of the decoder; both among the timed frames")
    return "\n".join(lines)


_TITLES = {
    "article": "article: Keras, LOF",
    "article_heatmap": "article: Keras, LOF, decoder heatmap on every frame",
    **{
        f"ours_{kind}{suffix}": f"ours: TFLite, {title}{what}"
        for kind, title in (("knn", "kNN"), ("lof", "LOF"))
        for suffix, what in (
            ("", ""),
            ("_heatmap", ", decoder heatmap on NG only"),
            ("_heatmap_every_frame", ", heatmap, every frame NG"),
        )
    },
}


class ArticleLoop:
    """
    The inspection loop of the articles, frame in, moving average of the score out.

    Parameters
    ----------
    encoder : keras.Model
        Pictures (B, 96, 96, 3), RGB from 0 to 1, to embeddings (B, d).
    references : ndarray of float32, shape (n, d)
        Embeddings of good parts.
    decoder : keras.Model, optional
        Embeddings to pictures (B, 96, 96, 3); with it every frame gets its heatmap.
    """

    def __init__(
        self,
        encoder: keras.Model,
        references: np.ndarray,
        decoder: keras.Model | None = None,
    ) -> None:
        from sklearn.neighbors import LocalOutlierFactor
        from sklearn.preprocessing import MinMaxScaler

        self._encoder = encoder
        self._decoder = decoder
        self._scaler = MinMaxScaler().fit(references)
        self._lof = LocalOutlierFactor(n_neighbors=N_NEIGHBORS, novelty=True)
        self._lof.fit(self._scaler.transform(references))
        self._scores: deque[float] = deque(maxlen=AVERAGED_FRAMES)
        self.overlay_bgr: np.ndarray | None = None

    def inspect(self, frame_bgr: np.ndarray) -> float:
        """
        One turn of the loop.

        Parameters
        ----------
        frame_bgr : ndarray of uint8, shape (H, W, 3)

        Returns
        -------
        float
            Mean of the last ten scores, each the LOF (about 1 for a good part); higher is more
            anomalous.
        """
        small_bgr = cv2.resize(frame_bgr, SIZE)
        picture = cv2.cvtColor(small_bgr, cv2.COLOR_BGR2RGB) / 255
        embedding = self._encoder.predict(picture[None], verbose=0)
        self._scores.append(-float(self._lof.score_samples(self._scaler.transform(embedding))[0]))
        if self._decoder is not None:
            redraw = self._decoder.predict(embedding, verbose=0)[0]
            difference = np.abs(picture - redraw).mean(axis=2)
            heat = cv2.applyColorMap(
                np.clip(difference * 255, 0, 255).astype(np.uint8), cv2.COLORMAP_JET
            )
            self.overlay_bgr = cv2.addWeighted(small_bgr, 0.5, heat, 0.5, 0)
        return sum(self._scores) / len(self._scores)


def drawn_frames(count: int, seed: int) -> Iterator[Frame]:
    """
    Frames of one textured part as good parts come by: turned, moved, lit a little differently.

    Parameters
    ----------
    count : int
    seed : int
        Seeds how the part lies; the part itself is always the same.

    Yields
    ------
    Frame
        With `frame_bgr` of shape (240, 320, 3).
    """
    height, width, channels = FRAME_SHAPE
    part_rng = np.random.default_rng(SEED)
    coarse = part_rng.uniform(40, 200, (12, 16, channels)).astype(np.float32)
    part = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    # One field of sensor noise, rolled for each frame: new noise would take longer than all else.
    noise = part_rng.normal(0, 3, FRAME_SHAPE).astype(np.float32)
    rng = np.random.default_rng([seed, count])
    for index in range(count):
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-15, 15), 1.0)
        turn[:, 2] += rng.uniform(-12, 12, 2)
        frame = cv2.warpAffine(part, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
        frame *= np.float32(rng.uniform(0.9, 1.1))
        frame += np.roll(noise, int(rng.integers(height)), axis=0)
        yield Frame(index, "drawn", np.clip(frame, 0, 255).astype(np.uint8))


class Learnt(NamedTuple):
    """Good pictures and what the encoder says of them."""

    pictures: list[LearntPicture]
    encodings: Encodings

    @property
    def embeddings(self) -> np.ndarray:
        """float32, shape (n, d)."""
        return self.encodings.embeddings


def learn(
    encoder: bytes, frames: Iterator[Frame], progress: Callable[[int], None] = lambda seen: None
) -> Learnt:
    """
    Good frames and their encodings, through the device's own code.

    Parameters
    ----------
    encoder : bytes
        A TFLite file that takes pixels from 0 to 1.
    frames : iterator of Frame
    progress : callable
        Called with the number of frames seen.
    """
    aligner = Aligner(UNALIGNED, SIZE, None)
    pictures = gather(frames, aligner, Preprocessing(SIZE), progress=progress).pictures
    pixels_rgb = [picture.pixels_rgb for picture in pictures]
    return Learnt(pictures, Encodings(pixels_rgb, Encoder(encoder, PIXEL_SCALE, 0.0)))


def device_bundle(path: Path, encoder: bytes, decoder: bytes, learnt: Learnt, kind: str) -> Bundle:
    """
    A bundle that scores as the articles do: their feature scaling, neighbours and references.

    Parameters
    ----------
    path : Path
        Where to write it; must not exist.
    encoder, decoder : bytes
        TFLite files; the decoder redraws from the patches.
    learnt : Learnt
    kind : {'knn', 'lof'}

    Returns
    -------
    edge_app.bundle.Bundle
    """
    settings = ScorerSettings(kind, N_NEIGHBORS, "minmax")
    probe = Encoder(encoder, PIXEL_SCALE, 0.0)
    learning = learn_pictures(
        learnt.pictures,
        probe,
        UNALIGNED,
        settings,
        _FALSE_REJECT_RATE,
        encodings=learnt.encodings,
    )
    manifest = {
        "parent_sha256": None,
        "part": "bench",
        "made": made_now("python -m tools bench-article"),
        "input": {
            "size": list(SIZE),
            "colour_order": "rgb",
            "scale": PIXEL_SCALE,
            "offset": 0.0,
            "region": None,
        },
        "encoder": {
            "dtype": "float32",
            "embedding_shape": [probe.embedding_dim],
            "patch_shape": list(probe.patch_shape),
        },
        "quality": None,
        "decoder": {
            "kind": "mobile",
            "source": "patches",
            "blur_share": 0.02,
            "colour_scale": {"low": 0.0, "high": 1.0},
        },
        "provenance": {"weights": "for timing only", "licence": "none", "remake": []},
        **learning.sections,
    }
    return write_bundle(path, manifest, encoder, decoder, learning.reference)


def device_inspector(bundle: Bundle, heatmaps: bool) -> Inspector:
    """
    The device's loop, continuous, with the articles' moving average and one thread.

    Parameters
    ----------
    bundle : edge_app.bundle.Bundle
    heatmaps : bool
        Whether NG frames get their overlay.

    Returns
    -------
    edge_app.inspector.Inspector
    """
    settings = replace(load_config(DEFAULT_FILE).decision, smoothing_frames=AVERAGED_FRAMES)
    return Inspector(bundle, settings, "continuous", threads=1, heatmaps=heatmaps)


def timed_device(inspector: Inspector, frames: list[np.ndarray], bar: tqdm) -> dict[str, Any]:
    """
    Time the device's loop and count what it did.

    Parameters
    ----------
    inspector : edge_app.inspector.Inspector
        With a decoder in its bundle.
    frames : list of ndarray of uint8, each of shape (H, W, 3)
        BGR.
    bar : tqdm.tqdm

    Returns
    -------
    dict
        ``median_ms``, ``ng_frames`` and ``decoder_calls`` of the timed frames.
    """
    verdicts: list[Verdict] = []

    def inspect(frame_bgr: np.ndarray) -> None:
        (result,) = inspector.inspect(Frame(len(verdicts), "drawn", frame_bgr))
        verdicts.append(result.decision.verdict)

    warm_up(inspect, frames)
    verdicts.clear()
    calls = inspector.decoder.calls
    median_ms = timed(inspect, frames, bar)
    return {
        "median_ms": median_ms,
        "ng_frames": verdicts.count(Verdict.NG),
        "decoder_calls": inspector.decoder.calls - calls,
    }


def warm_up(inspect: Callable[[np.ndarray], object], frames: list[np.ndarray]) -> None:
    """Call `inspect` on a few of the frames, so that no timed call traces a graph."""
    for index in range(_WARM_UP_FRAMES):
        inspect(frames[index % len(frames)])


def timed(inspect: Callable[[np.ndarray], object], frames: list[np.ndarray], bar: tqdm) -> float:
    """
    Median time of one call over the frames, in milliseconds; `bar` moves on by one for each.

    Parameters
    ----------
    inspect : callable
        Takes a BGR frame.
    frames : list of ndarray of uint8, each of shape (H, W, 3)
    bar : tqdm.tqdm

    Returns
    -------
    float
    """
    latencies_ms = []
    for frame_bgr in frames:
        start = time.perf_counter()
        inspect(frame_bgr)
        latencies_ms.append((time.perf_counter() - start) * 1e3)
        bar.update()
    return float(np.median(latencies_ms))


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV and the linear algebra of numpy on one thread, as before afterwards."""
    from threadpoolctl import threadpool_limits

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        cv2.setNumThreads(before)
