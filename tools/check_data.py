"""
Check data: formats, duplicates and leaks between splits and classes, before trusting a figure.

A method that has learnt the file format, the light or the camera instead of the part gets splendid
figures and fails at the line. Looked for is what tells good from defective pictures, or the good
ones of train from those of test, and is no defect: how the files were saved, and had been saved
before; size, colour, rotation, brightness, contrast, sharpness, bytes; the same picture twice.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edge_app.arguments import refuse_unwritable
from edge_app.errors import InputError
from edge_app.preprocess import LEAST_SIDE
from edge_app.sources.folder import is_picture, printable, read_picture
from tools import leak_probe
from tools.data_survey import (
    CLASSES,
    INSPECTION_SET,
    Group,
    Look,
    Survey,
    folders,
    shown,
    survey,
)
from tools.duplicates import MOST_PICTURES, equal, near_duplicates, same_files
from tools.figures import write_figures
from tools.inspection_set import GOOD, MARKED
from tools.leak_probe import Separation, separation
from tools.picture_files import PROMISED, read_header
from tools.trivial import TRIVIAL_NUMBERS

RED, AMBER, NOTE = "red", "amber", "note"
# Fewer good pictures than this are no start (the README's figure).
FEW_GOOD = 20
# With fewer of a class in test an AUROC is uncertain by 0.1 and more.
FEW_TEST = 20
# Share of pictures by which the kinds of files of two groups differ (total variation): beyond the
# first most of any figure may be the files' own, beyond the second some; and the probability that
# so much is chance.
MOST_DIFFERENT, SOME_DIFFERENT, CHANCE = 0.5, 0.05, 0.01
# Lower end of an AUROC's interval from which on a number, or a probe, tells two groups apart.
# Measured with the probe of block traces: screws, magnetic tiles, screws in wood and rendered nuts
# as they are have an AUROC of 0.46 to 0.62; JPEG of quality 50 to 97 against lossless ones 1.0.
TELLS = 0.8
# Share of the test pictures that train holds too; nearly (some, many), or exactly.
NEAR_SOME, NEAR_MANY, SAME_MANY = 0.01, 0.10, 0.02
# From so many near-duplicates on they can be red. One alone proves nothing: of 40 subsets each of
# 10, 20 and 50 out of 195 rendered nuts, most likely all different, 1, 1 and 12 hold a pair that
# stands out, and none more than two.
NEAR_LEAST = 3
# So many sizes of pictures are kinds; where there are more, aspect and area are looked at instead.
MOST_SIZES = 8
# Past qualities are told to within 1; rounded to this they are one kind.
QUALITY_ROUNDING = 5
NUMBERS = (*TRIVIAL_NUMBERS, "aspect", "megapixels")
NUMBER_WORDS = {"bytes_per_pixel": "bytes a pixel"}
LOWER_HIGHER = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "sharpness": ("less sharp", "sharper"),
    "bytes_per_pixel": ("of fewer bytes a pixel", "of more bytes a pixel"),
    "aspect": ("narrower", "wider"),
    "megapixels": ("smaller", "larger"),
}
# What is compared for leaks, in words.
PAIRS = {"good_defective": "good and defective", "train_test": "good of train and of test"}
# Pairs of duplicates that a sentence names; all of them are in the figures.
MOST_PAIRS = 2
# What `warn` prints at most: more would hide what the command itself says.
MOST_WARNINGS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``check-data``."""
    parser.description = __doc__
    parser.epilog = (
        "examples:\n  python -m tools check-data parts/nut --json nut_data.json\n"
        "  python -m tools check-data pictures --quick\n\n"
        "Exit code: 0 nothing red was found, 1 a red finding, 2 no pictures there.\n"
        "Takes about 20 ms a picture, with --quick below 1 ms."
    )
    parser.add_argument(
        "data",
        metavar="DIR",
        type=Path,
        help="a set in the layout of MVTec AD, a folder with a folder for each class, or a folder "
        "of good pictures",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="headers and identical files only, no pixels; with this the other commands warn",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Check a folder; see the module's docstring."""
    from tools.data_report import report

    if args.json is not None:
        refuse_unwritable(args.json)
    findings = check(args.data, quick=args.quick)
    print(report(findings.figures))
    write_figures(args.json, findings.figures)
    return findings.exit_code


@dataclass(frozen=True)
class Finding:
    """
    One thing that was found.

    Attributes
    ----------
    severity : str
        ``red``: figures on this set say nothing, or cannot be made; ``amber``: they need care;
        ``note``: good to know.
    what : str
        A sentence without its full stop, short enough for the verdict.
    detail : str
        What goes on behind it: where, and figures. May be empty.
    remedy : str
        One or two sentences. May be empty.
    stops : bool
        Whether the other commands refuse the set for it.
    untried : str
        Which test could not be made, as it is called in the verdict. Empty for most.
    """

    severity: str
    what: str
    detail: str = ""
    remedy: str = ""
    stops: bool = False
    untried: str = ""

    @property
    def sentence(self) -> str:
        """All of it."""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.what}{detail}. {self.remedy}".strip()


