"""
The manifest of a bundle: which fields it has, what they may hold, how it is hashed and read.

Schema 1 has every field from the start; what is not learnt is null. Later work fills fields, it
does not add any that a reader must know.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_app import __version__
from edge_app.errors import BundleError
from edge_app.gaussian import KIND as GAUSSIAN
from edge_app.quality import read_limits
from edge_app.scorer import FEATURE_SCALINGS, SCORERS

SCHEMA_VERSION = 1

ALIGNMENTS = ("none", "centre", "pose")
SCORER_KINDS = ("patches", *SCORERS, GAUSSIAN)

# Every field of schema 1 and the types it may have; None means "not learnt".
_FIELDS: dict[str, tuple[type | None, ...]] = {
    "schema_version": (int,),
    "manifest_sha256": (str,),
    "parent_sha256": (str, None),
    "part": (str,),
    "made": (dict,),
    "files": (dict,),
    "input": (dict,),
    "encoder": (dict,),
    "alignment": (dict,),
    "presence": (dict, None),
    "scorer": (dict, None),
    "threshold": (dict, None),
    "quality": (dict, None),
    "decoder": (dict, None),
    "provenance": (dict,),
}
_NUMBER = (int, float)
_SECTIONS: dict[str, dict[str, tuple[type | None, ...]]] = {
    "made": {"at": (str,), "command": (str,), "commit": (str, None), "versions": (dict,)},
    "input": {
        "size": (list,),
        "colour_order": (str,),
        "scale": _NUMBER,
        "offset": _NUMBER,
        "region": (list, None),
    },
    "encoder": {"dtype": (str,), "embedding_shape": (list,), "patch_shape": (list,)},
    "alignment": {"recipe": (str,)},
    "presence": {"kind": (str,), "difference": _NUMBER, "least_share": _NUMBER, "place": (list,)},
    "scorer": {"kind": (str,), "k": (int,), "feature_scaling": (str,)},
    "threshold": {
        "value": _NUMBER,
        "method": (str,),
        "wanted_rate": _NUMBER,
        "supported_rate": _NUMBER,
        "images": (int,),
    },
    "decoder": {
        "kind": (str,),
        "source": (str,),
        "blur_share": _NUMBER,
        "colour_scale": (dict,),
    },
    "provenance": {"weights": (str,), "licence": (str,), "remake": (list,)},
}


def canonical_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's canonical JSON without `manifest_sha256`, as hex."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """
    Read ``manifest.json`` and verify its schema, its values and its hash.

    Raises
    ------
    BundleError
        Naming the file and the field that is wrong.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), parse_float=_as_written)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing, so this folder is no bundle") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"{path}: holds a {type(manifest).__name__}, wanted a JSON object")
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version is {version}, this edge-app {__version__} reads up to "
            f"{SCHEMA_VERSION}: update edge-app"
        )
    if version != SCHEMA_VERSION:
        raise BundleError(f"{path}: schema_version is {version!r}, wanted {SCHEMA_VERSION}")
    check_fields(path, "", manifest, _FIELDS)
    for section, fields in _SECTIONS.items():
        if manifest[section] is not None:
            check_fields(path, section + ".", manifest[section], fields)
    try:
        actual = canonical_sha256(manifest)
    except ValueError as error:
        raise BundleError(f"{path}: holds a number that JSON does not know: {error}") from None
    if actual != manifest["manifest_sha256"]:
        raise BundleError(
            f"{path}: manifest_sha256 is {manifest['manifest_sha256'][:12]}…, the content gives "
            f"{actual[:12]}…: the manifest was changed after it was written"
        )
    _check_values(path, manifest)
    return manifest


def _as_written(literal: str) -> float:
    """
    A number of the manifest, refused if it is not written as `write_bundle` writes it.

    The hash covers the numbers' values: a change to a digit beyond a float's last would pass it.
    """
    value = float(literal)
    if repr(value) != literal:
        raise ValueError(f"the number {literal[:40]} was changed after it was written")
    return value


