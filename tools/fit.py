"""
Fit: from a folder of good images to a calibrated bundle.

Trains no encoder and needs no anomalies. The encoder is converted first, and everything after that,
reference, threshold, colour scale, is learnt from what the *converted* network says, through the
device's own code.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_app.arguments import rate, region, whole_from_1
from edge_app.bundle import Bundle, activate, made_now, refuse_existing, write_bundle
from edge_app.encoder import Encoder
from edge_app.enrol import (
    Enrolment,
    ScorerSettings,
    Threshold,
    enrol,
    learn_reference,
    refuse_too_few,
)
from edge_app.errors import InputError
from edge_app.heatmap import Decoder, difference_map
from edge_app.preprocess import Preprocessing
from edge_app.records import Frame
from edge_app.scorer import FEATURE_SCALINGS, SCORERS
from edge_app.sources.folder import list_pictures, read_picture
from tools.inspection_set import good_pictures, read_prepared

if TYPE_CHECKING:
    import keras

DTYPES = ("float32", "float16", "int8")
SCALE, OFFSET = 1 / 127.5, -1.0
PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "ai-edge-litert", "scikit-learn")
# The share of good pixels that stay unpainted, and how far beyond it full red lies.
UNPAINTED_SHARE = 0.995
RED_OVER_LOW = 2.0
BLUR_SHARE = 0.02
# Pictures on which a conversion is compared with its original.
COMPARED = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fit``."""
    parser.description = __doc__.strip().replace("\n\n", "\n")
    parser.epilog = (
        "example: python -m tools fit --data parts/bracket --weights imagenet --out models/bracket"
    )
    add = parser.add_argument
    add("--data", metavar="DIR", type=Path, help="DIR/train/good, or a folder of good pictures")
    add(
        "--weights",
        required=True,
        metavar="W",
        help="a MobileNetV2 weights file (.weights.h5), 'imagenet' (downloads), or a RUN",
    )
    add("--out", required=True, metavar="B", type=Path, help="the new bundle; must not exist")
    add("--part", metavar="NAME", help="name of the part (default: the name of B)")
    add("--seed", type=int, default=0, metavar="N", help="of the decoder's training (default: 0)")
    add(
        "--preset",
        choices=("fast", "balanced", "accurate"),
        default="fast",
        help="compute budget of the encoder: 20, 100 or 300 million multiply-adds (default: fast)",
    )
    add("--size", type=whole_from_1, metavar="PX", help="input side instead of the preset's")
    add("--embedding-layer", metavar="L", help="layer that is averaged into the embedding")
    add("--patch-layer", metavar="L", help="layer that gives the patch map")
    add("--alpha", type=float, metavar="A", help="of --weights imagenet (default: 0.35)")
    add("--dtype", choices=DTYPES, default="float32", help="of the TFLite files (default: float32)")
    add(
        "--epochs",
        type=whole_from_1,
        metavar="N",
        help="most epochs of the decoder's training (default: as many as a few hundred steps take)",
    )
    add("--no-decoder", action="store_true", help="no decoder, so no decoder heatmap")
    add(
        "--encoder-only",
        action="store_true",
        help="a bundle that knows no part, to enrol parts with; int8 needs --data all the same",
    )
    add(
        "--region",
        type=region,
        metavar="L,T,R,B",
        help="region of interest: left, top, right, bottom as shares of the frame",
    )
    add(
        "--rate",
        type=rate,
        default=0.01,
        metavar="R",
        help="wanted false-reject rate, above 0, below 0.5 (default: 0.01)",
    )
    add("--scorer", choices=SCORERS, default="lof", help="default: lof")
    add("--neighbours", type=whole_from_1, default=5, metavar="K", help="default: 5")
    add("--feature-scaling", choices=FEATURE_SCALINGS, default="minmax", help="default: minmax")
    add("--licence", metavar="TEXT", help="licence of weights and pictures, kept in the manifest")
    add(
        "--prior",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a command that made the data, kept in the manifest to remake the bundle by",
    )
    add("--activate", action="store_true", help="point the link 'current' beside B at it")


