"""
Trivial baselines: what a method has to beat before it has shown anything.

Four of them, none with a network: how far the brightness is from the good pictures', how far the
pixels are from their mean picture's, how many bits of a perceptual hash differ from the nearest
good picture's, and what the principal components of the good pictures' pixels cannot draw. They see
the part as every method sees it, aligned where the part is.

References
----------
Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", thesis, University of
Applied Sciences Upper Austria, 2010, section 3.1: the hash of the discrete cosine transform.
Jackson and Mudholkar, "Control Procedures for Residuals Associated With Principal Component
Analysis", Technometrics 21, 1979: the squared residual (their Q) as a score.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from tools.methods import Fitted, Method, Part, Size, View, finished, sized

# Sides in pixels that parts are looked at with: of the mean and the principal components, where a
# part that lies a pixel off is forgiven, and of the hash, as Zauner has it.
PIXELS_SIZE: Size = (64, 64)
HASH_SIZE: Size = (32, 32)

# Side of the block of low frequencies that the hash takes its 64 bits from.
HASH_BLOCK = 8

# Share of the good pictures' variance that the principal components keep. With all of it every good
# picture is drawn without a residual, and nothing was learnt.
KEPT_VARIANCE = 0.95
# More pictures, spread over all, would change the components little and take memory and time with
# their number's square.
MOST_COMPONENT_PICTURES = 1000


class _Trivial(Method):
    """What all of them share: arrays learnt from the good pictures in one pass."""

    chance = False
    paper = ""
    size: ClassVar[Size] = PIXELS_SIZE
    fitted: ClassVar[type[_Arrays]]

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> Fitted:
        """
        Learn from all good pictures, or find again what was learnt.

        Raises
        ------
        InputError
            If `state` holds the result of other pictures.
        """
        pictures = sized(part.pictures(self.size))
        settings = {"method": self.name, "pictures_sha256": finished.pictures_sha256(pictures)}
        folder = finished.find(state, settings)
        if folder is None:
            arrays, notes = self.learn(pictures)
            with finished.keeping(state, settings) as partial:
                np.savez(partial / "arrays.npz", **arrays)
                text = json.dumps(notes, indent=2, allow_nan=False) + "\n"
                (partial / "notes.json").write_text(text, encoding="utf-8")
        return self.fitted(state / finished.FOLDER)

    @abstractmethod
    def learn(self, pictures_rgb: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """
        The arrays a score needs, and notes.

        Parameters
        ----------
        pictures_rgb : ndarray of uint8, shape (n, *size, 3)
        """


class _Arrays(Fitted):
    """
    Arrays from a finished folder.

    Parameters
    ----------
    folder : Path
        With arrays.npz and notes.json.
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.notes = json.loads((folder / "notes.json").read_text("utf-8"))
        self.parameters = sum(array.size for array in self.arrays.values())
        self.size_bytes = (folder / "arrays.npz").stat().st_size


class FittedBrightness(_Arrays):
    """Absolute difference of the mean grey value to the good pictures' mean of it."""

    def scores(self, view: View) -> dict[str, float]:
        grey = float(_grey(view.pixels(PIXELS_SIZE)).mean())
        return {"": abs(grey - float(self.arrays["mean"]))}


