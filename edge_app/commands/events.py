"""``edge-app events``: what the service has kept of NG, UNKNOWN and changes."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path

from edge_app.arguments import whole_from_1
from edge_app.config import Config
from edge_app.errors import InputError
from edge_app.event_export import KINDS
from edge_app.event_reader import EventReader
from edge_app.event_rows import Row
from edge_app.records import EVENT_KINDS

EVENTS = "events"
LISTED = 20
SPANS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``events``."""
    parser.description = (
        "Look at the events that the service keeps: each NG and UNKNOWN part or episode, and each "
        "change of what judges. Reads only, whether the service runs or not."
    )
    parser.epilog = "example: edge-app events export --kind ng --since 7d --out week.zip"
    common = argparse.ArgumentParser(add_help=False)
    # Also accepted after the action; left out there, what stands before it holds.
    common.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="settings")
    state = {
        "metavar": "DIR",
        "help": "folder that the service keeps its state in (default: from the config, "
        "/var/lib/edge-app)",
    }
    parser.add_argument("--state", **state)
    common.add_argument("--state", default=argparse.SUPPRESS, **state)
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument(
        "--kind",
        type=_kinds,
        metavar="K,…",
        help="only these kinds: " + ", ".join(EVENT_KINDS),
    )
    chosen.add_argument(
        "--since",
        type=_since,
        metavar="WHEN",
        help="only events from then on: a date 2026-01-31, a time 2026-01-31T14:30 (both local "
        "unless they name a zone), or how long ago: 90m, 24h, 7d, 2w",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    listing = actions.add_parser("list", parents=[common, chosen], help="the newest, as a table")
    listing.add_argument(
        "--limit",
        type=whole_from_1,
        default=LISTED,
        metavar="N",
        help=f"at most so many, the newest (default: {LISTED})",
    )
    listing.set_defaults(action=_list)

    showing = actions.add_parser("show", parents=[common], help="all that is known of one event")
    showing.add_argument("id", type=whole_from_1, metavar="ID", help="the event's number")
    showing.set_defaults(action=_show)

    exporting = actions.add_parser(
        "export", parents=[common, chosen], help="to a file, the newest first"
    )
    exporting.add_argument(
        "--limit", type=whole_from_1, metavar="N", help="at most so many, the newest"
    )
    exporting.add_argument(
        "--format",
        choices=KINDS,
        help="csv, json, or zip: both with the pictures (default: what FILE ends in, or csv)",
    )
    exporting.add_argument(
        "--out",
        metavar="FILE",
        default="-",
        help="where to, replaced if it exists; - (default) is standard output",
    )
    exporting.set_defaults(action=_export)


def run(args: argparse.Namespace, config: Config, threads: int) -> int:
    """Do what was asked; returns the exit code."""
    state = Path(args.state if args.state is not None else config.service.state)
    reader = EventReader(state / EVENTS)
    try:
        there = reader.exists
    except PermissionError:
        there = False
    if not there:
        raise InputError(_why_none(state, reader.folder))
    return args.action(args, reader)


def _why_none(state: Path, folder: Path) -> str:
    """Why there are no events to be seen."""
    for path in (state, folder):
        try:
            os.stat(path)
        except PermissionError:
            return f"{folder}: cannot be read: Permission denied; try sudo"
        except OSError as error:
            if path == state:
                return f"{state}: {error.strerror}: wanted the service's folder of state (--state)"
            break
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            return f"{path}: cannot be read: Permission denied; try sudo"
    return f"{folder}: no events; the service has not run yet, or has its state elsewhere (--state)"


def _list(args: argparse.Namespace, reader: EventReader) -> int:
    zone = time.strftime("%z")
    headed = False
    for row in reader.walk(args.limit, args.kind, args.since):
        if not headed:
            print(f"{'id':>7}  {'time ' + zone:19}  {'kind':9} {'score':>9} {'limit':>9}  "
                  "pic mark         detail")  # fmt: skip
            headed = True
        print(
            f"{row.id:>7}  {_local(row.time_s):19}  {row.kind:9} {_number(row.score):>9} "
            f"{_number(row.threshold):>9}  {_pictures(row):3} {row.mark or '-':12} "
            f"{_one_line(row.detail)}"
        )
    if not headed:
        print("no events" + (" like that" if args.kind or args.since is not None else ""))
    return 0


def _show(args: argparse.Namespace, reader: EventReader) -> int:
    row = reader.get(args.id)
    if row is None:
        last = reader.last_id()
        known = f"the newest is {last}" if last else "there are none yet"
        gone = ", and old ones are dropped" if 0 < args.id <= last else ""
        raise InputError(f"there is no event {args.id}: {known}{gone}")
    fields = row.as_json()
    fields["time"] = f"{fields['time']} ({_local(row.time_s)} local)"
    for which in ("frame", "overlay"):
        fields[which] = reader.picture_of(row, which)
    fields |= {f"data.{key}": value for key, value in fields.pop("data").items()}
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name:{width}}  {'-' if value is None else _one_line(str(value))}")
    return 0


def _export(args: argparse.Namespace, reader: EventReader) -> int:
    suffix = Path(args.out).suffix.lstrip(".").lower()
    kind = args.format or (suffix if suffix in KINDS else "csv")
    if args.out == "-" and kind == "zip" and sys.stdout.isatty():
        raise InputError("a zip is nothing for a terminal: name a file with --out")
    rows = reader.walk(args.limit, args.kind, args.since)
    if args.out == "-":
        reader.export(rows, sys.stdout.buffer, kind)
        sys.stdout.buffer.flush()
        return 0
    count = reader.export(rows, args.out, kind)
    print(f"{args.out}: {count} event{'' if count == 1 else 's'}")
    return 0


def _local(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pictures(row: Row) -> str:
    return ("f" if row.frame else "") + ("o" if row.overlay else "") or "-"


def _one_line(text: str) -> str:
    """Without line ends and the signs that a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _kinds(text: str) -> list[str]:
    kinds = [kind.strip().lower() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in EVENT_KINDS:
            nearest = difflib.get_close_matches(kind, EVENT_KINDS, n=1, cutoff=0.0)[0]
            raise argparse.ArgumentTypeError(
                f"got {kind!r}, the nearest kind is {nearest}; all: {', '.join(EVENT_KINDS)}"
            )
    if not kinds:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted some of {', '.join(EVENT_KINDS)}")
    return kinds


def _since(text: str) -> float:
    span = re.fullmatch(r"(\d{1,9})([mhdw])", text.strip())
    if span is not None:
        return time.time() - int(span[1]) * SPANS_S[span[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted a date 2026-01-31, a time 2026-01-31T14:30 or how long ago: "
            "90m, 24h, 7d, 2w"
        ) from None
