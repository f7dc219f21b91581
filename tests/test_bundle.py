"""Bundles: written whole, verified on reading, refused by file and field."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from edge_app.bundle import (
    MANIFEST,
    activate,
    load_bundle,
    write_bundle,
)
from edge_app.config import load_config
from edge_app.errors import BundleError, InputError
from edge_app.inspector import Inspector
from edge_app.manifest import canonical_sha256


@pytest.fixture
def copy(tmp_path, nut_path):
    """A copy of the shipped bundle to damage."""
    shutil.copytree(nut_path, tmp_path / "nut")
    return tmp_path / "nut"


def rewrite(bundle, **changes):
    """Change the manifest and give it a right hash again, as a careful forger would."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest.update(changes)
    manifest["manifest_sha256"] = canonical_sha256(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def sections(bundle):
    dropped = ("schema_version", "files", "manifest_sha256")
    return {key: value for key, value in bundle.manifest.items() if key not in dropped}


def test_shipped_bundles_load_and_name_how_to_remake_them(nut_path, base_path):
    for path in (nut_path, base_path):
        bundle = load_bundle(path)
        assert bundle.manifest["provenance"]["remake"]
        assert bundle.manifest["provenance"]["licence"]
    assert load_bundle(base_path).reference is None
    assert load_bundle(nut_path).decoder is not None


def test_round_trip_keeps_every_byte_and_array(nut_bundle, tmp_path):
    out = tmp_path / "deeper" / "copy"
    written = write_bundle(
        out, sections(nut_bundle), nut_bundle.encoder, nut_bundle.decoder, nut_bundle.reference
    )
    again = load_bundle(out)
    assert again.sha256 == written.sha256
    assert again.encoder == nut_bundle.encoder and again.decoder == nut_bundle.decoder
    for name, array in nut_bundle.reference.items():
        np.testing.assert_array_equal(again.reference[name], array)
        assert not again.reference[name].flags.writeable
    assert [p.name for p in out.parent.iterdir()] == ["copy"]  # no temporary left


def test_an_existing_bundle_is_not_overwritten(nut_bundle, copy):
    before = (copy / MANIFEST).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_bundle(copy, sections(nut_bundle), nut_bundle.encoder)
    assert (copy / MANIFEST).read_bytes() == before


def test_a_failed_write_leaves_nothing(nut_bundle, tmp_path):
    broken = {**sections(nut_bundle), "part": 7}
    with pytest.raises(BundleError, match="field part is a int, wanted str"):
        write_bundle(tmp_path / "b", broken, nut_bundle.encoder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [MANIFEST, "encoder.tflite", "decoder.tflite", "reference.npz"])
def test_every_changed_byte_is_noticed(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in {0, len(content) - 2, *rng.integers(0, len(content), 20).tolist()}:
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=name):
            load_bundle(copy)
    path.write_bytes(content)
    load_bundle(copy)


@pytest.mark.parametrize("name", [MANIFEST, "encoder.tflite", "decoder.tflite", "reference.npz"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        load_bundle(copy)


def test_a_newer_schema_says_update(copy):
    rewrite(copy, schema_version=2)
    with pytest.raises(BundleError, match="schema_version is 2.*update edge-app"):
        load_bundle(copy)


def test_a_missing_field_is_named(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["input"]["scale"]
    rewrite(copy, **manifest)
    with pytest.raises(BundleError, match=r"field input\.scale is missing"):
        load_bundle(copy)


def test_a_changed_threshold_is_noticed(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["threshold"]["value"] *= 10
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="manifest_sha256"):
        load_bundle(copy)


def test_a_digit_that_changes_no_value_is_noticed(copy):
    text = (copy / MANIFEST).read_text()
    value = repr(load_bundle(copy).manifest["threshold"]["value"])
    assert text.count(value) == 1 and float(value + "0") == float(value)
    (copy / MANIFEST).write_text(text.replace(value, value + "0"))
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("section", "field", "value", "says"),
    [
        ("input", "size", ["a", 1], r"field input\.size"),
        ("input", "region", [0.5, 0, 0.2, 1], r"field input\.region"),
        ("input", "scale", 10**400, r"field input\.scale"),
        ("encoder", "embedding_shape", [], r"field encoder\.embedding_shape"),
        ("alignment", "recipe", "mirror", r"field alignment\.recipe"),
        ("presence", "place", [1], r"field presence\.place"),
        ("scorer", "kind", "svm", r"field scorer\.kind"),
        ("scorer", "feature_scaling", "log", r"field scorer\.feature_scaling"),
        ("scorer", "components", [], r"components is \[\]"),
        ("scorer", "image_score", "mean", r"image_score is 'mean'"),
        ("scorer", "colour_scale", {"low": 2, "high": 1}, r"field scorer\.colour_scale"),
        ("decoder", "colour_scale", {"low": 2, "high": 1}, r"field decoder\.colour_scale"),
        ("decoder", "blur_share", 1e9, r"field decoder\.blur_share"),
        ("files", "encoder.tflite", 5, r"field files\.encoder\.tflite is a int"),
    ],
)
def test_well_hashed_nonsense_is_refused_by_field(copy, section, field, value, says):
    manifest = json.loads((copy / MANIFEST).read_text())
    rewrite(copy, **{section: {**manifest[section], field: value}})
    with pytest.raises(BundleError, match=says):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("density", lambda a: -a, "not above 0"),
        ("scores", lambda a: a * np.nan, "not a finite number"),
        ("embeddings", lambda a: a.astype(str), "embeddings is of"),
        ("embeddings", lambda a: a[:, :-1], "embeddings is of shape"),
        ("axes", lambda a: a[:, 1:], "axes is of shape"),
        ("image_ids", lambda a: np.zeros(len(a)), "image_ids is of float64"),
    ],
)
def test_arrays_that_cannot_be_are_refused(pooled_bundle, tmp_path, name, change, says):
    arrays = {**pooled_bundle.reference, name: change(pooled_bundle.reference[name])}
    with pytest.raises(BundleError, match=says):
        write_bundle(tmp_path / "b", sections(pooled_bundle), pooled_bundle.encoder, None, arrays)


def test_more_neighbours_than_references_are_refused(pooled_bundle, tmp_path):
    path = tmp_path / "b"
    shutil.copytree(pooled_bundle.path, path)
    rewrite(path, scorer={**pooled_bundle.manifest["scorer"], "k": 10**6})
    with pytest.raises(BundleError, match=r"scorer\.k is 1000000"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("p0_axes", lambda a: a[1:], "array p0_axes is of shape"),
        ("p0_spread", lambda a: a * 0, "p0_spread holds numbers that are not above 0"),
        ("p0_rows", lambda a: a * np.nan, "p0_rows holds what is not a finite number"),
    ],
)
def test_patch_arrays_that_cannot_be_are_refused(nut_bundle, tmp_path, name, change, says):
    arrays = {**nut_bundle.reference, name: change(nut_bundle.reference[name])}
    with pytest.raises(BundleError, match=says):
        write_bundle(
            tmp_path / "b", sections(nut_bundle), nut_bundle.encoder, nut_bundle.decoder, arrays
        )


