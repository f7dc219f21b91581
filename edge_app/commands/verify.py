"""``edge-app verify``: the check of the master parts, kept as an event."""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
from pathlib import Path

from edge_app.bundle import load_bundle
from edge_app.clock import read_now
from edge_app.config import Config
from edge_app.errors import InputError
from edge_app.inspector import Inspector
from edge_app.master import Master, judge_masters, summary
from edge_app.records import Event, Verdict
from edge_app.sources.folder import FolderSource
from edge_app.store import EventStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``verify``."""
    parser.description = (
        "Judge pictures of known good and known bad parts with the bundle that the service uses, "
        "and keep the outcome as an event. It passes if every good one is OK and every bad one NG; "
        "else the exit code is 1 and, where [service] verify_required is set, the service calls "
        "everything UNKNOWN until the check passes."
    )
    parser.epilog = "example: edge-app verify --good masters/good --bad masters/bad"
    parser.add_argument("--good", required=True, metavar="DIR", help="pictures of good parts")
    parser.add_argument("--bad", required=True, metavar="DIR", help="pictures of bad parts")
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="what judges (default: the service's, from config and state); the check of another "
        "one is kept as a trial, which the service does not go by",
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="the service's folder, whose events keep the outcome (default: config, "
        "/var/lib/edge-app)",
    )


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Check and keep the outcome; returns the exit code."""
    state = Path(args.state or config.service.state)
    own = state / config.service.bundle
    bundle = load_bundle(args.bundle or own)
    trial = os.path.exists(own) and not os.path.samefile(bundle.path, own)
    if not state.is_dir():
        raise InputError(f"{state}: no such folder: --state names that of the service")
    if not os.access(state, os.W_OK | os.X_OK):
        raise InputError(
            f"{state}: cannot be written, so the outcome cannot be kept: run it as the service's "
            "user, sudo -u edge-app edge-app verify …"
        )
    inspector = Inspector(
        bundle, config.decision, "single", threads, heatmaps=False, quality=config.quality
    )
    masters: list[Master] = []
    # Both are looked for before the first is judged.
    sources = [FolderSource(Path(folder)) for folder in (args.good, args.bad)]
    for source, wanted in zip(sources, (Verdict.OK, Verdict.NG), strict=True):
        with contextlib.closing(source):
            found = judge_masters(inspector, source.frames(), wanted)
        for master in found:
            _print(master)
        masters += found
    passed = all(master.right for master in masters)
    said = f"{'passed' if passed else 'FAILED'}: {summary(masters)}"
    if trial:
        said = f"trial of {bundle.path.name} {said}"
    now = read_now()
    event = Event(
        "verify",
        now.time_s,
        now.boot_s,
        said,
        bundle_sha256=bundle.sha256,
        data={
            "passed": passed,
            "trial": trial,
            "masters": [
                {
                    "name": master.name,
                    "wanted": str(master.wanted),
                    "verdict": str(master.verdict),
                    "score": master.score,
                    "reason": master.reason,
                }
                for master in masters
            ],
        },
    )
    try:
        number = EventStore(state / "events", config.events).append(event)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{state / 'events'}: the outcome cannot be kept: {error}") from None
    print(f"\n{said} (event {number}, {bundle.path.name})")
    if trial:
        print(f"{own} is another bundle: the service goes by the last check of its own")
    return 0 if passed else 1


def _print(master: Master) -> None:
    mark = "" if master.right else f"  <- wanted {master.wanted}"
    score = "-" if master.score is None else f"{master.score:.4f}"
    reason = f"  {master.reason}" if master.reason else ""
    print(f"{str(master.verdict):8} {score:>9}  {master.name}{reason}{mark}")
