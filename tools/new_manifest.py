"""What of a new bundle's manifest is not learnt: the encoder, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_app.bundle import made_now

# What the encoder expects: RGB, 0..255 mapped to -1..1.
SCALE, OFFSET = 1 / 127.5, -1.0
# Versions of these are recorded beside edge-app's and numpy's.
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "ai-edge-litert", "scikit-learn")


def new_manifest(
    part: str,
    command: str,
    size: tuple[int, int],
    encoder: Mapping[str, Any],
    provenance: Mapping[str, Any],
    region: Sequence[float] | None = None,
) -> dict[str, Any]:
    """
    A manifest of schema 1 whose learnt sections are empty.

    Parameters
    ----------
    part : str
    command : str
        That made the bundle.
    size : (int, int)
        Height and width of the encoder's input.
    encoder : mapping
        The section of that name.
    provenance : mapping
        Of the weights, with `good_images`; `licence` and `remake` are filled in where they are not
        there.
    region : sequence of float, optional
    """
    return {
        "parent_sha256": None,
        "part": part,
        "made": made_now(command, PACKAGES),
        "input": {
            "size": list(size),
            "colour_order": "rgb",
            "scale": SCALE,
            "offset": OFFSET,
            "region": None if region is None else list(region),
        },
        "encoder": dict(encoder),
        "alignment": {"recipe": "none"},
        "presence": None,
        "scorer": None,
        "threshold": None,
        "quality": None,
        "decoder": None,
        "provenance": {"licence": "not stated", "remake": [command], **provenance},
    }