def test_the_learnt_pictures_are_verified_when_they_are_read(copy):
    assert load_bundle(copy).learnt() is not None
    (copy / "learnt.npz").write_bytes(b"x")
    bundle = load_bundle(copy)  # no inspection needs them
    with pytest.raises(BundleError, match=r"learnt\.npz: has 1 bytes"):
        bundle.learnt()


def test_files_outside_the_bundle_are_not_followed(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    files = {**manifest["files"], "../secret": manifest["files"]["encoder.tflite"]}
    rewrite(copy, files=files)
    with pytest.raises(BundleError, match="which no bundle holds"):
        load_bundle(copy)


def test_a_pickle_in_the_reference_is_refused(nut_bundle, tmp_path):
    arrays = {**nut_bundle.reference, "extra": np.array([{"a": 1}], dtype=object)}
    with pytest.raises(BundleError, match="not a plain array archive"):
        write_bundle(
            tmp_path / "b", sections(nut_bundle), nut_bundle.encoder, nut_bundle.decoder, arrays
        )


def test_a_decoder_of_another_shape_is_refused(nut_bundle, tmp_path):
    # A network that is sound in itself, but takes pictures where features are wanted.
    path = tmp_path / "b"
    write_bundle(
        path, sections(nut_bundle), nut_bundle.encoder, nut_bundle.decoder, nut_bundle.reference
    )
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["decoder"]["source"] = "embedding"
    rewrite(path, decoder=manifest["decoder"])
    with pytest.raises(BundleError, match=r"decoder\.tflite: takes .* wanted"):
        Inspector(load_bundle(path), load_config().decision, "single")


def test_an_encoder_of_another_shape_is_refused(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["input"]["size"] = [64, 64]
    rewrite(copy, input=manifest["input"])
    with pytest.raises(BundleError, match=r"input\.size is \[64, 64\]"):
        Inspector(load_bundle(copy), load_config().decision, "single")


def test_current_is_replaced_and_never_missing(copy, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    link = activate(copy)
    assert link.is_symlink() and os.readlink(link) == "nut"
    assert load_bundle(link).path == copy
    activate(other)
    assert os.readlink(link) == "other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "nut", "other"]


def test_current_does_not_replace_a_real_folder(copy, tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(InputError, match="is not a symlink"):
        activate(copy)


def test_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        load_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        load_bundle(tmp_path / "file")
    (tmp_path / MANIFEST).write_text("[1, 2]")
    with pytest.raises(BundleError, match="wanted a JSON object"):
        load_bundle(tmp_path)
