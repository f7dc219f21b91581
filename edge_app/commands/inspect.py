"""``edge-app inspect``: judge an image, a folder, a video or a camera."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterable

from edge_app.bundle import load_bundle
from edge_app.config import Config
from edge_app.decision import MODES
from edge_app.errors import InputError
from edge_app.inspector import HEATMAPS
from edge_app.records import Result, Verdict
from edge_app.sinks.jsonl import JsonLines
from edge_app.sinks.overlays import Overlays
from edge_app.sources import Source, open_source
from edge_app.station import Station, build_station


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``inspect``."""
    parser.description = (
        "Give every part a verdict: OK, NG, UNKNOWN (could not be judged) or EMPTY. A camera is "
        "watched until Ctrl-C; while it is lost the verdict is UNKNOWN, and it is opened again."
    )
    parser.epilog = (
        "example: edge-app inspect parts/ --bundle models/nut --out out --json out/v.jsonl"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="picture, folder of pictures, video file, camera:N, picamera, rtsp://…, http://…, or "
        "synthetic (the sample clip as a camera)",
    )
    parser.add_argument("--bundle", required=True, metavar="B", help="folder of the bundle")
    parser.add_argument("--out", metavar="DIR", help="write the overlays of NG parts here")
    parser.add_argument(
        "--json", metavar="FILE", help="write one JSON line a verdict here, - for standard output"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", *MODES),
        default="auto",
        help="auto (default): single for pictures; for video part if the bundle knows the empty "
        "view, else continuous",
    )
    parser.add_argument(
        "--heatmap",
        choices=("auto", *HEATMAPS),
        help="what overlays show: patch (unlike the good parts' patches) or decoder (unlike the "
        "redraw); auto: patch where the bundle has it (default: config, auto)",
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Judge every frame of the source; returns the exit code."""
    bundle = load_bundle(args.bundle)
    source = open_source(args.source, config.camera)
    try:
        with build_station(
            bundle,
            config,
            source,
            threads,
            args.mode,
            heatmaps=args.out is not None,
            heatmap=args.heatmap,
        ) as station:
            return _judge(args, source, station)
    finally:
        source.close()


def _judge(args: argparse.Namespace, source: Source, station: Station) -> int:
    overlays = Overlays(args.out) if args.out else None
    lines = JsonLines(args.json) if args.json else None
    tally = _Tally(quiet=args.json == "-")
    if overlays is not None and not station.inspector.heatmap_kinds:
        name = station.inspector.bundle.path.name
        print(
            f"{name}: has neither patches nor a decoder, so there are no heatmaps", file=sys.stderr
        )

    def hand_out(results: list[Result]) -> None:
        for result in results:
            if overlays is not None:
                result = overlays.emit(result)
            if lines is not None:
                lines.emit(result)
            tally.add(result)

    try:
        try:
            # A camera has no end: Ctrl-C or SIGTERM is how it is stopped, and what was seen counts.
            if source.live:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
            for frame in source.frames():
                hand_out(station.take(frame))
        except KeyboardInterrupt:
            if not source.live:
                raise
        hand_out(station.finish())
    finally:
        if lines is not None:
            lines.close()
    tally.report(args, station)
    if not source.live and tally.frames and tally.unreadable == tally.frames:
        raise InputError(f"{args.source}: nothing in it could be read ({tally.first_reason})")
    return 0


# Times of frames that are kept for the medians.
MOST_TIMES = 10_000


class _Tally:
    """Prints verdicts as they come and the sums at the end."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._verdicts: dict[str, Counter[str]] = {"frame": Counter(), "part": Counter()}
        # A camera runs for weeks: the last ones stand for all.
        self._loop_ms: deque[float] = deque(maxlen=MOST_TIMES)
        self._row_ms: deque[float] = deque(maxlen=MOST_TIMES)
        self._overlays = 0
        self._headed = False
        self.frames = 0
        self.unreadable = 0
        self.first_reason: str | None = None

    def add(self, result: Result) -> None:
        decision = result.decision
        self._verdicts[result.event][str(decision.verdict)] += 1
        self._overlays += result.heatmap is not None
        if decision.closed is None:
            self._count_frame(result)
        # Of a part seen on several frames only its own verdict is a row; an empty view is none.
        in_part = result.event == "frame" and decision.part is not None
        empty = result.event == "frame" and decision.verdict is Verdict.EMPTY
        if not (self._quiet or in_part or empty):
            self._print_row(result)

    def _count_frame(self, result: Result) -> None:
        self.frames += 1
        if not {"quality", "locate", "align"} & set(result.latency_ms):
            self.unreadable += 1
            self.first_reason = self.first_reason or result.decision.reason
        if result.loop_ms is not None:
            self._row_ms.append(result.loop_ms)

    def _print_row(self, result: Result) -> None:
        if not self._headed:
            print("  part      frames verdict      score     limit    ms  detail")
            self._headed = True
        decision, closed = result.decision, result.decision.closed
        part = "-" if decision.part is None else str(decision.part)
        span = str(result.frame.index)
        if closed is not None:
            span = f"{closed.first_frame}-{closed.last_frame}"
        score = "-" if decision.score_smoothed is None else f"{decision.score_smoothed:.4f}"
        limit = "-" if result.threshold is None else f"{result.threshold:.4f}"
        ms = f"{_middle(self._row_ms):.2f}" if self._row_ms else "-"
        self._loop_ms += self._row_ms
        self._row_ms.clear()
        detail = decision.reason or result.heatmap or ""
        if result.event == "part" and closed is None and not detail:
            detail = result.frame.source
        verdict = str(decision.verdict)
        print(f"{part:>6} {span:>11} {verdict:8} {score:>9} {limit:>9} {ms:>5}  {detail}")

    def report(self, args: argparse.Namespace, station: Station) -> None:
        if self._quiet:
            return
        parts = self._verdicts["part"]
        counted, what = (parts, "parts") if parts else (self._verdicts["frame"], "frames")
        sums = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items()))
        print(f"\n{sum(counted.values())} {what}: {sums or 'none'}; {self.frames} frames in all")
        ordered = sorted([*self._loop_ms, *self._row_ms])
        if ordered:
            worst = ordered[int(len(ordered) * 0.95)]
            print(
                f"frame to decision: median {_middle(ordered):.2f} ms, 95 % within {worst:.2f} ms "
                f"({len(ordered)} frames, {station.inspector.encoder.runtime_name})"
            )
        if station.skipped:
            print(f"frames left out to keep cool: {station.skipped}")
        if station.idle:
            print(f"frames between triggers: {station.idle}")
        if args.out:
            print(f"overlays of NG parts: {args.out} ({self._overlays} written)")
        if args.json:
            print(f"every verdict: {args.json}")


def _middle(values: Iterable[float]) -> float:
    # statistics.median and numpy.median each import 20 ms worth of modules.
    return sorted(values)[len(values) // 2]
