"""
DOC, deep one-class classification, with LOF and with kNN over its embeddings.

Good parts are drawn together (*compactness*) while a labelled reference set of other things is told
apart (*descriptiveness*); a picture is as anomalous as its embedding is far from those of good
parts. The paper takes the nearest neighbours' distance, the articles the local outlier factor over
features scaled to 0 to 1. Its heatmaps are the difference to a decoder's redraw, the articles' or
ours, and Grad-CAM.

References
----------
Perera and Patel, "Learning Deep Features for One-Class Classification", arXiv 1801.05365; the loss
is `tools.losses.compactness` (equations 5 and 6) and cross-entropy, added as in equation 4.
Breunig et al., "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_app.learn_neighbours import ScorerSettings
from tools.decoders import KINDS
from tools.encoder_training import Recipe
from tools.methods import Method, Part
from tools.methods.embedding import (
    FREEZE_TO,
    LAYER,
    STEPS,
    FittedEmbedding,
    learn_decoder,
    learn_embedding,
)

# The article's: five neighbours, MinMaxScaler.
NEIGHBOURS, FEATURE_SCALING = 5, "minmax"
# With the paper's 0.1 the pooled variance of an inner layer, about 0.001, is lost beside the
# cross-entropy: on the rendered nuts held-out good parts grew less compact (0.0011 to 0.0029), with
# 20 more (0.0008), and both scores rose.
COMPACTNESS_WEIGHT = 20.0
RECIPE = Recipe(loss="doc", compactness_weight=COMPACTNESS_WEIGHT, steps=STEPS)


class Doc(Method):
    """
    DOC on MobileNetV2.

    Parameters
    ----------
    recipe : Recipe
        How the network is trained; its seed is that of `fit`.
    side_px : int, optional
        Side of the square input; see `tools.methods.embedding.input_size`.
    layer, freeze_to : str
        See `tools.methods.embedding.learn_embedding`.
    decoders : tuple of str
        Kinds of decoder to train for the heatmaps, where maps are measured. The articles' own,
        ``standard``, is trained for seed 0 alone: its 20 million numbers take many minutes.
    epochs : int, optional
        Of the decoders at most; see `tools.train_decoder.train_decoder`.
    """

    name = "doc"
    title = "DOC (MobileNetV2)"
    paper = "arXiv 1801.05365"
    reported = "Fashion-MNIST, sneakers against ankle boots: AUROC 0.88 to 0.9156 (the articles')"
    score_names = ("lof", "knn")

    def __init__(
        self,
        recipe: Recipe = RECIPE,
        side_px: int | None = None,
        layer: str = LAYER,
        freeze_to: str = FREEZE_TO,
        decoders: tuple[str, ...] = KINDS,
        epochs: int | None = None,
    ) -> None:
        self._recipe, self._side_px = recipe, side_px
        self._layer, self._freeze_to = layer, freeze_to
        self._decoders, self._epochs = decoders, epochs

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> FittedEmbedding:
        """See `tools.methods.Method.fit`."""
        network = learn_embedding(
            part,
            replace(self._recipe, seed=seed),
            state,
            self._side_px,
            self._layer,
            self._freeze_to,
            progress=progress,
        )
        decoders = {
            kind: learn_decoder(network, part, kind, seed, self._epochs, progress)
            for kind in self._decoders
            if part.mapped and (kind != "standard" or seed == 0)
        }
        scorers = {
            kind: ScorerSettings(kind, NEIGHBOURS, FEATURE_SCALING) for kind in self.score_names
        }
        return FittedEmbedding(self.name, part, network, scorers, decoders)
