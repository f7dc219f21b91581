"""
Labelled pictures that keep an encoder descriptive while good parts are made compact.

In DOC's words the *reference set*: many classes of anything but the part. Three layouts are read:

- a folder with one sub-folder per class;
- a folder with Fashion-MNIST's ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz``;
- an inspection set in the MVTec layout, whose ``train/good`` is one class named after the folder.

Only training splits are ever read.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from pathlib import Path

import cv2
import numpy as np

from edge_app.errors import InputError
from edge_app.preprocess import shrink
from edge_app.sources.folder import is_picture, list_pictures, read_picture

IDX_IMAGES = "train-images-idx3-ubyte.gz"
IDX_LABELS = "train-labels-idx1-ubyte.gz"

# Pictures that a checksum of a reference set looks at.
MOST_HASHED = 2000


class PictureFiles(Sequence):
    """
    Picture files as a sequence of uint8 RGB arrays (H, W, 3), each decoded when it is asked for.

    Attributes
    ----------
    paths : list of Path
        The files, in order.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return cv2.cvtColor(read_picture(self.paths[index]), cv2.COLOR_BGR2RGB)

    def only(self, rows: np.ndarray) -> PictureFiles:
        """The files of these rows."""
        return PictureFiles(self.paths[row] for row in rows)


class GreyArray(Sequence):
    """Grey pictures (N, H, W) of uint8 as a sequence of RGB arrays (H, W, 3)."""

    def __init__(self, grey: np.ndarray) -> None:
        self._grey = grey

    def __len__(self) -> int:
        return len(self._grey)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.repeat(self._grey[index][..., None], 3, axis=2)

    def only(self, rows: np.ndarray) -> GreyArray:
        """The pictures of these rows."""
        return GreyArray(self._grey[rows])


