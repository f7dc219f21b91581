"""
Gaussians of pre-trained features, and the Mahalanobis distance to them.

The features of an ImageNet network are averaged over the picture at nine levels: the stem, the ends
of the seven stages and the head, in EfficientNet, where the paper has them, as in MobileNetV2,
which has the same nine. To each level's vectors x of the good pictures a Gaussian is fitted, its
covariance S shrunk towards a multiple of the identity (Ledoit and Wolf),

    C = (1 - rho) S + rho (trace S / d) I,

and the score is the sum over the levels of sqrt((x - mean)^T C^-1 (x - mean)). Nothing is trained
and nothing is random.

Three scores: ``full`` is that; ``pca`` fits the Gaussian in the principal components that hold
99 % of the variance, and ``npca`` (negated PCA) in those that hold the rest, which is where the
paper finds what tells defects. Which of both a component at the limit belongs to is not certain,
so, as in the authors' own code, it and its neighbour belong to both. Components in which the good
pictures do not vary at all belong to neither: of them the covariance is all shrinkage.

The heatmap is by gradient: what a picture must change for the score to fall, see
`tools.methods.gradient`.

References
----------
Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features
for Anomaly Detection", arXiv 2005.14140 (ICPR 2020, pages 6726-6733).
Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal
of Multivariate Analysis 88, 2004, pages 365-411: rho, through scikit-learn.
"""

from __future__ import annotations

import json
import math
import shlex
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from edge_app.align import alignment_arrays, alignment_section
from edge_app.bundle import refuse_existing, write_bundle
from edge_app.encoder import Encoder
from edge_app.enrol import LEAST_IMAGES, refuse_too_few_images
from edge_app.errors import InputError
from edge_app.gaussian import KIND, GaussianScorer, pooled
from edge_app.held_out import (
    blinding,
    calibrate,
    folds,
    least_like,
    near_duplicate_groups,
    thumbnail,
)
from edge_app.quality import as_section, learn_limits, measure
from tools.methods import Fitted, Method, Part, Size, View
from tools.methods.finished import find, keeping
from tools.methods.gradient import Anomaly, downhill, moved_map
from tools.network import network_input
from tools.new_manifest import OFFSET, SCALE, new_manifest
from tools.train_encoder import weights_origin

if TYPE_CHECKING:
    import keras

SCORES = ("full", "pca", "npca")

MOBILENET_LEVELS = (
    "Conv1_relu",
    "expanded_conv_project_BN",
    "block_2_add",
    "block_5_add",
    "block_9_add",
    "block_12_add",
    "block_15_add",
    "block_16_project_BN",
    "out_relu",
)
EFFICIENTNET_LEVELS = (
    "stem_activation",
    "block1a_project_bn",
    "block2b_add",
    "block3b_add",
    "block4c_add",
    "block5c_add",
    "block6d_add",
    "block7a_project_bn",
    "top_activation",
)

# Share of the variance that `pca` keeps and `npca` leaves, the first of the paper's for both.
RETAINED_VARIANCE = 0.99
# Relative to the largest variance, what float32 features leave of a direction without any.
NO_VARIANCE = 1e-10

# The side that both networks were trained at. On rendered nuts (200 good pictures, width 0.35) the
# sum of distances told defects with an AUROC of 0.898 at 96 px, 0.937 at 128 and 0.960 at 224.
SIDE_PX = 224
# Pictures no larger than this are not blown up to more: there is nothing in them to see.
SMALL_PX = 64

# The rate that the exported bundle's threshold is set for, as `fit` does by default.
WANTED_RATE = 0.01

# Of the heatmap's descent: its steps, the first one's rate, and the price of moving one value by 1
# (the score's gradient is above 0.25 at half of the values, above 1 at a tenth); then the Gaussian
# blur of what moved, pixels. On 10 defective rendered nuts this gave a mean pixel AUROC of 0.902,
# without the blur 0.803; with it, at prices of 0.3 and 1, 0.888 and 0.869.
STEPS, RATE, PRICE = 20, 0.02, 0.1
BLUR_PX = 4.0

MODEL, ARRAYS, VECTORS, NOTES = "model.tflite", "arrays.npz", "vectors.npz", "notes.json"


