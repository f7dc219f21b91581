"""
Our own default: the bundle that ``fit`` makes, through the device's own code.

Alignment, scorer and threshold are what ``python -m tools fit`` chooses from the good pictures, but
for the decoder, which no score needs. A picture is aligned, encoded and scored by the device's
stages, as ``evaluate`` has it; one in which the device finds no part is scored as it lies.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edge_app.bundle import ENCODER, REFERENCE, Bundle, load_bundle
from edge_app.config import load_config
from edge_app.errors import InputError
from edge_app.inspector import Inspector, Seen
from edge_app.records import Frame
from tools import fit
from tools.evaluate import BARE, align_anyway
from tools.inspection_set import good_pictures
from tools.methods import Fitted, Method, Part, View
from tools.network import encoder_from

BUNDLE, LOG, COUNT = "bundle", "fit.txt", "network_parameters.txt"
# Arrays of a reference that are records and no part of a score.
RECORDS = ("image_ids", "scores", "measures", "fixed_measures", "fixed_images")


class OursFitted(Fitted):
    """
    A bundle in the device's inspector.

    Parameters
    ----------
    bundle : Bundle
    network_parameters : int
        Of the encoder, as Keras counts them.
    """

    def __init__(self, bundle: Bundle, network_parameters: int) -> None:
        self._bundle = bundle
        decision = load_config().decision
        self._inspector = Inspector(bundle, decision, "single", 1, heatmaps=False)
        self.maps = self._inspector.heatmap_kinds
        manifest = bundle.manifest
        encoder, scorer = manifest["encoder"], manifest["scorer"]
        stored = [array for name, array in bundle.reference.items() if name not in RECORDS]
        self.parameters = network_parameters + sum(array.size for array in stored)
        files = manifest["files"]
        self.size_bytes = files[ENCODER]["bytes"] + files[REFERENCE]["bytes"]
        self.notes: dict[str, Any] = {
            "bundle_sha256": bundle.sha256,
            "size": list(bundle.size),
            "alignment": manifest["alignment"]["recipe"],
            "scorer": scorer["kind"],
            "components": [
                f"{one['kind']} {encoder['map_layers'][one['map']]}"
                for one in scorer.get("components", ())
            ],
            "threshold": manifest["threshold"]["value"],
            "good_images": manifest["provenance"]["good_images"],
            "multiply_adds": encoder["multiply_adds"],
        }

    def scores(self, view: View) -> dict[str, float]:
        return {"": self._seen(view).score}

    def map(self, view: View, kind: str) -> np.ndarray:
        """
        The bundle's own heatmap on its bare scale.

        Raises
        ------
        KeyError
            If the bundle has no such map.
        """
        if kind not in self.maps:
            raise KeyError(kind)
        return self._inspector.heatmap(self._seen(view), kind, BARE)

    def write_bundle(self, path: Path) -> None:
        """
        Write the bundle that ``fit`` made under another name.

        Raises
        ------
        InputError
            If `path` exists or cannot be written.
        """
        import shutil

        from tools.network import new_folder

        with new_folder(path) as folder:
            shutil.copytree(self._bundle.path, folder, dirs_exist_ok=True)

    def _seen(self, view: View) -> Seen:
        frame = Frame(0, str(view.path), view.frame_bgr)
        return self._inspector.look(frame, align_anyway(self._inspector, frame))


class Ours(Method):
    """What ``fit`` makes by default."""

    name = "ours"
    title = "This project's default"
    paper = ""
    # The defects that `fit` draws on held-out good pictures, to choose by.
    chance = True

    def fit(self, part: Part, seed: int, state: Path, progress: bool = True) -> OursFitted:
        """
        Fit a bundle, or load the one that was fitted into ``state/bundle``.

        What ``fit`` says is in ``state/fit.txt``.

        Raises
        ------
        InputError
            If the part's good pictures are not those of its folder, which ``fit`` reads itself, or
            ``fit`` refuses them.
        """
        path = state / BUNDLE
        if not path.is_dir():
            of_folder = {one.resolve() for one in good_pictures(part.data_dir)}
            if of_folder != {view.path.resolve() for view in part.good}:
                raise InputError(
                    f"{part.data_dir}: its {len(of_folder)} good pictures are not the "
                    f"{len(part.good)} of the part {part.name}"
                )
            typed = fit_command(part, seed, path)
            state.mkdir(parents=True, exist_ok=True)
            with (state / LOG).open("w", encoding="utf-8") as log:
                _run(typed, log, progress)
        bundle = load_bundle(path)
        count = state / COUNT
        if not count.is_file():
            partial = count.with_suffix(".partial")
            partial.write_text(f"{_network_parameters(bundle, part.weights)}\n", encoding="utf-8")
            partial.replace(count)
        return OursFitted(bundle, int(count.read_text(encoding="utf-8")))


def _network_parameters(bundle: Bundle, weights: Path) -> int:
    encoder = bundle.manifest["encoder"]
    layers = encoder["embedding_layer"], encoder["patch_layer"]
    return encoder_from(weights, bundle.size, *layers).count_params()


def fit_command(part: Part, seed: int, path: Path) -> list[str]:
    """What is typed after ``python -m tools`` for the default bundle of a part."""
    typed = ["fit", "--data", str(part.data_dir), "--weights", str(part.weights)]
    typed += ["--out", str(path), "--part", part.name, "--seed", str(seed), "--no-decoder"]
    # Where the comparison shows the pictures as they lie, no method aligns them.
    return typed + (["--align", "none"] if part.alignment.recipe == "none" else [])


def _run(typed: list[str], log: TextIO, progress: bool) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools fit")
    fit.configure(parser)
    args = parser.parse_args(typed[1:])
    args.typed = typed
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(log))
        if not progress:
            # Its bars go there, and its warnings beside them.
            stack.enter_context(contextlib.redirect_stderr(log))
        fit.run(args)
