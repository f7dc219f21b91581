"""Pictures of NG frames with their heatmap."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from edge_app.errors import InputError
from edge_app.records import Result


class Overlays:
    """
    Writes the overlay of each NG result as ``<frame number>_<name>.jpg``.

    Raises
    ------
    InputError
        If the folder cannot be made or written.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder}: cannot be written: Permission denied")

    def emit(self, result: Result) -> Result:
        """Save the overlay, if the result has one, and return the result with its path."""
        if result.overlay_bgr is None:
            return result
        # Cut short: with number and suffix the name must stay below what a file system takes.
        stem = Path(result.frame.source).stem.replace(":", "")[:60]
        path = self._folder / f"{result.frame.index:06d}_{stem}.jpg"
        coded, data = cv2.imencode(".jpg", _labelled(result), [cv2.IMWRITE_JPEG_QUALITY, 92])
        if not coded:
            raise InputError(f"{path}: OpenCV could not encode the picture")
        temporary = path.with_suffix(".part")
        try:
            temporary.write_bytes(data.tobytes())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        return replace(result, heatmap=os.fspath(path))


def _labelled(result: Result) -> np.ndarray:
    """The overlay under a strip with verdict, score and threshold."""
    decision = result.decision
    width = result.overlay_bgr.shape[1]
    text = str(decision.verdict)
    if decision.score is not None and result.threshold is not None:
        text += f"  score {decision.score:.3g}  limit {result.threshold:.3g}"
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    size = min(0.6, (width - 8) / max(text_width, 1))
    height = max(int(40 * size), 12)
    strip = np.full((height, width, 3), 32, np.uint8)
    at = (4, int(height * 0.72))
    cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (90, 90, 255), 1, cv2.LINE_AA)
    return np.concatenate([strip, result.overlay_bgr])
