"""``edge-app enroll``: learn a part from good frames into a new bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edge_app.arguments import rate, region, whole_from_1
from edge_app.bundle import (
    Bundle,
    activate,
    load_bundle,
    made_now,
    refuse_existing,
    write_bundle,
)
from edge_app.config import Config
from edge_app.encoder import Encoder
from edge_app.enrol import Enrolment, Learnt, ScorerSettings, Threshold, enrol, learn_reference
from edge_app.errors import InputError
from edge_app.inspector import build_encoder
from edge_app.preprocess import Preprocessing
from edge_app.presence import empty_view_of
from edge_app.records import Frame
from edge_app.scorer import FEATURE_SCALINGS, SCORERS
from edge_app.sources import open_source

CHECKOUT_MODELS = Path(__file__).resolve().parents[2] / "models"
STATE_MODELS = Path("/var/lib/edge-app/models")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``enroll``."""
    parser.description = (
        "Learn a part from frames of good ones, without training, into a new bundle."
    )
    parser.epilog = "example: edge-app enroll good/ --out bundles/bracket --part bracket"
    parser.add_argument(
        "source", metavar="SOURCE", help="good parts: picture, folder, video file, or camera:N"
    )
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="bundle whose encoder is used (default: models/base); with --add the one to extend",
    )
    parser.add_argument("--out", required=True, metavar="B2", help="the new bundle; must not exist")
    parser.add_argument(
        "--add", action="store_true", help="keep what the bundle knows and add these frames"
    )
    parser.add_argument(
        "--empty", metavar="SOURCE2", help="pictures of the station without a part: teaches EMPTY"
    )
    parser.add_argument("--part", metavar="NAME", help="name of the part (default: the name of B2)")
    parser.add_argument(
        "--frames",
        type=whole_from_1,
        metavar="N",
        help="stop after N frames (needed for a camera)",
    )
    parser.add_argument(
        "--region",
        type=region,
        metavar="L,T,R,B",
        help="region of interest: left, top, right, bottom as shares of the frame, 0 to 1",
    )
    parser.add_argument(
        "--rate",
        type=rate,
        metavar="R",
        help="wanted share of good parts rejected, above 0, below 0.5 (default: config, 0.01)",
    )
    parser.add_argument("--scorer", choices=SCORERS, help="default: from the config, lof")
    parser.add_argument(
        "--neighbours", type=whole_from_1, metavar="K", help="default: from the config, 5"
    )
    parser.add_argument(
        "--feature-scaling", choices=FEATURE_SCALINGS, help="default: from the config, minmax"
    )
    parser.add_argument(
        "--activate", action="store_true", help="point the link 'current' beside B2 at it"
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Learn from the source and write the bundle; returns the exit code."""
    started = time.monotonic()
    refuse_existing(args.out)
    base = load_bundle(args.bundle or _default_base())
    if args.add and base.reference is None:
        raise InputError(f"{base.path}: knows no part that --add could extend")
    for option in ("empty", "region", "scorer", "neighbours", "feature_scaling"):
        if args.add and getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise InputError(
                f"--{name} would make what {base.path.name} knows stale: leave out --add"
            )
    settings = _scorer_settings(args, config)
    wanted_rate = config.enroll.false_reject_rate
    if args.add:
        settings = ScorerSettings(**{k: base.manifest["scorer"][k] for k in asdict(settings)})
        wanted_rate = base.manifest["threshold"]["wanted_rate"]
    if args.rate is not None:
        wanted_rate = args.rate
    region_kept = base.region if args.add else args.region
    encoder = build_encoder(base, threads)
    enrolment = _enrol_source(args, encoder, Preprocessing(base.size, region_kept), base)
    learnt = enrolment.learnt
    if args.add:
        learnt = _extend(base.reference, learnt)
    reference, sections = learn_reference(learnt, settings, wanted_rate, enrolment.empty_view)
    manifest = {
        **base.manifest,
        **sections,
        "parent_sha256": base.sha256,
        "part": args.part or (base.manifest["part"] if args.add else Path(args.out).name),
        "made": made_now(
            shlex.join(["edge-app", *args.typed]), ("scikit-learn", "opencv-python-headless")
        ),
        "input": {**base.manifest["input"], "region": list(region_kept) if region_kept else None},
        # A decoder redraws the part it was trained on and no other.
        "decoder": base.manifest["decoder"] if args.add else None,
    }
    bundle = write_bundle(
        args.out, manifest, base.encoder, base.decoder if args.add else None, reference
    )
    for sentence in enrolment.skipped:
        print(f"not learnt: {sentence}", file=sys.stderr)
    count = len(enrolment.learnt.embeddings)
    total = f" ({len(learnt.embeddings)} in all)" if args.add else ""
    print(
        f"learnt {count} good images{total} in {time.monotonic() - started:.1f} s "
        f"({enrolment.encode_s:.2f} s in the encoder), left out {len(enrolment.skipped)}"
    )
    threshold = sections["threshold"]
    print(Threshold(**threshold).sentence())
    print(f"bundle: {bundle.path}")
    if args.activate:
        print(f"in use: {activate(bundle.path)}")
    return 0


def _scorer_settings(args: argparse.Namespace, config: Config) -> ScorerSettings:
    return ScorerSettings(
        args.scorer or config.enroll.scorer,
        args.neighbours or config.enroll.neighbours,
        args.feature_scaling or config.enroll.feature_scaling,
    )


def _enrol_source(
    args: argparse.Namespace, encoder: Encoder, recipe: Preprocessing, base: Bundle
) -> Enrolment:
    empty_frames: list[Frame] = []
    if args.empty:
        empty_source = open_source(args.empty)
        try:
            if empty_source.live:
                raise InputError(f"--empty {args.empty}: wanted pictures or a video, not a camera")
            empty_frames = list(empty_source.frames())
        finally:
            empty_source.close()
    source = open_source(args.source)
    try:
        if source.live and args.frames is None:
            raise InputError(f"{args.source}: a camera has no end: say how many with --frames N")
        total = args.frames or len(source)
        with _Progress("learning", total) as progress:
            return enrol(
                _first(source.frames(), args.frames),
                encoder,
                recipe,
                empty_frames,
                empty_view_of(base) if args.add else None,
                base.reference["embeddings"] if args.add else (),
                progress,
            )
    finally:
        source.close()


def _extend(reference: Mapping[str, np.ndarray], new: Learnt) -> Learnt:
    return Learnt(
        np.concatenate([reference["embeddings"], new.embeddings]),
        np.concatenate([reference["image_ids"], new.image_ids]),
    )


def _first(frames: Iterable[Frame], most: int | None) -> Iterator[Frame]:
    for count, frame in enumerate(frames, 1):
        yield frame
        if count == most:
            return


class _Progress:
    """A line on a terminal that counts up; nothing where stderr is a file."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._shown = sys.stderr.isatty()
        self._at = 0.0

    def __enter__(self) -> Callable[[int], None]:
        return self._count

    def _count(self, count: int) -> None:
        now = time.monotonic()
        if self._shown and (now - self._at > 0.1 or count == self._total):
            self._at = now
            filled = min(30, 30 * count // max(self._total, 1))
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r{self._what} [{bar}] {count}/{self._total}", end="", file=sys.stderr)

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print(file=sys.stderr)


def _default_base() -> Path:
    for models in (CHECKOUT_MODELS, STATE_MODELS):
        if (models / "base").exists():
            return models / "base"
    raise InputError(f"no bundle to start from at {STATE_MODELS / 'base'}: name one with --bundle")
