"""Which methods there are, by the name they have on the command line."""

from __future__ import annotations

from tools.methods import Method
from tools.methods.autoencoder import Autoencoder, StructuralAutoencoder
from tools.methods.dadgt import Dadgt
from tools.methods.doc import Doc
from tools.methods.mahalanobis import Mahalanobis, MahalanobisEfficientNet
from tools.methods.ours import Ours
from tools.methods.triplet import TripletEmbedding
from tools.methods.trivial import Brightness, MeanImage, PcaResidual, PerceptualHash

# In the order of the comparison: what costs nothing first, so that a table is there early.
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Brightness,
        MeanImage,
        PerceptualHash,
        PcaResidual,
        Ours,
        Mahalanobis,
        MahalanobisEfficientNet,
        Doc,
        TripletEmbedding,
        Dadgt,
        Autoencoder,
        StructuralAutoencoder,
    )
}
