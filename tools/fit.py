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

from edge_app.align import RECIPES, Aligner, Alignment, part_weight
from edge_app.arguments import rate, refuse_unwritable, region, seed, whole_from_0, whole_from_1
from edge_app.bundle import Bundle, activate, refuse_existing, write_bundle
from edge_app.encoder import Encoder
from edge_app.enrol import (
    ALIGN_PICTURES,
    UNPAINTED_SHARE,
    Encodings,
    Gathered,
    choose_alignment,
    gather,
    kept_pictures,
    learn,
    promise,
    quality_section,
    refuse_too_few_images,
    threshold_of,
    usable_maps,
)
from edge_app.errors import InputError
from edge_app.heatmap import Decoder, difference_map
from edge_app.learn_align import LearntAlignment
from edge_app.learn_neighbours import ScorerSettings, refuse_too_few
from edge_app.learn_patches import PatchSettings, affordable_bytes, default_settings
from edge_app.learn_report import write_report
from edge_app.preprocess import Preprocessing
from edge_app.records import Frame
from edge_app.scorer import FEATURE_SCALINGS, SCORERS
from edge_app.sources.folder import list_pictures, read_picture
from tools.choose import Trial, choose_scorer, table
from tools.choose import sentence as trials_sentence
from tools.choose_alignment import AlignmentChoice, choose_recipe
from tools.inspection_set import good_pictures
from tools.new_manifest import OFFSET, SCALE, new_manifest

if TYPE_CHECKING:
    import keras

