"""``python -m tools``: the workstation's commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from edge_app.errors import EdgeAppError, InputError
from tools.help_layout import HelpLayout

COMMANDS = {
    "fit": "good images in, calibrated bundle out",
    "evaluate": "what a bundle does on labelled images, through the device's own code",
    "perturb": "how much its figures suffer when the part or the station changes",
    "check-data": "formats, duplicates, leaks: may figures on this set be trusted?",
    "train-encoder": "fine-tune the MobileNetV2 encoder (DOC or triplets)",
    "train-decoder": "train the decoder behind the heatmap",
    "convert": "Keras to TFLite, with a parity report",
    "unpack-idx": "IDX files (Fashion-MNIST) to an inspection set of PNG files",
    "spoil": "a set with few good pictures, or defective ones among them, to see what that costs",
    "bench-stored": "AUROC and milliseconds over the number of stored embeddings",
    "compare": "every method of the articles, and our own, on the same pictures",
    "leak-experiment": "did a model learn good from bad, or JPEG from PNG?",
    "render": "draw metal nuts: good ones, defective ones, masks, a clip",
    "runtime-parity": "the same scores under another TFLite runtime?",
    "thermal-bench": "how the device's pace holds boards it does not know at 75 °C",
    "soak": "the service at full rate for an hour: memory, handles, tail of the loop, store",
    "bench-article": "the article's own loop beside ours, in one run",
}


BACKENDS = ("tensorflow", "jax", "torch")


def _refuse_unknown_backend() -> None:
    backend = os.environ.get("KERAS_BACKEND") or BACKENDS[0]
    if backend not in BACKENDS:
        raise InputError(f"KERAS_BACKEND={backend}: wanted {', '.join(BACKENDS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a workstation command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description="The workstation: train, convert, fit and measure. Needs the extra 'tools'.",
        epilog=(
            "The usual way from pictures to a bundle that can be trusted:\n"
            "  python -m tools check-data parts/bracket\n"
            "  python -m tools fit --data parts/bracket --weights imagenet --out bundles/bracket\n"
            "  python -m tools evaluate --bundle bundles/bracket --data parts/bracket \\\n"
            "    --report bracket.html\n\n"
            "python -m tools COMMAND --help tells more. DEBUG=1 shows tracebacks."
        ),
        formatter_class=HelpLayout,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=HelpLayout)
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
        _refuse_unknown_backend()
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
            + (
                f"KERAS_BACKEND asks for it: pip install {error.name}"
                if error.name == os.environ.get("KERAS_BACKEND")
                else "make venv installs what the workstation needs"
            ),
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        if os.environ.get("DEBUG"):
            raise
        # A full disk, a folder that was taken away: what happened meanwhile, whoever met it.
        where = f"{error.filename}: " if error.filename else ""
        print(f"tools {args.command}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        what = f"; {stop}" if str(stop) else ""
        print(f"tools {args.command}: stopped by the keyboard{what}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
