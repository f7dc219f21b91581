"""
Evidence: the pictures of events as files, each whole or not there.

A picture is written under a temporary name, synced, and renamed; `sync` then makes the names last.
Only after that may a row name it. Names hold the time and chance, never the number of a row, which
is not known yet when they are written.

::

    pictures/2026-01/20260131T120000_9f86d081_frame.png     the frame, lossless: it may be learnt
    pictures/2026-01/20260131T120000_9f86d081_overlay.jpg   the same with its heatmap, to look at
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from edge_app.learnt_pictures import PNG_PARAMETERS
from edge_app.records import Event

PICTURES = "pictures"
BALLAST = "ballast"
# What a full disk gives up so that oldest evidence can be dropped: the transaction that drops
# `store.DROPPED_AT_ONCE` rows touches at most three pages of 4 KiB for each, usually a tenth.
BALLAST_BYTES = 512 * 1024
# Nobody learns from an overlay.
JPEG_PARAMETERS = (cv2.IMWRITE_JPEG_QUALITY, 90)
UNFINISHED = ".part"


@dataclass(frozen=True)
class Written:
    """Names of an event's pictures, relative to the folder of pictures, and their bytes."""

    frame: str | None = None
    overlay: str | None = None
    bytes: int = 0

    @property
    def names(self) -> list[str]:
        return [name for name in (self.frame, self.overlay) if name is not None]


class Evidence:
    """
    The pictures below a folder.

    Parameters
    ----------
    folder : path
        Of the event store.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.pictures = self.folder / PICTURES
        self._unsynced: set[Path] = set()
        self._lasting: set[Path] = set()  # folders of months whose own names were synced

    def prepare(self) -> None:
        """Make the folders; raises OSError."""
        for folder in (self.folder, self.pictures):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                keep_owner(folder)
                sync_folder(folder.parent)

    def write(self, event: Event) -> Written:
        """
        Write the pictures of an event; they last once `sync` has returned.

        Raises
        ------
        OSError
            Nothing of this event is left behind then.
        ValueError
            If a picture is none that can be written.
        """
        try:
            moment = datetime.fromtimestamp(event.time_s, UTC)
        except (ValueError, OverflowError, OSError, TypeError):
            moment = datetime.fromtimestamp(0, UTC)
        month = moment.strftime("%Y-%m")
        stem = f"{month}/{moment.strftime('%Y%m%dT%H%M%S')}_{secrets.token_hex(4)}"
        names: dict[str, str] = {}
        size = 0
        try:
            for which, picture_bgr, suffix, parameters in (
                ("frame", event.frame_bgr, ".png", PNG_PARAMETERS),
                ("overlay", event.overlay_bgr, ".jpg", JPEG_PARAMETERS),
            ):
                if picture_bgr is None:
                    continue
                data = _encoded(picture_bgr, suffix, parameters)
                names[which] = f"{stem}_{which}{suffix}"
                self._put(names[which], data)
                size += len(data)
        except BaseException:
            self.remove(names.values())
            raise
        return Written(names.get("frame"), names.get("overlay"), size)

    def _put(self, name: str, data: memoryview) -> None:
        path = self.pictures / name
        month = path.parent
        if not month.is_dir():
            month.mkdir(exist_ok=True)
            keep_owner(month)
        if month not in self._lasting:
            self._unsynced.add(self.pictures)
        temporary = path.with_name(path.name + UNFINISHED)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o644)
            try:
                # A short write is how a disk that fills up begins to say so.
                while len(data):
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            keep_owner(temporary)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._unsynced.add(month)

    def sync(self) -> None:
        """Make the names of all pictures written so far last; raises OSError."""
        for folder in sorted(self._unsynced, reverse=True):
            sync_folder(folder)
        self._lasting |= self._unsynced
        self._unsynced.clear()

    def remove(self, names: Iterable[str]) -> None:
        """Delete pictures, as far as they are there and can be; what is left the sweep takes."""
        for name in names:
            path = self.path(name)
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    def path(self, name: str | None) -> Path | None:
        """Where a picture is or would be; None where the name leads out of the folder."""
        if not name:
            return None
        parts = Path(name).parts
        if len(parts) != 2 or ".." in parts or os.path.isabs(name) or "\0" in name:
            return None
        return self.pictures / name

    def there(self, name: str | None) -> Path | None:
        """The picture's file; None where it is gone or no file of ours: a link leads elsewhere."""
        path = self.path(name)
        if path is None:
            return None
        try:
            kinds = path.parent.lstat().st_mode, path.lstat().st_mode
        except OSError:
            return None
        return path if stat.S_ISDIR(kinds[0]) and stat.S_ISREG(kinds[1]) else None

    def sweep(self, kept: set[str]) -> tuple[int, set[str]]:
        """
        Delete every file that no row names: the remains of what was cut off before its commit.

        Parameters
        ----------
        kept : set of str
            Names that rows hold.

        Returns
        -------
        removed : int
        missing : set of str
            Names in `kept` without a file.
        """
        removed, found = 0, set()
        for month in sorted(self.pictures.iterdir()):
            if not month.is_dir() or month.is_symlink():
                continue
            for entry in os.scandir(month):
                name = f"{month.name}/{entry.name}"
                if name in kept:
                    found.add(name)
                elif entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
                    removed += 1
        return removed, kept - found

    def free_bytes(self) -> int:
        """What is free on the disk for this user; raises OSError."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def take_ballast(self) -> None:
        """Lay up the ballast if it is not there; a disk too full for it is left as it is."""
        path = self.folder / BALLAST
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        try:
            if os.fstat(descriptor).st_size < BALLAST_BYTES:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        except OSError:
            self.drop_ballast()
        finally:
            os.close(descriptor)

    def drop_ballast(self) -> None:
        """Give the ballast's room back to the disk."""
        with contextlib.suppress(OSError):
            (self.folder / BALLAST).unlink()


def keep_owner(path: Path) -> None:
    """
    Give what root has made here to the owner of its folder.

    A command with ``sudo`` would leave files that the service, with a user of its own, could not
    write to any more.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(picture_bgr: np.ndarray, suffix: str, parameters: tuple[int, ...]) -> memoryview:
    try:
        coded, data = cv2.imencode(suffix, picture_bgr, list(parameters))
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot write the picture: {error.err}") from None
    if not coded:
        raise ValueError("OpenCV cannot write the picture")
    return memoryview(data).cast("B")
