"""
Where frames come from; one file a source.

A source has `frames()` (an iterator of :class:`edge_app.records.Frame`), `close()`, `live` (frames
come whether they are taken or not) and `separate_parts` (every frame is a part of its own).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edge_app.errors import InputError
from edge_app.records import Frame
from edge_app.sources.folder import FolderSource, is_picture, printable
from edge_app.sources.video import VideoSource
from edge_app.sources.webcam import WebcamSource


class Source(Protocol):
    """What every source offers."""

    live: bool
    separate_parts: bool

    def frames(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def open_source(name: str) -> Source:
    """
    The source that a command line names.

    Parameters
    ----------
    name : str
        ``camera:N`` or ``/dev/videoN``, a folder of pictures, a picture, or a video file.

    Raises
    ------
    InputError, CameraError
        If there is no such thing or it cannot be opened.
    """
    camera = re.fullmatch(r"(?:camera:|/dev/video)(\d{1,4})", name)
    if camera:
        return WebcamSource(int(camera.group(1)))
    path = Path(name)
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise InputError(f"{printable(name)}: cannot be opened: {error.strerror}") from None
    if not there:
        raise InputError(f"{printable(name)}: no such folder or file (a camera is named camera:0)")
    if folder or is_picture(path):
        return FolderSource(path)
    return VideoSource(path)
