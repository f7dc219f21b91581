"""
A survey of a folder of pictures: which there are, in which roles, and what is read off them.

::

    DIR/train/good, DIR/train/empty, DIR/test/<class>    an inspection set (layout of MVTec AD)
    DIR/<class>                                          a folder for each class
    DIR/*.png                                            a folder of good pictures
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_app.errors import InputError
from edge_app.held_out import thumbnail
from edge_app.sources.folder import is_picture, list_pictures, printable, read_picture
from tools import leak_probe
from tools.duplicates import fine_thumbnail, pixel_hash
from tools.inspection_set import GOOD
from tools.picture_files import Header, read_header
from tools.trivial import trivial_numbers

INSPECTION_SET = "inspection set"
CLASSES = "a folder for each class"
GOOD_ONLY = "folder of good pictures"


@dataclass(frozen=True)
class Group:
    """
    The pictures of one folder.

    Attributes
    ----------
    name : str
        Relative to the set, with ``/``.
    role : str
        ``train``, ``empty``, ``good`` or ``defect`` (of test), or ``class``: one of several of
        which none is called good.
    paths : tuple of Path
    """

    name: str
    role: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Look:
    """
    What was read off the pixels of one picture.

    Attributes
    ----------
    numbers : dict of str to float
        Those of `trivial_numbers`, ``aspect`` (width over height) and ``megapixels``.
    pixels : bytes
        See `duplicates.pixel_hash`.
    thumbnail, fine : ndarray
        See `edge_app.held_out.thumbnail` and `duplicates.fine_thumbnail`.
    past_quality : int or None
        See `leak_probe.past_quality`.
    traces, grain : ndarray, or None
        See `leak_probe`; None of pictures too small for it.
    """

    numbers: dict[str, float]
    pixels: bytes
    thumbnail: np.ndarray
    fine: np.ndarray
    past_quality: int | None
    traces: np.ndarray | None
    grain: np.ndarray | None


@dataclass(frozen=True)
class Survey:
    """
    All that is known of a set.

    Attributes
    ----------
    root : Path
    layout : str
        `INSPECTION_SET`, `CLASSES` or `GOOD_ONLY`.
    groups : tuple of Group
    headers : dict of Path to Header
        Of all pictures, also the broken ones.
    looks : dict of Path to Look, or None
        Of the pictures that can be decoded; None where no pixels were read.
    broken : dict of Path to str
        Why a picture cannot be read.
    empty_folders : tuple of str
        Folders of classes that hold no picture; ``test`` where it holds no folder.
    unread : tuple of Path
        Pictures in these folders that are passed over because of their suffix.
    not_looked_at : tuple of str
        Folders with pictures that no command looks at, because of where they are.
    """

    root: Path
    layout: str
    groups: tuple[Group, ...]
    headers: dict[Path, Header]
    looks: dict[Path, Look] | None
    broken: dict[Path, str]
    empty_folders: tuple[str, ...]
    unread: tuple[Path, ...]
    not_looked_at: tuple[str, ...]

    def paths(self, *roles: str) -> list[Path]:
        """Of these roles (none: all), in order, without the broken ones."""
        return [
            path
            for group in self.groups
            if not roles or group.role in roles
            for path in self.whole(group)
        ]

    def whole(self, group: Group) -> list[Path]:
        """Of one group, without the broken ones."""
        return [path for path in group.paths if path not in self.broken]

    def short(self, path: Path) -> str:
        """The name of a file within the set."""
        return shown(path.relative_to(self.root).as_posix())

    def some(self, paths: Sequence[Path], most: int = 3) -> str:
        """The first few names, and how many more."""
        names = ", ".join(self.short(path) for path in paths[:most])
        return names + (f" and {len(paths) - most} more" if len(paths) > most else "")

    def same_class(self, first: Path, second: Path) -> bool:
        """Whether both are said to show the same: train/good and test/good are one class."""
        return self.layout == GOOD_ONLY or first.parent.name == second.parent.name


def shown(path: Path | str) -> str:
    """The name of a file in one line: what a terminal would obey is written as an escape."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in printable(path)
    )


