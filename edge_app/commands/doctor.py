"""``edge-app doctor``: what is wrong with this machine, and how to mend it."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_app import __version__
from edge_app.doctor import Finding, diagnose
from edge_app.errors import InputError

if TYPE_CHECKING:  # it imports numpy, without which this command must work
    from edge_app.config import Config


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor``."""
    parser.description = (
        "Look at Python, libraries, display, cameras, heat, power, disk, clock, configuration and "
        "bundle: one line a finding, with its remedy. The exit code is 1 if any is a problem."
    )
    parser.epilog = "example: edge-app doctor --bundle models/nut --json doctor.json"
    parser.add_argument(
        "--bundle",
        metavar="B",
        help="bundle to look at (default: /var/lib/edge-app/models/current, else base)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings here")
    # It looks at the configuration and at OpenCV itself, and must run where they are at fault.
    parser.set_defaults(unprepared=True)


def run(args: argparse.Namespace, config: Config | None = None, threads: int | None = None) -> int:
    """Look and print; returns the exit code. `config` and `threads` are not used."""
    findings = diagnose(args.bundle, args.config)
    for finding in findings:
        _print(finding.line())
    counts = {level: sum(f.level == level for f in findings) for level in ("problem", "note")}
    _print(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items()))
    if args.json:
        _write(args.json, findings)
    return 1 if counts["problem"] else 0


def _print(line: str) -> None:
    # A terminal that has no degree sign must not end the command.
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))


def _write(path: str, findings: list[Finding]) -> None:
    content = {
        "edge_app": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "findings": [asdict(finding) for finding in findings],
    }
    try:
        Path(path).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
