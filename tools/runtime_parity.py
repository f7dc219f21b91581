"""
Runtime parity: does a bundle judge alike under another TFLite runtime?

The same frames go through the device's own command line twice, once with this interpreter and once
with another Python's, whose environment holds another runtime, numpy and OpenCV. What is compared
is each frame's raw score.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_app.bundle import load_bundle
from edge_app.errors import EdgeAppError, InputError

# Largest relative difference of a float32 score that another runtime's rounding may cause.
FLOAT_BOUND = 1e-3

_VERSIONS = (
    "import sys, cv2, numpy; sys.path.insert(0, sys.argv[1]); "
    "from edge_app.bundle import load_bundle; from edge_app.runtime import open_interpreter; "
    "name = open_interpreter(load_bundle(sys.argv[2]).encoder).runtime_name; "
    "print(f'{name}, numpy {numpy.__version__}, OpenCV {cv2.__version__}')"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``runtime-parity``."""
    parser.description = __doc__
    parser.epilog = (
        "example:\n  python -m tools runtime-parity --bundle models/nut "
        "--source models/sample/clip.mp4 --python .venv-tflite/bin/python"
    )
    parser.add_argument(
        "--bundle", required=True, nargs="+", metavar="B", help="bundles to compare with"
    )
    parser.add_argument("--source", required=True, metavar="SOURCE", help="pictures or a video")
    parser.add_argument("--python", required=True, metavar="FILE", help="the other interpreter")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Compare; exit code 1 if a float32 bundle does not judge alike."""
    if not (os.path.isfile(args.python) and os.access(args.python, os.X_OK)):
        raise InputError(f"--python {args.python}: is no program that can be run")
    report = {}
    for name in args.bundle:
        bundle = load_bundle(name)
        lines = [_scores(python, name, args.source) for python in (sys.executable, args.python)]
        report[name] = {
            "dtype": bundle.manifest["encoder"]["dtype"],
            "runtimes": [_runtime(python, name) for python in (sys.executable, args.python)],
            **compare(*lines),
        }
        _print(name, report[name])
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{args.json}: cannot be written: {error.strerror}") from None
    strayed = [
        name
        for name, figures in report.items()
        if figures["dtype"] != "int8"
        and (figures["largest_difference"] > FLOAT_BOUND or figures["verdicts_outside_band"])
    ]
    if strayed:
        raise EdgeAppError(
            f"{', '.join(strayed)}: scores differ by more than {FLOAT_BOUND:g} relative, or a "
            "verdict does where the score is farther than that from the threshold"
        )
    return 0


def compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Compare two runs of ``edge-app inspect --json`` over the same frames.

    Returns
    -------
    dict
        `frames` (scored in both); `largest_difference` and `median_difference` of the scores,
        relative to the larger; `verdicts_differ`, and `verdicts_outside_band`: those of them where
        the score is farther than `FLOAT_BOUND` from the threshold.

    Raises
    ------
    EdgeAppError
        If the runs do not cover the same frames.
    """
    if [line["frame"] for line in first] != [line["frame"] for line in second]:
        raise EdgeAppError(f"the runs cover {len(first)} and {len(second)} frames, wanted the same")
    differences, differ, outside = [], 0, 0
    for one, other in zip(first, second, strict=True):
        if one["score"] is not None and other["score"] is not None:
            larger = max(abs(one["score"]), abs(other["score"]))
            difference = abs(other["score"] - one["score"])
            differences.append(difference / larger if larger else 0.0)
        if one["verdict"] != other["verdict"]:
            differ += 1
            near = one["score"] is not None and (
                abs(one["score"] / one["threshold"] - 1) <= FLOAT_BOUND
            )
            outside += not near
    if not differences:
        raise EdgeAppError("no frame was scored in both runs")
    differences.sort()
    return {
        "frames": len(differences),
        "largest_difference": differences[-1],
        "median_difference": differences[len(differences) // 2],
        "verdicts_differ": differ,
        "verdicts_outside_band": outside,
    }


def _call(command: list[str], bundle: str) -> str:
    root = os.fspath(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise EdgeAppError(f"{command[0]} failed on {bundle}: {said[-1] if said else 'silently'}")
    return done.stdout


def _scores(python: str, bundle: str, source: str) -> list[dict[str, Any]]:
    command = [python, "-m", "edge_app", "inspect", source, "--bundle", bundle]
    output = _call([*command, "--mode", "single", "--json", "-"], bundle)
    return [json.loads(line) for line in output.splitlines()]


def _runtime(python: str, bundle: str) -> str:
    root = os.fspath(Path(__file__).resolve().parent.parent)
    return _call([python, "-c", _VERSIONS, root, bundle], bundle).strip()


def _print(name: str, figures: dict[str, Any]) -> None:
    print(f"{name} ({figures['dtype']}): {' | '.join(figures['runtimes'])}")
    print(
        f"  {figures['frames']} frames scored in both, relative difference of the score: median "
        f"{figures['median_difference']:.1e}, largest {figures['largest_difference']:.1e}; "
        f"{figures['verdicts_differ']} verdicts differ, {figures['verdicts_outside_band']} of them "
        f"farther than {FLOAT_BOUND:g} from the threshold"
    )