@dataclass(frozen=True)
class Gaussian:
    """
    A Gaussian whose precision is given along axes, and by one number off them.

    Attributes
    ----------
    mean : ndarray of float64, shape (d,)
    axes : ndarray of float64, shape (d, r)
        Orthonormal columns.
    precision : ndarray of float64, shape (r,)
        One over the variance along each axis.
    rest : ndarray of float64, shape (1,)
        The same for every direction at right angles to all axes; 0 where those do not count.
    shrinkage : float
        The rho of the covariance, 0 to 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    precision: np.ndarray
    rest: np.ndarray
    shrinkage: float


def fit_gaussian(vectors: np.ndarray, score: str = "full") -> Gaussian:
    """
    Fit a Gaussian with a shrunk covariance.

    Parameters
    ----------
    vectors : ndarray, shape (n, d)
        Of good pictures.
    score : {'full', 'pca', 'npca'}
        In which components.

    Returns
    -------
    Gaussian

    Raises
    ------
    InputError
        If the vectors are so few or so alike that the covariance stays singular, or not finite.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    if score not in SCORES:
        raise ValueError(f"score {score!r} is none of {', '.join(SCORES)}")
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise InputError("the network's answer for a good picture is not finite")
    count, dims = vectors.shape
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / count
    varies = variances > NO_VARIANCE * max(variances[0], np.finfo(np.float64).tiny)
    variances, axes = variances[varies], rows[varies].T
    seen = vectors
    if score != "full" and len(variances):
        share = np.cumsum(variances) / variances.sum()
        last = int((share > RETAINED_VARIANCE).argmax())
        kept = slice(0, last + 1) if score == "pca" else slice(max(last - 1, 0), None)
        variances, axes = variances[kept], axes[:, kept]
        seen = centred @ axes
        dims = len(variances)
    shrinkage = float(ledoit_wolf_shrinkage(seen)) if len(variances) else 0.0
    floor = shrinkage * variances.sum() / dims
    if len(variances) < dims and not floor > 0:
        raise InputError(
            f"{count} good pictures are too few or too alike for a covariance, "
            f"wanted about {10 * LEAST_IMAGES} that differ"
        )
    precision = 1 / ((1 - shrinkage) * variances + floor)
    rest = 1 / floor if len(variances) < dims else 0.0
    return Gaussian(mean, axes, precision, np.array([rest]), shrinkage)


def gaussian_arrays(gaussians: Sequence[Gaussian]) -> dict[str, np.ndarray]:
    """The arrays of these levels as `edge_app.gaussian.GaussianScorer` takes them, float32."""
    return {
        f"{name}_{index}": getattr(gaussian, name).astype(np.float32)
        for index, gaussian in enumerate(gaussians)
        for name in ("mean", "axes", "precision", "rest")
    }


def scorer_of(levels: Sequence[np.ndarray], score: str = "full") -> GaussianScorer:
    """The device's scorer of good pictures' vectors, an array (n, d) for each level."""
    gaussians = [fit_gaussian(vectors, score) for vectors in levels]
    return GaussianScorer(range(len(levels)), gaussian_arrays(gaussians))