@dataclass(frozen=True)
class Findings:
    """
    What `check` found.

    Attributes
    ----------
    found : tuple of Finding
        Worst first.
    figures : dict
        JSON-able: `data`, `layout`, `quick`, `folders` (counts, sizes, aspect, colour, format,
        quantisation tables of each), `masks`, `duplicates`, `leaks`, `trivial`; `findings` and
        `verdict`.
    """

    found: tuple[Finding, ...]
    figures: dict[str, Any] = field(repr=False)

    @property
    def sentences(self) -> list[tuple[str, str]]:
        """Severity and sentence of each finding, worst first."""
        return [(one.severity, one.sentence) for one in self.found]

    @property
    def verdict(self) -> str:
        """What the findings come to, in one sentence."""
        return verdict(self.found)

    @property
    def exit_code(self) -> int:
        """1 where a red finding stands, else 0."""
        return int(any(one.severity == RED for one in self.found))


def verdict(found: Sequence[Finding]) -> str:
    """
    What findings come to, in one sentence.

    Parameters
    ----------
    found : sequence of Finding
        Worst first.

    Returns
    -------
    str
    """
    red = [one for one in found if one.severity == RED]
    amber = [one for one in found if one.severity == AMBER]
    if red:
        # What makes figures lie is worse than what only stops a command.
        first = min(red, key=lambda one: one.stops)
        words = "Not usable as it is" if first.stops else "Do not trust any figure on this set"
        rest = len(red) + len(amber) - 1
    elif amber:
        first, words, rest = amber[0], "Usable, with care", len(amber) - 1
    else:
        return f"Nothing found that would spoil figures on this set{_untried(found)}."
    what = first.what[0].lower() + first.what[1:]
    more = f" ({_count(rest, 'more finding')})" if rest else ""
    return f"{words}: {what}{more}{_untried(found)}."


def _untried(found: Sequence[Finding]) -> str:
    names = [one.untried for one in found if one.untried]
    return f"; not tried: {_and(names)}" if names else ""


def check(data_dir: Path | str, progress: bool = True, quick: bool = False) -> Findings:
    """
    Check a folder of pictures.

    Parameters
    ----------
    data_dir : Path or str
        A set in the layout of MVTec AD (``train/good``; ``test`` and ``ground_truth`` may be
        missing), a folder with a folder for each class, or a folder of good pictures.
    progress : bool
        Whether to show a progress bar on stderr.
    quick : bool
        Read headers only, and files of the same size for whether they are identical.

    Returns
    -------
    Findings

    Raises
    ------
    InputError
        If the folder does not exist or holds no pictures in any of the three ways.
    """
    root = Path(data_dir)
    seen = survey(root, quick, progress)
    figures: dict[str, Any] = {
        "data": shown(root.resolve().name),
        "layout": seen.layout,
        "quick": quick,
        "folders": {group.name: _folder_figures(seen, group) for group in seen.groups},
    }
    groups = None if quick else _near_groups(seen, figures)
    trivial = _trivial(seen, figures)
    # The verdict names the first of the worst: what fakes all figures, before what touches some.
    found = [*_leaks(seen, groups, trivial, figures), *_trivial_findings(trivial, figures)]
    found += _duplicates(seen, groups, figures)
    found += [*_files(seen), *_masks(seen, figures), *_counts(seen)]
    order = (RED, AMBER, NOTE)
    found.sort(key=lambda one: order.index(one.severity))
    figures["findings"] = [
        {
            "severity": one.severity,
            "what": one.what,
            "detail": one.detail,
            "remedy": one.remedy,
            "sentence": one.sentence,
        }
        for one in found
    ]
    figures["verdict"] = verdict(found)
    return Findings(tuple(found), figures)


def warn(data_dir: Path | str, file: TextIO | None = None) -> None:
    """
    Print what the quick check finds amiss, as lines ``warning: …``, three at most.

    Nothing is printed where nothing is amiss, and nothing is raised: a warning must not stop the
    command that asked for it, which says itself what it cannot use.

    Parameters
    ----------
    data_dir : Path or str
    file : text file, optional
        Default: stderr.
    """
    file = sys.stderr if file is None else file
    try:
        found = check(data_dir, progress=False, quick=True).found
        amiss = [one for one in found if one.severity != NOTE]
        for one in amiss[:MOST_WARNINGS]:
            print(f"warning: {one.sentence}", file=file)
        if len(amiss) > MOST_WARNINGS:
            more = len(amiss) - MOST_WARNINGS
            print(f"({more} more: python -m tools check-data {shown(data_dir)})", file=file)
    except Exception:
        return


# Files and folders


