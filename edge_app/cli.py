"""
The command line: builds the objects, wires them, turns errors into one sentence and an exit code.

Exit codes: 0 done, whatever the verdicts; 1 a bug or a finding; 2 bad input or usage; 69 camera
cannot serve; 78 configuration or bundle.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2

from edge_app import __version__
from edge_app.arguments import rate, region, whole_from_1
from edge_app.bundle import activate, load_bundle, made_now, refuse_existing, write_bundle
from edge_app.config import Config, load_config
from edge_app.decision import MODES
from edge_app.encoder import Encoder
from edge_app.enrol import (
    Enrolment,
    Learnt,
    ScorerSettings,
    Threshold,
    empty_view_of,
    enrol,
    learn_reference,
)
from edge_app.errors import EdgeAppError, InputError
from edge_app.inspector import Inspector, build_encoder
from edge_app.preprocess import Preprocessing
from edge_app.records import Frame, Result, Verdict
from edge_app.scorer import FEATURE_SCALINGS, SCORERS
from edge_app.sinks.jsonl import JsonLines
from edge_app.sinks.overlays import Overlays
from edge_app.sources import Source, open_source

CHECKOUT_MODELS = Path(__file__).resolve().parent.parent / "models"
STATE_MODELS = Path("/var/lib/edge-app/models")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``edge-app``; returns the exit code."""
    # A closed pipe (| head) ends the program quietly, like any other command.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config)
        threads = args.threads if args.threads is not None else config.runtime.threads
        cv2.setNumThreads(threads)
        return args.run(args, config, threads)
    except EdgeAppError as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"edge-app: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edge-app: stopped by the keyboard", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="edge-app",
        description="Visual inspection that learns good parts from good parts alone.",
        epilog="DEBUG=1 in the environment shows tracebacks.",
    )
    parser.add_argument("--version", action="version", version=f"edge-app {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        metavar="FILE",
        help="settings over the defaults (default: /etc/edge-app/config.toml if it is there)",
    )
    common.add_argument(
        "--threads",
        type=whole_from_1,
        metavar="N",
        help="threads of the TFLite runtime and OpenCV (default: from the config, 1)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_inspect(commands, common)
    _add_enroll(commands, common)
    _add_bench(commands, common)
    return parser


def _add_inspect(commands, common: argparse.ArgumentParser) -> None:
    inspect = commands.add_parser(
        "inspect",
        parents=[common],
        help="judge an image, a folder, a video or a camera",
        description="Give every part a verdict: OK, NG, UNKNOWN (could not be judged) or EMPTY.",
        epilog="example: edge-app inspect parts/ --bundle models/nut --out out --json out/v.jsonl",
    )
    inspect.add_argument(
        "source", metavar="SOURCE", help="picture, folder of pictures, video file, or camera:N"
    )
    inspect.add_argument("--bundle", required=True, metavar="B", help="folder of the bundle")
    inspect.add_argument("--out", metavar="DIR", help="write the overlays of NG parts here")
    inspect.add_argument(
        "--json", metavar="FILE", help="write one JSON line a verdict here, - for standard output"
    )
    inspect.add_argument(
        "--mode",
        choices=("auto", *MODES),
        default="auto",
        help="auto (default): single for pictures; for video part if the bundle knows the empty "
        "view, else continuous",
    )
    inspect.set_defaults(run=run_inspect)


def _add_enroll(commands, common: argparse.ArgumentParser) -> None:
    enroll = commands.add_parser(
        "enroll",
        parents=[common],
        help="learn a part from good frames",
        description="Learn a part from frames of good ones, without training, into a new bundle.",
        epilog="example: edge-app enroll good/ --out bundles/bracket --part bracket",
    )
    enroll.add_argument(
        "source", metavar="SOURCE", help="good parts: picture, folder, video file, or camera:N"
    )
    enroll.add_argument(
        "--bundle",
        metavar="B",
        help="bundle whose encoder is used (default: models/base); with --add the one to extend",
    )
    enroll.add_argument("--out", required=True, metavar="B2", help="the new bundle; must not exist")
    enroll.add_argument(
        "--add", action="store_true", help="keep what the bundle knows and add these frames"
    )
    enroll.add_argument(
        "--empty", metavar="SOURCE2", help="pictures of the station without a part: teaches EMPTY"
    )
    enroll.add_argument("--part", metavar="NAME", help="name of the part (default: the name of B2)")
    enroll.add_argument(
        "--frames",
        type=whole_from_1,
        metavar="N",
        help="stop after N frames (needed for a camera)",
    )
    enroll.add_argument(
        "--region",
        type=region,
        metavar="L,T,R,B",
        help="region of interest: left, top, right, bottom as shares of the frame, 0 to 1",
    )
    enroll.add_argument(
        "--rate",
        type=rate,
        metavar="R",
        help="wanted share of good parts rejected, above 0, below 0.5 (default: config, 0.01)",
    )
    enroll.add_argument("--scorer", choices=SCORERS, help="default: from the config, lof")
    enroll.add_argument(
        "--neighbours", type=whole_from_1, metavar="K", help="default: from the config, 5"
    )
    enroll.add_argument(
        "--feature-scaling", choices=FEATURE_SCALINGS, help="default: from the config, minmax"
    )
    enroll.add_argument(
        "--activate", action="store_true", help="point the link 'current' beside B2 at it"
    )
    enroll.set_defaults(run=run_enroll)


def _add_bench(commands, common: argparse.ArgumentParser) -> None:
    bench = commands.add_parser(
        "bench",
        parents=[common],
        help="what each stage and the loop cost, against the bare encoder call",
        description="Measure the loop from a frame in memory to the decision, beside the bare "
        "encoder call, interleaved in one run.",
        epilog="example: edge-app bench --bundle models/nut --references 1000 --json bench.json",
    )
    bench.add_argument("--bundle", required=True, metavar="B", help="folder of the bundle")
    bench.add_argument(
        "--references",
        type=whole_from_1,
        metavar="N",
        help="measure with N seeded reference rows instead of the bundle's own",
    )
    bench.add_argument(
        "--scorer", choices=SCORERS, help="measure this scorer (default: the bundle's, else lof)"
    )
    bench.add_argument(
        "--source",
        metavar="SOURCE",
        help="frames to measure with (default: seeded pictures of 640 x 480)",
    )
    bench.add_argument(
        "--frames", type=whole_from_1, default=300, metavar="N", help="loops (default: 300)"
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures here")
    bench.set_defaults(run=run_bench)


def run_inspect(args: argparse.Namespace, config: Config, threads: int) -> int:
    """``edge-app inspect``."""
    bundle = load_bundle(args.bundle)
    source = open_source(args.source)
    mode = args.mode
    if mode == "auto":
        knows_empty = bundle.manifest["presence"] is not None
        mode = "single" if source.separate_parts else "part" if knows_empty else "continuous"
    inspector = Inspector(bundle, config.decision, mode, threads, heatmaps=args.out is not None)
    overlays = Overlays(args.out) if args.out else None
    lines = JsonLines(args.json) if args.json else None
    tally = _Tally(quiet=args.json == "-")
    if overlays is not None and inspector.decoder is None:
        print(f"{bundle.path.name}: has no decoder, so there are no heatmaps", file=sys.stderr)
    try:
        for result in _results(source, inspector):
            if overlays is not None:
                result = overlays.emit(result)
            if lines is not None:
                lines.emit(result)
            tally.add(result)
    except KeyboardInterrupt:
        # A camera has no end: Ctrl-C is how it is stopped, and what was judged still counts.
        if not source.live:
            raise
    finally:
        source.close()
        if lines is not None:
            lines.close()
    tally.report(args, inspector)
    if tally.frames and tally.unreadable == tally.frames:
        raise InputError(f"{args.source}: nothing in it could be read ({tally.first_reason})")
    return 0


def _results(source: Source, inspector: Inspector) -> Iterator[Result]:
    for frame in source.frames():
        yield from inspector.inspect(frame)
    yield from inspector.finish()


class _Tally:
    """Prints verdicts as they come and the sums at the end."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._verdicts: dict[str, Counter[str]] = {"frame": Counter(), "part": Counter()}
        self._loop_ms: list[float] = []
        self._overlays = 0
        self._headed = False
        self.frames = 0
        self.unreadable = 0
        self.first_reason: str | None = None

    def add(self, result: Result) -> None:
        decision = result.decision
        self._verdicts[result.event][str(decision.verdict)] += 1
        self._overlays += result.heatmap is not None
        closes_part = decision.closed is not None and result.event == "part"
        if not closes_part:
            self.frames += 1
            if "prepare" not in result.latency_ms:
                self.unreadable += 1
                self.first_reason = self.first_reason or decision.reason
            stages = ("prepare", "locate", "encode", "score", "decide")
            if "encode" in result.latency_ms:
                self._loop_ms.append(sum(result.latency_ms.get(stage, 0.0) for stage in stages))
        if self._quiet or (result.event == "frame" and decision.part is not None):
            return
        if result.event == "frame" and decision.verdict is Verdict.EMPTY:
            return
        if not self._headed:
            print(f"{'part':>5} {'frames':>11} {'verdict':8} {'score':>9} {'limit':>9}  detail")
            self._headed = True
        part = "-" if decision.part is None else str(decision.part)
        span = str(result.frame.index)
        if closes_part:
            span = f"{decision.closed.first_frame}-{decision.closed.last_frame}"
        shown = decision.score_smoothed
        score = "-" if shown is None else f"{shown:.4f}"
        limit = "-" if result.threshold is None else f"{result.threshold:.4f}"
        detail = decision.reason or result.heatmap or ""
        if result.event == "part" and not closes_part and not detail:
            detail = result.frame.source
        print(f"{part:>5} {span:>11} {str(decision.verdict):8} {score:>9} {limit:>9}  {detail}")

    def report(self, args: argparse.Namespace, inspector: Inspector) -> None:
        if self._quiet:
            return
        parts = self._verdicts["part"]
        counted, what = (parts, "parts") if parts else (self._verdicts["frame"], "frames")
        sums = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items()))
        print(f"\n{sum(counted.values())} {what}: {sums or 'none'}; {self.frames} frames in all")
        if self._loop_ms:
            ordered = sorted(self._loop_ms)
            median, worst = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
            print(
                f"frame to decision: median {median:.2f} ms, 95 % within {worst:.2f} ms "
                f"({len(ordered)} frames, {inspector.encoder.runtime_name})"
            )
        if args.out:
            print(f"overlays of NG parts: {args.out} ({self._overlays} written)")
        if args.json:
            print(f"every verdict: {args.json}")


def run_enroll(args: argparse.Namespace, config: Config, threads: int) -> int:
    """``edge-app enroll``."""
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
        "made": made_now(_command_line("edge-app"), ("scikit-learn", "opencv-python-headless")),
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
    args: argparse.Namespace, encoder: Encoder, recipe: Preprocessing, base
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
                progress,
            )
    finally:
        source.close()


def _extend(reference, new: Learnt) -> Learnt:
    import numpy as np

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


def _command_line(program: str) -> str:
    return shlex.join([program, *sys.argv[1:]])


def run_bench(args: argparse.Namespace, config: Config, threads: int) -> int:
    """``edge-app bench``."""
    from edge_app.bench import bench, report

    settings = _scorer_settings(
        argparse.Namespace(scorer=args.scorer, neighbours=None, feature_scaling=None), config
    )
    figures = bench(
        load_bundle(args.bundle),
        config.decision,
        settings if args.references or args.scorer else None,
        args.references,
        open_source(args.source) if args.source else None,
        args.frames,
        threads,
    )
    report(figures, args.json)
    return 0
