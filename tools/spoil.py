"""
Spoil an inspection set on purpose: few good pictures, or defective ones among the good.

The set that comes out is of links to the pictures of another. Fitted and evaluated like any set, it
says what few pictures, or a wrong folder, cost. The defective pictures that play good ones are
taken out of its test split, which must not hold what was learnt.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_app.arguments import rate, seed, whole_from_1
from edge_app.errors import InputError
from edge_app.sources.folder import printable
from tools.inspection_set import GOOD, InspectionSet, TestPicture, read_inspection_set
from tools.network import new_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``spoil``."""
    parser.description = __doc__
    parser.epilog = (
        "examples:\n"
        "  python -m tools spoil --data parts/nut --good 10 --out few\n"
        "  python -m tools spoil --data parts/nut --intruders 0.1 --seed 1 --out wrong"
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="a set in the layout of MVTec AD")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write, a new one")
    add("--good", type=whole_from_1, metavar="N", help="keep so many good pictures (default: all)")
    add(
        "--intruders",
        type=rate,
        metavar="SHARE",
        help="replace this share of the good pictures by defective ones of the test split",
    )
    add("--seed", type=seed, default=0, metavar="N", help="of what is drawn")


def run(args: argparse.Namespace) -> int:
    """Spoil a set; see the module's docstring."""
    if args.good is None and args.intruders is None:
        raise InputError("nothing to spoil: wanted --good N, --intruders SHARE or both")
    drawn = draw(read_inspection_set(args.data), args.good, args.intruders or 0.0, args.seed)
    write_links(drawn, args.out)
    print(
        f"{printable(args.out)}: {len(drawn.good)} good pictures and {len(drawn.intruders)} "
        f"defective ones among them to learn from, {len(drawn.test)} to measure on"
    )
    for picture in drawn.intruders:
        print(f"defective: {picture.defect}/{printable(picture.path.name)}")
    return 0


@dataclass(frozen=True)
class Spoilt:
    """
    What is learnt from and measured on.

    Attributes
    ----------
    good : tuple of Path
    intruders : tuple of TestPicture
        Defective pictures that stand in for good ones.
    replaced : tuple of Path
        The good pictures in whose places they stand, in the same order.
    empty : tuple of Path
        Pictures of the empty station.
    test : tuple of TestPicture
        Without the intruders.
    """

    good: tuple[Path, ...]
    intruders: tuple[TestPicture, ...]
    replaced: tuple[Path, ...]
    empty: tuple[Path, ...]
    test: tuple[TestPicture, ...]


def draw(pictures: InspectionSet, good: int | None, share: float, seed: int) -> Spoilt:
    """
    Draw which good pictures stay and which defective ones join them.

    Parameters
    ----------
    pictures : InspectionSet
    good : int or None
        Good pictures that are kept before some are replaced; None for all.
    share : float
        Of these that are replaced, 0 to 1; rounded down to whole pictures, but at least one where
        it is above 0.
    seed : int

    Raises
    ------
    InputError
        If there are fewer good or defective pictures than are wanted, or no good one would stay.
    """
    rng = np.random.default_rng(seed)
    kept = list(pictures.train_good)
    if good is not None:
        if good > len(kept):
            raise InputError(
                f"{pictures.name}: has {len(kept)} good pictures in train, wanted {good}"
            )
        kept = [kept[row] for row in np.sort(rng.choice(len(kept), good, replace=False))]
    count = max(1, math.floor(share * len(kept) + 1e-9)) if share else 0
    if count == len(kept):
        raise InputError(f"{pictures.name}: of {count} good picture none would stay, wanted more")
    defective = [row for row, one in enumerate(pictures.test) if one.is_anomaly]
    # One stays at least: without it there is nothing to measure on.
    if count and count >= len(defective):
        raise InputError(
            f"{pictures.name}: has {len(defective)} defective pictures in test, wanted more than "
            f"{count}"
        )
    places = np.sort(rng.choice(len(kept), count, replace=False)).tolist()
    # In any order: dealt out sorted, each kind of defect would stand in a row.
    joining = rng.choice(defective, count, replace=False).tolist()
    replaced, joined = set(places), set(joining)
    return Spoilt(
        tuple(path for row, path in enumerate(kept) if row not in replaced),
        tuple(pictures.test[row] for row in joining),
        tuple(kept[place] for place in places),
        pictures.train_empty,
        tuple(one for row, one in enumerate(pictures.test) if row not in joined),
    )


def write_links(drawn: Spoilt, out: Path) -> None:
    """
    Write the set as a folder of links.

    An intruder is named after the picture that it replaces, so that it has its place in the
    sequence, and after itself.

    Raises
    ------
    InputError
        If `out` exists or cannot be written.
    """
    with new_folder(out) as folder:

        def link(path: Path, *where: str) -> None:
            place = folder.joinpath(*where)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())

        for path in drawn.good:
            link(path, "train", GOOD, path.name)
        for picture, replaced in zip(drawn.intruders, drawn.replaced, strict=True):
            name = f"{replaced.stem}_is_{picture.defect}_{picture.path.name}"
            link(picture.path, "train", GOOD, name)
        for path in drawn.empty:
            link(path, "train", "empty", path.name)
        for picture in drawn.test:
            link(picture.path, "test", picture.defect, picture.path.name)
            if picture.mask_path is not None:
                link(picture.mask_path, "ground_truth", picture.defect, picture.mask_path.name)