def _folder_figures(seen: Survey, group: Group) -> dict[str, Any]:
    whole = [seen.headers[path] for path in seen.whole(group)]
    sizes = Counter("{}x{}".format(*one.size) for one in whole)
    aspects = [one.size[0] / one.size[1] for one in whole if one.size[1]]
    tables = Counter(one.jpeg_tables for one in whole if one.jpeg_tables)
    figures: dict[str, Any] = {
        "role": group.role,
        "pictures": len(group.paths),
        "broken": len(group.paths) - len(whole),
        "sizes": dict(sizes.most_common(MOST_SIZES)),
        "different_sizes": len(sizes),
        "aspect": [round(min(aspects), 4), round(max(aspects), 4)] if aspects else None,
        "colour": dict(Counter(one.colour for one in whole).most_common()),
        "saved_as": dict(Counter(one.saved_as for one in whole).most_common()),
        "jpeg_tables": dict(tables.most_common(MOST_SIZES)),
        "different_jpeg_tables": len(tables),
        "exif_rotated": sum(one.orientation != 1 for one in whole),
        "suffix_lies": sum(one.suffix_lies for one in whole),
    }
    if seen.looks is not None:
        past = Counter(_past(seen.looks[one.path]) or "too smooth to tell" for one in whole)
        figures["pixels_were"] = dict(past.most_common())
    return figures


def _past(look: Look) -> str | None:
    """What the pixels were saved as, in words; None where that cannot be told."""
    if look.past_quality is None:
        return None
    if look.past_quality == 0:
        return "no JPEG"
    about = round(look.past_quality / QUALITY_ROUNDING) * QUALITY_ROUNDING
    return f"JPEG of quality about {about}"


def _files(seen: Survey) -> list[Finding]:
    found = []
    broken = list(seen.broken)
    if broken:
        found.append(
            Finding(
                RED,
                f"{_count(len(broken), 'file')} cannot be read",
                f"{seen.some(broken)} ({_reason(seen.broken[broken[0]], broken)})",
                "Copy them again from where they came, or take them out.",
                stops=True,
            )
        )
    if seen.unread:
        suffixes = ", ".join(sorted({path.suffix or "no suffix" for path in seen.unread}))
        formats = {read_header(path).file_format for path in seen.unread}
        known = {one for names in PROMISED.values() for one in names}
        remedies = []
        if formats & known:
            remedies.append("Rename them to what they are.")
        if formats - known:
            names = _and(sorted(map(str, formats - known)))
            remedies.append(f"No command reads {names}: save them as the others are.")
        found.append(
            Finding(
                AMBER,
                f"{_count(len(seen.unread), 'picture')} passed over because of the suffix "
                f"({suffixes})",
                seen.some(seen.unread),
                " ".join(remedies),
            )
        )
    paths = seen.paths()
    tiny = [path for path in paths if min(seen.headers[path].size) < LEAST_SIDE]
    if tiny:
        found.append(
            Finding(
                RED,
                f"{_count(len(tiny), 'picture')} of less than {LEAST_SIDE} pixels a side, which "
                "the device refuses",
                seen.some(tiny),
                "Take them out.",
                stops=True,
            )
        )
    turned = [path for path in paths if seen.headers[path].orientation != 1]
    if turned:
        found.append(
            Finding(
                AMBER,
                f"{len(turned)} of {_count(len(paths), 'picture')} turned by EXIF data, which some "
                "programs do when they load them and others do not",
                seen.some(turned),
                "Save them turned, without the EXIF rotation, before anyone draws masks on them.",
            )
        )
    lying = [path for path in paths if seen.headers[path].suffix_lies]
    if lying:
        kinds = Counter(f"{seen.headers[path].file_format} as {path.suffix}" for path in lying)
        found.append(
            Finding(
                AMBER,
                f"{_count(len(lying), 'file')} with the suffix of another format "
                f"({_and(list(kinds))})",
                seen.some(lying),
                "Rename them, or save them as the others are: the name hides how they were saved.",
            )
        )
    if seen.looks is not None:
        blank = [path for path, one in seen.looks.items() if one.numbers["contrast"] == 0]
        if blank:
            found.append(
                Finding(
                    AMBER,
                    f"{_count(len(blank), 'picture')} of a single colour",
                    seen.some(blank),
                    "Take them out.",
                )
            )
    if seen.empty_folders:
        names = _first(seen.empty_folders)
        if seen.layout == INSPECTION_SET:
            remedy = "Put pictures directly into each, or delete it: evaluate takes none without."
            found.append(Finding(RED, "Folders without a picture", names, remedy, stops=True))
        else:
            found.append(Finding(NOTE, f"No pictures directly in {names}"))
    if seen.not_looked_at:
        found.append(
            Finding(
                AMBER,
                "Pictures in sub-folders, or beside the folders, are not looked at by any command",
                _first(seen.not_looked_at),
                "Move them into the folder of their class, or out of the set.",
            )
        )
    return found


def _reason(problem: str, broken: Sequence[Path]) -> str:
    """Why the first of some files cannot be read, without its name."""
    reason = problem.removeprefix(f"{printable(broken[0])}: ")
    return shown(f"the first: {reason}" if len(broken) > 1 else reason)