class Brightness(_Trivial):
    """How far the brightness is from the good pictures'."""

    name = "brightness"
    title = "Brightness"
    fitted = FittedBrightness

    def learn(self, pictures_rgb: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        means = [_grey(picture).mean() for picture in pictures_rgb]
        return {"mean": np.array(np.mean(means))}, {}


class FittedMeanImage(_Arrays):
    """Distance of the pixels to the mean picture's; its map is the difference."""

    maps = ("difference",)

    def scores(self, view: View) -> dict[str, float]:
        return {"": float(np.sqrt(np.mean(self._difference(view) ** 2)))}

    def map(self, view: View, kind: str) -> np.ndarray:
        if kind != "difference":
            raise KeyError(kind)
        difference = np.abs(self._difference(view)).mean(axis=2)
        return view.laid_back(difference, PIXELS_SIZE)

    def _difference(self, view: View) -> np.ndarray:
        return view.pixels(PIXELS_SIZE).astype(np.float32) - self.arrays["mean"]


class MeanImage(_Trivial):
    """Root of the mean squared difference to the mean of the good pictures, grey levels."""

    name = "mean-image"
    title = "Mean image"
    fitted = FittedMeanImage

    def learn(self, pictures_rgb: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"mean": pictures_rgb.mean(axis=0, dtype=np.float64).astype(np.float32)}, {}


class FittedPerceptualHash(_Arrays):
    """Bits that differ from the nearest good picture's hash."""

    def scores(self, view: View) -> dict[str, float]:
        bits = perceptual_hash(view.pixels(HASH_SIZE))
        return {"": float((self.arrays["bits"] != bits).sum(axis=1).min())}


class PerceptualHash(_Trivial):
    """Hamming distance, 0 to 64, to the nearest good picture's perceptual hash."""

    name = "perceptual-hash"
    title = "Perceptual hash"
    paper = "Zauner 2010"
    size = HASH_SIZE
    fitted = FittedPerceptualHash

    def learn(self, pictures_rgb: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        bits = np.unique([perceptual_hash(picture) for picture in pictures_rgb], axis=0)
        return {"bits": bits}, {"different_hashes": len(bits)}


class FittedPcaResidual(_Arrays):
    """What the principal components cannot draw; its map is that residual."""

    maps = ("residual",)

    def scores(self, view: View) -> dict[str, float]:
        return {"": float(np.sqrt(np.mean(self._residual(view) ** 2)))}

    def map(self, view: View, kind: str) -> np.ndarray:
        if kind != "residual":
            raise KeyError(kind)
        residual = np.abs(self._residual(view)).reshape(*PIXELS_SIZE, 3).mean(axis=2)
        return view.laid_back(residual, PIXELS_SIZE)

    def _residual(self, view: View) -> np.ndarray:
        centred = view.pixels(PIXELS_SIZE).reshape(-1).astype(np.float32) - self.arrays["mean"]
        axes = self.arrays["axes"]
        return centred - (axes @ centred) @ axes


class PcaResidual(_Trivial):
    """Root of the mean squared residual to the good pictures' principal components, grey levels."""

    name = "pca-residual"
    title = "PCA residual on pixels"
    paper = "Jackson and Mudholkar 1979"
    fitted = FittedPcaResidual

    def learn(self, pictures_rgb: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        from sklearn.decomposition import PCA

        count = min(len(pictures_rgb), MOST_COMPONENT_PICTURES)
        rows = np.linspace(0, len(pictures_rgb) - 1, count).round().astype(int)
        pixels = pictures_rgb[rows].reshape(count, -1).astype(np.float32)
        # In full: the randomised solver, which scikit-learn would choose, needs the number first.
        found = PCA(KEPT_VARIANCE, svd_solver="full").fit(pixels)
        arrays = {
            "mean": found.mean_.astype(np.float32),
            "axes": np.ascontiguousarray(found.components_, dtype=np.float32),
        }
        return arrays, {"components": len(found.components_), "pictures": count}


def perceptual_hash(picture_rgb: np.ndarray) -> np.ndarray:
    """
    Hash of a picture's low frequencies.

    Each bit says whether one of the lowest 8 x 8 coefficients of the discrete cosine transform,
    without those of frequency 0 in either direction, is above their median.

    Parameters
    ----------
    picture_rgb : ndarray of uint8, shape (32, 32, 3)

    Returns
    -------
    ndarray of bool, shape (64,)
    """
    coefficients = cv2.dct(_grey(picture_rgb).astype(np.float32))
    low = coefficients[1 : HASH_BLOCK + 1, 1 : HASH_BLOCK + 1]
    return (low > np.median(low)).reshape(-1)


def _grey(picture_rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2GRAY)
