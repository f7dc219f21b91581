"""
What the loop costs, as a ratio to the bare encoder call on the same frames in the same run.

Loop and bare call take turns, a block of frames each, so that whatever else the machine does meets
both, and each finds the caches as it leaves them itself, as it does in use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from edge_app.align import Alignment, read_alignment
from edge_app.bundle import LEARNT, Bundle, made_now, write_bundle
from edge_app.config import DecisionConfig, QualityConfig
from edge_app.errors import InputError
from edge_app.foreground import FIND_SIDE
from edge_app.inspector import Inspector, build_encoder
from edge_app.learn_neighbours import ScorerSettings, fit_scorer
from edge_app.learnt_pictures import unpack
from edge_app.preprocess import Preprocessing, prepare
from edge_app.quality import ANYTHING, as_section
from edge_app.records import Frame
from edge_app.runtime import open_interpreter
from edge_app.sources import Source
from edge_app.sources.folder import FolderSource

# The article's camera. Larger frames cost more to shrink: name a source to measure yours.
FRAME_SHAPE = (240, 320)
WARM_UP = 20
BLOCK = 20
MOST_FRAMES = 32


def bench(
    bundle: Bundle,
    settings: DecisionConfig,
    quality: QualityConfig,
    scorer: ScorerSettings | None,
    references: int | None,
    source: Source | None,
    loops: int,
    threads: int,
) -> dict[str, Any]:
    """
    Measure.

    Parameters
    ----------
    bundle : Bundle
    settings : DecisionConfig
    quality : QualityConfig
    scorer : ScorerSettings or None
        None for the bundle's own.
    references : int or None
        Number of seeded reference rows, or None for the bundle's own rows.
    source : Source or None
        Frames; None for seeded pictures.
    loops : int
        Frames measured, after a warm-up.
    threads : int

    Returns
    -------
    dict
        As in the design: `encoder_ms`, `loop_ms`, `score_ms`, `read_ms`, `loop_over_encoder`,
        `score_over_encoder`, `stages_ms`, `start_to_first_verdict_s`, `peak_rss_mb`, `runtime`,
        `threads`, `frames`, and what was measured: `scorer`, `references`,
        `reference_bytes`, `input_size`, `frame_size`.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="edge-app-bench-") as folder:
        frames_bgr = _take(source) if source else _frames(bundle, rng)
        picture = Path(folder) / "frame.jpg"
        cv2.imwrite(os.fspath(picture), frames_bgr[0])
        if references or scorer:
            bundle = _with_reference(
                bundle,
                scorer or ScorerSettings("lof"),
                references,
                frames_bgr,
                rng,
                folder,
                threads,
            )
        if source is None and bundle.manifest["presence"] is not None:
            bundle = _without_empty(bundle, folder)
        # The stage is to be paid for, but the pictures drawn here are none to be refused by it.
        if bundle.manifest["quality"] is not None:
            bundle = replace(bundle, manifest={**bundle.manifest, "quality": as_section(ANYTHING)})
        inspector = Inspector(
            bundle, settings, "continuous", threads, heatmaps=False, quality=quality
        )
        bare = _bare_call(bundle, frames_bgr[0], threads)
        stages: dict[str, list[float]] = {}
        loop_ms, encoder_ms, unscored = [], [], 0
        clock = time.perf_counter
        for index in range(WARM_UP):
            inspector.inspect(Frame(index, "bench", frames_bgr[index % len(frames_bgr)]))
            bare()
        while len(loop_ms) < loops:
            block = range(len(loop_ms), min(len(loop_ms) + BLOCK, loops))
            for index in block:
                # Freshly written, as a decoder or a camera leaves it.
                frame = Frame(index, "bench", frames_bgr[index % len(frames_bgr)].copy())
                at = clock()
                (result,) = inspector.inspect(frame)
                took_ms = (clock() - at) * 1e3
                if "score" not in result.latency_ms:
                    unscored += 1
                    if unscored > loops:
                        raise InputError(
                            "hardly a frame shows a part, so there is nothing to measure"
                        )
                    continue
                loop_ms.append(took_ms)
                for stage, ms in result.latency_ms.items():
                    stages.setdefault(stage, []).append(ms)
            for _ in block:
                at = clock()
                bare()
                encoder_ms.append((clock() - at) * 1e3)
        stages.pop("read")
        if "score" not in stages:
            raise InputError("none of the frames shows a part, so there is nothing to measure")
        start_s, peak_rss_mb = _first_verdict(bundle, picture, threads)
        read_ms = _read_ms(picture)
    encoder, loop, score = median(encoder_ms), median(loop_ms), median(stages["score"])
    return {
        "encoder_ms": encoder,
        "loop_ms": loop,
        "score_ms": score,
        "read_ms": read_ms,
        "loop_over_encoder": loop / encoder,
        "score_over_encoder": score / encoder,
        "stages_ms": {stage: median(times) for stage, times in stages.items()},
        "start_to_first_verdict_s": start_s,
        "peak_rss_mb": peak_rss_mb,
        "runtime": inspector.encoder.runtime_name,
        "threads": threads,
        "frames": loops,
        "scorer": bundle.manifest["scorer"],
        "references": len(bundle.reference["scores"]),
        "reference_bytes": _held_bytes(bundle),
        "input_size": list(bundle.size),
        "frame_size": list(frames_bgr[0].shape[:2]),
    }