def _first(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _counts(seen: Survey) -> list[Finding]:
    found = []
    train, good, defective = (len(seen.paths(role)) for role in ("train", "good", "defect"))
    if seen.layout != CLASSES and train < FEW_GOOD:
        found.append(
            Finding(
                AMBER,
                f"Only {_count(train, 'good picture')} to learn from",
                f"{FEW_GOOD} are a start, and it takes 99 to support a false-reject rate of 1 %",
                "Take more pictures of good parts.",
            )
        )
    if seen.layout != INSPECTION_SET or not good + defective:
        return found
    if not (good and defective):
        missing, folder = ("good", "test/good") if not good else ("defective", "test/<defect>")
        found.append(
            Finding(
                AMBER,
                f"The test split has no {missing} picture, so that there is no AUROC",
                remedy=f"Add {folder}.",
            )
        )
    elif min(good, defective) < FEW_TEST:
        found.append(
            Finding(
                NOTE,
                f"The test split has {good} good and {defective} defective pictures",
                f"with fewer than {FEW_TEST} of either an AUROC is uncertain by 0.1 and more",
            )
        )
    return found


def _masks(seen: Survey, figures: dict[str, Any]) -> list[Finding]:
    root = seen.root / "ground_truth"
    if seen.layout != INSPECTION_SET or not root.is_dir():
        return []
    # Masks of good pictures are looked at by nobody.
    try:
        stored = {
            path
            for folder in folders(root)
            if folder.name != GOOD
            for path in folder.iterdir()
            if is_picture(path) and path.is_file()
        }
    except OSError as error:
        where = root if error.filename is None else Path(error.filename)
        detail = f"{seen.short(where)}: {error.strerror}"
        remedy = "Give the folder the rights to be read and entered."
        return [Finding(RED, "The masks cannot be read", detail, remedy, stops=True)]
    count = len(stored)
    used: set[Path] = set()
    # What is called like the mask of a picture, and is no file of that picture's.
    called = set()
    levels: set[int] = set()
    without, wrong_size, empty, faint, unreadable = [], [], [], [], []
    for path in seen.paths("defect"):
        folder = root / path.parent.name
        stems = (f"{path.stem}_mask", path.stem)
        mask = next((name for stem in stems if (name := folder / f"{stem}.png") in stored), None)
        called |= {folder / stem for stem in stems}
        if mask is None:
            without.append(path)
            continue
        if mask in used:
            continue
        used.add(mask)
        header = read_header(mask)
        width, height = seen.headers[path].size
        # Orientations from 5 on are quarter turns.
        size = (height, width) if seen.headers[path].orientation >= 5 else (width, height)
        if header.problem:
            unreadable.append(mask)
        elif header.size != size:
            wrong_size.append(mask)
        elif seen.looks is not None:
            try:
                # As read_mask tells what is marked.
                brightest = int(read_picture(mask).max())
                if brightest == 0:
                    empty.append(mask)
                elif brightest < MARKED:
                    faint.append(mask)
                    levels.add(brightest)
            except InputError:
                unreadable.append(mask)
    unused = sorted(stored - used)
    wrong_suffix = [
        path for path in unused if path.with_suffix("") in called and path.suffix != ".png"
    ]
    # A second mask of a picture that has one: it is used by nobody, and does no harm.
    orphans = [path for path in unused if path.with_suffix("") not in called]
    figures["masks"] = {
        "masks": count,
        "unreadable": [seen.short(path) for path in unreadable],
        "wrong_size": [seen.short(path) for path in wrong_size],
        "empty": None if seen.looks is None else [seen.short(path) for path in empty],
        "faint": None if seen.looks is None else [seen.short(path) for path in faint],
        "wrong_suffix": [seen.short(path) for path in wrong_suffix],
        "without_picture": [seen.short(path) for path in orphans],
        "pictures_without": dict(Counter(path.parent.name for path in without)),
    }
    found = []
    for severity, paths, what, remedy in (
        (RED, unreadable, "cannot be read", "Copy them again, or take them out."),
        (
            RED,
            wrong_size,
            "of another size than the picture",
            "Draw them on the pictures as they are loaded, or resize them without smoothing.",
        ),
        (
            RED,
            faint,
            f"marked with {_and([str(one) for one in sorted(levels)][:3]) if levels else ''} "
            "instead of 255",
            "Multiply them by 255." if levels == {1} else "Set what is not 0 to 255.",
        ),
        (
            AMBER,
            empty,
            "empty, marking no pixel of a defective picture",
            "Draw the defect, or delete the mask.",
        ),
        (
            AMBER,
            wrong_suffix,
            "not used because of the suffix",
            "Save them as .png, without loss: no other file is taken for a mask.",
        ),
        (
            AMBER,
            orphans,
            "without a picture",
            "Name them as their pictures: ground_truth/<defect>/<stem>_mask.png.",
        ),
    ):
        if paths:
            what = f"{_count(len(paths), 'mask')} {what}"
            found.append(Finding(severity, what, seen.some(paths), remedy, severity == RED))
    marked = len(seen.paths("defect")) - len(without)
    if without and count and not marked:
        found.append(
            Finding(
                AMBER,
                "No defective picture has a mask that is used, so that there are no pixel figures",
                remedy="Name and save the masks as ground_truth/<defect>/<stem>_mask.png.",
            )
        )
    if without and marked:
        found.append(
            Finding(
                AMBER,
                f"{len(without)} of {len(without) + marked} defective pictures have no mask",
                seen.some(without),
                "Pixel figures leave them out: draw the masks, or say so beside the figures.",
            )
        )
    return found


# The same picture twice


def _near_groups(seen: Survey, figures: dict[str, Any]) -> np.ndarray:
    """Number of the group of near-duplicates of each of `seen.paths()`, int, shape (n,)."""
    assert seen.looks is not None
    paths = seen.paths()
    looks = [seen.looks[path] for path in paths]
    numbers = np.arange(len(paths))
    # Pictures of the empty station are alike, and are meant to be.
    empty, train = set(seen.paths("empty")), set(seen.paths("train"))
    wanted = [index for index, path in enumerate(paths) if path not in empty]
    if len(wanted) > MOST_PICTURES:
        # Test first: what counts most is what it shares with train.
        shuffled = np.random.default_rng(0).permutation(wanted)
        wanted = sorted(sorted(shuffled, key=lambda index: paths[index] in train)[:MOST_PICTURES])
    figures["near_duplicates_among"] = len(wanted)
    if wanted:
        thumbnails, fine = (
            np.array([getattr(looks[index], name) for index in wanted])
            for name in ("thumbnail", "fine")
        )
        first: dict[int, int] = {}
        for index, group in zip(wanted, near_duplicates(thumbnails, fine), strict=True):
            numbers[index] = first.setdefault(int(group), index)
    for same in equal([look.pixels for look in looks]):
        numbers[np.isin(numbers, numbers[same])] = numbers[same].min()
    return numbers


def _duplicates(seen: Survey, numbers: np.ndarray | None, figures: dict[str, Any]) -> list[Finding]:
    paths = seen.paths()
    near = None
    if seen.looks is None or numbers is None:
        exact, alike = same_files(paths), "identical files"
    else:
        pixels = [seen.looks[path].pixels for path in paths]
        exact, alike = [[paths[at] for at in group] for group in equal(pixels)], "the same pixels"
        known = {frozenset(group) for group in exact}
        near = [[paths[at] for at in group] for group in equal(numbers.tolist())]
        near = [group for group in near if frozenset(group) not in known]
    figures["duplicates"] = {
        kind: groups and [[seen.short(path) for path in group] for group in groups]
        for kind, groups in (("exact", exact), ("near", near))
    }
    return [*_exact(seen, exact, alike), *_near(seen, near or [])]


def _exact(seen: Survey, groups: list[list[Path]], alike: str) -> list[Finding]:
    found = []
    train, good = set(seen.paths("train")), set(seen.paths("train", "good"))
    mixed = [
        group for group in groups if not all(seen.same_class(group[0], path) for path in group)
    ]
    if mixed:
        found.append(
            Finding(
                RED,
                f"{_count(len(mixed), 'picture')} in two classes at once",
                f"{_pairs(seen, mixed, good)} ({alike})",
                "Decide what each one shows, and delete the other.",
            )
        )
    shared, count, share = _in_both_splits(seen, groups)
    if shared:
        found.append(
            Finding(
                RED if share >= SAME_MANY else AMBER,
                f"{_of_test(seen, count)} in train too",
                f"{_pairs(seen, shared, train)} ({alike})",
                "Take them out of train, or out of test.",
            )
        )
    inside = [group for group in groups if group not in mixed and group not in shared]
    if inside:
        copies = sum(len(group) - 1 for group in inside)
        found.append(
            Finding(
                NOTE,
                f"{'1 copy' if copies == 1 else f'{copies} copies'} of pictures of the same folder",
                f"{_pairs(seen, inside)} ({alike})",
                "Delete the copies: they count as parts and are none.",
            )
        )
    return found


def _near(seen: Survey, groups: list[list[Path]]) -> list[Finding]:
    found = []
    defect = set(seen.paths("defect"))
    # Two kinds of defect may well be on one part.
    mixed = [group for group in groups if 0 < len(defect & set(group)) < len(group)]
    if mixed:
        found.append(
            Finding(
                NOTE if sum(map(len, mixed)) == 2 else AMBER,
                f"{_count(len(mixed), 'part')} both among the good and the defective pictures",
                _pairs(seen, mixed, defect),
                "Look at them: a label is wrong, or the defect does not show in every picture.",
            )
        )
    shared, count, share = _in_both_splits(seen, groups)
    if shared:
        severity = AMBER if share >= NEAR_SOME and count > 1 else NOTE
        found.append(
            Finding(
                RED if share >= NEAR_MANY and count >= NEAR_LEAST else severity,
                f"{_of_test(seen, count)} nearly in train too, the same part or photograph",
                _pairs(seen, shared, set(seen.paths("train"))),
                "Put all pictures of one part on one side.",
            )
        )
    inside = [group for group in groups if group not in mixed and group not in shared]
    if inside:
        pictures, parts = sum(map(len, inside)), _count(len(inside), "part")
        found.append(
            Finding(
                NOTE,
                f"{pictures} pictures show {parts} more than once",
                _pairs(seen, inside),
                "They say less than as many parts would; fit and enroll count each part once.",
            )
        )
    return found


def _in_both_splits(seen: Survey, groups: list[list[Path]]) -> tuple[list[list[Path]], int, float]:
    """The groups that train and test share, how many test pictures are in them, and the share."""
    if seen.layout != INSPECTION_SET:
        return [], 0, 0.0
    train, test = set(seen.paths("train")), set(seen.paths("good", "defect"))
    shared = [group for group in groups if train & set(group) and test & set(group)]
    count = sum(path in test for group in shared for path in group)
    return shared, count, count / max(len(test), 1)


def _of_test(seen: Survey, count: int) -> str:
    total = len(seen.paths("good", "defect"))
    return f"{count} of {_count(total, 'test picture')} {'is' if count == 1 else 'are'}"


def _pairs(seen: Survey, groups: list[list[Path]], side: set[Path] | None = None) -> str:
    """Two names of each of the first groups: one of a side and one not, or the first two."""
    texts = []
    for group in groups[:MOST_PAIRS]:
        inside = [path for path in group if side and path in side]
        outside = [path for path in group if path not in inside]
        pair = (inside[0], outside[0]) if inside and outside else group[:2]
        texts.append(" and ".join(map(seen.short, pair)))
    if len(groups) > MOST_PAIRS:
        texts.append(f"{len(groups) - MOST_PAIRS} more")
    return "; ".join(texts)


# What tells the groups apart and is no defect


@dataclass(frozen=True)
class _Side:
    """Some of the pictures, and what they are called in a sentence."""

    paths: list[Path]
    called: str


@dataclass(frozen=True)
class _Trivial:
    """Numbers that tell good from defective pictures, and train from test, with their AUROC."""

    alone: list[tuple[str, float]]
    shifted: list[tuple[str, float]]


def _leaks(
    seen: Survey, numbers: np.ndarray | None, trivial: _Trivial, figures: dict[str, Any]
) -> list[Finding]:
    figures["leaks"] = {}
    train, good, defect = (seen.paths(role) for role in ("train", "good", "defect"))
    found = []
    if defect and (good or train):
        one = _Side(good, "the good pictures") if good else _Side(train, "the pictures of train")
        kinds = [group for group in seen.groups if group.role == "defect"]
        found += _leak(
            seen,
            numbers,
            figures,
            "good_defective",
            one,
            _Side(defect, "the defective ones"),
            kinds,
            trivial.alone,
        )
    if train and good:
        one, other = _Side(train, "the good pictures of train"), _Side(good, "those of test")
        found += _leak(seen, numbers, figures, "train_test", one, other, [], trivial.shifted)
    if seen.looks is not None:
        few = {
            words: "{} and {}".format(*row["pictures"])
            for key, words in PAIRS.items()
            if (row := figures["leaks"].get(key)) and row["block_traces"] is None
        }
        if few:
            least = leak_probe.LEAST_PICTURES
            tried = len(few) < sum(key in figures["leaks"] for key in PAIRS)
            found.append(
                Finding(
                    NOTE,
                    f"Too few pictures for the leak test ({least} of each)",
                    "; ".join(f"{words}, {counts}" for words, counts in few.items()),
                    f"It takes {least} different ones of each, of {leak_probe.LEAST_SIDE} pixels "
                    "a side and more.",
                    untried="the leak test" + (f" ({'; '.join(few)})" if tried else ""),
                )
            )
    classes = [group for group in seen.groups if group.role == "class"]
    for group in classes if len(classes) > 1 else []:
        inside = seen.whole(group)
        outside = [path for other in classes if other is not group for path in seen.whole(other)]
        one, other = _Side(inside, f"the pictures of {group.name}"), _Side(outside, "the others")
        # What the classes show differs in all else.
        found += _leak(seen, None, figures, group.name, one, other, [])
    return found


def _leak(
    seen: Survey,
    numbers: np.ndarray | None,
    figures: dict[str, Any],
    key: str,
    one: _Side,
    other: _Side,
    kinds: list[Group],
    trivial: Sequence[tuple[str, float]] = (),
) -> list[Finding]:
    """
    What tells two sides apart by how their files came about.

    `kinds` are folders of `other`, `trivial` the numbers that tell the sides apart with their
    AUROC.
    """
    if not one.paths or not other.paths:
        return []
    headers, looks = seen.headers, seen.looks
    row: dict[str, Any] = {"pictures": [len(one.paths), len(other.paths)]}
    figures["leaks"][key] = row
    blocks = _probe(seen, numbers, one, other, "traces", leak_probe.TRACE_NOISE)
    row["block_traces"] = _as_dict(blocks)
    probed = ""
    if _tells(blocks):
        probed = (
            f"a linear probe on the traces of 8x8 blocks tells them apart, AUROC {blocks.auroc:.2f}"
        )

    def compare(
        name: str,
        kind_of: Callable[[Path], str | None],
        called: Callable[[Path], str | None] | None = None,
    ) -> tuple[str, str, str] | None:
        """
        Severity, how the sides differ, and in which folders most; None where they do not.

        `called` is what a picture's kind is called in the sentence, where it is another word.
        """
        mine, theirs = (_kinds(side.paths, kind_of) for side in (one, other))
        difference, chance = _difference(mine, theirs)
        by_format = name in ("saved_as", "pixels_were")
        row[name] = round(difference, 4)
        # Among few pictures, a difference without any exception is none of chance's either, unless
        # each picture is of a kind of its own.
        without_exception = difference == 1 and min(mine.total(), theirs.total()) > 1
        sure = chance < CHANCE or (without_exception and 1 in (len(mine), len(theirs)))
        odd = []
        for group in kinds:
            apart, by_chance = _difference(mine, _kinds(seen.whole(group), kind_of))
            if apart >= MOST_DIFFERENT and by_chance < CHANCE:
                odd.append(group.name)
        if not (odd or (difference >= SOME_DIFFERENT and sure)):
            return None
        severity = (
            RED if (difference >= MOST_DIFFERENT and sure) or (by_format and probed) else AMBER
        )
        where = f"above all {', '.join(odd)}" if 0 < len(odd) < len(kinds) else ""
        mine, theirs = (_kinds(side.paths, called or kind_of) for side in (one, other))
        return severity, f"{one.called} {{}} {mostly(mine)}, {other.called} {mostly(theirs)}", where

    resave = (
        "Take one of the two again and save it as the other was. To convert the files is not "
        "enough: the traces stay in the pixels."
    )
    found = []

    def add(severity: str, what: str, remedy: str, *details: str) -> None:
        what = what[0].upper() + what[1:]
        found.append(Finding(severity, what, _semicolons(*details), remedy))

    def saved_as(path: Path) -> str:
        return headers[path].saved_as

    def lossless_format(path: Path) -> str | None:
        return headers[path].file_format if headers[path].lossless else None

    def what_is_kept(path: Path) -> str:
        """The same for all formats that leave the pixels as they were."""
        return "lossless" if headers[path].lossless else headers[path].saved_as

    def same_format(difference: tuple[str, str, str] | None) -> list[Finding]:
        if difference is None:
            return []
        what, where = difference[1].format("are"), difference[2]
        detail = "all without loss, so that only the files differ; their bytes a pixel do, too"
        remedy = "Save all in one format."
        return [Finding(AMBER, what[0].upper() + what[1:], _semicolons(where, detail), remedy)]

    saved = compare("saved_as", what_is_kept, saved_as)
    if saved:
        add(saved[0], saved[1].format("are"), resave, saved[2], probed)
    if key in ("good_defective", "train_test"):
        sizes = {headers[path].size for path in (*one.paths, *other.paths)}
        if len(sizes) <= MOST_SIZES:
            size = compare("size", lambda path: "{}x{}".format(*headers[path].size))
            if size:
                remedy = "Take, or cut, all pictures in the same way."
                add(size[0], size[1].format("have") + " pixels", remedy, size[2])
        colour = compare("colour", lambda path: headers[path].colour)
        if colour:
            remedy = "Take all pictures with one camera and save them in one mode."
            add(colour[0], colour[1].format("are"), remedy, colour[2])
    by_name = None if saved else compare("lossless_format", lossless_format)
    if looks is None:
        return found + same_format(by_name)
    past = compare("pixels_were", lambda path: _past(looks[path]))
    if past and not saved:
        hidden = "the files do not show that they were saved before"
        add(past[0], "by their pixels " + past[1].format("are"), resave, hidden, past[2], probed)
    if not (past or probed):
        found += same_format(by_name)
    if probed and not (saved or past):
        # Alone this is no proof, for a pattern of 8 pixels does it too. With a number beside it the
        # files, or what was made of the pixels before, differ throughout.
        add(
            RED if trivial else AMBER,
            f"{one.called} and {other.called} differ on the grid of 8x8 pixels that JPEG works on",
            "Find out how each was saved and processed; take the pictures again if it was not the "
            "same.",
            probed,
            f"one number does it, too: {_aurocs(trivial)}" if trivial else "",
            "they may have been saved twice, with a quality of 98 and more, or as WebP, or resized",
        )
    fine = _probe(seen, numbers, one, other, "grain", leak_probe.GRAIN_NOISE)
    row["grain"] = _as_dict(fine)
    # Defects change the grain, good parts do not.
    if key == "train_test" and _tells(fine):
        add(
            AMBER,
            f"{one.called} and {other.called} differ in grain",
            "Take both in one session, or split one lot of good pictures at random.",
            f"a linear probe tells them apart, AUROC {fine.auroc:.2f}, though all show good parts; "
            "light, focus, camera or processing was another",
        )
    return found


def _kinds(paths: Sequence[Path], kind_of: Callable[[Path], str | None]) -> Counter:
    return Counter(kind for path in paths if (kind := kind_of(path)) is not None)


def _difference(one: Counter, other: Counter) -> tuple[float, float]:
    """Total variation between two counts of kinds, 0 to 1; and the p of the chi-squared test."""
    kinds = sorted(set(one) | set(other))
    if not one or not other or len(kinds) == 1:
        return 0.0, 1.0
    from scipy.stats import chi2_contingency

    table = np.array([[counts[kind] for kind in kinds] for counts in (one, other)], float)
    shares = table / table.sum(axis=1, keepdims=True)
    chance = float(chi2_contingency(table, correction=False).pvalue)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), chance


