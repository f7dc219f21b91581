"""``edge-app enroll``: learn a part from good frames into a new bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from edge_app.align import RECIPES, Aligner, read_alignment
from edge_app.arguments import rate, refuse_unwritable, region, whole_from_1
from edge_app.bundle import (
    Bundle,
    activate,
    load_bundle,
    made_now,
    refuse_existing,
    write_bundle,
)
from edge_app.config import CameraConfig, Config
from edge_app.enrol import (
    ALIGN_PICTURES,
    Gathered,
    Learning,
    choose_alignment,
    fixed_limits,
    gather,
    kept_pictures,
    known_pictures,
    learn,
    learnt_manifest,
    promise,
    quality_section,
    settings_of,
    threshold_of,
    usable_maps,
)
from edge_app.errors import CameraError, InputError
from edge_app.inspector import build_encoder
from edge_app.learn_neighbours import ScorerSettings
from edge_app.learn_patches import affordable_bytes, default_settings
from edge_app.learn_report import write_report
from edge_app.learnt_pictures import LearntPicture, remove, unpack
from edge_app.places import base_bundle
from edge_app.preprocess import Preprocessing
from edge_app.presence import empty_view_of
from edge_app.quality import read_limits
from edge_app.records import Frame
from edge_app.scorer import FEATURE_SCALINGS, SCORERS
from edge_app.sources import is_camera, open_source

# Frames of a camera are kept until they are learnt.
MOST_HELD_BYTES = 2**30
# A threshold that rises by more than this is spoken of.
MOST_RISE = 1.5
# A lost camera says so about once a second; after so many times nobody need wait for it.
MOST_LOST = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``enroll``."""
    parser.description = (
        "Learn a part from frames of good ones, without training, into a new bundle."
    )
    parser.epilog = (
        "examples: edge-app enroll good/ --out bundles/bracket --part bracket | "
        "edge-app enroll more/ --add --bundle bundles/bracket --out bundles/bracket-2 | "
        "edge-app enroll --bundle bundles/bracket --list"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="good parts: picture, folder, video file, camera:N, picamera, rtsp://…, http://… "
        "(none with --remove or --list)",
    )
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="bundle whose encoder is used (default: models/base); with --add, --remove and --list "
        "the one that knows the part",
    )
    parser.add_argument("--out", metavar="B2", help="the new bundle; must not exist")
    parser.add_argument(
        "--add", action="store_true", help="keep what the bundle knows and add these frames"
    )
    parser.add_argument(
        "--false-alarms",
        action="store_true",
        help="with --add: these are good parts that were called NG; remembered as such",
    )
    parser.add_argument(
        "--remove",
        metavar="ID",
        action="append",
        default=[],
        help="take this picture out again (as --list names it); may be given several times",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the pictures that the bundle learnt, strangest first",
    )
    parser.add_argument(
        "--drop-outliers",
        action="store_true",
        help="leave out the pictures least like the rest (they are listed either way)",
    )
    parser.add_argument(
        "--empty", metavar="SOURCE2", help="pictures of the station without a part: teaches EMPTY"
    )
    parser.add_argument(
        "--align",
        choices=("auto", *RECIPES),
        default="auto",
        help="bring the part to one place (centre) and direction (pose) first; auto (default): "
        "what makes the good pictures agree best",
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
    parser.add_argument(
        "--scorer", choices=("patches", *SCORERS), help="default: from the config, patches"
    )
    parser.add_argument(
        "--neighbours",
        type=whole_from_1,
        metavar="K",
        help="of lof and knn (default: from the config, 5)",
    )
    parser.add_argument(
        "--feature-scaling",
        choices=FEATURE_SCALINGS,
        help="of lof and knn (default: from the config, minmax)",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write a page with the pictures least like the rest"
    )
    parser.add_argument(
        "--activate", action="store_true", help="point the link 'current' beside B2 at it"
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Learn from the source and write the bundle; returns the exit code."""
    started = time.monotonic()
    _refuse_contradictions(args)
    base = load_bundle(args.bundle or base_bundle())
    extends = args.add or args.list or bool(args.remove)
    if extends and base.reference is None:
        raise InputError(
            f"{base.path}: knows no part that --add, --remove or --list could speak of"
        )
    if args.list:
        return _list(base)
    refuse_existing(args.out)
    refuse_unwritable(args.out)
    if args.report:
        refuse_unwritable(args.report)
    settings = _scorer_settings(args, config)
    for option in ("neighbours", "feature_scaling"):
        if settings.kind == "patches" and getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is of the scorers lof and knn: say --scorer too")
    wanted_rate = config.enroll.false_reject_rate
    encoder = build_encoder(base, threads)
    most_bytes = affordable_bytes(base.manifest["encoder"].get("multiply_adds"))
    patch_settings = default_settings(
        encoder.map_shapes, usable_maps(encoder.map_shapes), most_bytes
    )
    region_kept, known, alignment, views = args.region, [], None, []
    if extends:
        known = _known(base, args.remove)
        settings, patch_settings = settings_of(base.manifest["scorer"], most_bytes)
        wanted_rate = base.manifest["threshold"]["wanted_rate"]
        region_kept = base.region
        alignment = read_alignment(base.manifest["alignment"], base.reference)
    if args.rate is not None:
        wanted_rate = args.rate
    recipe = Preprocessing(base.size, region_kept)
    gathered, reason = Gathered([], empty_view_of(base), []), None
    if args.source is not None:
        frames = _Frames(args.source, args.frames, config.camera)
        empty_frames = _empty_frames(args.empty)
        if alignment is None:
            recipe_wanted = None if args.align == "auto" else args.align
            chosen = choose_alignment(
                frames.sample(ALIGN_PICTURES), region_kept, recipe_wanted, empty_frames
            )
            alignment, reason = chosen.alignment, chosen.reason
            # Frames that are read again are others; these and what was seen in them may go.
            views = chosen.views if frames.held else []
            del chosen
        with _Progress("learning", len(frames)) as progress:
            gathered = gather(
                frames,
                Aligner(alignment, base.size, region_kept),
                recipe,
                empty_frames if alignment.recipe == "none" else (),
                empty_view_of(base) if extends else None,
                known,
                "false alarm" if args.false_alarms else "good",
                read_limits(base.manifest["quality"]) if extends else None,
                progress,
                views,
            )
    learning = learn(
        [*known, *gathered.pictures],
        encoder,
        alignment,
        settings,
        wanted_rate,
        gathered.empty_view,
        patch_settings,
        drop_outliers=args.drop_outliers,
    )
    packed, forgotten = kept_pictures(learning.pictures)
    kept = {*args.remove, *(picture.image_id for picture in known)}
    fixed = fixed_limits(base, kept) if extends else None
    quality = quality_section(gathered, learning, fixed)
    learnt = learnt_manifest(base.manifest, learning, region_kept, quality, extends)
    command = shlex.join(["edge-app", *args.typed])
    manifest = {
        **learnt,
        "parent_sha256": base.sha256,
        "part": args.part or (base.manifest["part"] if extends else Path(args.out).name),
        "made": made_now(command, ("scikit-learn", "opencv-python-headless")),
        "provenance": {
            **learnt["provenance"],
            "remake": [*learnt["provenance"]["remake"], command],
        },
    }
    decoder = base.decoder if extends else None
    bundle = write_bundle(args.out, manifest, base.encoder, decoder, learning.reference, packed)
    _say(args, gathered, learning, len(known), forgotten, reason, time.monotonic() - started)
    if extends:
        _say_threshold(base.manifest["threshold"]["value"], bundle.manifest["threshold"]["value"])
    if args.report:
        shown = [*known, *gathered.pictures]
        write_report(args.report, bundle.manifest, learning, shown, reason=reason)
        print(f"report: {args.report}")
    print(f"bundle: {bundle.path}")
    if args.activate:
        print(f"in use: {activate(bundle.path)}")
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """One sentence for options that do not go together."""
    extends = args.add or args.list or bool(args.remove)
    if args.list:
        if args.bundle is None:
            raise InputError("--list: name the bundle whose pictures to list with --bundle B")
        for option in ("source", "out", "add", "remove", "report", "drop_outliers", "activate"):
            if getattr(args, option):
                name = "SOURCE" if option == "source" else "--" + option.replace("_", "-")
                raise InputError(f"--list only lists: leave out {name}")
        return
    if args.report and Path(args.report).absolute().is_relative_to(
        Path(args.out or ".").absolute()
    ):
        raise InputError(f"--report {args.report}: lies in the bundle --out, name another place")
    if args.out is None:
        raise InputError("--out B2 is missing: name the new bundle")
    if args.source is None and not args.remove:
        raise InputError("SOURCE is missing: name a picture, folder, video file or camera:N")
    if args.source is not None and args.remove and not args.add:
        raise InputError("--remove with a SOURCE: say --add too if its frames are to be learnt")
    if extends and args.bundle is None:
        raise InputError("--add and --remove: name the bundle to change with --bundle B")
    if args.false_alarms and not args.add:
        raise InputError("--false-alarms goes with --add: it extends what a bundle knows")
    for option in ("empty", "region", "scorer", "neighbours", "feature_scaling"):
        if extends and getattr(args, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} would make what the bundle knows stale: "
                "leave out --add and --remove"
            )
    if extends and args.align != "auto":
        raise InputError("--align would make what the bundle knows stale: leave out --add")


def _known(base: Bundle, removed: Sequence[str]) -> list[LearntPicture]:
    """The pictures that a bundle learnt, without those taken out."""
    pictures = known_pictures(base)
    if pictures is None:
        raise InputError(
            f"{base.path}: does not hold the pictures it learnt, so it cannot be extended: "
            "enroll all pictures anew"
        )
    kept = {picture.image_id for picture in pictures}
    learnt = {str(name) for name in base.reference["image_ids"]}
    for name in removed:
        if name in learnt - kept:
            raise InputError(
                f"{name}: was learnt, but its picture is not kept, so it cannot be taken out: "
                "enroll all pictures anew without it"
            )
    if learnt - kept:
        print(
            f"{base.path.name} keeps {len(kept)} of the {len(learnt)} pictures it learnt: only "
            "these are learnt again",
            file=sys.stderr,
        )
    return remove(pictures, removed)


def _list(base: Bundle) -> int:
    reference, threshold = base.reference, base.manifest["threshold"]["value"]
    content = base.learnt()
    kinds = {}
    if content is not None:
        kinds = {p.image_id: p.kind for p in unpack(content, str(base.path / "learnt.npz"))}
    print("    score  of limit  id")
    for row in (-reference["scores"]).argsort(kind="stable"):
        name, score = str(reference["image_ids"][row]), float(reference["scores"][row])
        kind = kinds.get(name, "picture not kept")
        mark = "" if kind == "good" else f"  ({kind})"
        print(f"{score:9.4f}  {score / threshold:7.0%}   {name}{mark}")
    return 0


def _scorer_settings(args: argparse.Namespace, config: Config) -> ScorerSettings:
    return ScorerSettings(
        args.scorer or config.enroll.scorer,
        args.neighbours or config.enroll.neighbours,
        args.feature_scaling or config.enroll.feature_scaling,
    )


def _empty_frames(name: str | None) -> list[Frame]:
    if name is None:
        return []
    if is_camera(name):
        raise InputError(f"--empty {name}: wanted pictures or a video, not a camera")
    source = open_source(name)
    try:
        return list(source.frames())
    finally:
        source.close()


class _Frames:
    """
    The frames of a source, to be gone through more than once: of a camera they are kept.

    Parameters
    ----------
    name : str
        As the command line names it.
    most : int or None
    camera : CameraConfig
    """

    def __init__(self, name: str, most: int | None, camera: CameraConfig) -> None:
        self._name, self._most = name, most
        self._held: list[Frame] | None = None
        source = open_source(name, camera)
        try:
            if not source.live:
                self._count = min(len(source), most or len(source))
                return
            if most is None:
                raise InputError(f"{name}: a camera has no end: say how many with --frames N")
            self._held = []
            with _Progress("taking pictures", most) as progress:
                for frame in _bounded(_first(_delivered(source.frames()), most), name):
                    self._held.append(frame)
                    progress(len(self._held))
            self._count = len(self._held)
        finally:
            source.close()

    def __len__(self) -> int:
        return self._count

    @property
    def held(self) -> bool:
        """Whether the same frames come every time."""
        return self._held is not None

    def __iter__(self) -> Iterator[Frame]:
        if self._held is not None:
            yield from self._held
            return
        source = open_source(self._name)
        try:
            yield from _first(source.frames(), self._most)
        finally:
            source.close()

    def sample(self, most: int) -> list[Frame]:
        """Up to so many frames, evenly spread."""
        step = max(1, -(-self._count // most))
        return [frame for index, frame in enumerate(self) if index % step == 0][:most]


def _first(frames: Iterable[Frame], most: int | None) -> Iterator[Frame]:
    for count, frame in enumerate(frames, 1):
        yield frame
        if count == most:
            return


def _delivered(frames: Iterable[Frame]) -> Iterator[Frame]:
    """A camera's pictures, without what it says while it is lost; once too often, `CameraError`."""
    lost = 0
    for frame in frames:
        if frame.frame_bgr is not None:
            lost = 0
            yield frame
            continue
        lost += 1
        if lost > MOST_LOST:
            raise CameraError(f"{frame.source}: {frame.problem}")


def _bounded(frames: Iterable[Frame], name: str) -> Iterator[Frame]:
    held = 0
    for frame in frames:
        held += 0 if frame.frame_bgr is None else frame.frame_bgr.nbytes
        if held > MOST_HELD_BYTES:
            raise InputError(
                f"{name}: its frames take more than {MOST_HELD_BYTES >> 20} MB of memory: ask for "
                "fewer with --frames N and extend with --add"
            )
        yield frame


def _say_threshold(before: float, after: float) -> None:
    if after > MOST_RISE * before:
        print(
            f"the threshold rises from {before:.4g} to {after:.4g}: fewer defects will be found. "
            "Look at what was added; --remove takes it out again"
        )


def _say(
    args: argparse.Namespace,
    gathered: Gathered,
    learning: Learning,
    known: int,
    forgotten: int,
    reason: str | None,
    seconds: float,
) -> None:
    """What was learnt, in words."""
    for sentence in gathered.skipped:
        print(f"not learnt: {sentence}", file=sys.stderr)
    if reason is not None:
        print(f"alignment {reason}")
    total = f" ({len(learning.pictures)} in all)" if known else ""
    print(
        f"learnt {len(gathered.pictures)} good images{total} in {seconds:.1f} s "
        f"({learning.encode_s:.2f} s in the encoder), left out {len(gathered.skipped)}"
    )
    for name, score in learning.dropped:
        print(f"left out as unlike the rest: {name} (score {score:.4g})")
    for name, score in learning.least_like:
        print(f"least like the rest: {name} (score {score:.4g}); if it is not good, --remove it")
    if forgotten:
        print(f"{forgotten} pictures are too many to keep: --add will not relearn them")
    print(threshold_of(learning.sections["threshold"]).sentence())
    for sentence in promise(learning):
        print(sentence)


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