def _check_values(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse values that no bundle of schema 1 holds, however well they are hashed."""
    given, encoder = manifest["input"], manifest["encoder"]
    # Optional: bundles from before there were several maps name only the patches.
    map_shapes = encoder.get("map_shapes", [encoder["patch_shape"]])
    map_layers = encoder.get("map_layers")
    checks = [
        ("input.size", given["size"], _whole(given["size"], 2, 8), "[height, width] from 8 pixels"),
        ("input.colour_order", given["colour_order"], given["colour_order"] == "rgb", "'rgb'"),
        ("input.scale", given["scale"], _finite(given["scale"]), "a finite number"),
        ("input.offset", given["offset"], _finite(given["offset"]), "a finite number"),
        (
            "input.region",
            given["region"],
            given["region"] is None or _is_region(given["region"]),
            "null or [left, top, right, bottom] in order, from 0 to 1",
        ),
        (
            "encoder.embedding_shape",
            encoder["embedding_shape"],
            _whole(encoder["embedding_shape"], 1, 1),
            "[d]",
        ),
        (
            "encoder.patch_shape",
            encoder["patch_shape"],
            _whole(encoder["patch_shape"], 3, 1),
            "[h, w, c]",
        ),
        (
            "encoder.map_shapes",
            map_shapes,
            _are_maps(map_shapes, encoder["patch_shape"]),
            "different [h, w, c], the first of them encoder.patch_shape",
        ),
        (
            "encoder.map_layers",
            map_layers,
            map_layers is None or _are_names(map_layers, map_shapes),
            "a list of names, one for each of encoder.map_shapes",
        ),
        (
            "alignment.recipe",
            manifest["alignment"]["recipe"],
            manifest["alignment"]["recipe"] in ALIGNMENTS,
            f"one of {ALIGNMENTS}",
        ),
    ]
    scorer, threshold = manifest["scorer"], manifest["threshold"]
    if scorer is not None:
        scaling = scorer["feature_scaling"]
        checks += [
            (
                "scorer.kind",
                scorer["kind"],
                scorer["kind"] in SCORER_KINDS,
                f"one of {SCORER_KINDS}",
            ),
            (
                "scorer.colour_scale",
                scorer.get("colour_scale"),
                scorer["kind"] != "patches" or _is_scale(scorer.get("colour_scale")),
                "{low, high}, numbers in this order",
            ),
            (
                "scorer.feature_scaling",
                scaling,
                scaling in FEATURE_SCALINGS,
                f"one of {FEATURE_SCALINGS}",
            ),
        ]
    if threshold is not None:
        value = threshold["value"]
        checks.append(("threshold.value", value, _finite(value), "a finite number"))
    presence = manifest["presence"]
    if presence is not None:
        numbers = [presence["difference"], presence["least_share"]]
        checks += [
            ("presence", numbers, _finite(*numbers), "finite numbers"),
            (
                "presence.place",
                presence["place"],
                len(presence["place"]) == 4 and _finite(*presence["place"]),
                "[left, top, right, bottom]",
            ),
        ]
    decoder = manifest["decoder"]
    if decoder is not None:
        scale, blur = decoder["colour_scale"], decoder["blur_share"]
        checks += [
            (
                "decoder.source",
                decoder["source"],
                decoder["source"] in ("patches", "embedding"),
                "'patches' or 'embedding'",
            ),
            ("decoder.blur_share", blur, _finite(blur) and 0 <= blur <= 0.5, "a number to 0.5"),
            (
                "decoder.colour_scale",
                scale,
                _is_scale(scale),
                "{low, high}, numbers in this order",
            ),
        ]
    for field, value, right, wanted in checks:
        if not right:
            raise BundleError(f"{path}: field {field} is {str(value)[:60]}, wanted {wanted}")
    try:
        read_limits(manifest["quality"])
    except BundleError as error:
        raise BundleError(f"{path.parent}: {error}") from None


def _is_scale(scale: Any) -> bool:
    """Whether this is a colour scale: {low, high}, in order."""
    return (
        isinstance(scale, dict)
        and set(scale) == {"low", "high"}
        and _finite(*scale.values())
        and scale["low"] < scale["high"]
    )


def _finite(*values: Any) -> bool:
    """Whether all are numbers that a float can hold."""
    try:
        return all(
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(float(value))
            for value in values
        )
    except OverflowError:
        return False


def _whole(values: list, count: int, least: int) -> bool:
    """Whether these are `count` whole numbers from `least`, none beyond any picture or network."""
    return len(values) == count and all(
        isinstance(n, int) and not isinstance(n, bool) and least <= n <= 100_000 for n in values
    )


def _are_maps(shapes: Any, patch_shape: list) -> bool:
    """Whether these are shapes [h, w, c] of maps, none twice and that of the patches first."""
    return (
        isinstance(shapes, list)
        and all(isinstance(shape, list) and _whole(shape, 3, 1) for shape in shapes)
        and shapes[:1] == [patch_shape]
        and len({tuple(shape) for shape in shapes}) == len(shapes)
    )


def _are_names(names: Any, shapes: Any) -> bool:
    """Whether these are names, one for each of `shapes`."""
    return (
        isinstance(names, list)
        and isinstance(shapes, list)
        and len(names) == len(shapes)
        and all(isinstance(name, str) for name in names)
    )


def _is_region(values: list) -> bool:
    if len(values) != 4 or not _finite(*values):
        return False
    left, top, right, bottom = values
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def check_fields(path: Path, prefix: str, section: Mapping, fields: Mapping) -> None:
    """Refuse a section that lacks one of `fields` or holds it as none of the types given."""
    if not isinstance(section, dict):
        name = prefix.rstrip(".")
        raise BundleError(f"{path}: field {name} is a {type(section).__name__}, wanted an object")
    for field, types in fields.items():
        if field not in section:
            raise BundleError(f"{path}: field {prefix}{field} is missing")
        value = section[field]
        wanted = tuple(kind for kind in types if kind is not None)
        right = isinstance(value, wanted) and not isinstance(value, bool)
        if not right and not (value is None and None in types):
            names = " or ".join("null" if kind is None else kind.__name__ for kind in types)
            raise BundleError(
                f"{path}: field {prefix}{field} is a {type(value).__name__}, wanted {names}"
            )