def read_reference_set(
    path: str | Path, leave_out: Collection[Path] = ()
) -> tuple[PictureFiles | GreyArray, np.ndarray, list[str]]:
    """
    Open one reference set.

    Parameters
    ----------
    path : path
        A folder in one of the layouts of this module.
    leave_out : collection of Path
        Resolved paths of files not to use, such as good images held out elsewhere.

    Returns
    -------
    pictures : sequence of ndarray
        uint8 RGB (H, W, 3), sizes may differ; files are decoded when asked for.
    labels : ndarray of int64, shape (N,)
        Index into `class_names`.
    class_names : list of str
        ``folder/class``, or the folder's own name for an inspection set.

    Raises
    ------
    InputError
        If the folder is missing, has no known layout, or a class has no pictures. Decoding a
        damaged picture raises it later, naming the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such reference folder")
    name = folder.resolve().name
    if (folder / IDX_IMAGES).exists() or (folder / IDX_LABELS).exists():
        return _read_idx(folder, name)
    if (folder / "train" / "good").is_dir():
        classes = {name: list_pictures(folder / "train" / "good")}
    else:
        subfolders = sorted(child for child in folder.iterdir() if child.is_dir())
        if not subfolders:
            found = "pictures but no classes" if any(map(is_picture, folder.iterdir())) else "none"
            raise InputError(
                f"{folder}: wanted one sub-folder per class, Fashion-MNIST .gz files or an "
                f"inspection set with train/good, found {found}"
            )
        classes = {f"{name}/{child.name}": list_pictures(child) for child in subfolders}
    left_out = set(leave_out)
    paths: list[Path] = []
    labels: list[int] = []
    for label, (class_name, files) in enumerate(classes.items()):
        kept = [file for file in files if file.resolve() not in left_out]
        if not kept:
            raise InputError(f"{folder}: class {class_name} has no pictures left to use")
        paths += kept
        labels += [label] * len(kept)
    return PictureFiles(paths), np.array(labels, np.int64), list(classes)


def read_reference_sets(
    paths: Sequence[str | Path],
    leave_out: Collection[Path] = (),
    leave_out_classes: Collection[str] = (),
) -> tuple[list[PictureFiles | GreyArray], np.ndarray, list[str]]:
    """
    Open several reference sets as one; their classes stand side by side.

    Parameters
    ----------
    paths : sequence of path
        Folders as for `read_reference_set`.
    leave_out : collection of Path
        As for `read_reference_set`.
    leave_out_classes : collection of str
        Classes not to use: a whole name (``folder/class``) or what follows the stroke.

    Returns
    -------
    sets : list of sequences of ndarray
        The pictures of each set, in the order of `paths`.
    labels : ndarray of int64, shape (N,)
        Labels of all sets, end to end.
    class_names : list of str
        Names of all classes.

    Raises
    ------
    InputError
        As `read_reference_set`; also if a class to leave out is not there, or if there are fewer
        than two classes altogether, which leaves nothing to tell apart.
    """
    sets: list[PictureFiles | GreyArray] = []
    labels: list[np.ndarray] = []
    names: list[str] = []
    unused = set(leave_out_classes)
    for path in paths:
        pictures, own_labels, own_names = read_reference_set(path, leave_out)
        out = {name: {name, name.rpartition("/")[2]} & set(leave_out_classes) for name in own_names}
        unused -= set().union(*out.values())
        kept = [label for label, name in enumerate(own_names) if not out[name]]
        rows = np.flatnonzero(np.isin(own_labels, kept))
        sets.append(pictures.only(rows))
        labels.append(np.searchsorted(kept, own_labels[rows]) + len(names))
        names += [own_names[label] for label in kept]
    if unused:
        raise InputError(
            f"{', '.join(map(str, paths))}: no class {', '.join(sorted(unused))} to leave out, "
            f"got {', '.join(names)}"
        )
    if len(names) < 2:
        raise InputError(
            f"{', '.join(map(str, paths))}: a reference set needs two classes or more to tell "
            f"apart, got {len(names)}"
        )
    return sets, np.concatenate(labels), names


def _read_idx(folder: Path, name: str) -> tuple[PictureFiles | GreyArray, np.ndarray, list[str]]:
    images = read_idx_array(folder / IDX_IMAGES, 3)
    labels = read_idx_array(folder / IDX_LABELS, 1)
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"{folder}: {len(images)} pictures and {len(labels)} labels, wanted equal numbers"
        )
    values, labels = np.unique(labels, return_inverse=True)
    return GreyArray(images), labels.astype(np.int64), [f"{name}/{value}" for value in values]


def read_idx_array(path: Path, dimensions: int) -> np.ndarray:
    """
    Read an array from a gzipped IDX file, as MNIST and Fashion-MNIST come.

    Parameters
    ----------
    path : Path
    dimensions : int
        How many the array must have: 3 for pictures, 1 for labels.

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    InputError
        If the file is missing, cut short, or holds something else.
    """
    # IDX: two zero bytes, type (8 is uint8), number of dimensions, each size as big-endian uint32.
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing beside the other IDX file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise InputError(f"{path}: not an IDX file of uint8 with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != int(np.prod(shape)):
        raise InputError(f"{path}: holds {values.size} values, its header says {shape}")
    return values.reshape(shape)


class Joined(Sequence):
    """
    Several sequences of pictures end to end, each picture resized when it is asked for.

    Parameters
    ----------
    sets : sequence of sequences of ndarray
        uint8 RGB (H, W, 3), any sizes.
    size : (int, int)
        Height and width of what is given out.
    """

    def __init__(self, sets: Sequence[Sequence[np.ndarray]], size: tuple[int, int]) -> None:
        self._sets, self._size = list(sets), size
        self._ends = np.cumsum([len(one) for one in sets]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        first = self._ends[which - 1] if which else 0
        picture = self._sets[which][index - first]
        return picture if picture.shape[:2] == self._size else shrink(picture, self._size)


def open_reference(
    folders: Sequence[str | Path],
    size: tuple[int, int],
    leave_out: Collection[Path] = (),
    leave_out_classes: Collection[str] = (),
) -> Reference:
    """
    Read reference sets for training.

    Pictures from files are decoded once and kept at `size`; those of IDX files are brought to it
    when they are drawn. All are resampled as often as the good parts are: how often could be
    learnt.

    Parameters
    ----------
    folders, leave_out, leave_out_classes
        As for `read_reference_sets`.
    size : (int, int)
        Height and width in pixels.

    Raises
    ------
    InputError
        As `read_reference_sets`, and for a picture that cannot be decoded.
    """
    from edge_app.preprocess import Preprocessing
    from tools.inspection_set import read_prepared

    sets, labels, class_names = read_reference_sets(folders, leave_out, leave_out_classes)
    recipe = Preprocessing(size)
    ready = [
        read_prepared(one.paths, recipe, "the reference set")
        if isinstance(one, PictureFiles)
        else one
        for one in sets
    ]
    return Reference(Joined(ready, size), labels, class_names)


class Reference:
    """
    The labelled pictures of the descriptiveness branch, drawn class by class.

    Parameters
    ----------
    pictures : sequence of ndarray
        uint8 RGB (H, W, 3), any sizes.
    labels : ndarray of int, shape (N,)
        Index into `class_names`; each class has a picture.
    class_names : list of str
        Names of the classes.
    """

    def __init__(
        self, pictures: Sequence[np.ndarray], labels: np.ndarray, class_names: list[str]
    ) -> None:
        self.pictures = pictures
        self.labels = labels
        self.class_names = class_names
        self._members = [np.flatnonzero(labels == label) for label in range(len(class_names))]

    def sha256(self) -> str:
        """Of the labels and of at most `MOST_HASHED` pictures, spread over all of them."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).tobytes())
        count = len(self.pictures)
        for row in np.unique(np.linspace(0, count - 1, min(count, MOST_HASHED)).astype(int)):
            digest.update(np.ascontiguousarray(self.pictures[row]).tobytes())
        return digest.hexdigest()

    def split(self, share: float, seed: int) -> tuple[Reference, Reference]:
        """
        Hold a share of every class out; of a class of one picture both parts have that one.

        Parameters
        ----------
        share : float
            0 to 1; one picture at least.
        seed : int
            The same seed holds out the same pictures.

        Returns
        -------
        shown, unseen : Reference
        """
        rng = np.random.default_rng(seed)
        shown, unseen = copy(self), copy(self)
        orders = [rng.permutation(rows) for rows in self._members]
        counts = [max(1, round(len(rows) * share)) for rows in orders]
        unseen._members = [rows[:n] for rows, n in zip(orders, counts, strict=True)]
        shown._members = [
            rows[n:] if len(rows) > n else rows for rows, n in zip(orders, counts, strict=True)
        ]
        return shown, unseen

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """
        Draw pictures, every class equally often however many pictures it has.

        Parameters
        ----------
        rng : numpy.random.Generator
            The source of chance.
        count : int
            How many.

        Returns
        -------
        pictures : list of ndarray
            uint8 RGB.
        labels : ndarray of int64, shape (count,)
        """
        labels = rng.integers(len(self.class_names), size=count)
        rows = [self._members[label][rng.integers(len(self._members[label]))] for label in labels]
        return [self.pictures[row] for row in rows], labels
