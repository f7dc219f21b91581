"""
The bundle: everything one part's inspection needs, as arrays and a manifest, never a pickle.

::

    <bundle>/manifest.json    what it is, verified against the files beside it
             encoder.tflite
             decoder.tflite   or none
             reference.npz    or none (a bundle that only carries an encoder, for enrolling)
             learnt.npz       or none: the good pictures themselves, for learning on

A bundle is immutable. It is written under a temporary name, synced, and renamed; the one in use is
a symlink ``current`` replaced by rename. `manifest_sha256`, called `bundle_sha256` everywhere else,
covers the manifest, which covers the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edge_app import __version__
from edge_app.align import read_alignment
from edge_app.errors import BundleError, InputError
from edge_app.gaussian import KIND as GAUSSIAN
from edge_app.gaussian import check_gaussians, read_levels
from edge_app.manifest import SCHEMA_VERSION, canonical_sha256, check_fields, read_manifest
from edge_app.patches import check_arrays, read_components
from edge_app.scorer import SCORERS

MANIFEST = "manifest.json"
ENCODER, DECODER, REFERENCE = "encoder.tflite", "decoder.tflite", "reference.npz"
LEARNT = "learnt.npz"
CURRENT = "current"


@dataclass(frozen=True)
class Bundle:
    """
    A verified bundle.

    Attributes
    ----------
    path : Path
        The folder itself, symlinks resolved.
    manifest : dict
    encoder : bytes
        Content of ``encoder.tflite``.
    decoder : bytes or None
    reference : dict of str to ndarray, or None
        Read-only arrays: `image_ids` (n,) str, `scores` (n,) float64 (each image's score when it
        was held out), `measures` (n, 6) float64 where known (what each image's frame measured, see
        `enrol.known_pictures`), `fixed_measures` (2, 6) float64 and `fixed_images` () int64 where
        something stays in the limits whichever images are taken out (see `enrol.fixed_limits`),
        and what the scorer's kind and the alignment need.
    """

    path: Path
    manifest: dict[str, Any]
    encoder: bytes
    decoder: bytes | None
    reference: Mapping[str, np.ndarray] | None

    @property
    def sha256(self) -> str:
        return self.manifest["manifest_sha256"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the encoder's input."""
        return tuple(self.manifest["input"]["size"])

    @property
    def map_shapes(self) -> list[tuple[int, int, int]]:
        """(h, w, c) of each of the encoder's patch maps."""
        encoder = self.manifest["encoder"]
        return [tuple(shape) for shape in encoder.get("map_shapes") or [encoder["patch_shape"]]]

    def learnt(self) -> bytes | None:
        """
        Content of ``learnt.npz``, verified; read only now, because no inspection needs it.

        Raises
        ------
        BundleError
            If the file is missing or not the one the manifest names.
        """
        entry = self.manifest["files"].get(LEARNT)
        return None if entry is None else _read_file(self.path, LEARNT, entry)

    @property
    def region(self) -> tuple[float, float, float, float] | None:
        region = self.manifest["input"]["region"]
        return None if region is None else tuple(region)


def load_bundle(path: Path | str) -> Bundle:
    """
    Read a bundle and verify schema, hashes and shapes.

    Raises
    ------
    BundleError
        Naming the file and the field that is wrong.
    """
    path = Path(path)
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if not there:
        raise BundleError(f"{path}: no such bundle")
    if not folder:
        raise BundleError(f"{path}: is a file, wanted a bundle's folder with {MANIFEST}")
    path = path.resolve()
    manifest = read_manifest(path / MANIFEST)
    files = manifest["files"]
    contents = {name: _read_file(path, name, files[name]) for name in files if name != LEARNT}
    if ENCODER not in contents:
        raise BundleError(f"{path / MANIFEST}: files names no {ENCODER}")
    for section, name in (("scorer", REFERENCE), ("threshold", REFERENCE), ("decoder", DECODER)):
        if (manifest[section] is not None) != (name in contents):
            state = "given" if manifest[section] is not None else "null"
            there = "there" if name in contents else "missing"
            raise BundleError(f"{path / MANIFEST}: {section} is {state} but {name} is {there}")
    if manifest["presence"] is not None and REFERENCE not in contents:
        raise BundleError(f"{path / MANIFEST}: presence is given but {REFERENCE} is missing")
    reference = None
    if REFERENCE in contents:
        reference = _read_reference(path / REFERENCE, contents[REFERENCE], manifest)
    return Bundle(path, manifest, contents[ENCODER], contents.get(DECODER), reference)