def _probe(
    seen: Survey,
    numbers: np.ndarray | None,
    one: _Side,
    other: _Side,
    name: str,
    noise: np.ndarray | float,
) -> Separation | None:
    if seen.looks is None or numbers is None:
        return None
    place = {path: index for index, path in enumerate(seen.paths())}
    sides = [
        [path for path in side.paths if getattr(seen.looks[path], name) is not None]
        for side in (one, other)
    ]
    if not all(sides):
        return None
    features = [np.array([getattr(seen.looks[path], name) for path in paths]) for paths in sides]
    groups = numbers[[place[path] for paths in sides for path in paths]]
    return leak_probe.probe(*features, noise, groups)


def _tells(one: Separation | None) -> bool:
    return one is not None and one.auroc > 0.5 and one.lower >= TELLS


def _as_dict(one: Separation | None) -> dict[str, float] | None:
    return None if one is None else {"auroc": round(one.auroc, 4), "lower": round(one.lower, 4)}


def _trivial(seen: Survey, figures: dict[str, Any]) -> _Trivial:
    """The means and AUROCs of the numbers, into the figures, and which of them tell."""
    looks = seen.looks
    sides = {
        side: seen.paths(role)
        for side, role in (("train", "train"), ("good", "good"), ("defective", "defect"))
    }
    if looks is None or not (sides["train"] or sides["good"]):
        return _Trivial([], [])
    figures["trivial"] = {}
    alone, shifted = [], []
    for name in NUMBERS:
        values = {
            side: np.array([looks[path].numbers[name] for path in paths])
            for side, paths in sides.items()
        }
        row: dict[str, Any] = {
            side: float(one.mean()) if len(one) else None for side, one in values.items()
        }
        figures["trivial"][name] = row
        train, good, defective = values.values()
        if len(train) and len(good):
            split = separation(train, good)
            row["auroc_train_test"] = round(split.auroc, 4)
            if min(split.pictures) >= leak_probe.LEAST_PICTURES and split.lower >= TELLS:
                shifted.append((name, split.auroc))
        if len(good) and len(defective):
            # As in tools.trivial: |z| without its division.
            if len(train):
                far_good, far = np.abs(good - train.mean()), np.abs(defective - train.mean())
            elif len(good) > 1:
                # Each from the mean of the others: its own would draw the mean towards it.
                far_good = np.abs(good - good.mean()) * len(good) / (len(good) - 1)
                far = np.abs(defective - good.mean())
            else:
                continue
            both = separation(far_good, far)
            row["auroc"] = round(both.auroc, 4)
            if min(both.pictures) >= leak_probe.LEAST_PICTURES and _tells(both):
                alone.append((name, both.auroc))
    return _Trivial(alone, shifted)


