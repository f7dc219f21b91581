"""
Soak: the service itself at full rate on the synthetic camera, for as long as one likes.

A child process runs ``edge-app run`` as it is, but for one thing: the time of each turn of its
frame loop is taken, and told every second. Beside that its memory (VmRSS), its handles
(/proc/PID/fd), its threads and the size of its event store are read from outside.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edge_app.arguments import refuse_unwritable, whole_from_0
from edge_app.bundle import activate, load_bundle
from edge_app.errors import InputError

# What is read first is not compared: caches fill, imports come late, the store reaches its limit.
WARM_UP_SHARE = 0.2
# Memory and handles at the end are those of this share of the run, against the same share after
# the warm-up.
COMPARED_SHARE = 0.2
SAMPLE_S = 2.0
LEAST_SAMPLES = 10
# The limits: memory flat, tail of the loop, store.
MOST_GROWTH, MOST_TAIL = 0.05, 3.0
# Small, so that retention is at work during the run.
KEEP_MB = 20
# Pictures of a batch are written before the oldest are given up for them, megabytes.
BATCH_MB = 2
START_S = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``soak``."""
    parser.description = (
        "Run the service at full rate on the synthetic camera and watch memory, handles, the tail "
        "of the frame loop and the event store. Exit code 1 if one of them leaves its limits."
    )
    parser.epilog = "example:\n  python -m tools soak --minutes 60 --viewers 2"
    parser.add_argument("--minutes", type=_minutes, default=60.0, metavar="M", help="how long")
    parser.add_argument("--bundle", default="models/nut", metavar="B", help="what judges")
    parser.add_argument(
        "--mode",
        choices=("auto", "continuous", "part"),
        default="auto",
        help="as of the service: the nut's is part",
    )
    parser.add_argument(
        "--fps", type=_fps, default=1000.0, help="pictures a second, as far as it gets them"
    )
    parser.add_argument(
        "--viewers", type=whole_from_0, default=1, metavar="N", help="who watch the live picture"
    )
    parser.add_argument("--json", metavar="FILE", help="write every sample and the outcome here")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # The first sample comes late: the service tells its times once a second.
    least = (LEAST_SAMPLES + 2) * SAMPLE_S / 60
    if not least <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted minutes from {least:g} to 100000")
    return value