def _held_bytes(bundle: Bundle) -> int:
    """Bytes of the reference arrays as they are held in memory, in single precision."""
    arrays = bundle.reference.values()
    return sum(4 * array.size if array.dtype.kind == "f" else array.nbytes for array in arrays)


def _frames(bundle: Bundle, rng: np.random.Generator) -> list[np.ndarray]:
    """Seeded pictures; where the bundle looks for a part, its learnt ones on a plain background."""
    alignment = read_alignment(bundle.manifest["alignment"], bundle.reference or {})
    if alignment.recipe == "none":
        return [_picture(rng) for _ in range(8)]
    content = bundle.learnt()
    if content is None:
        raise InputError(
            f"{bundle.path}: looks for a part and holds no picture of one: name a SOURCE with parts"
        )
    pictures = unpack(content, str(bundle.path / LEARNT))
    return [_on_background(picture.pixels_rgb, alignment) for picture in pictures[:8]]


def _on_background(pixels_rgb: np.ndarray, alignment: Alignment) -> np.ndarray:
    """A learnt picture as large in a frame of FRAME_SHAPE as it was in its own, BGR uint8."""
    height, width = FRAME_SHAPE
    scale = max(FRAME_SHAPE) / (FIND_SIDE * alignment.zoom)
    rows, columns = (
        min(round(side * scale), most)
        for side, most in zip(alignment.template.shape, FRAME_SHAPE, strict=True)
    )
    part_bgr = cv2.resize(pixels_rgb[:, :, ::-1], (columns, rows), interpolation=cv2.INTER_AREA)
    rim = np.concatenate([part_bgr[0], part_bgr[-1], part_bgr[:, 0], part_bgr[:, -1]])
    frame_bgr = np.empty((height, width, 3), np.uint8)
    frame_bgr[:] = np.median(rim, axis=0).astype(np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    frame_bgr[top : top + rows, left : left + columns] = part_bgr
    return frame_bgr


def _picture(rng: np.random.Generator) -> np.ndarray:
    """A seeded picture with structure at several sizes, FRAME_SHAPE, BGR uint8."""
    height, width = FRAME_SHAPE
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    total += rng.normal(0, 0.05, total.shape).astype(np.float32)
    return np.clip(total * 85, 0, 255).astype(np.uint8)


def _take(source: Source) -> list[np.ndarray]:
    try:
        frames = [f.frame_bgr for f in islice(source.frames(), MOST_FRAMES)]
    finally:
        source.close()
    frames = [frame for frame in frames if frame is not None]
    if not frames:
        raise InputError("the source holds no readable frame")
    return frames


def _with_reference(
    bundle: Bundle,
    scorer: ScorerSettings,
    references: int | None,
    frames_bgr: list[np.ndarray],
    rng: np.random.Generator,
    folder: str,
    threads: int,
) -> Bundle:
    """
    The bundle with another scorer or reference.

    Seeded rows are the encoder's own embeddings of the frames under seeded changes of light, place
    and noise: rows drawn from a plain random generator would not lie as embeddings do.
    """
    known = bundle.reference or {}
    if references is None:
        if "embeddings" not in known:
            raise InputError(
                f"{bundle.path}: holds no pooled embeddings: say how many rows, --references N"
            )
        embeddings = known["embeddings"]
    else:
        encoder = build_encoder(bundle, threads)
        recipe = Preprocessing(bundle.size, bundle.region)
        small = [prepare(frame, recipe) for frame in frames_bgr]
        rows = []
        for index in range(references):
            pixels = small[index % len(small)].astype(np.float32)
            pixels = np.roll(pixels, rng.integers(-6, 7, 2), axis=(0, 1)) * rng.uniform(0.8, 1.2)
            pixels += rng.normal(0, 4, pixels.shape)
            rows.append(encoder.encode(np.clip(pixels, 0, 255).astype(np.uint8)).embedding)
        embeddings = np.stack(rows)
    count = len(embeddings)
    reference = {
        "embeddings": embeddings,
        "image_ids": np.array([str(index) for index in range(count)]),
        # Nobody asks for verdicts here, so no picture is held out.
        "scores": np.zeros(count),
        **{name: known[name] for name in known if name.startswith(("align_", "empty_"))},
        **fit_scorer(embeddings, scorer),
    }
    threshold = {
        "value": 0.0,
        "method": "none: measured for its cost",
        "wanted_rate": 0.01,
        "supported_rate": 1 / (count + 1),
        "images": count,
    }
    manifest = {
        **bundle.manifest,
        "scorer": asdict(scorer),
        "threshold": threshold,
        "made": made_now("edge-app bench"),
    }
    return write_bundle(
        Path(folder) / "bundle", manifest, bundle.encoder, bundle.decoder, reference
    )


def _without_empty(bundle: Bundle, folder: str) -> Bundle:
    """
    The bundle with an empty view that lets every picture pass as a part in its place.

    The seeded pictures are none of the station's. The stage costs the same whatever it answers.
    """
    presence = {
        **bundle.manifest["presence"],
        "difference": 256.0,
        "least_share": 0.0,
        "place": [0.0, 0.0, 1.0, 1.0],
    }
    manifest = {**bundle.manifest, "presence": presence}
    path = Path(folder) / "any-view"
    return write_bundle(path, manifest, bundle.encoder, bundle.decoder, bundle.reference)


def _bare_call(bundle: Bundle, frame_bgr: np.ndarray, threads: int) -> Callable[[], None]:
    """A call of the encoder's network and nothing else."""
    interpreter = open_interpreter(bundle.encoder, threads)
    detail = interpreter.get_input_details()[0]
    pixels = prepare(frame_bgr, Preprocessing(bundle.size, bundle.region))[None]
    tensor = pixels.astype(np.float32) / 255 if detail["dtype"] == np.float32 else pixels
    tensor = tensor.astype(detail["dtype"])

    def call() -> None:
        interpreter.set_tensor(detail["index"], tensor)
        interpreter.invoke()

    return call


# The peak since the program began: getrusage would also count the forked copy of this process.
_MEASURED_MAIN = """
import sys
from edge_app.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


def _first_verdict(bundle: Bundle, picture: Path, threads: int) -> tuple[float, float]:
    """Seconds from process start to the verdict on one picture, median of 5, and its peak MB."""
    command = [sys.executable, "-c", _MEASURED_MAIN, "inspect", os.fspath(picture)]
    command += ["--bundle", os.fspath(bundle.path), "--json", "-", "--threads", str(threads)]
    # The package may run from a checkout that is not the working folder.
    root = os.fspath(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        run = subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONPATH": path}, check=False
        )
        times.append(time.perf_counter() - started)
        said = run.stderr.decode(errors="replace").strip()
        if run.returncode:
            raise InputError("inspect failed: " + said)
    return median(times), int(said.splitlines()[-1]) / 1024  # the kernel counts in KiB


def _read_ms(picture: Path) -> float:
    times = []
    for _ in range(20):
        started = time.perf_counter()
        next(FolderSource(picture).frames())
        times.append((time.perf_counter() - started) * 1e3)
    return median(times)


def report(figures: dict[str, Any], json_path: str | None) -> None:
    """Print the figures, and write them as JSON if asked."""
    height, width = figures["input_size"]
    print(
        f"{figures['runtime']}, {figures['threads']} thread(s), input {width} x {height}, frames "
        f"{figures['frame_size'][1]} x {figures['frame_size'][0]}, "
        f"{figures['scorer']['kind']} over {figures['references']} references "
        f"({figures['reference_bytes'] / 1e6:.1f} MB)"
    )
    print(f"bare encoder call    {figures['encoder_ms']:8.3f} ms")
    for stage, ms in figures["stages_ms"].items():
        print(f"  {stage:18} {ms:8.3f} ms   {ms / figures['encoder_ms']:5.2f} x encoder")
    loop, ratio = figures["loop_ms"], figures["loop_over_encoder"]
    print(f"loop                 {loop:8.3f} ms   {ratio:5.2f} x encoder")
    print(f"read and decode      {figures['read_ms']:8.3f} ms   (not in the loop)")
    print(f"start to verdict     {figures['start_to_first_verdict_s']:8.3f} s")
    print(f"peak memory          {figures['peak_rss_mb']:8.1f} MB")
    if json_path:
        try:
            Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{json_path}: cannot be written: {error.strerror}") from None