def _trivial_findings(told: _Trivial, figures: dict[str, Any]) -> list[Finding]:
    found = [_shift(figures["trivial"], told.shifted)] if told.shifted else []
    alone = [one for one in told.alone if one[0] not in dict(told.shifted)]
    if alone:
        found.append(
            Finding(
                AMBER,
                f"Good and defective pictures are told apart by nothing but {_aurocs(alone)}",
                remedy="If light, lens or distance did it, take the pictures again; if the defects "
                "did, a method has shown something only by what it does better.",
            )
        )
    return found


def _shift(trivial: dict[str, dict[str, Any]], shifted: list[tuple[str, float]]) -> Finding:
    name, _ = max(shifted, key=lambda one: abs(one[1] - 0.5))
    word, row = NUMBER_WORDS.get(name, name), trivial[name]
    how = _and([LOWER_HIGHER[one][auroc > 0.5] for one, auroc in shifted])
    detail = f"mean {word} {row['good']:.4g} against {row['train']:.4g}"
    if row["defective"] is not None:
        detail += (
            f", of the defective pictures {row['defective']:.4g}; the distance from train's mean "
            f"has an AUROC of {row['auroc']:.2f}"
        )
        if row["auroc"] < 0.5:
            detail += ", so that whatever minds it calls good parts defective"
    remedy = "Split one lot of good pictures at random into train and test"
    if name in ("brightness", "contrast", "sharpness"):
        remedy += ", or level the light first: divide each picture by its median"
    what = f"The good pictures of test are {how} than those of train"
    return Finding(AMBER, what, detail, remedy + ".")


# Words


def mostly(kinds: Counter) -> str:
    """The commonest kinds with their shares, or the only one."""
    if len(kinds) == 1:
        return next(iter(kinds))
    total = kinds.total()
    parts = [f"{count / total:.0%} {kind}" for kind, count in kinds.most_common(3)]
    return _and(parts) if len(kinds) <= 3 else ", ".join(parts) + ", …"


def _semicolons(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _aurocs(numbers: Sequence[tuple[str, float]]) -> str:
    """Names of numbers with what each tells, whichever way it goes."""
    return _and(
        [
            f"{NUMBER_WORDS.get(name, name)} (AUROC {max(auroc, 1 - auroc):.2f})"
            for name, auroc in numbers
        ]
    )


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
