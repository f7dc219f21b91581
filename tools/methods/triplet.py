"""
A triplet embedding, scored by the nearest neighbour (k = 1) over N anchors.

Good parts shall lie nearer to one another than to any picture of a labelled reference set, by a
margin; a picture is as anomalous as its embedding, of unit length, is far from the nearest of N
stored good ones, the anchors. Its heatmap is Grad-CAM.

References
----------
Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and
Clustering", arXiv 1503.03832; the loss is `tools.losses.triplet` (equation 1, semi-hard mining as
in equation 4).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_app.learn_neighbours import ScorerSettings
from tools.encoder_training import Recipe
from tools.methods import Method, Part
from tools.methods.embedding import (
    FREEZE_TO,
    LAYER,
    MOST_STORED,
    STEPS,
    FittedEmbedding,
    learn_embedding,
)

RECIPE = Recipe(loss="triplet", steps=STEPS)


class TripletEmbedding(Method):
    """
    Triplet embedding on MobileNetV2.

    Parameters
    ----------
    recipe : Recipe
        How the network is trained; its seed is that of `fit`.
    side_px : int, optional
        Side of the square input; see `tools.methods.embedding.input_size`.
    layer, freeze_to : str
        See `tools.methods.embedding.learn_embedding`.
    anchors : int
        N, the good embeddings that are stored, at most.
    """

    name = "triplet"
    title = "Triplet embedding (MobileNetV2)"
    paper = "arXiv 1503.03832"
    reported = "Fashion-MNIST, sneakers against ankle boots: AUROC 0.88 to 0.9156 (the articles')"
    score_names = ("nn",)

    def __init__(
        self,
        recipe: Recipe = RECIPE,
        side_px: int | None = None,
        layer: str = LAYER,
        freeze_to: str = FREEZE_TO,
        anchors: int = MOST_STORED,
    ) -> None:
        self._recipe, self._side_px = recipe, side_px
        self._layer, self._freeze_to = layer, freeze_to
        self._anchors = anchors

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> FittedEmbedding:
        """See `tools.methods.Method.fit`."""
        network = learn_embedding(
            part,
            replace(self._recipe, seed=seed),
            state,
            self._side_px,
            self._layer,
            self._freeze_to,
            self._anchors,
            progress,
        )
        # In the space of the loss: embeddings of unit length.
        scorers = {"nn": ScorerSettings("knn", 1, "l2")}
        return FittedEmbedding(self.name, part, network, scorers)
