"""
Where frames come from; one file a source.

A source has `frames()` (an iterator of :class:`edge_app.records.Frame`), `close()`, `live` (frames
come whether they are taken or not) and `separate_parts` (every frame is a part of its own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from edge_app.config import DEFAULT_FILE, CameraConfig, load_config
from edge_app.errors import InputError
from edge_app.records import Frame
from edge_app.sources.camera import CameraSource
from edge_app.sources.device import Device
from edge_app.sources.folder import FolderSource, is_picture, printable
from edge_app.sources.picamera import PicameraDevice
from edge_app.sources.stream import StreamDevice
from edge_app.sources.synthetic import SyntheticDevice
from edge_app.sources.video import VideoSource
from edge_app.sources.webcam import WebcamDevice

# What cameras are called, and the device that such a name stands for.
CAMERAS: tuple[tuple[str, Callable[[re.Match[str], CameraConfig], Device]], ...] = (
    (r"(?:camera:|/dev/video)(\d{1,4})", lambda m, s: WebcamDevice(int(m[1]), s)),
    (r"picamera(?::(\d{1,4}))?", lambda m, s: PicameraDevice(int(m[1] or 0), s)),
    (r"(?i:rtsps?|https?)://.+", lambda m, s: StreamDevice(m[0], s)),
    (r"synthetic(?::(.+))?", lambda m, s: SyntheticDevice(m[1], s)),
)


class Source(Protocol):
    """What every source offers."""

    live: bool
    separate_parts: bool

    def frames(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def is_camera(name: str) -> bool:
    """Whether a source of this name is a camera."""
    return any(re.fullmatch(pattern, name, re.DOTALL) for pattern, _ in CAMERAS)


def open_source(name: str, camera: CameraConfig | None = None, patient: bool = False) -> Source:
    """
    The source that a command line names.

    Parameters
    ----------
    name : str
        ``camera:N`` or ``/dev/videoN``; ``picamera`` or ``picamera:N``; an address that begins
        with ``rtsp://``, ``rtsps://``, ``http://`` or ``https://``; ``synthetic`` or
        ``synthetic:FILE``; a folder of pictures, a picture, or a video file. A folder that is
        called like a camera is named ``./picamera``.
    camera : CameraConfig, optional
        Settings of a camera; the packaged defaults without.
    patient : bool
        Whether a camera that cannot be opened yet is waited for.

    Raises
    ------
    InputError, CameraError
        If there is no such thing or it cannot be opened.
    """
    for pattern, build in CAMERAS:
        if found := re.fullmatch(pattern, name, re.DOTALL):
            settings = camera or load_config(DEFAULT_FILE).camera
            return CameraSource(build(found, settings), settings, patient)
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
