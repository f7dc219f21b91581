"""
DADGT among the methods: how sure a network is of the turn that was applied to a picture.

The network, its training and both scores are `tools.geometric_transforms`'; here they learn one
part, and score through one TFLite call for the four rotations of a picture.

References
----------
Golan and El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", arXiv 1805.10917,
section 4.1 (the softmax's normality) and 4.2 (the Dirichlet normality).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.runtime import open_interpreter
from tools.encoder_training import CACHE_MARGIN, groups_of, split_good
from tools.geometric_transforms import (
    ROTATIONS,
    RotationScorer,
    TrainingSettings,
    log_probabilities,
    rotation_accuracy,
    train_classifier,
)
from tools.methods import Fitted, Method, Part, View, finished, sized
from tools.training import discard

# The network's input; the article's pictures were of 64 px.
SIZE_PX = 64
# Checks on held-out pictures in a training; so many in a row without a better one end it.
CHECKS, PATIENCE = 12, 4


class Dadgt(Method):
    """
    Classify which of four rotations was applied.

    Parameters
    ----------
    training : TrainingSettings
    """

    name = "dadgt"
    title = "Rotations told apart (DADGT)"
    paper = "arXiv 1805.10917"
    reported = "image AUROC 0.860 (CIFAR-10, one class against nine)"
    score_names = ("softmax", "dirichlet")

    def __init__(self, training: TrainingSettings | None = None) -> None:
        self.training = training or TrainingSettings()

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> Rotations:
        """
        Train on the good pictures, or find again what was trained.

        A tenth of them, near-duplicates together, is held out; the weights that tell its rotations
        apart best are kept. The Dirichlet distributions are fitted on all good pictures, as the
        TFLite file answers.

        Raises
        ------
        InputError
            If there are fewer than 20 good pictures, training diverges, or `state` holds the
            result of other pictures or settings.
        """
        size = SIZE_PX, SIZE_PX
        pictures = sized(part.pictures(size))
        settings = finished.settings_of(self.name, seed, pictures, asdict(self.training))
        folder = finished.find(state, settings)
        if folder is not None:
            return Rotations(folder)
        from tools.augment import augment
        from tools.convert import to_tflite

        began = time.monotonic()
        learnt, held = split_good(groups_of(pictures), seed, part.data_dir)
        margin = round(SIZE_PX * CACHE_MARGIN)
        # One folder for each settings: a checkpoint of others is not gone on with.
        checkpoint = state / f"training-{finished.settings_sha256(settings)[:12]}"
        network, trained = train_classifier(
            [part.good[row].pixels((margin, margin)) for row in learnt],
            self.training,
            seed=seed,
            size_px=SIZE_PX,
            augmentation=lambda picture, rng: augment(picture, rng, size=size),
            held_out_rgb=pictures[held],
            title=f"{self.name}, {part.name}",
            check_every=max(1, self.training.steps // CHECKS),
            patience=PATIENCE,
            state=checkpoint,
            progress=progress,
        )
        content = to_tflite(network, "float32", batch=ROTATIONS)
        classifier = FourRotations(content)
        scorer = RotationScorer.fit(classifier, pictures)
        notes = finished.notes_of(trained, time.monotonic() - began) | {
            "size_px": SIZE_PX,
            "held_out_accuracy": rotation_accuracy(log_probabilities(classifier, pictures[held])),
            "parameters": network.count_params() + scorer.alphas.size,
            "alphas": scorer.alphas.tolist(),
        }
        with finished.keeping(state, settings) as partial:
            (partial / "rotations.tflite").write_bytes(content)
            finished.write_notes(partial, notes)
        discard(checkpoint)
        return Rotations(state / finished.FOLDER)


class Rotations(Fitted):
    """
    A trained classifier of rotations, from its finished folder. It draws no heatmap.

    Parameters
    ----------
    folder : Path
        With rotations.tflite and notes.json.
    """

    def __init__(self, folder: Path) -> None:
        content = (folder / "rotations.tflite").read_bytes()
        self.notes: dict[str, Any] = json.loads((folder / "notes.json").read_text("utf-8"))
        alphas = np.array(self.notes.pop("alphas"))
        self.parameters = int(self.notes["parameters"])
        self.size_bytes = len(content) + alphas.nbytes
        self._scorer = RotationScorer(FourRotations(content), alphas)

    def scores(self, view: View) -> dict[str, float]:
        found = self._scorer.scores(view.pixels((SIZE_PX, SIZE_PX))[None])
        return {name: float(found[name][0]) for name in Dadgt.score_names}


class FourRotations:
    """
    A converted classifier that answers as the Keras one, four pictures a call.

    Parameters
    ----------
    content : bytes
        A TFLite file of batch 4.
    """

    def __init__(self, content: bytes) -> None:
        self._interpreter = open_interpreter(content)
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def predict(self, pictures: np.ndarray, **_: Any) -> np.ndarray:
        """
        Logits of some pictures.

        Parameters
        ----------
        pictures : ndarray of float32, shape (4 n, s, s, 3)
            In network units.

        Returns
        -------
        ndarray of float32, shape (4 n, 4)
        """
        logits = []
        for first in range(0, len(pictures), ROTATIONS):
            self._interpreter.set_tensor(self._input, pictures[first : first + ROTATIONS])
            self._interpreter.invoke()
            logits.append(self._interpreter.get_tensor(self._output))
        return np.concatenate(logits)