def _read_file(path: Path, name: str, entry: Any) -> bytes:
    if name not in (ENCODER, DECODER, REFERENCE, LEARNT):
        raise BundleError(f"{path / MANIFEST}: files names {name!r}, which no bundle holds")
    check_fields(path / MANIFEST, f"files.{name}.", entry, {"sha256": (str,), "bytes": (int,)})
    try:
        content = (path / name).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path / name}: missing, the manifest names it") from None
    except OSError as error:
        raise BundleError(f"{path / name}: cannot be read: {error.strerror}") from None
    if len(content) != entry["bytes"]:
        raise BundleError(
            f"{path / name}: has {len(content)} bytes, the manifest says {entry['bytes']}"
        )
    actual = hashlib.sha256(content).hexdigest()
    if actual != entry["sha256"]:
        raise BundleError(
            f"{path / name}: sha256 is {actual[:12]}…, the manifest says {entry['sha256'][:12]}…"
        )
    return content


def _read_reference(path: Path, content: bytes, manifest: dict) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # numpy, zipfile and zlib each have their own ways to say so.
    except (
        ValueError,
        OSError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BundleError(f"{path}: is not a plain array archive: {error}") from None
    for array in arrays.values():
        array.setflags(write=False)
    scores = arrays.get("scores")
    count = len(scores) if scores is not None and scores.ndim else 0
    wanted: dict[str, tuple[int | None, ...]] = {"image_ids": (count,), "scores": (count,)}
    if manifest["presence"] is not None:
        wanted |= {"empty_view": (None, None)}
    scorer = manifest["scorer"]
    if scorer["kind"] in SCORERS:
        wanted |= _neighbour_shapes(path, arrays, manifest)
    for name, shape in wanted.items():
        _check_array(path, name, arrays.get(name), shape)
    encoder = manifest["encoder"]
    map_shapes = encoder.get("map_shapes") or [encoder["patch_shape"]]
    try:
        if scorer["kind"] == "patches":
            check_arrays(read_components(scorer), arrays, map_shapes)
        elif scorer["kind"] == GAUSSIAN:
            check_gaussians(read_levels(scorer), arrays, map_shapes)
        read_alignment(manifest["alignment"], arrays)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    return arrays


def _neighbour_shapes(
    path: Path, arrays: Mapping[str, np.ndarray], manifest: dict
) -> dict[str, tuple[int | None, ...]]:
    """Arrays that the pooled scorers need, and their shapes."""
    (dim,) = manifest["encoder"]["embedding_shape"]
    embeddings = arrays.get("embeddings")
    if embeddings is None or embeddings.ndim != 2 or embeddings.shape[1] != dim:
        got = "missing" if embeddings is None else f"of shape {embeddings.shape}"
        raise BundleError(f"{path}: array embeddings is {got}, wanted (n, {dim})")
    count = len(embeddings)
    scorer = manifest["scorer"]
    wanted: dict[str, tuple[int | None, ...]] = {
        "embeddings": (count, dim),
        "image_ids": (count,),
        "scores": (count,),
        "axes": (None, dim),
    }
    if scorer["kind"] == "lof":
        wanted |= {"k_distance": (count,), "density": (count,)}
    if scorer["feature_scaling"] == "minmax":
        wanted |= {"scaling_low": (dim,), "scaling_span": (dim,)}
    if not 1 <= scorer["k"] <= count:
        raise BundleError(
            f"{path.parent / MANIFEST}: scorer.k is {scorer['k']}, wanted 1 to {count}"
        )
    return wanted


def _check_array(
    path: Path, name: str, array: np.ndarray | None, shape: tuple[int | None, ...]
) -> None:
    """Refuse an array that is missing, of another shape or kind, or holds what it must not."""
    if array is None:
        raise BundleError(f"{path}: array {name} is missing")
    fits = array.ndim == len(shape) and all(
        wanted is None or got == wanted for got, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise BundleError(f"{path}: array {name} is of shape {array.shape}, wanted {shape}")
    kind = "U" if name == "image_ids" else "f"
    if array.dtype.kind != kind:
        raise BundleError(f"{path}: array {name} is of {array.dtype}, wanted {kind}-kind numbers")
    if kind == "f" and not np.isfinite(array).all():
        raise BundleError(f"{path}: array {name} holds what is not a finite number")
    if name in ("density", "scaling_span") and not (array > 0).all():
        raise BundleError(f"{path}: array {name} holds numbers that are not above 0")


def write_bundle(
    path: Path | str,
    manifest: Mapping[str, Any],
    encoder: bytes,
    decoder: bytes | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
    learnt: bytes | None = None,
) -> Bundle:
    """
    Write a bundle whole or not at all.

    Parameters
    ----------
    path : path
        Must not exist: a bundle is immutable.
    manifest : mapping
        All fields of schema 1 but `schema_version`, `files` and `manifest_sha256`.
    encoder, decoder : bytes
    reference : mapping of str to ndarray
    learnt : bytes
        Content of ``learnt.npz``.

    Returns
    -------
    Bundle
        Read back and verified from the disk.

    Raises
    ------
    InputError
        If `path` exists or cannot be written.
    """
    path = Path(path)
    refuse_existing(path)
    contents = {ENCODER: encoder}
    if decoder is not None:
        contents[DECODER] = decoder
    if reference is not None:
        packed = io.BytesIO()
        # Not compressed: float arrays would shrink by a tenth and load three times as slowly.
        np.savez(packed, **reference)
        contents[REFERENCE] = packed.getvalue()
    if learnt is not None:
        contents[LEARNT] = learnt
    full = {
        **manifest,
        "schema_version": SCHEMA_VERSION,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in contents.items()
        },
    }
    full["manifest_sha256"] = canonical_sha256(full)
    text = json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    contents[MANIFEST] = text.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        for name, content in contents.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide the bundle from the service's user
        bundle = load_bundle(temporary)
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(path.resolve(), bundle.manifest, bundle.encoder, bundle.decoder, bundle.reference)


def refuse_existing(path: Path | str) -> None:
    """Raise `InputError` if something is at `path`; for asking before the work is done."""
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; a bundle is never overwritten, name a new one")


def activate(bundle: Path | str) -> Path:
    """
    Point the symlink ``current`` beside a bundle at it, by rename, so that there always is one.

    Returns
    -------
    Path
        The link.
    """
    bundle = Path(bundle).resolve()
    link = bundle.parent / CURRENT
    if link.exists() and not link.is_symlink():
        raise InputError(f"{link}: is not a symlink, so it cannot be pointed at {bundle.name}")
    temporary = bundle.parent / f".{CURRENT}.{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(bundle.name)
        os.replace(temporary, link)
        _sync_folder(bundle.parent)
    except OSError as error:
        raise InputError(f"{link}: cannot be written: {error.strerror}") from None
    return link


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def made_now(command: str, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """
    The manifest's `made`: when, by which command, from which commit, with which versions.

    Parameters
    ----------
    command : str
        As typed.
    packages : tuple of str
        Distributions to record beside edge-app and numpy.
    """
    from importlib import metadata

    versions = {"edge-app": __version__, "numpy": np.__version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    now = datetime.now(UTC)
    return {
        "at": now.isoformat(timespec="seconds"),
        "command": command,
        "commit": _commit(),
        "versions": versions,
    }


def _commit() -> str | None:
    """The commit of the checkout this file runs from; None where it is installed or has no git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", os.fspath(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None
