"""One picture through encoder, scorer and decision, before a bundle is trusted with a line."""

from __future__ import annotations

import logging

import numpy as np

from edge_app.align import Aligned
from edge_app.bundle import Bundle
from edge_app.decision import Rules, State, decide
from edge_app.errors import BundleError
from edge_app.inspector import Inspector
from edge_app.learnt_pictures import unpack
from edge_app.records import Finding, Frame, Verdict

_log = logging.getLogger(__name__)


def self_test(inspector: Inspector) -> tuple[float, Verdict]:
    """
    Judge a picture that the bundle learnt; where it keeps none, a plain grey one.

    Parameters
    ----------
    inspector : Inspector
        Its memory stays as it is.

    Returns
    -------
    score : float
        Higher is more anomalous.
    verdict : Verdict
        OK or NG.

    Raises
    ------
    BundleError
        If no number comes out.
    """
    bundle = inspector.bundle
    pixels_rgb = _picture(bundle)
    height, width = pixels_rgb.shape[:2]
    frame = Frame(0, "self-test", np.zeros((height, width, 3), np.uint8))
    here = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    seen = inspector.look(frame, Aligned(pixels_rgb, here, False, None, None))
    rules = Rules("single", inspector.threshold)
    decision, _ = decide(Finding(seen.score), 0, State(), rules)
    if decision.verdict not in (Verdict.OK, Verdict.NG):
        raise BundleError(
            f"{bundle.path}: its self-test gives {decision.reason or decision.verdict}, "
            "wanted a score"
        )
    _log.info("self-test of %s: score %.4g, %s", bundle.path.name, seen.score, decision.verdict)
    return seen.score, decision.verdict


def _picture(bundle: Bundle) -> np.ndarray:
    """uint8, shape (height, width, 3), RGB, of the encoder's input size."""
    packed = bundle.learnt()
    if packed is not None:
        for picture in unpack(packed, str(bundle.path / "learnt.npz")):
            if picture.pixels_rgb.shape[:2] == bundle.size:
                return picture.pixels_rgb
    return np.full((*bundle.size, 3), 128, np.uint8)
