"""
Labelled pictures of one part, in the folder layout of MVTec AD.

::

    DIR/train/good/*.png                        good parts, to learn from
    DIR/train/empty/*.png                       the station without a part (optional)
    DIR/test/good/*.png                         good parts, to measure on
    DIR/test/<defect>/*.png                     defective parts
    DIR/ground_truth/<defect>/<stem>_mask.png   where the defect is, 0 or 255 (optional)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_app.errors import InputError
from edge_app.preprocess import Preprocessing, prepare
from edge_app.sources.folder import list_pictures, printable, read_picture

GOOD = "good"
# Where a mask is at least so bright, of 255, is the defect.
MARKED = 128


@dataclass(frozen=True)
class TestPicture:
    """
    One picture of the test split.

    Attributes
    ----------
    path : Path
    defect : str
        Name of its folder: the kind of defect, or ``good``.
    mask_path : Path or None
        Where the defect is; None for good pictures and where no mask is stored.
    """

    # Not a test case, though pytest would take its name for one.
    __test__ = False

    path: Path
    defect: str
    mask_path: Path | None

    @property
    def is_anomaly(self) -> bool:
        """Whether the picture shows a defect."""
        return self.defect != GOOD


@dataclass(frozen=True)
class InspectionSet:
    """
    The pictures of one inspection set, in natural order of their names.

    Attributes
    ----------
    name : str
        Name of the folder.
    train_good : tuple of Path
    train_empty : tuple of Path
        Pictures of the station without a part; may be empty.
    test : tuple of TestPicture
        Good pictures first, then the defects in alphabetical order.
    """

    name: str
    train_good: tuple[Path, ...]
    train_empty: tuple[Path, ...]
    test: tuple[TestPicture, ...]


def read_inspection_set(data_dir: Path | str) -> InspectionSet:
    """
    List the pictures of a folder in the layout of MVTec AD; no picture is opened.

    Parameters
    ----------
    data_dir : Path or str
        The folder that holds ``train`` and ``test``.

    Returns
    -------
    InspectionSet

    Raises
    ------
    InputError
        If the folder, ``train/good`` or ``test`` is missing or holds no picture, or a folder may
        not be read.
    """
    data_dir = Path(data_dir)
    try:
        return _read_inspection_set(data_dir)
    except OSError as error:
        where = data_dir if error.filename is None else error.filename
        raise InputError(f"{printable(where)}: cannot be read: {error.strerror}") from None


def _read_inspection_set(data_dir: Path) -> InspectionSet:
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder")
    train_good_dir, test_dir = data_dir / "train" / GOOD, data_dir / "test"
    if not train_good_dir.is_dir():
        raise InputError(f"{data_dir}: has no folder train/good with pictures of good parts")
    if not test_dir.is_dir():
        raise InputError(
            f"{data_dir}: has no folder test with labelled pictures "
            "(test/good and test/<name of the defect>)"
        )
    train_empty_dir = data_dir / "train" / "empty"
    test = [
        TestPicture(path, folder.name, mask_path(data_dir, folder.name, path.stem))
        for folder in sorted(test_dir.iterdir(), key=lambda f: (f.name != GOOD, f.name))
        if folder.is_dir() and not folder.name.startswith(".")
        for path in list_pictures(folder)
    ]
    if not test:
        raise InputError(
            f"{test_dir}: holds no folder of pictures (test/good and test/<name of the defect>)"
        )
    return InspectionSet(
        name=data_dir.resolve().name,
        train_good=tuple(list_pictures(train_good_dir)),
        train_empty=tuple(list_pictures(train_empty_dir)) if train_empty_dir.is_dir() else (),
        test=tuple(test),
    )


def refuse_one_sided(inspection_set: InspectionSet) -> None:
    """
    Refuse a test split of good or of defective pictures alone: no AUROC can be made of it.

    To be asked before the pictures are read, which takes seconds to minutes.

    Raises
    ------
    InputError
    """
    defective = sum(picture.is_anomaly for picture in inspection_set.test)
    good = len(inspection_set.test) - defective
    if not good or not defective:
        raise InputError(
            f"{printable(inspection_set.name)}: the test split has {good} good and {defective} "
            "defective pictures, wanted at least one of each"
        )


def good_pictures(data_dir: Path | str) -> tuple[Path, ...]:
    """
    Pictures of good parts: those in ``train/good`` if it is there, else those in the folder itself.

    Raises
    ------
    InputError
        If the folder does not exist or holds no picture.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder")
    train_good_dir = data_dir / "train" / GOOD
    return tuple(list_pictures(train_good_dir if train_good_dir.is_dir() else data_dir))


def read_prepared(
    paths: Iterable[Path], recipe: Preprocessing, what: str = "good pictures"
) -> list[np.ndarray]:
    """
    Pictures decoded and prepared by the device's own code, with a progress bar.

    Parameters
    ----------
    paths : iterable of Path
    recipe : Preprocessing
    what : str
        Named in the bar.

    Returns
    -------
    list of ndarray of uint8, shape (*recipe.size, 3)
        RGB.

    Raises
    ------
    InputError
        If a picture cannot be decoded.
    """
    from tqdm import tqdm

    bar = tqdm(paths, desc=f"reading {what}", unit="picture", delay=2, leave=False)
    return [prepare(read_picture(path), recipe) for path in bar]


def read_mask(path: Path | str, shape: tuple[int, int]) -> np.ndarray:
    """
    Where the defect is in a defective picture.

    Parameters
    ----------
    path : Path or str
        A picture that is black where the part is good. One that is black all over marks nothing.
    shape : (int, int)
        Height and width of the picture that the mask belongs to.

    Returns
    -------
    ndarray of bool, shape (H, W)
        True on the defect: where the mask is at least half bright (128 of 255), so that the grey
        rim of a resized or lossy mask does not widen it.

    Raises
    ------
    InputError
        If the file cannot be decoded, has another size than the picture, or marks the defect too
        dark: with 1, say, as programs for labels do.
    """
    values = read_picture(path).max(axis=2)
    mask = values >= MARKED
    if mask.shape != tuple(shape):
        raise InputError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, "
            f"wanted {shape[1]}x{shape[0]} as its picture"
        )
    if values.any() and not mask.any():
        raise InputError(
            f"{path}: the mask is marked with {values.max()} at most, wanted 255 on the defect"
        )
    return mask


def mask_path(data_dir: Path, defect: str, stem: str) -> Path | None:
    """
    The mask of a defective picture: ``ground_truth/<defect>/<stem>_mask.png`` or without ``_mask``.

    Returns
    -------
    Path or None
        None where neither file is there.
    """
    folder = data_dir / "ground_truth" / defect
    for path in (folder / f"{stem}_mask.png", folder / f"{stem}.png"):
        if path.is_file():
            return path
    return None
