"""Where bundles and state lie, in a checkout and on an installed device. Standard library only."""

from __future__ import annotations

from pathlib import Path

# Beside the package in a checkout; an installed package has none.
CHECKOUT_MODELS = Path(__file__).resolve().parent.parent / "models"
STATE = Path("/var/lib/edge-app")
STATE_MODELS = STATE / "models"
SAMPLE_CLIP = CHECKOUT_MODELS / "sample" / "clip.mp4"


def base_bundles() -> list[Path]:
    """Where a bundle without a part, to enrol any part with, may lie; the first that is there."""
    return [CHECKOUT_MODELS / "base", STATE_MODELS / "base"]
