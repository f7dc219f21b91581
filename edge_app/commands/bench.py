"""``edge-app bench``: what the loop costs against the bare encoder call."""

from __future__ import annotations

import argparse

from edge_app.arguments import whole_from_1
from edge_app.bench import bench, report
from edge_app.bundle import load_bundle
from edge_app.config import Config
from edge_app.learn_neighbours import ScorerSettings
from edge_app.scorer import SCORERS
from edge_app.sources import open_source


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench``."""
    parser.description = (
        "Measure the loop from a frame in memory to the decision, beside the bare "
        "encoder call, interleaved in one run."
    )
    parser.epilog = (
        "example: edge-app bench --bundle models/nut --references 1000 --json bench.json"
    )
    parser.add_argument("--bundle", required=True, metavar="B", help="folder of the bundle")
    parser.add_argument(
        "--references",
        type=whole_from_1,
        metavar="N",
        help="measure a pooled scorer over N seeded reference rows instead of the bundle's own",
    )
    parser.add_argument(
        "--scorer",
        choices=SCORERS,
        help="measure this pooled scorer (default: the bundle's own, with --references lof)",
    )
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="frames to measure with (default: 320 x 240, seeded pictures, or learnt parts on a "
        "plain background where the bundle looks for a part)",
    )
    parser.add_argument(
        "--frames", type=whole_from_1, default=300, metavar="N", help="loops (default: 300)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here")


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Measure and print; returns the exit code."""
    enroll = config.enroll
    settings = ScorerSettings(args.scorer or "lof", enroll.neighbours, enroll.feature_scaling)
    figures = bench(
        load_bundle(args.bundle),
        config.decision,
        config.quality,
        settings if args.references or args.scorer else None,
        args.references,
        open_source(args.source, config.camera) if args.source else None,
        args.frames,
        threads,
    )
    report(figures, args.json)
    return 0
