"""
Unpack IDX files (Fashion-MNIST, MNIST and their kin) into an inspection set of PNG files.

One class plays the good part, one or more others the defects. The good class's training pictures
become ``train/good``; of the test part ``test/good`` and ``test/<class>`` are filled. Training
pictures of the defect classes are left out: nothing learnt from the set may have seen them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edge_app.arguments import whole_from_0
from edge_app.errors import InputError
from tools.inspection_set import GOOD
from tools.network import new_folder
from tools.reference_set import IDX_IMAGES, IDX_LABELS, read_idx_array

TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``unpack-idx``."""
    parser.description = (
        "Make an inspection set (train/good, test/good, test/<class>; grey PNG files of the\n"
        "pictures' own size) out of IDX files as Fashion-MNIST comes in. FOLDER appears whole or\n"
        "not at all."
    )
    parser.epilog = (
        "classes of Fashion-MNIST:\n"
        "  0 T-shirt   1 Trouser   2 Pullover   3 Dress   4 Coat\n"
        "  5 Sandal    6 Shirt     7 Sneaker    8 Bag     9 Ankle boot\n"
        "example, sneakers as good parts and ankle boots as defects:\n"
        "  python -m tools unpack-idx --idx fashion_mnist --good 7 --defect 9 --out sets/sneaker"
    )
    add = parser.add_argument
    add(
        "--idx",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder with {IDX_IMAGES}, {IDX_LABELS}, {TEST_IMAGES} and {TEST_LABELS}",
    )
    add("--good", type=whole_from_0, required=True, metavar="N", help="class of the good parts")
    add(
        "--defect",
        type=whole_from_0,
        required=True,
        nargs="+",
        metavar="N",
        help="classes that play the defects, one or more",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write, a new one")
    add(
        "--names",
        nargs="+",
        metavar="NAME",
        help="name of each class from 0 on, for the folders of test (default: the numbers)",
    )


def run(args: argparse.Namespace) -> int:
    """Unpack; see the module's docstring."""
    counts = unpack(args.idx, args.good, args.defect, args.out, args.names)
    for folder, count in counts.items():
        print(f"{args.out / folder}: {count} pictures")
    return 0


def unpack(
    idx_dir: Path,
    good: int,
    defects: Sequence[int],
    out: Path,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """
    Write an inspection set from IDX files.

    Parameters
    ----------
    idx_dir : Path
        Holds the four ``.gz`` files.
    good : int
        Class of the good parts.
    defects : sequence of int
        Other classes.
    out : Path
        A new folder.
    names : sequence of str, optional
        Of the classes 0, 1, ...; the numbers by default.
    progress : bool
        Whether to show a progress bar on stderr.

    Returns
    -------
    dict of str to int
        Number of pictures in each folder of `out`, in the order in which they were written. A
        picture is named after its place in the IDX file, from 0.

    Raises
    ------
    InputError
        If a file is missing or damaged, a class has no pictures, the good class is also a defect,
        two folders would have one name, or `out` exists or cannot be written.
    """
    from tqdm import tqdm

    if good in defects:
        raise InputError(f"class {good} cannot be good and a defect at once")
    if len(set(defects)) != len(defects):
        raise InputError(f"defect classes {', '.join(map(str, defects))}: each wanted once")
    named = {number: _name(number, names) for number in defects}
    if len({GOOD, *named.values()}) != len(defects) + 1:
        raise InputError(
            f"class names {', '.join(named.values())}: wanted different ones, none of them {GOOD!r}"
        )
    if not idx_dir.is_dir():
        raise InputError(f"{idx_dir}: no such folder")
    train = _read(idx_dir / IDX_IMAGES, idx_dir / IDX_LABELS)
    test = _read(idx_dir / TEST_IMAGES, idx_dir / TEST_LABELS)
    plan = [(f"train/{GOOD}", *train, good), (f"test/{GOOD}", *test, good)]
    plan += [(f"test/{name}", *test, number) for number, name in named.items()]
    chosen = []
    for folder, grey, labels, number in plan:
        rows = np.flatnonzero(labels == number)
        if not len(rows):
            raise InputError(
                f"{idx_dir}: no picture of class {number} for {folder}, "
                f"the classes are {', '.join(map(str, np.unique(labels)))}"
            )
        chosen.append((folder, grey, rows))
    total = sum(len(rows) for _, _, rows in chosen)
    with (
        new_folder(out) as partial,
        tqdm(
            total=total,
            desc="unpacking",
            unit="picture",
            delay=2,
            leave=False,
            disable=not progress,
        ) as bar,
    ):
        try:
            for folder, grey, rows in chosen:
                (partial / folder).mkdir(parents=True)
                for row in rows:
                    _, png = cv2.imencode(".png", grey[row])
                    (partial / folder / f"{row:05d}.png").write_bytes(png.tobytes())
                    bar.update()
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    return {folder: len(rows) for folder, _, rows in chosen}


def _name(number: int, names: Sequence[str] | None) -> str:
    if names is None:
        return str(number)
    if number >= len(names):
        raise InputError(f"--names: got {len(names)}, none for class {number}")
    name = names[number]
    # `list_pictures` and `read_inspection_set` pass over hidden folders.
    if not name.strip() or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError(f"class name {name!r}: wanted one that can be a folder's, not hidden")
    return name


def _read(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx_array(images_path, 3), read_idx_array(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path}: {len(images)} pictures, but {len(labels)} labels in {labels_path.name}"
        )
    return images, labels
