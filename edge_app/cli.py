"""
The command line: builds the objects, wires them, turns errors into one sentence and an exit code.

Exit codes: 0 done, whatever the verdicts; 1 a bug or a finding; 2 bad input or usage; 69 camera
cannot serve; 78 configuration or bundle.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from edge_app import __version__
from edge_app.arguments import whole_from_1
from edge_app.errors import EdgeAppError

COMMANDS = {
    "inspect": "judge an image, a folder, a video or a camera",
    "enroll": "learn a part from good frames",
    "live": "a window with the camera's picture, its verdicts and keys to teach it",
    "run": "the service: inspects without a screen, with a page, events and outputs",
    "verify": "judge the master parts, good and bad, at the start of a shift",
    "events": "what the service has kept of NG, UNKNOWN and changes",
    "bench": "what each stage and the loop cost, against the bare encoder call",
    "doctor": "what is wrong with this machine, and how to mend it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``edge-app``; returns the exit code."""
    # OpenCV's and FFmpeg's own lines would stand beside the one sentence that says it better.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # Before any command imports numpy: the products behind a score are too small to be shared out,
    # and with other work on the machine the threads of its BLAS wait for each other, up to ten
    # times as long as the product takes.
    for library in ("OPENBLAS", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(arguments).parse_args(arguments)
    args.typed = arguments  # for the record of how a bundle was made
    try:
        code = _execute(args)
        sys.stdout.flush()
        return code
    except EdgeAppError as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"edge-app: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # A closed pipe (| head) ends the program quietly, like any other command. Not by leaving it
        # to the signal: a peer that closes its socket would end an inspection.
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except OSError as error:
        # What is left here is the terminal or pipe itself: a full device behind standard output.
        if os.environ.get("DEBUG"):
            raise
        with contextlib.suppress(OSError):
            print(f"edge-app: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        # Or the interpreter would try once more at exit, and complain.
        sys.stdout = None
        return 2
    except KeyboardInterrupt:
        print("edge-app: stopped by the keyboard", file=sys.stderr)
        return 130


def _execute(args: argparse.Namespace) -> int:
    # One that must work where libraries or the configuration are at fault looks at them itself.
    if getattr(args, "unprepared", False):
        return args.execute(args)
    # Late, so that --help is instant.
    import cv2

    from edge_app.config import load_config

    # What camera and heat watch have to say, once each time it changes.
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    config = load_config(args.config)
    threads = args.threads if args.threads is not None else config.runtime.threads
    cv2.setNumThreads(threads)
    return args.execute(args, config, threads)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; of the command that `arguments` ask for, its own options too."""
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
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, parents=[common], help=summary)
        # Only what is asked for is imported: a verdict must not wait for what it does not use.
        if name in arguments[:1]:
            module = importlib.import_module(f"edge_app.commands.{name}")
            module.configure(command)
            command.set_defaults(execute=module.run)
    return parser