def survey(root: Path, quick: bool = False, progress: bool = True) -> Survey:
    """
    Read a folder of pictures.

    Parameters
    ----------
    root : Path
    quick : bool
        Read the headers only.
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    Survey

    Raises
    ------
    InputError
        If the folder does not exist, cannot be listed, or holds no pictures in any of the ways.
    """
    try:
        if not root.is_dir():
            what = "is a file, wanted a folder" if root.exists() else "no such folder"
            raise InputError(f"{shown(root)}: {what}")
        layout, folders = _folders_and_roles(root)
        groups, empty_folders, unread = [], [], []
        for folder, role in folders:
            name = shown(folder.relative_to(root).as_posix())
            paths, passed_over = _pictures(folder)
            unread += passed_over
            if paths:
                groups.append(Group(name, role, tuple(paths)))
            else:
                empty_folders.append(name)
        test = root / "test"
        parents = {folder.parent for folder, _ in folders}
        if layout == INSPECTION_SET and test.is_dir() and test not in parents:
            empty_folders.append("test")
        not_looked_at = _not_looked_at(root, layout, [folder for folder, _ in folders])
    except OSError as error:
        raise InputError(f"{shown(root)}: cannot be read: {error.strerror}") from None
    if not groups or (layout == INSPECTION_SET and groups[0].role != "train"):
        wanted = "holds neither train/good, nor pictures, nor folders of pictures"
        if layout == INSPECTION_SET:
            wanted = "train/good holds no picture"
        raise InputError(f"{shown(root)}: {wanted}")
    headers = {path: read_header(path) for group in groups for path in group.paths}
    looks = None
    if quick:
        broken = {path: one.problem for path, one in headers.items() if one.problem}
    else:
        looks, broken = _look_at_all(headers, progress)
    return Survey(
        root,
        layout,
        tuple(groups),
        headers,
        looks,
        broken,
        tuple(empty_folders),
        tuple(unread),
        tuple(shown(folder.relative_to(root).as_posix()) for folder in not_looked_at),
    )


def _folders_and_roles(root: Path) -> tuple[str, list[tuple[Path, str]]]:
    train_good = root / "train" / GOOD
    if train_good.is_dir():
        found = [(train_good, "train")]
        if (root / "train" / "empty").is_dir():
            found.append((root / "train" / "empty", "empty"))
        if (root / "test").is_dir():
            tests = sorted(folders(root / "test"), key=lambda one: (one.name != GOOD, one.name))
            found += [(one, "good" if one.name == GOOD else "defect") for one in tests]
        return INSPECTION_SET, found
    if any(is_picture(path) and path.is_file() for path in root.iterdir()):
        return GOOD_ONLY, [(root, "train")]
    classes = folders(root)
    if not any(one.name == GOOD for one in classes):
        return CLASSES, [(one, "class") for one in classes]
    return CLASSES, [(one, "good" if one.name == GOOD else "defect") for one in classes]


def folders(parent: Path) -> list[Path]:
    """The folders inside a folder, by name, but for hidden ones."""
    return sorted(one for one in parent.iterdir() if one.is_dir() and not one.name.startswith("."))


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Those that the project reads, in natural order, and those it passes over."""
    passed_over = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not is_picture(path)
        and not path.name.startswith(".")
        and read_header(path).file_format
    ]
    try:
        return list_pictures(folder), passed_over
    except InputError:
        return [], passed_over


def _not_looked_at(root: Path, layout: str, known: list[Path]) -> list[Path]:
    """Folders with pictures inside, or beside, the known ones."""
    found = []
    if layout == INSPECTION_SET:
        for parent in (root / "train", root / "test"):
            if parent.is_dir() and any(is_picture(one) for one in parent.iterdir()):
                found.append(parent)
        beside = [one for one in folders(root / "train") if one not in known]
        found += [one for one in beside if _holds_pictures(one)]
    for folder in known:
        found += [one for one in folders(folder) if _holds_pictures(one)]
    return found


def _holds_pictures(folder: Path) -> bool:
    """Whether a picture is in a folder, however deep; what may not be read is left out."""
    return any(
        is_picture(Path(name)) and not name.startswith(".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _look_at_all(
    headers: dict[Path, Header], progress: bool
) -> tuple[dict[Path, Look], dict[Path, str]]:
    """Every picture decoded, and why some could not be."""
    from tqdm import tqdm

    looks, broken = {}, {}
    bar = tqdm(
        headers.items(),
        desc="reading pictures",
        unit="picture",
        delay=2,
        leave=False,
        disable=not progress,
    )
    for path, header in bar:
        # Whatever Pillow says of the header: the commands decode by OpenCV.
        try:
            looks[path] = _look(path, header)
        except InputError as error:
            broken[path] = str(error)
    return looks, broken


def _look(path: Path, header: Header) -> Look:
    frame_bgr = read_picture(path)
    stored_bgr = frame_bgr
    if header.orientation != 1:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        stored_bgr = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    light = leak_probe.prepare(stored_bgr)
    height, width = frame_bgr.shape[:2]
    numbers = trivial_numbers(path, frame_bgr)
    numbers |= {"aspect": width / height, "megapixels": width * height / 1e6}
    return Look(
        numbers=numbers,
        pixels=pixel_hash(frame_bgr),
        thumbnail=thumbnail(cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)),
        fine=fine_thumbnail(frame_bgr),
        past_quality=None if light is None else leak_probe.past_quality(light),
        traces=None if light is None else leak_probe.block_traces(light),
        grain=None if light is None else leak_probe.grain(light),
    )
