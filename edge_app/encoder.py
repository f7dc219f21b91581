"""Encode: one call of the TFLite network gives the pooled embedding and the patch maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np

from edge_app.errors import BundleError
from edge_app.records import Encoding
from edge_app.runtime import open_interpreter


class Encoder:
    """
    A TFLite network with one picture in and an embedding and one or more maps out.

    Converters are free to reorder outputs, so the embedding is known by its rank and each map by
    its shape.

    Parameters
    ----------
    model : bytes
        Content of ``encoder.tflite``; float32 (or float16 weights) or full int8, batch 1.
    scale, offset : float
        The network sees ``pixel * scale + offset``; pixels are 0 to 255.
    threads : int
    map_shapes : sequence of (int, int, int), optional
        Shapes (h, w, c) of all the network's maps in the order in which they are handed out, the
        patches first. None: most cells first, of equally many the one with most channels; only
        with a single map is it certain then that the first is the one meant as patches.
    maps_wanted : collection of int, optional
        Indices of the maps to read; the first is read in any case. A map that is not read costs
        no copy. None reads all.

    Attributes
    ----------
    size : tuple of int
        (height, width) of the input.
    embedding_dim : int
    map_shapes : tuple of tuple of int
        (h, w, c) of each map.
    patch_shape : tuple of int
        The first of them.

    Raises
    ------
    BundleError
        If the model does not have one picture in and these outputs, two of its maps have one
        shape, or a map is wanted that it does not have.
    """

    def __init__(
        self,
        model: bytes,
        scale: float,
        offset: float,
        threads: int = 1,
        map_shapes: Sequence[Sequence[int]] | None = None,
        maps_wanted: Collection[int] | None = None,
    ) -> None:
        self._interpreter = open_interpreter(model, threads)
        self.runtime_name = self._interpreter.runtime_name
        inputs = self._interpreter.get_input_details()
        shape = [int(n) for n in inputs[0]["shape"]] if len(inputs) == 1 else []
        if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
            raise BundleError(
                f"encoder.tflite: input has shape {shape}, wanted [1, height, width, 3]"
            )
        self._embedding, maps = _outputs(self._interpreter.get_output_details())
        if map_shapes is None:
            ordered = sorted(maps, key=lambda shape: (-shape[0] * shape[1], -shape[2]))
        else:
            ordered = [tuple(int(n) for n in shape) for shape in map_shapes]
            if sorted(ordered) != sorted(maps):
                raise BundleError(
                    f"encoder.tflite: its maps have shapes {_listed(maps)}, "
                    f"wanted {_listed(ordered)}"
                )
        self.size = (shape[1], shape[2])
        self._input_index = inputs[0]["index"]
        self.embedding_dim = int(self._embedding["shape"][1])
        self.map_shapes = tuple(ordered)
        self.patch_shape = self.map_shapes[0]
        wanted = set(range(len(ordered)) if maps_wanted is None else maps_wanted)
        if not wanted <= set(range(len(ordered))):
            raise BundleError(
                f"encoder.tflite: has {len(ordered)} maps, wanted were those of index "
                f"{', '.join(map(str, sorted(wanted)))}"
            )
        self._maps = [
            maps[shape] if index == 0 or index in wanted else None
            for index, shape in enumerate(ordered)
        ]
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
        maps = tuple(
            None if detail is None else read_float(self._interpreter, detail)
            for detail in self._maps
        )
        return Encoding(read_float(self._interpreter, self._embedding), maps[0], maps)


def _outputs(details: Sequence[dict]) -> tuple[dict, dict[tuple[int, ...], dict]]:
    """The embedding's detail, and the maps' by their shape."""
    shapes = [tuple(int(n) for n in detail["shape"]) for detail in details]
    embeddings = [detail for detail, shape in zip(details, shapes, strict=True) if len(shape) == 2]
    maps = {
        shape[1:]: detail
        for detail, shape in zip(details, shapes, strict=True)
        if len(shape) == 4 and shape[0] == 1
    }
    if len(embeddings) != 1 or not maps or {len(shape) for shape in shapes} != {2, 4}:
        raise BundleError(
            f"encoder.tflite: outputs have shapes {_listed(shapes)}, "
            "wanted one embedding [1, d] and patch maps [1, h, w, c]"
        )
    if len(maps) + 1 != len(details):
        raise BundleError(
            f"encoder.tflite: outputs have shapes {_listed(shapes)}, wanted maps of batch 1 and of "
            "different shapes, by which they are told apart"
        )
    return embeddings[0], maps


def _listed(shapes: Collection[tuple[int, ...]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)


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
