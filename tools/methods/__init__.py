"""
The articles' methods behind one interface: fit on good pictures, score, draw a map.

A file holds one method, in the terms of its paper. What they share is here: the pictures of a part
as a method asks for them, and what a method must offer. ``tools.compare`` runs them all on the same
pictures and the same evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_app.align import Aligned, Aligner, Alignment, on_frame
from edge_app.preprocess import Preprocessing, prepare
from edge_app.sources.folder import read_picture

Size = tuple[int, int]


class View:
    """
    One picture of a part, and what of it a network sees.

    Parameters
    ----------
    path : Path
    aligners : Aligners
        Shared by all views of a part.
    """

    def __init__(self, path: Path, aligners: Aligners) -> None:
        self.path = path
        self.aligners = aligners
        self._aligned: dict[Size, Aligned] = {}

    @cached_property
    def frame_bgr(self) -> np.ndarray:
        """The picture as it is on the disk: uint8, shape (H, W, 3), BGR."""
        return read_picture(self.path)

    def pixels(self, size: Size) -> np.ndarray:
        """What a network of this input size sees: uint8, shape (height, width, 3), RGB."""
        return self._at(size).pixels_rgb

    def laid_back(self, anomaly: np.ndarray, size: Size) -> np.ndarray:
        """
        A map of what was seen, on the picture.

        Parameters
        ----------
        anomaly : ndarray of float32, shape (h, w)
            A grid of any size that covers what `pixels(size)` shows.
        size : (int, int)

        Returns
        -------
        ndarray of float32, shape (H, W)
            0 outside of what was seen.
        """
        return on_frame(
            anomaly.astype(np.float32), self._at(size).matrix, self.frame_bgr.shape, size
        )

    def forget(self) -> None:
        """Hold nothing of the picture any more; it is read again when it is asked for."""
        self.__dict__.pop("frame_bgr", None)
        self._aligned.clear()

    def _at(self, size: Size) -> Aligned:
        if size not in self._aligned:
            self._aligned[size] = self.aligners.view(self.frame_bgr, size)
        return self._aligned[size]


class Aligners:
    """
    How the pictures of a part are brought before a network, for every input size.

    Parameters
    ----------
    alignment : Alignment
        Of recipe ``none``: the whole picture, resized.
    """

    def __init__(self, alignment: Alignment) -> None:
        self.alignment = alignment
        self._by_size: dict[Size, Aligner] = {}

    def view(self, frame_bgr: np.ndarray, size: Size) -> Aligned:
        """A picture at a network's size; the whole of it where no part is found."""
        if size not in self._by_size:
            self._by_size[size] = Aligner(self.alignment, size, None)
        aligned = self._by_size[size].align(frame_bgr)
        if aligned.pixels_rgb is not None:
            return aligned
        pixels_rgb = prepare(frame_bgr, Preprocessing(size, None))
        down, across = (frame_bgr.shape[axis] / size[axis] for axis in (0, 1))
        matrix = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
        return Aligned(pixels_rgb, matrix, aligned.empty, aligned.problem, None)


@dataclass(frozen=True)
class Part:
    """
    What a method may learn from; nothing of it is a test picture.

    Attributes
    ----------
    name : str
        Of the set.
    data_dir : Path
    good : tuple of View
        ``train/good``.
    alignment : Alignment
    weights : Path or str
        ImageNet weights of MobileNetV2, as `tools.network.build_encoder` takes them.
    reference : tuple of Path
        Labelled sets for the losses that need one, as `tools.reference_set.open_reference` takes
        them. Never this set itself.
    leave_out : tuple of int
        Classes of an IDX reference that are the part's own or its defects.
    other_weights : Path or None
        EfficientNet-B0's, where the user has them.
    mapped : bool
        Whether heatmaps are measured, as they are where defects have masks: what is trained for
        them alone can be left out elsewhere.
    """

    name: str
    data_dir: Path
    good: tuple[View, ...]
    alignment: Alignment
    weights: Path | str
    reference: tuple[Path, ...]
    leave_out: tuple[int, ...] = ()
    other_weights: Path | None = None
    mapped: bool = True

    def pictures(self, size: Size) -> list[np.ndarray]:
        """All good pictures as a network of this size sees them, uint8 RGB."""
        return [view.pixels(size) for view in self.good]


class Fitted(ABC):
    """
    A method that has learnt a part.

    Attributes
    ----------
    parameters : int
        Numbers that were learnt or stored, networks and references alike, that a score needs.
    size_bytes : int
        Of the files that a score needs.
    maps : tuple of str
        Kinds of heatmap it can draw.
    notes : dict
        What the run should remember: steps trained, layers, the held-out loss; as JSON holds it.
    """

    parameters: int
    size_bytes: int
    maps: tuple[str, ...] = ()
    notes: dict[str, Any]

    @abstractmethod
    def scores(self, view: View) -> dict[str, float]:
        """
        Of one picture, higher is more anomalous.

        Returns
        -------
        dict of str to float
            By the names of the method's `score_names`, in their order.
        """

    def map(self, view: View, kind: str) -> np.ndarray:
        """
        A heatmap of one picture.

        Returns
        -------
        ndarray of float32, shape (H, W) of the picture
            Higher is more anomalous; unscaled.
        """
        raise KeyError(kind)

    def write_bundle(self, path: Path) -> None:
        """
        Write the bundle that ``edge-app inspect`` takes, with the same scores as `scores`.

        Raises
        ------
        NotImplementedError
            If the method stays on the workstation.
        """
        raise NotImplementedError


class Method(ABC):
    """
    One way to learn good parts.

    Attributes
    ----------
    name : str
        On the command line and in the table.
    title : str
        For people.
    paper : str
        Where it comes from, such as ``arXiv 1805.10917``.
    reported : str
        What its article reports, with the data; empty where there is no article.
    chance : bool
        Whether a seed changes anything.
    needs_other_weights : bool
        Whether it is left out where `Part.other_weights` is None.
    score_names : tuple of str
        Its ways to a score, the article's own first; one row of the table each. ``""`` where there
        is one only.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    reported: ClassVar[str] = ""
    chance: ClassVar[bool] = True
    needs_other_weights: ClassVar[bool] = False
    score_names: ClassVar[tuple[str, ...]] = ("",)

    @abstractmethod
    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> Fitted:
        """
        Learn a part.

        Parameters
        ----------
        part : Part
        seed : int
        state : Path
            Folder for checkpoints: what was stopped goes on from there. Its files are small enough
            to stay there.
        progress : bool
            Whether to show progress bars on stderr.

        Raises
        ------
        InputError
            If it cannot be learnt from these pictures.
        """


def sized(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size as one array, uint8, shape (n, height, width, 3)."""
    return np.stack(list(pictures))