def held_out_scores(levels: Sequence[np.ndarray], groups: np.ndarray) -> np.ndarray:
    """
    The ``full`` score of every good picture against Gaussians of the others.

    Parameters
    ----------
    levels : sequence of ndarray, shape (n, d)
    groups : ndarray of int, shape (n,)
        Near-duplicates, which are held out together.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    scores = np.empty(len(groups))
    for held_out in folds(groups)[0]:
        scorer = scorer_of([np.delete(vectors, held_out, axis=0) for vectors in levels])
        for row in held_out:
            scores[row] = scorer.score_pooled([vectors[row] for vectors in levels])
    return scores


def distance_sum(
    network: keras.Model, gaussians: Sequence[Sequence[np.ndarray]]
) -> Callable[[Any], Any]:
    """
    The score as a function that Keras can differentiate.

    Parameters
    ----------
    network : keras.Model
        Gives an embedding and then one map for each level.
    gaussians : sequence of (mean, axes, precision, rest)
        Shapes as in `Gaussian`.

    Returns
    -------
    callable
        From pictures (1, H, W, 3) in network units to a scalar tensor.
    """
    from keras import ops

    constants = [[np.asarray(array, np.float32) for array in gaussian] for gaussian in gaussians]

    def anomaly(pictures: Any) -> Any:
        total = 0.0
        maps = network(pictures, training=False)[1:]
        for patches, (mean, axes, precision, rest) in zip(maps, constants, strict=True):
            away = ops.mean(patches, axis=(1, 2)) - mean
            along = ops.matmul(away, axes)
            off = away - ops.matmul(along, axes.T)
            squared = ops.sum(along**2 * precision) + rest[0] * ops.sum(off**2)
            # At the mean itself the root has no gradient.
            total = total + ops.sqrt(squared + 1e-12)
        return total

    return anomaly


def mobilenet(weights: Path | str, size: Size) -> keras.Model:
    """MobileNetV2 with a map for each of `MOBILENET_LEVELS`, as `build_encoder` gives it."""
    from tools.network import build_encoder

    first, *others = MOBILENET_LEVELS
    return build_encoder(weights, size, MOBILENET_LEVELS[-1], first, None, others)


def efficientnet(weights: Path | str, size: Size) -> keras.Model:
    """
    EfficientNet-B0 with a map for each of `EFFICIENTNET_LEVELS`.

    Parameters
    ----------
    weights : path
        Keras' own of EfficientNet-B0 without top (``.h5`` or ``.weights.h5``).
    size : (int, int)

    Returns
    -------
    keras.Model
        Input and outputs as from `tools.network.build_encoder`.

    Raises
    ------
    InputError
        If the file cannot be read or holds another network.
    """
    import keras

    whole = keras.applications.EfficientNetB0(
        input_shape=(*size, 3), include_top=False, weights=None
    )
    try:
        whole.load_weights(weights)
    except Exception as error:
        # h5py and Keras raise many kinds here for a truncated or foreign file.
        raise InputError(f"{weights}: {str(error).splitlines()[0]}") from error
    # Keras standardises inside the network, and otherwise with weights="imagenet" than with a file.
    # So its own layers for that are left off, and what the weights were trained with is done here:
    # (x / 255 - mean) / deviation of each colour, from x / 127.5 - 1.
    mean = np.array([0.485, 0.456, 0.406])
    deviation = np.array([0.229, 0.224, 0.225])
    scale, offset = 0.5 / deviation, (0.5 - mean) / deviation
    outputs = [whole.get_layer(name).output for name in EFFICIENTNET_LEVELS]
    body = keras.Model(whole.get_layer("stem_conv_pad").input, outputs)
    pictures = keras.Input((*size, 3))
    maps = body(keras.layers.Rescaling(scale.tolist(), offset.tolist())(pictures))
    named = [
        keras.layers.Identity(name="patches" if not index else f"map_{name}")(patches)
        for index, (name, patches) in enumerate(zip(EFFICIENTNET_LEVELS, maps, strict=True))
    ]
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(maps[-1])
    return keras.Model(pictures, [embedding, *named], name="encoder")


def input_size(part: Part) -> Size:
    """The network's input: of `SIDE_PX` squared pixels in the part's own shape, or `SMALL_PX`."""
    from tools.network import shaped

    small = max(part.good[0].frame_bgr.shape[:2]) <= SMALL_PX
    return shaped((SMALL_PX if small else SIDE_PX) ** 2, part.alignment.aspect or 1.0)


class _Gaussians(Method):
    """What both networks share."""

    paper = "arXiv 2005.14140"
    chance = False
    score_names = SCORES
    levels: ClassVar[tuple[str, ...]]

    @abstractmethod
    def weights(self, part: Part) -> Path | str:
        """The file that the network is made from."""

    @abstractmethod
    def network(self, part: Part, size: Size) -> keras.Model:
        """An embedding and one map for each level."""

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> MahalanobisFitted:
        """
        Learn a part; what was learnt is kept in the state folder and loaded from there.

        Raises
        ------
        InputError
            If the good pictures are too few or too alike, the weights are missing, or the state
            folder holds what was learnt of other pictures or weights.
        """
        weights, alignment = self.weights(part), part.alignment
        if str(weights) != "imagenet" and not Path(weights).is_file():
            raise InputError(f"{weights}: no such weights file")
        settings = {
            "method": self.name,
            "size": list(input_size(part)),
            "weights": weights_origin(str(weights))["sha256"],
            "alignment": [alignment.recipe, alignment.aspect],
            "good": [view.path.name for view in part.good],
        }
        folder = find(state, settings)
        if folder is None:
            with keeping(state, settings) as partial:
                self._learn(part, partial, progress)
            folder = find(state, settings)
        return MahalanobisFitted(folder, part, self)

    def _learn(self, part: Part, folder: Path, progress: bool) -> None:
        from tqdm import tqdm

        from tools.convert import to_tflite
        from tools.network import map_shapes_of, multiply_adds

        refuse_too_few_images(len(part.good))
        size = input_size(part)
        network = self.network(part, size)
        origin = weights_origin(str(self.weights(part)))
        content = to_tflite(network, "float32")
        shapes = map_shapes_of(network)
        encoder = Encoder(content, SCALE, OFFSET, map_shapes=shapes)
        rows = []
        pictures = part.pictures(size)
        for pixels in tqdm(
            pictures, desc="encoding", unit="picture", delay=2, leave=False, disable=not progress
        ):
            rows.append([pooled(patches) for patches in encoder.encode(pixels).maps])
        levels = [np.stack(vectors) for vectors in zip(*rows, strict=True)]
        arrays: dict[str, np.ndarray] = {}
        notes: dict[str, Any] = {
            "size": list(size),
            "levels": list(self.levels),
            "map_shapes": [list(shape) for shape in shapes],
            "weights": origin,
            "network_parameters": network.count_params(),
            "multiply_adds": multiply_adds(network),
            "good_images": len(pictures),
        }
        for score in SCORES:
            gaussians = [fit_gaussian(vectors, score) for vectors in levels]
            found = gaussian_arrays(gaussians)
            arrays |= {f"{score}_{name}": array for name, array in found.items()}
            notes[f"{score}_axes"] = [len(one.precision) for one in gaussians]
            notes[f"{score}_shrinkage"] = [round(one.shrinkage, 6) for one in gaussians]
        (folder / MODEL).write_bytes(content)
        np.savez(folder / ARRAYS, **arrays)
        # For the held-out scores, ten fits more, which only an exported bundle needs.
        np.savez(folder / VECTORS, *levels)
        (folder / NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


class MahalanobisFitted(Fitted):
    """
    Gaussians of a part's good pictures.

    Parameters
    ----------
    folder : Path
        What `Mahalanobis.fit` has written.
    part : Part
    method : Mahalanobis or MahalanobisEfficientNet
        Which builds the network again for gradients.
    """

    maps = ("gradient",)

    def __init__(self, folder: Path, part: Part, method: _Gaussians) -> None:
        self._part, self._method = part, method
        self.notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        self._content = (folder / MODEL).read_bytes()
        with np.load(folder / ARRAYS, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        self._folder = folder
        self._arrays = {
            score: {
                name.removeprefix(f"{score}_"): array
                for name, array in arrays.items()
                if name.startswith(f"{score}_")
            }
            for score in SCORES
        }
        self._size: Size = tuple(self.notes["size"])
        self._encoder = Encoder(self._content, SCALE, OFFSET, map_shapes=self.notes["map_shapes"])
        self._levels = range(len(self.notes["levels"]))
        self._scorers = {
            score: GaussianScorer(self._levels, arrays) for score, arrays in self._arrays.items()
        }
        # Of the article's own score; `pca` and `npca` store less.
        stored = self._arrays["full"].values()
        self.parameters = self.notes["network_parameters"] + sum(a.size for a in stored)
        self.size_bytes = len(self._content) + sum(a.nbytes for a in stored)

    def scores(self, view: View) -> dict[str, float]:
        maps = self._encoder.encode(view.pixels(self._size)).maps
        vectors = [pooled(patches) for patches in maps]
        return {name: one.score_pooled(vectors) for name, one in self._scorers.items()}

    def map(self, view: View, kind: str) -> np.ndarray:
        """
        What a picture must change for the ``full`` score to fall, at a price of change, smoothed.

        Raises
        ------
        KeyError
            If `kind` is not ``gradient``.
        """
        if kind not in self.maps:
            raise KeyError(kind)
        picture = network_input(view.pixels(self._size))
        moved = moved_map(picture, downhill(self._anomaly, picture, STEPS, RATE, PRICE))
        return view.laid_back(cv2.GaussianBlur(moved, (0, 0), BLUR_PX), self._size)

    @cached_property
    def _anomaly(self) -> Anomaly:
        network = self._method.network(self._part, self._size)
        full = self._arrays["full"]
        gaussians = [
            [full[f"{name}_{index}"] for name in ("mean", "axes", "precision", "rest")]
            for index in self._levels
        ]
        return Anomaly(distance_sum(network, gaussians))

    def write_bundle(self, path: Path) -> None:
        """
        Write the bundle whose scores under ``edge-app inspect`` are `scores`' ``full``.

        It keeps no pictures, so it cannot be extended on the device.

        Raises
        ------
        InputError
            If `path` exists, or the held-out scores are not finite.
        """
        refuse_existing(path)
        views, alignment = self._part.good, self._part.alignment
        thumbnails = [thumbnail(view.pixels(self._size)) for view in views]
        groups = near_duplicate_groups(np.stack(thumbnails))
        with np.load(self._folder / VECTORS, allow_pickle=False) as archive:
            levels = [archive[name] for name in archive.files]
        scores = held_out_scores(levels, groups)
        odd = least_like(scores, groups)
        counted = np.setdiff1d(np.arange(len(scores)), blinding(scores, groups, odd, WANTED_RATE))
        still_odd = np.flatnonzero(np.isin(counted, odd))
        threshold = calibrate(scores[counted], WANTED_RATE, groups[counted], still_odd)
        if not math.isfinite(threshold.value):
            raise InputError("the good images' scores are not finite, so no threshold can be set")
        usual = np.setdiff1d(np.arange(len(views)), odd)
        limits = learn_limits([measure(views[row].frame_bgr, None) for row in usual])
        layers, shapes = self.notes["levels"], self.notes["map_shapes"]
        command = shlex.join(
            ["python", "-m", "tools", "compare", "--data", str(self._part.data_dir), "--methods",
             self._method.name]
        )  # fmt: skip
        manifest = new_manifest(
            self._part.name,
            command,
            self._size,
            {
                "dtype": "float32",
                "embedding_shape": [self._encoder.embedding_dim],
                "patch_shape": shapes[0],
                "map_shapes": shapes,
                "map_layers": layers,
                "embedding_layer": layers[-1],
                "patch_layer": layers[0],
                "multiply_adds": self.notes["multiply_adds"],
            },
            {
                "weights": self.notes["weights"]["name"],
                "weights_sha256": self.notes["weights"]["sha256"],
                "run": None,
                "good_images": len(views),
            },
        )
        manifest |= {
            "alignment": alignment_section(alignment),
            # `k` and `feature_scaling` are fields of schema 1 that this kind has no use for.
            "scorer": {
                "kind": KIND,
                "k": 1,
                "feature_scaling": "none",
                "levels": list(self._levels),
            },
            "threshold": asdict(threshold),
            "quality": as_section(limits),
        }
        reference = {
            **self._arrays["full"],
            "image_ids": np.array(
                [f"{view.path.name}#{index}" for index, view in enumerate(views)]
            ),
            "scores": scores,
            **alignment_arrays(alignment),
        }
        write_bundle(path, manifest, self._content, None, reference)


class Mahalanobis(_Gaussians):
    """Gaussians of MobileNetV2's features."""

    name = "mahalanobis"
    title = "Mahalanobis distance of pre-trained features, MobileNetV2"
    reported = "MVTec AD, 15 parts: mean image AUROC 0.958 (EfficientNet-B4)"
    levels = MOBILENET_LEVELS

    def weights(self, part: Part) -> Path | str:
        return part.weights

    def network(self, part: Part, size: Size) -> keras.Model:
        return mobilenet(part.weights, size)


class MahalanobisEfficientNet(_Gaussians):
    """Gaussians of EfficientNet-B0's features, where the user has its weights."""

    name = "mahalanobis-efficientnet"
    title = "Mahalanobis distance of pre-trained features, EfficientNet-B0"
    reported = "MVTec AD, 15 parts: mean image AUROC 0.958 (EfficientNet-B4)"
    needs_other_weights = True
    levels = EFFICIENTNET_LEVELS

    def weights(self, part: Part) -> Path | str:
        if part.other_weights is None:
            raise InputError(
                f"{self.name}: left out, wanted a file with EfficientNet-B0's ImageNet weights"
            )
        return part.other_weights

    def network(self, part: Part, size: Size) -> keras.Model:
        return efficientnet(self.weights(part), size)
