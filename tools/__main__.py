"""``python -m tools``: the workstation's commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from edge_app.errors import EdgeAppError

COMMANDS = {
    "fit": "good images in, calibrated bundle out",
    "evaluate": "what a bundle does on labelled images, through the device's own code",
    "perturb": "how much its figures suffer when the part or the station changes",
    "train-encoder": "fine-tune the MobileNetV2 encoder (DOC)",
    "train-decoder": "train the decoder behind the heatmap",
    "convert": "Keras to TFLite, with a parity report",
    "render": "draw metal nuts: good ones, defective ones, masks, a clip",
    "runtime-parity": "the same scores under another TFLite runtime?",
    "thermal-bench": "how the device's pace holds boards it does not know at 75 °C",
    "bench-article": "the article's own loop beside ours, in one run",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a workstation command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description="The workstation: train, convert, fit and measure. Needs the extra 'tools'.",
        epilog="python -m tools COMMAND --help tells more. DEBUG=1 shows tracebacks.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        # Only the command that is asked for is imported: --help answers at once.
        if name in arguments[:1]:
            module = importlib.import_module("tools." + name.replace("-", "_"))
            module.configure(command)
            command.set_defaults(execute=module.run)
    args = parser.parse_args(arguments)
    args.typed = arguments  # for the record of how something was made
    # TensorFlow's banners would bury the one sentence that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return args.execute(args)
    except EdgeAppError as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"tools {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if os.environ.get("DEBUG"):
            raise
        print(
            f"tools {args.command}: the package {error.name} is not installed; "
            "make venv installs what the workstation needs",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"tools {args.command}: stopped by the keyboard", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