DTYPES = ("float32", "float16", "int8")
DEFAULT_ALPHA = 0.35
# How far beyond the good parts' differences full red lies.
RED_OVER_LOW = 2.0
BLUR_SHARE = 0.02
# Pictures on which a conversion is compared with its original.
COMPARED = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fit``."""
    parser.description = __doc__
    parser.epilog = (
        "examples:\n"
        "  python -m tools fit --data parts/bracket --weights imagenet --out bundles/bracket\n"
        "  python -m tools fit --data parts/bracket --weights runs/bracket --dtype int8 \\\n"
        "    --preset accurate --report bracket.html --out bundles/bracket_int8"
    )
    add = parser.add_argument_group("good pictures").add_argument
    add("--data", metavar="DIR", type=Path, help="DIR/train/good, or a folder of good pictures")
    add(
        "--region",
        type=region,
        metavar="L,T,R,B",
        help="region of interest: left, top, right, bottom as shares of the frame",
    )
    add(
        "--drop-outliers",
        action="store_true",
        help="leave out the good pictures least like the rest (they are listed either way)",
    )
    add(
        "--keep",
        type=whole_from_0,
        metavar="N",
        help="good pictures kept in the bundle for enroll --add, at most (default: 16 MB of them)",
    )
    add = parser.add_argument_group("encoder").add_argument
    add(
        "--weights",
        required=True,
        metavar="W",
        help="a MobileNetV2 weights file (.weights.h5), 'imagenet' (downloads), or a RUN",
    )
    add(
        "--preset",
        choices=("fast", "balanced", "accurate"),
        default="fast",
        help="compute budget of the encoder: 20, 100 or 300 million multiply-adds",
    )
    add(
        "--size",
        type=whole_from_1,
        metavar="PX",
        help="input side instead of the preset's (of a square of that area)",
    )
    add("--embedding-layer", metavar="L", help="layer that is averaged into the embedding")
    add("--patch-layer", metavar="L", help="layer that gives the patch map")
    add(
        "--alpha", type=float, metavar="A", help=f"of --weights imagenet (default: {DEFAULT_ALPHA})"
    )
    add("--dtype", choices=DTYPES, default="float32", help="of the TFLite files")
    add(
        "--encoder-only",
        action="store_true",
        help="a bundle that knows no part, to enrol parts with; int8 needs --data all the same",
    )
    add = parser.add_argument_group("alignment, scorer, threshold").add_argument
    add(
        "--align",
        choices=("auto", *RECIPES),
        default="auto",
        help="bring the part to one place (centre) and direction (pose) first; auto (default): "
        "what makes the good pictures agree best, unless another one tells drawn defects clearly "
        "better from held-out good pictures",
    )
    add(
        "--scorer",
        choices=("auto", "patches", *SCORERS),
        default="auto",
        help="auto: what tells drawn defects best from held-out good pictures; patches: "
        "place by place, nothing tried; lof, knn: over the pooled embeddings",
    )
    add(
        "--neighbours",
        type=whole_from_1,
        default=5,
        metavar="K",
        help="of lof and knn",
    )
    add(
        "--feature-scaling",
        choices=FEATURE_SCALINGS,
        default="minmax",
        help="of lof and knn",
    )
    add(
        "--rate",
        type=rate,
        default=0.01,
        metavar="R",
        help="wanted false-reject rate, above 0, below 0.5",
    )
    add(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of the drawn defects and the decoder's training",
    )
    add = parser.add_argument_group("decoder heatmap").add_argument
    add(
        "--epochs",
        type=whole_from_1,
        metavar="N",
        help="most epochs of the decoder's training (default: as many as a few hundred steps take)",
    )
    add("--no-decoder", action="store_true", help="no decoder, so no decoder heatmap")
    add = parser.add_argument_group("what is written").add_argument
    add("--out", required=True, metavar="B", type=Path, help="the new bundle; must not exist")
    add("--part", metavar="NAME", help="name of the part (default: the name of B)")
    add("--report", metavar="FILE", help="write a page with what was tried and what looks odd")
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
    refuse_unwritable(args.out)
    if args.report:
        refuse_unwritable(args.report)
    if args.data is None and not (args.encoder_only and args.dtype != "int8"):
        raise InputError("--data DIR is missing: good pictures are what a bundle is fitted to")
    paths = _good_paths(args)
    settings = ScorerSettings(
        "patches" if args.scorer == "auto" else args.scorer, args.neighbours, args.feature_scaling
    )
    if not args.encoder_only:
        refuse_too_few_images(len(paths))
        if settings.kind != "patches":
            refuse_too_few(len(paths), settings)
    if args.alpha is not None and args.weights != "imagenet":
        raise InputError("--alpha goes with --weights imagenet only: other weights know their own")
    from tools.check_data import warn
    from tools.convert import convert_checked, smooth_noise
    from tools.network import map_layers_of, map_shapes_of

    if args.data is not None:
        warn(args.data)
    empty = tuple(_frames(_empty_paths(args)))
    alignment, reason, choice = Alignment("none"), None, None
    if paths and not args.encoder_only:
        frames = _sample(paths)
        wanted = None if args.align == "auto" else args.align
        learnt = choose_alignment(frames, args.region, wanted, empty)
        _say_agreement(learnt)
        choice = AlignmentChoice(learnt)
        if wanted is None:
            choice = _choose_recipe(args, frames, learnt, empty)
        alignment, reason = choice.learnt.alignment, choice.learnt.reason
    network, origin = _network(args, alignment.aspect or 1.0)
    size = tuple(int(side) for side in network.input_shape[1:3])
    aligner = Aligner(alignment, size, args.region)
    gathered = Gathered([], None, [])
    if paths:
        gathered = _gather(args, aligner, size, paths, empty)
    pictures_rgb = [picture.pixels_rgb for picture in gathered.pictures]
    representative = np.stack(pictures_rgb) if pictures_rgb else None
    compared = smooth_noise(size) if representative is None else representative[:COMPARED]
    encoder_bytes, _ = convert_checked("encoder", network, args.dtype, representative, compared)
    encoder = Encoder(encoder_bytes, SCALE, OFFSET, map_shapes=map_shapes_of(network))
    manifest = _manifest(args, encoder, origin, network, len(paths))
    if args.encoder_only:
        bundle = write_bundle(args.out, manifest, encoder_bytes)
        print(f"bundle: {bundle.path} (encoder only, {_describe(bundle)})")
        return _done(args, bundle)
    encodings = _encode(pictures_rgb, encoder)
    most_bytes = affordable_bytes(manifest["encoder"]["multiply_adds"])
    shapes = encoder.map_shapes
    patch_settings, trials = default_settings(shapes, usable_maps(shapes), most_bytes), []
    if args.scorer == "auto":
        chosen, trials = _choose(args, pictures_rgb, encodings, encoder, alignment, most_bytes)
        if isinstance(chosen, ScorerSettings):
            settings = chosen
        else:
            patch_settings = chosen
    learning = learn(
        gathered.pictures,
        encoder,
        alignment,
        settings,
        args.rate,
        gathered.empty_view,
        patch_settings,
        encodings,
        args.drop_outliers,
    )
    sections = dict(learning.sections)
    manifest["provenance"]["good_images"] = len(learning.pictures)
    if trials:
        sections["scorer"]["trials"] = [_trial(trial) for trial in trials]
    if choice.trials:
        sections["alignment"]["trials"] = choice.section()
    sections["scorer"]["layers"] = list(map_layers_of(network))
    sections["quality"] = quality_section(gathered, learning)
    decoder_bytes = None
    if not args.no_decoder:
        # What was left out as not good must not be redrawn as good either.
        learnt_rgb = [picture.pixels_rgb for picture in learning.pictures]
        decoder_bytes, section = _decoder(args, network, encoder, learnt_rgb)
        sections["decoder"] = section
    packed, forgotten = kept_pictures(learning.pictures, args.keep)
    bundle = write_bundle(
        args.out,
        {**manifest, **sections},
        encoder_bytes,
        decoder_bytes,
        learning.reference,
        packed,
    )
    for sentence in gathered.skipped:
        print(f"not learnt: {sentence}", file=sys.stderr)
    print(f"alignment {reason}")
    if choice.trials:
        print(choice.table())
        print(choice.sentence())
    if trials:
        print(table(trials))
        print(trials_sentence(trials))
    for name, score in learning.dropped:
        print(f"left out as unlike the rest: {name} (score {score:.4g})")
    for name, score in learning.least_like:
        print(f"least like the rest: {name} (score {score:.4g}); if it is not good, take it away")
    count = len(learning.pictures)
    print(f"fitted {count} good images in {time.monotonic() - started:.0f} s, {_describe(bundle)}")
    if forgotten:
        print(f"{forgotten} of the pictures are not kept: enroll --add will not relearn them")
    print(threshold_of(sections["threshold"]).sentence())
    for sentence in promise(learning):
        print(sentence)
    if args.report:
        rows = [{**_trial(trial), "chosen": trial.chosen} for trial in trials]
        why = f"{reason}; {choice.figures()}" if choice.trials else reason
        write_report(args.report, bundle.manifest, learning, gathered.pictures, rows, why)
        print(f"report: {args.report}")
    print(f"bundle: {bundle.path}")
    return _done(args, bundle)


def _trial(trial: Trial) -> dict[str, Any]:
    """A trial as the manifest keeps it."""
    return {
        "name": trial.name,
        "drawn_auroc": trial.drawn_auroc,
        "low": trial.low,
        "high": trial.high,
        "bytes": trial.bytes,
        "note": trial.note,
    }


def _say_agreement(learnt: LearntAlignment) -> None:
    for recipe, figures in learnt.agreement.items():
        said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"alignment {recipe}: {said}")


def _choose_recipe(
    args: argparse.Namespace,
    frames: Sequence[Frame],
    learnt: LearntAlignment,
    empty: Sequence[Frame],
) -> AlignmentChoice:
    from tqdm import tqdm

    from tools.convert import to_tflite
    from tools.network import map_shapes_of, multiply_adds

    made: dict[tuple[int, ...], tuple[Encoder, int]] = {}

    def encoder_of(aspect: float) -> tuple[Encoder, int]:
        network, _ = _network(args, aspect)
        shape = tuple(network.input_shape)
        if shape not in made:
            # What is chosen is converted once more, and then compared with its original.
            encoder_bytes = to_tflite(network, "float32")
            encoder = Encoder(encoder_bytes, SCALE, OFFSET, map_shapes=map_shapes_of(network))
            made[shape] = encoder, affordable_bytes(multiply_adds(network))
        return made[shape]

    with tqdm(desc="choosing the alignment", unit="picture", delay=2, leave=False) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        return choose_recipe(frames, args.region, learnt, encoder_of, empty, args.seed, progress)


def _sample(paths: Sequence[Path]) -> list[Frame]:
    step = max(1, -(-len(paths) // ALIGN_PICTURES))
    return list(_frames(paths[::step]))


def _empty_paths(args: argparse.Namespace) -> list[Path]:
    folder = None if args.data is None else args.data / "train" / "empty"
    return list_pictures(folder) if folder is not None and folder.is_dir() else []


def _gather(
    args: argparse.Namespace,
    aligner: Aligner,
    size: tuple[int, int],
    paths: Sequence[Path],
    empty: Sequence[Frame],
) -> Gathered:
    from tqdm import tqdm

    bar = tqdm(paths, desc="reading good pictures", unit="picture", delay=2, leave=False)
    views = empty if aligner.alignment.recipe == "none" else ()
    return gather(_frames(bar), aligner, Preprocessing(size, args.region), views)


def _encode(pictures_rgb: Sequence[np.ndarray], encoder: Encoder) -> Encodings:
    from tqdm import tqdm

    total = len(pictures_rgb)
    with tqdm(total=total, desc="encoding", unit="picture", delay=2, leave=False) as bar:
        return Encodings(pictures_rgb, encoder, bar.update)


def _choose(
    args: argparse.Namespace,
    pictures_rgb: Sequence[np.ndarray],
    encodings: Encodings,
    encoder: Encoder,
    alignment: Alignment,
    most_bytes: int,
) -> tuple[PatchSettings | ScorerSettings, list[Trial]]:
    from tqdm import tqdm

    with tqdm(desc="choosing", unit="candidate", delay=2, leave=False) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        return choose_scorer(
            pictures_rgb,
            encodings,
            encodings.groups,
            encoder,
            lambda grid: part_weight(alignment, grid),
            most_bytes,
            args.seed,
            progress,
        )


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


def _network(args: argparse.Namespace, aspect: float) -> tuple[keras.Model, dict[str, Any]]:
    """The Keras encoder, its input of the part's aspect ratio, and where its weights come from."""
    from tools.network import choose_input, encoder_from, load_run, read_alpha, shaped
    from tools.train_encoder import weights_origin

    weights = args.weights
    if weights != "imagenet" and Path(weights).is_dir():
        _, record = load_run(weights)
        size = (args.size, args.size) if args.size else tuple(record["size"])
        if aspect != 1.0:
            size = shaped(size[0] * size[1], aspect)
        network = encoder_from(weights, size, args.embedding_layer, args.patch_layer)
        steps = [record.get("command_line")]
        if not (args.no_decoder or args.encoder_only):
            steps.append(record.get("decoder", {}).get("command_line"))
        before = [shlex.join(["python", "-m", "tools", *step]) for step in steps if step]
        start = record.get("weights") or {"name": Path(weights).name, "sha256": None}
        return network, _origin(start, record, before)
    alpha = args.alpha or DEFAULT_ALPHA if weights == "imagenet" else read_alpha(weights)
    size, embedding_layer, patch_layer = choose_input(alpha, args.preset, aspect)
    if args.size:
        size = shaped(args.size**2, aspect)
    network = encoder_from(
        weights,
        size,
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
    from tools.network import layers_of, map_layers_of, multiply_adds

    embedding_layer, patch_layer = layers_of(network)
    command = shlex.join(["python", "-m", "tools", *args.typed])
    return new_manifest(
        args.part or args.out.name,
        command,
        encoder.size,
        {
            "dtype": args.dtype,
            "embedding_shape": [encoder.embedding_dim],
            "patch_shape": list(encoder.patch_shape),
            "map_shapes": [list(shape) for shape in encoder.map_shapes],
            "map_layers": list(map_layers_of(network)),
            "embedding_layer": embedding_layer,
            "patch_layer": patch_layer,
            "multiply_adds": multiply_adds(network),
        },
        {
            **origin,
            "licence": args.licence or "not stated",
            "good_images": images,
            "remake": [*args.prior, *origin["remake"], command],
        },
        args.region,
    )
