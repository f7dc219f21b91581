"""
What one trivial number per picture, or a mean picture, achieves on an inspection set.

A method has shown something on a set only by what it does better than these figures: sets differ
in light, focus or file format between good and defective pictures more often than their makers
know.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edge_app.sources.folder import read_picture
from tools.inspection_set import InspectionSet, read_mask, refuse_one_sided
from tools.metrics import au_pro, image_auroc, pixel_auroc

TRIVIAL_NUMBERS = ("brightness", "contrast", "sharpness", "bytes_per_pixel")

# Side in pixels of the square that pictures are brought to for the mean: large for the heatmap,
# small for the distance, which then forgives a part that lies a few pixels off.
_MEAN_SIDE = 256
_DISTANCE_SIDE = 64


def trivial_numbers(path: Path, frame_bgr: np.ndarray) -> dict[str, float]:
    """
    The trivial numbers of one picture.

    Parameters
    ----------
    path : Path
        The picture's file, for its size in bytes.
    frame_bgr : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    dict of str to float
        ``brightness`` (mean of the grey values), ``contrast`` (their standard deviation),
        ``sharpness`` (variance of the Laplacian), ``bytes_per_pixel`` (of the file).
    """
    grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY)
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "sharpness": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "bytes_per_pixel": path.stat().st_size / grey.size,
    }


def trivial_figures(
    inspection_set: InspectionSet, progress: bool = True
) -> dict[str, float | None]:
    """
    Image AUROC of trivial scores, and pixel figures of a trivial heatmap.

    The score of a trivial number is its distance \\|z\\| from the mean of ``train/good``. The score
    of the mean picture is the root of the summed squared grey differences to it at 64x64 pixels;
    its heatmap is the absolute grey difference to it at the picture's own size.

    Parameters
    ----------
    inspection_set : InspectionSet
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    dict of str to float or None
        ``brightness``, ``contrast``, ``sharpness``, ``bytes_per_pixel``, ``mean_picture``: image
        AUROC. ``mean_picture_pixel_auroc``, ``mean_picture_au_pro``: over the good pictures and the
        defective ones that have a mask; None where no defective picture has one.

    Raises
    ------
    InputError
        If a picture or mask cannot be read, or the test split has only good or only defective
        pictures.
    """
    from tqdm import tqdm

    refuse_one_sided(inspection_set)
    is_anomaly = [picture.is_anomaly for picture in inspection_set.test]
    with_masks = any(picture.mask_path for picture in inspection_set.test)

    with tqdm(
        total=len(inspection_set.train_good) + len(inspection_set.test),
        desc=f"trivial figures of {inspection_set.name}",
        unit="picture",
        disable=not progress,
    ) as bar:
        good_numbers = dict.fromkeys(TRIVIAL_NUMBERS, 0.0)
        mean_grey = np.zeros((_MEAN_SIDE, _MEAN_SIDE), dtype=np.float64)
        for path in inspection_set.train_good:
            frame_bgr = read_picture(path)
            for name, value in trivial_numbers(path, frame_bgr).items():
                good_numbers[name] += value / len(inspection_set.train_good)
            mean_grey += _resized_grey(frame_bgr, _MEAN_SIDE) / len(inspection_set.train_good)
            bar.update()
        mean_grey = mean_grey.astype(np.float32)
        small_mean_grey = _resize(mean_grey, (_DISTANCE_SIDE, _DISTANCE_SIDE))

        scores: dict[str, list[float]] = {name: [] for name in (*TRIVIAL_NUMBERS, "mean_picture")}
        maps, masks = [], []
        for picture in inspection_set.test:
            frame_bgr = read_picture(picture.path)
            for name, value in trivial_numbers(picture.path, frame_bgr).items():
                # z without its division: one scale for all pictures leaves the AUROC as it is,
                # and good pictures that are all equal need no exception.
                scores[name].append(abs(value - good_numbers[name]))
            grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY)
            small_grey = _resize(
                _resized_grey(frame_bgr, _MEAN_SIDE), (_DISTANCE_SIDE, _DISTANCE_SIDE)
            )
            scores["mean_picture"].append(float(np.linalg.norm(small_grey - small_mean_grey)))
            if with_masks and (picture.mask_path or not picture.is_anomaly):
                height, width = grey.shape
                maps.append(np.abs(grey - _resize(mean_grey, (width, height))))
                masks.append(
                    read_mask(picture.mask_path, grey.shape)
                    if picture.mask_path
                    else np.zeros(grey.shape, dtype=bool)
                )
            bar.update()

    figures: dict[str, float | None] = {
        name: image_auroc(values, is_anomaly) for name, values in scores.items()
    }
    figures["mean_picture_pixel_auroc"] = pixel_auroc(maps, masks) if with_masks else None
    figures["mean_picture_au_pro"] = au_pro(maps, masks) if with_masks else None
    return figures


def _resized_grey(frame_bgr: np.ndarray, side: int) -> np.ndarray:
    grey = cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return _resize(grey, (side, side))


def _resize(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Averaging over areas keeps the noise of a large picture out of a small one; up, it would
    # only repeat pixels.
    shrinks = size[0] < grey.shape[1] and size[1] < grey.shape[0]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
