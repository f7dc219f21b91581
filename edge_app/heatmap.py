"""
Compute: where a picture differs from the decoder's redraw of it, and that laid over the frame.

The map is the article's ``|original - decoder(features)|``, averaged over colours and smoothed.
The signed difference is smoothed first: grain that the decoder never redraws is as often brighter
as darker and cancels, a defect does not. Its colour scale is fixed in the bundle from good parts:
a scale stretched per picture would paint every good part red.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edge_app.encoder import quantise, read_float
from edge_app.errors import BundleError
from edge_app.records import Encoding
from edge_app.runtime import open_interpreter

OVERLAY_STRENGTH = 0.65


@dataclass(frozen=True)
class ColourScale:
    """
    From difference to colour.

    Attributes
    ----------
    low : float
        Differences up to this one are not painted (0 on the map).
    high : float
        Differences from this one on are fully red (1 on the map).
    """

    low: float
    high: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values from 0 to 1 of a map on this scale; ``ColourScale(0, 1)`` leaves it as it is."""
        if (self.low, self.high) == (0.0, 1.0):
            return values
        return np.clip((values - self.low) / max(self.high - self.low, 1e-6), 0, 1)


class Decoder:
    """
    A TFLite network that redraws the part from the encoder's features.

    Parameters
    ----------
    model : bytes
        Content of ``decoder.tflite``, batch 1.
    source : {'patches', 'embedding'}
        Which of the encoder's outputs it takes.
    encoding_shape : tuple of int
        Shape of that output.
    size : tuple of int
        (height, width) of the encoder's input, which the redraw must have.
    threads : int

    Attributes
    ----------
    calls : int
        How often the network has run; a frame that is not NG must not raise it.

    Raises
    ------
    BundleError
        If the network's shapes do not fit the encoder's.
    """

    def __init__(
        self,
        model: bytes,
        source: str,
        encoding_shape: tuple[int, ...],
        size: tuple[int, int],
        threads: int = 1,
    ) -> None:
        self.source = source
        self.calls = 0
        self._interpreter = open_interpreter(model, threads)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._input, self._output = inputs[0], outputs[0]
        got_in = tuple(int(n) for n in self._input["shape"]) if len(inputs) == 1 else None
        got_out = tuple(int(n) for n in self._output["shape"]) if len(outputs) == 1 else None
        wanted_in, wanted_out = (1, *encoding_shape), (1, *size, 3)
        if got_in != wanted_in or got_out != wanted_out:
            raise BundleError(
                f"decoder.tflite: takes {got_in} and gives {got_out}, "
                f"wanted {wanted_in} and {wanted_out} for this encoder"
            )

    def redraw(self, encoding: Encoding) -> np.ndarray:
        """
        Redraw the picture from its features.

        Returns
        -------
        redraw_01 : ndarray of float32, shape (height, width, 3)
            RGB, 0 to 1.
        """
        self.calls += 1
        features = encoding.patches if self.source == "patches" else encoding.embedding
        self._interpreter.set_tensor(self._input["index"], quantise(features[None], self._input))
        self._interpreter.invoke()
        return read_float(self._interpreter, self._output)


def difference_map(pixels_rgb: np.ndarray, redraw_01: np.ndarray, blur_share: float) -> np.ndarray:
    """
    Smoothed absolute difference between a picture and its redraw.

    Parameters
    ----------
    pixels_rgb : ndarray of uint8, shape (height, width, 3)
    redraw_01 : ndarray of float32, shape (height, width, 3)
    blur_share : float
        Standard deviation of the Gaussian blur of the absolute difference, as a share of the
        picture's height; the signed difference is blurred by half of it. 0 for none.

    Returns
    -------
    difference : ndarray of float32, shape (height, width)
        0 to 1, higher is more anomalous.
    """
    signed = pixels_rgb * np.float32(1 / 255) - redraw_01
    sigma = blur_share * signed.shape[0]
    if sigma > 0:
        signed = cv2.GaussianBlur(signed, (0, 0), sigma / 2)
    difference = np.abs(signed).mean(axis=2)
    if sigma > 0:
        difference = cv2.GaussianBlur(difference, (0, 0), sigma)
    return difference


def overlay(frame_bgr: np.ndarray, map_01: np.ndarray) -> np.ndarray:
    """
    Lay a map over its frame; where the map is 0 the frame shows unchanged.

    Returns
    -------
    ndarray of uint8, shape of `frame_bgr`
    """
    colours = cv2.applyColorMap((map_01 * 255).astype(np.uint8), cv2.COLORMAP_JET)
    # Faint differences stay faint: the paint's opacity grows with the map.
    opacity = (OVERLAY_STRENGTH * np.minimum(map_01 * 2, 1))[:, :, None]
    return (frame_bgr * (1 - opacity) + colours * opacity + 0.5).astype(np.uint8)