def run(args: argparse.Namespace) -> int:
    """Fit a bundle; see the module's docstring."""
    started = time.monotonic()
    refuse_existing(args.out)
    if args.data is None and not (args.encoder_only and args.dtype != "int8"):
        raise InputError("--data DIR is missing: good pictures are what a bundle is fitted to")
    paths = _good_paths(args)
    settings = ScorerSettings(args.scorer, args.neighbours, args.feature_scaling)
    if not args.encoder_only:
        refuse_too_few(len(paths), settings)
    if args.alpha is not None and args.weights != "imagenet":
        raise InputError("--alpha goes with --weights imagenet only: other weights know their own")
    from tools.convert import convert_checked, smooth_noise

    network, origin = _network(args)
    size = tuple(int(side) for side in network.input_shape[1:3])
    recipe = Preprocessing(size, args.region)
    pictures = read_prepared(paths, recipe)
    representative = np.stack(pictures) if pictures else None
    compared = smooth_noise(size) if representative is None else representative[:COMPARED]
    encoder_bytes, _ = convert_checked("encoder", network, args.dtype, representative, compared)
    encoder = Encoder(encoder_bytes, SCALE, OFFSET)
    manifest = _manifest(args, encoder, origin, network, len(paths))
    if args.encoder_only:
        bundle = write_bundle(args.out, manifest, encoder_bytes)
        print(f"bundle: {bundle.path} (encoder only, {_describe(bundle)})")
        return _done(args, bundle)
    enrolment = _enrol(args, encoder, recipe, paths)
    reference, sections = learn_reference(
        enrolment.learnt, settings, args.rate, enrolment.empty_view
    )
    decoder_bytes = None
    if not args.no_decoder:
        decoder_bytes, section = _decoder(args, network, encoder, pictures)
        sections["decoder"] = section
    bundle = write_bundle(
        args.out, {**manifest, **sections}, encoder_bytes, decoder_bytes, reference
    )
    for sentence in enrolment.skipped:
        print(f"not learnt: {sentence}", file=sys.stderr)
    count = len(enrolment.learnt.embeddings)
    print(f"fitted {count} good images in {time.monotonic() - started:.0f} s, {_describe(bundle)}")
    print(Threshold(**sections["threshold"]).sentence())
    print(f"bundle: {bundle.path}")
    return _done(args, bundle)


def _done(args: argparse.Namespace, bundle: Bundle) -> int:
    if args.activate:
        print(f"in use: {activate(bundle.path)}")
    return 0


def _describe(bundle: Bundle) -> str:
    total = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    encoder = bundle.manifest["encoder"]
    return (
        f"input {bundle.size[1]} x {bundle.size[0]}, {encoder['multiply_adds'] / 1e6:.0f} million "
        f"multiply-adds, {bundle.manifest['encoder']['dtype']}, {total / 1e6:.1f} MB"
    )


def _good_paths(args: argparse.Namespace) -> tuple[Path, ...]:
    if args.data is None:
        return ()
    return good_pictures(args.data)


def _network(args: argparse.Namespace) -> tuple[keras.Model, dict[str, Any]]:
    """The Keras encoder and where its weights come from."""
    from tools.network import choose_input, encoder_from, load_run, read_alpha
    from tools.train_encoder import weights_origin

    weights = args.weights
    if weights != "imagenet" and Path(weights).is_dir():
        _, record = load_run(weights)
        size = (args.size, args.size) if args.size else tuple(record["size"])
        network = encoder_from(weights, size, args.embedding_layer, args.patch_layer)
        steps = [record.get("command_line")]
        if not (args.no_decoder or args.encoder_only):
            steps.append(record.get("decoder", {}).get("command_line"))
        before = [shlex.join(["python", "-m", "tools", *step]) for step in steps if step]
        return network, _origin(record["weights"], record, before)
    alpha = args.alpha or 0.35 if weights == "imagenet" else read_alpha(weights)
    size, embedding_layer, patch_layer = choose_input(alpha, args.preset)
    side = args.size or size
    network = encoder_from(
        weights,
        (side, side),
        args.embedding_layer or embedding_layer,
        args.patch_layer or patch_layer,
        alpha if weights == "imagenet" else None,
    )
    return network, _origin(weights_origin(weights), None, [])


