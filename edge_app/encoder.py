"""Encode: one call of the TFLite network gives the pooled embedding and the patch map."""

from __future__ import annotations

import cv2
import numpy as np

from edge_app.errors import BundleError
from edge_app.records import Encoding
from edge_app.runtime import open_interpreter


class Encoder:
    """
    A TFLite network with one picture in and (embedding, patch map) out.

    Parameters
    ----------
    model : bytes
        Content of ``encoder.tflite``; float32 (or float16 weights) or full int8, batch 1.
    scale, offset : float
        The network sees ``pixel * scale + offset``; pixels are 0 to 255.
    threads : int

    Attributes
    ----------
    size : tuple of int
        (height, width) of the input.
    embedding_dim : int
    patch_shape : tuple of int
        (h, w, c)

    Raises
    ------
    BundleError
        If the model does not have one picture in and these two outputs.
    """

    def __init__(self, model: bytes, scale: float, offset: float, threads: int = 1) -> None:
        self._interpreter = open_interpreter(model, threads)
        self.runtime_name = self._interpreter.runtime_name
        inputs = self._interpreter.get_input_details()
        shape = [int(n) for n in inputs[0]["shape"]] if len(inputs) == 1 else []
        if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
            raise BundleError(
                f"encoder.tflite: input has shape {shape}, wanted [1, height, width, 3]"
            )
        by_rank = {len(out["shape"]): out for out in self._interpreter.get_output_details()}
        if set(by_rank) != {2, 4}:
            raise BundleError(
                f"encoder.tflite: outputs have {sorted(by_rank)} dimensions, "
                "wanted one embedding (1, d) and one patch map (1, h, w, c)"
            )
        self.size = (shape[1], shape[2])
        self._input_index = inputs[0]["index"]
        self._embedding, self._patches = by_rank[2], by_rank[4]
        self.embedding_dim = int(self._embedding["shape"][1])
        self.patch_shape = tuple(int(n) for n in self._patches["shape"][1:])
        self._table = _pixel_table(inputs[0], scale, offset)

    def encode(self, pixels_rgb: np.ndarray) -> Encoding:
        """
        Run the network on one picture.

        Parameters
        ----------
        pixels_rgb : ndarray of uint8, shape (*size, 3)

        Returns
        -------
        Encoding
            Arrays of their own, not views into the interpreter.
        """
        self._interpreter.set_tensor(self._input_index, cv2.LUT(pixels_rgb, self._table)[None])
        self._interpreter.invoke()
        return Encoding(
            read_float(self._interpreter, self._embedding),
            read_float(self._interpreter, self._patches),
        )


def _pixel_table(detail: dict, scale: float, offset: float) -> np.ndarray:
    """The 256 values that the pixel values 0 to 255 become at the network's input."""
    values = np.arange(256, dtype=np.float64) * scale + offset
    return quantise(values, detail)


def quantise(values: np.ndarray, detail: dict) -> np.ndarray:
    """`values` in the dtype and quantisation of the tensor that `detail` describes."""
    dtype = detail["dtype"]
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    step, zero = detail["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / step + zero), limits.min, limits.max).astype(dtype)


def read_float(interpreter, detail: dict) -> np.ndarray:
    """An output tensor without its batch axis, as float32 whatever its dtype in the network."""
    values = interpreter.get_tensor(detail["index"])[0]
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32, copy=False)
    step, zero = detail["quantization"]
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(step)
