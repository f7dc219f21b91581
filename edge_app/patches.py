"""
Score place by place: how unlike those of good parts the patches of a picture are.

A patch is one cell of an encoder's map: its features are turned to principal axes of unit variance,
averaged with their neighbours where the component says so, and compared with what is stored of good
parts. Four kinds of comparison, each a *component*:

``coreset``  distance to the nearest stored patch, wherever it lay (PatchCore, Roth et al., arXiv
             2106.08265, with its greedy k-centre choice of the patches stored).
``density``  the same distance over the stored patch's own distance to its k-th neighbour: the local
             outlier factor's idea on patches, for surfaces that are smooth here and rough there.
``place``    distance to the nearest patch of good parts at about the same place.
``gauss``    Mahalanobis distance to the good patches of the same place (PaDiM, Defard et al., arXiv
             2011.08785), covariance shrunk to that of all places.

Each component's map is standardised by what held-out good pictures gave, then they are averaged, so
that no component counts more because its distances are larger. The picture's score is read off the
averaged map. Higher is more anomalous; 0 is what a good part has on average, 1 its spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

KINDS = ("coreset", "density", "place", "gauss")
# Kinds that keep an own model for each place, and so need parts that lie alike.
PLACE_KINDS = ("place", "gauss")
IMAGE_SCORES = ("max", "top")
# The share of the map's cells that `top` averages: a defect is larger than one cell, and an average
# of several is steadier than the largest.
TOP_SHARE = 0.02
# What a component's numbers may be. OpenCV averages no more than 512 channels; a block of cells or
# places is padded to its full side, so that an absurd one would cost gigabytes.
LIMITS = {
    "map": (0, 255),
    "axes": (1, 512),
    "blur": (1, 255),
    "share": (1, 256),
    "pool": (1, 256),
}


@dataclass(frozen=True)
class Component:
    """
    One comparison.

    Attributes
    ----------
    kind : {'coreset', 'density', 'place', 'gauss'}
    map : int
        Which of the encoder's maps, an index into `Encoding.maps`.
    axes : int
        Principal axes kept.
    blur : int
        Side of the square of cells averaged, 1 for none.
    centred : bool
        Whether the picture's own mean is taken from its features, so that only what differs from
        the rest of the picture counts. For surfaces that differ from part to part.
    share : int
        For `gauss`: side of the square of places that have one covariance together.
    pool : int
        Side of the square of cells that become one place, by their mean; 1 for every cell its own.
    """

    kind: str
    map: int
    axes: int
    blur: int = 1
    centred: bool = False
    share: int = 1
    pool: int = 1

    def grid(self, map_shape: Sequence[int]) -> tuple[int, int]:
        """(h, w) of its places on a map of shape (h, w, c)."""
        return -(-map_shape[0] // self.pool), -(-map_shape[1] // self.pool)

    def label(self, layers: Sequence[str] = ()) -> str:
        """Short name for tables."""
        layer = layers[self.map] if self.map < len(layers) else f"map {self.map}"
        return f"{self.kind} {layer}" + (" centred" if self.centred else "")


@dataclass(frozen=True)
class Features:
    """
    From an encoder's map to the features that are compared.

    Attributes
    ----------
    axes : ndarray of float32, shape (c, d)
        Principal axes divided by the square root of their variance.
    offset : ndarray of float32, shape (d,)
        The mean patch along them; not used where `centred`.
    blur, centred, pool
        As `Component` has them.
    """

    axes: np.ndarray
    offset: np.ndarray
    blur: int
    centred: bool
    pool: int = 1

    def of(self, patches: np.ndarray) -> np.ndarray:
        """
        Features of one picture.

        Parameters
        ----------
        patches : ndarray of float32, shape (h, w, c)

        Returns
        -------
        features : ndarray of float32, shape (h, w, d), h and w those of the pooled grid
        """
        height, width, channels = patches.shape
        rows = patches.reshape(-1, channels) @ self.axes
        rows -= rows.mean(axis=0) if self.centred else self.offset
        features = rows.reshape(height, width, -1)
        if self.blur > 1:
            # Averaging and projecting are both linear: here there are fewer channels to average.
            # Reshaped after, because OpenCV drops the last axis where it is 1.
            size = (self.blur, self.blur)
            features = cv2.blur(features, size, borderType=cv2.BORDER_REFLECT)
            features = features.reshape(height, width, -1)
        return pooled(features, self.pool) if self.pool > 1 else features


def pooled(features: np.ndarray, pool: int) -> np.ndarray:
    """Means of blocks of pool x pool cells; a last row or column repeats to fill its block."""
    height, width, axes = features.shape
    down, across = -(-height // pool), -(-width // pool)
    spare = ((0, down * pool - height), (0, across * pool - width), (0, 0))
    if spare != ((0, 0), (0, 0), (0, 0)):
        features = np.pad(features, spare, mode="edge")
    return features.reshape(down, pool, across, pool, axes).mean(axis=(1, 3))


def nearest_squared(rows: np.ndarray, rows_sq: np.ndarray, query: np.ndarray) -> tuple:
    """
    Nearest stored patch of each query.

    Parameters
    ----------
    rows : ndarray of float32, shape (m, d)
    rows_sq : ndarray of float32, shape (m,)
        Their squared lengths.
    query : ndarray of float32, shape (p, d)

    Returns
    -------
    nearest : ndarray of int, shape (p,)
    distance_sq : ndarray of float32, shape (p,)
    """
    products = query @ rows.T
    products *= -2
    products += rows_sq
    nearest = products.argmin(axis=1)
    distance_sq = products[np.arange(len(query)), nearest]
    distance_sq += np.einsum("ij,ij->i", query, query)
    return nearest, np.maximum(distance_sq, 0, out=distance_sq)


class ComponentModel:
    """
    What one component has learnt.

    Parameters
    ----------
    component : Component
    arrays : mapping of str to ndarray
        For `coreset`: `rows` (m, d). For `density` also `radius` (m,). For `place`: `rows`
        (h * w, m, d). For `gauss`: `mean` (h, w, d) and `factor` (blocks, d, d), the transposed
        inverse Cholesky factor of the covariance of each block of places.
    """

    def __init__(self, component: Component, arrays: Mapping[str, np.ndarray]) -> None:
        self.component = component
        self._arrays = {name: _float32(array) for name, array in arrays.items()}
        rows = self._arrays.get("rows")
        if rows is not None:
            self._rows, self._rows_sq = rows, np.einsum("...d,...d->...", rows, rows)
        if component.kind == "density":
            self._per_radius = 1 / self._arrays["radius"]

    def distance(self, features: np.ndarray) -> np.ndarray:
        """
        Distance map of one picture.

        Parameters
        ----------
        features : ndarray of float32, shape (h, w, d)

        Returns
        -------
        distance : ndarray of float32, shape (h, w)
            Higher is more anomalous; NaN where a feature is NaN, NaN or infinite where it is
            infinite.
        """
        height, width, axes = features.shape
        query = features.reshape(-1, axes)
        kind = self.component.kind
        if kind == "gauss":
            away, places = in_blocks(features - self._arrays["mean"], self.component.share)
            turned = np.matmul(away, self._arrays["factor"])
            distance_sq = np.empty(height * width, np.float32)
            squares = np.einsum("bpd,bpd->bp", turned, turned).ravel()
            distance_sq[places[places >= 0]] = squares[places >= 0]
        elif kind == "place":
            products = np.matmul(self._rows, query[:, :, None])[:, :, 0]
            products *= -2
            products += self._rows_sq
            distance_sq = products.min(axis=1) + np.einsum("pd,pd->p", query, query)
        else:
            nearest, distance_sq = nearest_squared(self._rows, self._rows_sq, query)
        distance = np.sqrt(np.maximum(distance_sq, 0))
        if kind == "density":
            distance *= self._per_radius[nearest]
        return distance.reshape(height, width)


def in_blocks(features: np.ndarray, share: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Places sorted into square blocks.

    Parameters
    ----------
    features : ndarray of float32, shape (h, w, d)
    share : int
        Side of a block, places.

    Returns
    -------
    blocks : ndarray of float32, shape (blocks, share * share, d)
        0 where a block reaches over the edge.
    places : ndarray of int, shape (blocks * share * share,)
        Which place (row * w + column) each of them is; -1 for none.
    """
    height, width, axes = features.shape
    if share == 1:
        return features.reshape(-1, 1, axes), np.arange(height * width)
    down, across = -(-height // share), -(-width // share)
    spare = ((0, down * share - height), (0, across * share - width))
    padded = np.pad(features, (*spare, (0, 0)))
    numbers = np.pad(np.arange(height * width).reshape(height, width), spare, constant_values=-1)
    blocks = padded.reshape(down, share, across, share, axes).transpose(0, 2, 1, 3, 4)
    numbers = numbers.reshape(down, share, across, share).transpose(0, 2, 1, 3)
    return blocks.reshape(-1, share * share, axes), numbers.ravel()


def _float32(array: np.ndarray) -> np.ndarray:
    # A view, so that the caller's own array stays writable.
    array = np.ascontiguousarray(array, dtype=np.float32).view()
    array.setflags(write=False)
    return array


class PatchScorer:
    """
    Standardised anomaly map and score of a picture.

    Parameters
    ----------
    components : sequence of Component
    arrays : mapping of str to ndarray
        As `learn_patches.learn_patches` gives them: for component i `p<i>_axes`, `p<i>_offset`,
        `p<i>_centre` and `p<i>_spread`, shape (h, w) or (1, 1), and what its kind needs.
    weight : ndarray of float32, shape (H, W)
        How much each place of the finest grid counts, 0 to 1.
    image_score : {'max', 'top'}
    smoothing : float
        Standard deviation of the Gaussian blur of the map, cells of the finest grid.
    """

    def __init__(
        self,
        components: Sequence[Component],
        arrays: Mapping[str, np.ndarray],
        weight: np.ndarray,
        image_score: str,
        smoothing: float,
    ) -> None:
        self.components = tuple(components)
        self.grid = weight.shape
        self._weight = _float32(weight)
        self._image_score, self._smoothing = image_score, smoothing
        self._features: list[Features] = []
        self._models: list[ComponentModel] = []
        self._standards: list[tuple[np.ndarray, np.ndarray]] = []
        for index, component in enumerate(self.components):
            own = component_arrays(arrays, index)
            self._features.append(
                Features(
                    _float32(own.pop("axes")),
                    _float32(own.pop("offset")),
                    component.blur,
                    component.centred,
                    component.pool,
                )
            )
            self._standards.append((_float32(own.pop("centre")), _float32(own.pop("spread"))))
            self._models.append(ComponentModel(component, own))

    def anomaly_map(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        """
        Where a picture differs from good parts.

        Parameters
        ----------
        maps : sequence of ndarray of float32, shape (h, w, c)
            `Encoding.maps`.

        Returns
        -------
        anomaly : ndarray of float32, shape `grid`
            Standardised: 0 is the average of good parts or below, 1 their spread above it. NaN
            around where a map holds one.
        """
        total = np.zeros(self.grid, np.float32)
        for component, features, model, (centre, spread) in zip(
            self.components, self._features, self._models, self._standards, strict=True
        ):
            distance = model.distance(features.of(maps[component.map]))
            total += on_grid((distance - centre) / spread, self.grid)
        total /= len(self.components)
        return smoothed(total, self._weight, self._smoothing)

    def score(self, anomaly: np.ndarray) -> float:
        """The picture's score: the largest value of its map, or the mean of the top share; NaN
        where the map holds one."""
        return float(image_scores(anomaly[None], self._image_score)[0])


def read_components(section: Mapping) -> tuple[Component, ...]:
    """
    The components that a manifest's `scorer` section names.

    Raises
    ------
    ValueError
        Naming the field that is wrong.
    """
    entries = section.get("components")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"components is {str(entries)[:60]}, wanted a list of at least one")
    names = set(Component.__dataclass_fields__)
    components = []
    for index, entry in enumerate(entries):
        where = f"components[{index}]"
        if not isinstance(entry, dict) or set(entry) != names:
            raise ValueError(f"{where} is {str(entry)[:60]}, wanted {', '.join(sorted(names))}")
        if entry["kind"] not in KINDS:
            raise ValueError(f"{where}.kind is {entry['kind']!r}, wanted one of {KINDS}")
        for name, (least, most) in LIMITS.items():
            value = entry[name]
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(
                    f"{where}.{name} is {repr(value)[:60]}, wanted a whole number {least} to {most}"
                )
        if not isinstance(entry["centred"], bool):
            raise ValueError(f"{where}.centred is {entry['centred']!r}, wanted true or false")
        components.append(Component(**entry))
    if section.get("image_score") not in IMAGE_SCORES:
        raise ValueError(
            f"image_score is {section.get('image_score')!r}, wanted one of {IMAGE_SCORES}"
        )
    smoothing = section.get("smoothing")
    if isinstance(smoothing, bool) or not isinstance(smoothing, int | float):
        raise ValueError(f"smoothing is {smoothing!r}, wanted a number of cells")
    if not 0 <= smoothing <= 100:
        raise ValueError(f"smoothing is {smoothing!r}, wanted 0 to 100 cells")
    return tuple(components)


def check_arrays(
    components: Sequence[Component],
    arrays: Mapping[str, np.ndarray],
    map_shapes: Sequence[Sequence[int]],
) -> None:
    """
    Refuse arrays that do not fit the components.

    Raises
    ------
    ValueError
        Naming the array that is wrong.
    """
    for index, component in enumerate(components):
        if component.map >= len(map_shapes):
            raise ValueError(
                f"components[{index}].map is {component.map}, the encoder gives {len(map_shapes)}"
            )
        height, width = component.grid(map_shapes[component.map])
        channels = map_shapes[component.map][2]
        own = component_arrays(arrays, index)
        axes = own["axes"].shape[-1] if "axes" in own and own["axes"].ndim else 0
        if axes > component.axes:
            raise ValueError(
                f"array p{index}_axes holds {axes} axes, wanted at most {component.axes}"
            )
        down, across = -(-height // component.share), -(-width // component.share)
        wanted: dict[str, list[tuple]] = {
            "axes": [(channels, axes)],
            "offset": [(axes,)],
            "centre": [(height, width), (1, 1)],
            "spread": [(height, width), (1, 1)],
        }
        if component.kind == "gauss":
            wanted |= {"mean": [(height, width, axes)], "factor": [(down * across, axes, axes)]}
        else:
            count = own["rows"].shape[-2] if "rows" in own and own["rows"].ndim >= 2 else 1
            rows = (height * width, count, axes) if component.kind == "place" else (count, axes)
            wanted["rows"] = [rows]
            if component.kind == "density":
                wanted["radius"] = [(count,)]
        for name, shapes in wanted.items():
            array = own.get(name)
            if array is None:
                raise ValueError(f"array p{index}_{name} is missing")
            if array.shape not in shapes or not array.size:
                raise ValueError(
                    f"array p{index}_{name} is of shape {array.shape}, wanted {shapes[0]}"
                )
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(f"array p{index}_{name} holds what is not a finite number")
            if name in ("spread", "radius") and not (array > 0).all():
                raise ValueError(f"array p{index}_{name} holds numbers that are not above 0")


def component_arrays(arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """The arrays of one component, without its prefix."""
    prefix = f"p{index}_"
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def finest_grid(
    components: Sequence[Component], map_shapes: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """The largest of the components' grids, on which their maps are averaged."""
    return max((c.grid(map_shapes[c.map]) for c in components), key=math.prod)


def on_grid(distance: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map on another, finer or equal, grid."""
    if distance.shape == tuple(grid):
        return distance
    return cv2.resize(distance, (grid[1], grid[0]), interpolation=cv2.INTER_LINEAR)


def smoothed(anomaly: np.ndarray, weight: np.ndarray, smoothing: float) -> np.ndarray:
    """
    A map weighted by place and blurred.

    What is below the average of good parts counts as that: a very ordinary place must not make up
    for a strange one beside it. NaN stays NaN.
    """
    anomaly = np.maximum(anomaly, 0) * weight
    if smoothing > 0:
        anomaly = cv2.GaussianBlur(anomaly, (0, 0), smoothing, borderType=cv2.BORDER_REFLECT)
    return anomaly


def image_scores(anomaly: np.ndarray, image_score: str) -> np.ndarray:
    """
    Scores of pictures from their maps.

    Parameters
    ----------
    anomaly : ndarray, shape (n, H, W)
    image_score : {'max', 'top'}

    Returns
    -------
    scores : ndarray, shape (n,)
        NaN where the map holds one.
    """
    cells = anomaly.reshape(len(anomaly), -1)
    if image_score == "max":
        return cells.max(axis=1)
    count = max(1, math.ceil(TOP_SHARE * cells.shape[1]))
    # NaN sorts last, so it is among the top and makes the mean NaN.
    return np.partition(cells, cells.shape[1] - count, axis=1)[:, -count:].mean(axis=1)