def _fps(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted pictures a second up to 1000")
    return value


@dataclass(frozen=True)
class Sample:
    """
    One look at the service.

    Attributes
    ----------
    at_s : float
        Seconds since the start.
    rss_mb : float
        Resident memory.
    handles, threads : int
    pictures_mb, database_mb : float
        Of the event store: its pictures, which it keeps to a size, and all else, which grows with
        the number of events up to `edge_app.retention.MOST_ROWS`.
    frames : int
        Since the start.
    p50_ms, p99_ms, judged_p50_ms, judged_p99_ms : float
        Of the turns of the loop since the sample before: of all, and of those that scored a frame.
    """

    at_s: float
    rss_mb: float
    handles: int
    threads: int
    pictures_mb: float
    database_mb: float
    frames: int
    p50_ms: float
    p99_ms: float
    judged_p50_ms: float
    judged_p99_ms: float


@dataclass(frozen=True)
class Outcome:
    """What the run came to; each limit beside what was measured."""

    minutes: float
    frames: int
    rate: float
    rss_before_mb: float
    rss_after_mb: float
    handles_before: int
    handles_after: int
    threads_after: int
    p50_ms: float
    p99_ms: float
    judged_p50_ms: float
    judged_p99_ms: float
    pictures_mb: float
    database_mb: float

    def failures(self) -> list[str]:
        """What has left its limits, one sentence each."""
        found = []
        growth = self.rss_after_mb / self.rss_before_mb - 1
        if growth > MOST_GROWTH:
            found.append(f"memory grew by {growth:.1%}, wanted at most {MOST_GROWTH:.0%}")
        if self.handles_after > self.handles_before:
            found.append(f"handles grew from {self.handles_before} to {self.handles_after}")
        tail = self.judged_p99_ms / self.judged_p50_ms
        if not tail <= MOST_TAIL:
            found.append(f"p99 of a judged frame is {tail:.1f} times p50, wanted {MOST_TAIL:g}")
        if self.pictures_mb > KEEP_MB + BATCH_MB:
            found.append(f"the event store holds {self.pictures_mb:.0f} MB, wanted {KEEP_MB}")
        return found


def run(args: argparse.Namespace) -> int:
    """Soak and say what came of it; returns the exit code."""
    if args.json:
        refuse_unwritable(args.json)
    load_bundle(args.bundle)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        samples = _soak(Path(folder), args)
    outcome = judge(samples, args.minutes)
    _print(outcome)
    failures = outcome.failures()
    if args.json:
        content = {
            "outcome": asdict(outcome),
            "failures": failures,
            "samples": [asdict(sample) for sample in samples],
        }
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def judge(samples: Sequence[Sample], minutes: float) -> Outcome:
    """
    The outcome of a run.

    Raises
    ------
    InputError
        If there are too few samples.
    """
    count = len(samples)
    if count < LEAST_SAMPLES:
        raise InputError(f"only {count} samples, wanted at least {LEAST_SAMPLES}: soak longer")
    first = int(count * WARM_UP_SHARE)
    some = max(int(count * COMPARED_SHARE), 1)
    before, after, steady = samples[first : first + some], samples[-some:], samples[first:]

    def median(of: Sequence[Sample], name: str) -> float:
        return float(np.median([getattr(sample, name) for sample in of]))

    took_s = steady[-1].at_s - steady[0].at_s
    frames = steady[-1].frames - steady[0].frames
    return Outcome(
        minutes,
        samples[-1].frames,
        frames / took_s,
        median(before, "rss_mb"),
        median(after, "rss_mb"),
        max(sample.handles for sample in before),
        min(sample.handles for sample in after),
        max(sample.threads for sample in after),
        median(steady, "p50_ms"),
        median(steady, "p99_ms"),
        median(steady, "judged_p50_ms"),
        median(steady, "judged_p99_ms"),
        max(sample.pictures_mb for sample in steady),
        samples[-1].database_mb,
    )


def _print(outcome: Outcome) -> None:
    growth = outcome.rss_after_mb / outcome.rss_before_mb - 1
    rows = [
        ("frames", f"{outcome.frames} in {outcome.minutes:g} minutes, {outcome.rate:.0f} a second"),
        (
            "memory",
            f"{outcome.rss_before_mb:.1f} MB after the warm-up, {outcome.rss_after_mb:.1f} MB at "
            f"the end ({growth:+.1%})",
        ),
        ("handles", f"{outcome.handles_before}, then {outcome.handles_after}"),
        ("threads", str(outcome.threads_after)),
        (
            "loop, judged frames",
            f"p50 {outcome.judged_p50_ms:.2f} ms, p99 {outcome.judged_p99_ms:.2f} ms "
            f"({outcome.judged_p99_ms / outcome.judged_p50_ms:.2f} times)",
        ),
        ("loop, all frames", f"p50 {outcome.p50_ms:.2f} ms, p99 {outcome.p99_ms:.2f} ms"),
        (
            "event store",
            f"{outcome.pictures_mb:.1f} MB of pictures at most, {KEEP_MB} allowed; database "
            f"{outcome.database_mb:.1f} MB",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:{width}}  {text}")


def _soak(folder: Path, args: argparse.Namespace) -> list[Sample]:
    state = folder / "state"
    shutil.copytree(args.bundle, state / "models" / "soaked")
    activate(state / "models" / "soaked")
    (folder / "config.toml").write_text(
        f"[camera]\nfps = {args.fps}\n[service]\nmode = '{args.mode}'\n"
        f"[events]\nkeep_mb = {KEEP_MB}\nkeep_free_mb = 0\npictures_a_minute = 6000\n"
        f"[web]\nport = 0\n[metrics]\nenabled = true\n"
    )
    log, times = folder / "log", folder / "times"
    with open(log, "wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "tools.soak", times, "run", "synthetic", "--state", state]
            + ["--config", folder / "config.toml"],
            stdout=file,
            stderr=file,
        )
    try:
        url = _page(child, log)
        for _ in range(args.viewers):
            threading.Thread(target=_watch, args=(url,), daemon=True).start()
        return _sample(child, state, times, args.minutes * 60, log)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def _page(child: subprocess.Popen, log: Path) -> str:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and child.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if "the page is at " in line:
                return line.rpartition(" ")[2]
        time.sleep(0.1)
    raise InputError(f"the service did not start: {_last(log)}")


def _watch(url: str) -> None:
    """Look at the live picture until it ends."""
    try:
        with urllib.request.urlopen(f"{url}stream.mjpg") as stream:
            while stream.read(65536):
                pass
    except (OSError, http.client.HTTPException):
        return  # the service has ended


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


def _sample(
    child: subprocess.Popen, state: Path, times: Path, length_s: float, log: Path
) -> list[Sample]:
    samples: list[Sample] = []
    process = Path(f"/proc/{child.pid}")
    started_s = time.monotonic()
    with (
        tqdm(total=round(length_s), unit="s", desc="soaking", delay=2, leave=False) as bar,
        open(times, encoding="utf-8") as told,
    ):
        while (at_s := time.monotonic() - started_s) < length_s:
            time.sleep(min(SAMPLE_S, length_s - at_s))
            if child.poll() is not None:
                raise InputError(f"the service ended by itself: {_last(log)}")
            lines = told.read().splitlines()
            if not lines:
                continue
            frames = json.loads(lines[-1])["frames"]
            turns = [turn for line in lines for turn in json.loads(line)["turns_ms"]]
            judged = [turn for line in lines for turn in json.loads(line)["judged_ms"]]
            status = (process / "status").read_text()
            samples.append(
                Sample(
                    time.monotonic() - started_s,
                    _field(status, "VmRSS") / 1024,
                    len(os.listdir(process / "fd")),
                    int(_field(status, "Threads")),
                    pictures_mb := _size_mb(state / "events" / "pictures"),
                    _size_mb(state / "events") - pictures_mb,
                    frames,
                    *_tail(turns),
                    *_tail(judged),
                )
            )
            bar.update(round(time.monotonic() - started_s) - bar.n)
            bar.set_postfix_str(f"{samples[-1].rss_mb:.0f} MB, {frames} frames")
    return samples


def _tail(turns_ms: Sequence[float]) -> tuple[float, float]:
    if not turns_ms:
        return float("nan"), float("nan")
    return float(np.quantile(turns_ms, 0.5)), float(np.quantile(turns_ms, 0.99))


def _field(status: str, name: str) -> float:
    (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return float(line.split()[1])


def _size_mb(folder: Path) -> float:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # retention has just taken it
    return total / 1e6


def _child(argv: Sequence[str]) -> int:
    """The service with a stop-watch in its loop."""
    from edge_app.cli import main
    from edge_app.service.loop import Loop

    see = Loop.see
    turns_ms: list[float] = []
    judged_ms: list[float] = []
    frames, told_s = 0, time.monotonic()
    file = open(argv[0], "w", encoding="utf-8", buffering=1)  # closed with the process

    def timed(self: Loop, frame: object) -> None:
        nonlocal frames, told_s
        started = time.perf_counter()
        see(self, frame)
        took_ms = (time.perf_counter() - started) * 1e3
        frames += 1
        turns_ms.append(round(took_ms, 4))
        if self.station.inspector.seen is not None:
            judged_ms.append(round(took_ms, 4))
        if time.monotonic() - told_s >= 1.0:
            told_s = time.monotonic()
            line = {"frames": frames, "turns_ms": turns_ms, "judged_ms": judged_ms}
            file.write(json.dumps(line) + "\n")
            turns_ms.clear()
            judged_ms.clear()

    Loop.see = timed
    return main(argv[1:])


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