def _origin(weights: dict[str, Any], run: dict[str, Any] | None, remake: list) -> dict[str, Any]:
    return {
        "weights": weights["name"],
        "weights_sha256": weights["sha256"],
        "run": run,
        "remake": remake,
    }


def _enrol(
    args: argparse.Namespace,
    encoder: Encoder,
    recipe: Preprocessing,
    paths: Sequence[Path],
) -> Enrolment:
    from tqdm import tqdm

    empty_folder = args.data / "train" / "empty"
    empty = _frames(list_pictures(empty_folder)) if empty_folder.is_dir() else ()
    bar = tqdm(paths, desc="encoding", unit="picture", delay=2, leave=False)
    return enrol(_frames(bar), encoder, recipe, tuple(empty))


def _frames(paths: Sequence[Path]) -> Iterator[Frame]:
    for index, path in enumerate(paths):
        yield Frame(index, path.name, read_picture(path))


def _decoder(
    args: argparse.Namespace,
    network: keras.Model,
    encoder: Encoder,
    pictures: Sequence[np.ndarray],
) -> tuple[bytes, dict[str, Any]]:
    """The decoder's TFLite file and its section of the manifest."""
    from tools.convert import convert_checked
    from tools.train_decoder import decoder_of_run, train_decoder

    stack = np.stack(pictures)
    trained = decoder_of_run(args.weights, network)
    if trained is None:
        model, report = train_decoder(network, stack, "mobile", args.seed, args.epochs)
    else:
        model, report = trained
    source = "embedding" if len(model.input_shape) == 2 else "patches"
    encodings = [encoder.encode(picture) for picture in pictures]
    features = np.stack([getattr(encoding, source) for encoding in encodings])
    content, _ = convert_checked("decoder", model, args.dtype, features, features[:COMPARED])
    shape = encoder.patch_shape if source == "patches" else (encoder.embedding_dim,)
    decoder = Decoder(content, source, shape, encoder.size)
    # On pictures the decoder was not trained on: on its own it would look better than it is.
    held_out = report["held_out"] or range(len(pictures))
    maps = [
        difference_map(pictures[row], decoder.redraw(encodings[row]), BLUR_SHARE)
        for row in held_out
    ]
    low = float(np.quantile(np.stack(maps), UNPAINTED_SHARE))
    section = {
        "kind": report["kind"],
        "source": source,
        "blur_share": BLUR_SHARE,
        "colour_scale": {"low": low, "high": RED_OVER_LOW * low},
        "training": report,
    }
    return content, section


def _manifest(
    args: argparse.Namespace,
    encoder: Encoder,
    origin: dict[str, Any],
    network: keras.Model,
    images: int,
) -> dict[str, Any]:
    from tools.network import layers_of, multiply_adds

    embedding_layer, patch_layer = layers_of(network)
    command = shlex.join(["python", "-m", "tools", *args.typed])
    return {
        "parent_sha256": None,
        "part": args.part or args.out.name,
        "made": made_now(command, PACKAGES),
        "input": {
            "size": list(encoder.size),
            "colour_order": "rgb",
            "scale": SCALE,
            "offset": OFFSET,
            "region": None if args.region is None else list(args.region),
        },
        "encoder": {
            "dtype": args.dtype,
            "embedding_shape": [encoder.embedding_dim],
            "patch_shape": list(encoder.patch_shape),
            "embedding_layer": embedding_layer,
            "patch_layer": patch_layer,
            "multiply_adds": multiply_adds(network),
        },
        "alignment": {"recipe": "none"},
        "presence": None,
        "scorer": None,
        "threshold": None,
        "quality": None,
        "decoder": None,
        "provenance": {
            **origin,
            "licence": args.licence or "not stated",
            "good_images": images,
            "remake": [*args.prior, *origin["remake"], command],
        },
    }
