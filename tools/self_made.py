"""
Reference classes made from the good parts themselves: near misses, which no other set can give.

A reference set of other things is told from the part at a glance; what is then made compact need
not hold what a defect changes. ``drawn`` are good parts with a defect drawn on them, ``turned``
good parts mirrored and turned by a quarter, one class each; ``good`` stands beside them for methods
whose reference classes are told apart by a softmax.

References
----------
Li et al., "CutPaste", CVPR 2021 (pasted patches as a class); Tack et al., "CSI: Novelty Detection
via Contrastive Learning on Distributionally Shifted Instances", arXiv 2007.08176 (turned pictures
as negatives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tools.drawn_defects import draw_defect
from tools.reference_set import Reference

KINDS = ("drawn", "turned")
DRAWN_KINDS = ("cut_paste", "scratch", "spots", "noise", "shade", "erase")
"""Kinds of drawn defects that are trained on; the others are left to measure by."""

_Make = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_MAKERS: dict[str, dict[str, _Make]] = {
    "good": {"good": lambda picture, _: picture},
    "drawn": {"drawn": lambda picture, rng: draw_defect(picture, rng, DRAWN_KINDS)[0]},
    "turned": {
        "mirrored": lambda picture, _: picture[:, ::-1],
        "upside down": lambda picture, _: picture[::-1],
        "turned left": lambda picture, _: np.rot90(picture),
        "turned right": lambda picture, _: np.rot90(picture, 3),
    },
}


class WithSelfMade:
    """
    A reference set and, beside its classes, those made from good pictures.

    Parameters
    ----------
    reference : Reference
    good : sequence of sequences of ndarray
        For each part its good pictures, uint8 RGB (H, W, 3).
    kinds : sequence of str
        Some of `KINDS`, and "good".

    Attributes
    ----------
    class_names : list of str
    """

    def __init__(
        self, reference: Reference, good: Sequence[Sequence[np.ndarray]], kinds: Sequence[str]
    ) -> None:
        self._reference = reference
        self._good = [picture for part in good for picture in part]
        makers = {name: make for kind in kinds for name, make in _MAKERS[kind].items()}
        self._makers = list(makers.values())
        self.class_names = [*reference.class_names, *makers]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Draw pictures, every class equally often; as `Reference.draw`."""
        others = len(self._reference.class_names)
        labels = rng.integers(len(self.class_names), size=count)
        is_other = labels < others
        drawn, drawn_labels = self._reference.draw(rng, int(is_other.sum()))
        pictures: list[np.ndarray] = list(drawn)
        made_labels = labels[~is_other]
        for label in made_labels:
            picture = self._good[rng.integers(len(self._good))]
            made = self._makers[label - others](picture, rng)
            pictures.append(np.ascontiguousarray(made))
        return pictures, np.concatenate([drawn_labels, made_labels])
