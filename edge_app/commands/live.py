"""``edge-app live``: a window with the camera's picture, its verdicts and keys to teach it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from edge_app.bundle import Bundle, load_bundle, refuse_existing
from edge_app.config import Config
from edge_app.decision import MODES
from edge_app.hand import Hand
from edge_app.inspector import Inspector, build_encoder
from edge_app.knowledge import Teacher, known_from
from edge_app.live.display import Probe, fitted, refuse_without_display, screen_size
from edge_app.live.journal import Journal
from edge_app.live.session import Session
from edge_app.live.worker import LiveInspector, Worker
from edge_app.places import base_bundle
from edge_app.sources import Source, open_source
from edge_app.station import Station, conditions_for, rules_for

# What is being learnt or written when the window closes may take so long to end, seconds.
FINISH_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``live``."""
    parser.description = (
        "Show the camera's picture with its verdicts; learn, set and aim by keys (? lists them)."
    )
    parser.epilog = (
        "examples: edge-app live camera:0 --bundle models/nut | edge-app live picamera | "
        "edge-app live synthetic --bundle models/nut"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        default="camera:0",
        help="camera:N, picamera, rtsp or http address, synthetic, video file, picture or folder "
        "(default: camera:0)",
    )
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="what inspects, and is learnt on (default: models/base, which knows no part yet)",
    )
    parser.add_argument(
        "--out",
        metavar="B2",
        help="where the key w writes what was learnt (default: beside B, as B-live, B-live-2, …)",
    )
    parser.add_argument(
        "--part", metavar="NAME", help="name of the part (default: that of B, or the name of B2)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write one JSON line a verdict and one a key here"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", *MODES),
        default="auto",
        help="as of inspect (default: auto)",
    )
    parser.add_argument(
        "--full-screen", action="store_true", help="begin in full screen, as the key f does"
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Open the window and stay until it is closed; returns the exit code."""
    refuse_without_display()
    _quiet_toolkit()
    if args.out:
        refuse_existing(args.out)
    probe = Probe()
    try:
        bundle = load_bundle(args.bundle or base_bundle())
        source = open_source(args.source, config.camera)
    except BaseException:
        probe.close()
        raise
    try:
        probe.refuse()
        return _run(args, config, threads, bundle, source, probe)
    finally:
        probe.close()
        source.close()


def _run(
    args: argparse.Namespace,
    config: Config,
    threads: int,
    bundle: Bundle,
    source: Source,
    probe: Probe,
) -> int:
    from edge_app.live import window

    live = source.live
    # Refused here, before a window opens, if mode and trigger do not go together.
    _, mode = rules_for(bundle, config, source, args.mode, fires=("key",))

    def build(bundle: Bundle) -> LiveInspector:
        return LiveInspector(
            bundle,
            *rules_for(bundle, config, source, args.mode, fires=("key",)),
            threads,
            # The worker draws them itself, where they are shown.
            heatmaps=False,
            quality=config.quality,
        )

    journal = Journal(args.json)
    watch, gate, gpio = conditions_for(config, source, mode)
    knowledge = known_from(bundle)
    inspector = build(bundle) if knowledge.knows_part else None

    def station(inspector: Inspector) -> Station:
        return Station(inspector, watch, gate)

    worker = Worker(source, station, watch, journal, inspector)
    learner, writer = Hand("learner", 1), Hand("writer", 8)
    out = Path(args.out) if args.out else bundle.path.with_name(f"{bundle.path.name}-live")
    by_key = gate is not None and config.trigger.kind == "key"
    session = Session(
        knowledge,
        worker,
        learner,
        writer,
        lambda: Teacher(build_encoder(bundle, threads), config.enroll),
        build,
        journal,
        config.live,
        out,
        args.part or _part(bundle, args.out),
        args.typed,
        fire=(lambda: gate.fire(time.monotonic())) if by_key else None,
        waits=gate is not None,
    )
    screen = screen_size()
    size, full_screen = fitted((config.live.width, config.live.height), screen)
    session.full_screen = args.full_screen or full_screen
    # As Ctrl-C: what is being written is finished, and what is lost is said.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    worker.start()
    try:
        window.run(session, size, screen, probe.close)
    except KeyboardInterrupt:
        if not live:
            raise
    finally:
        worker.close()
        writer.close(FINISH_S)
        session.close()
        journal.close()
        if gpio is not None:
            gpio.close()
        if session.unwritten:
            print("what was learnt was not written (the key w writes it)", file=sys.stderr)
    return 0


def _part(bundle: Bundle, out: str | None) -> str:
    if bundle.reference is not None:
        return bundle.manifest["part"]
    return Path(out).name if out else "part"


def _quiet_toolkit() -> None:
    """Keep Qt from complaining about fonts that it does not need, and on X where it is."""
    os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")
    if os.environ.get("DISPLAY"):
        os.environ.setdefault("QT_QPA_PLATFORM", "xcb")
