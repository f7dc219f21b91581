"""Where bundles and state lie, in a checkout and on an installed device. Standard library only."""

from __future__ import annotations

from pathlib import Path

from edge_app.errors import InputError

# Beside the package in a checkout; an installed package has none.
CHECKOUT_MODELS = Path(__file__).resolve().parent.parent / "models"
STATE = Path("/var/lib/edge-app")
STATE_MODELS = STATE / "models"
SAMPLE_CLIP = CHECKOUT_MODELS / "sample" / "clip.mp4"


def base_bundle() -> Path:
    """
    A bundle without a part, to enrol any part with.

    Raises
    ------
    InputError
        If there is none.
    """
    found = [CHECKOUT_MODELS / "base", STATE_MODELS / "base"]
    for bundle in found:
        if bundle.exists():
            return bundle
    raise InputError(f"no bundle to start from at {found[-1]}: name one with --bundle")
