"""The figures of ``check-data`` as text for a terminal, the verdict last."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import numpy as np

from tools.check_data import NUMBER_WORDS, PAIRS, mostly
from tools.data_survey import INSPECTION_SET

WIDTH = 100
SIDES = ("train", "good", "defective")
KINDS = ("block_traces", "grain")


def report(figures: dict[str, Any]) -> str:
    """
    The figures and findings as text.

    Parameters
    ----------
    figures : dict
        From `check_data.check`.

    Returns
    -------
    str
        Lines of `WIDTH` characters at most, unless names of folders are long.
    """
    blocks = [
        [f"{figures['data']}: {figures['layout']}"],
        _folders(figures["folders"]),
        _trivial(figures.get("trivial", {}), figures["layout"]),
        _probes(figures["leaks"]),
    ]
    if figures["quick"]:
        blocks.append(
            textwrap.wrap(
                "--quick: no pixels were read. Near-duplicates, light, blank pictures, empty masks "
                "and compression that the files do not show were not looked for.",
                WIDTH,
            )
        )
    findings = []
    for one in figures["findings"]:
        findings += _wrapped(f"{one['severity']:<7}", one["sentence"])
    blocks += [findings, _wrapped("", figures["verdict"])]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _folders(folders: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for name, row in folders.items():
        size = next(iter(row["sizes"]), "")
        if row["different_sizes"] > 1:
            low, high = row["aspect"]
            aspect = f"{low:.2f} to {high:.2f}" if high > low else f"{low:.2f}"
            size = f"{row['different_sizes']} sizes, aspect {aspect}"
        saved = _short(row["saved_as"])
        if row["different_jpeg_tables"] > 1:
            saved += f" ({row['different_jpeg_tables']} tables)"
        count, colour = str(row["pictures"]), _short(row["colour"])
        rows.append([name, count, size, colour, saved, _were(row.get("pixels_were", {}))])
    heads = ["", "pictures", "pixels", "colour", "saved as", "pixels were"]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return _table(heads, rows, right={1})


def _were(kinds: dict[str, int]) -> str:
    # A smooth picture says nothing against what the others say.
    told = {kind: count for kind, count in kinds.items() if not kind.startswith("too smooth")}
    return _short(told or kinds)


def _short(kinds: dict[str, int]) -> str:
    text = mostly(Counter(kinds)) if kinds else ""
    return text.replace(" of quality about", "").replace(" of quality", "")


def _trivial(trivial: dict[str, dict[str, Any]], layout: str) -> list[str]:
    # Only the columns that have a figure, and what each is.
    sides = [side for side in SIDES if any(row[side] is not None for row in trivial.values())]
    heads, legend = {}, []
    if any("auroc" in row for row in trivial.values()):
        heads["auroc"] = "AUROC"
        legend.append(
            "AUROC: of the distance from train's mean, good against defective pictures of test"
            if layout == INSPECTION_SET
            else "AUROC: of the distance from the mean of the (other) good pictures, good against "
            "defective"
        )
    if any("auroc_train_test" in row for row in trivial.values()):
        heads["auroc_train_test"] = "train/test"
        legend.append(
            "train/test: of the number itself, good pictures of train against good ones of test"
        )
    if not heads:
        return []
    rows = []
    for name, row in trivial.items():
        values = [row[side] for side in sides if row[side] is not None]
        if name in ("aspect", "megapixels") and np.allclose(values, values[0]):
            # The same for all, as it should be; there are no news in it.
            continue
        cells = ["" if row[side] is None else f"{row[side]:.4g}" for side in sides]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in heads]
        rows.append([NUMBER_WORDS.get(name, name), *cells])
    heads_of_table = ["mean of", *sides, *heads.values()]
    right = set(range(1, len(heads_of_table)))
    return [*_table(heads_of_table, rows, right), *legend]


def _probes(leaks: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [PAIRS[key], *("" if row[one] is None else f"{row[one]['auroc']:.2f}" for one in KINDS)]
        for key, row in leaks.items()
        if key in PAIRS and row.get("block_traces")
    ]
    if not rows:
        return []
    return [
        *_table(["linear probe (AUROC)", "8x8 blocks", "grain"], rows, right={1, 2}),
        "8x8 blocks: traces of JPEG, 0.5 where there is no leak; grain: real defects change it too",
    ]


def _table(heads: list[str], rows: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    ]
