"""Finding a runtime by building an interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_app.encoder import Encoder, quantise
from edge_app.errors import BundleError
from edge_app.inspector import build_encoder
from edge_app.runtime import RuntimeMissing, open_interpreter

ROOT = Path(__file__).resolve().parent.parent


def test_builds_and_names_itself(nut_bundle):
    interpreter = open_interpreter(nut_bundle.encoder, threads=2)
    assert interpreter.runtime_name in ("ai_edge_litert", "tflite_runtime")
    assert interpreter.get_input_details()[0]["shape"].tolist() == [1, *nut_bundle.size, 3]


def test_a_runtime_that_is_not_there_is_said(nut_bundle):
    with pytest.raises(RuntimeMissing, match="no_such_runtime.*install ai-edge-litert"):
        open_interpreter(nut_bundle.encoder, runtime="no_such_runtime.interpreter")


@pytest.mark.parametrize("model", [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_a_broken_model_is_a_bundle_error(model):
    with pytest.raises(BundleError, match="TFLite model"):
        open_interpreter(model)


def test_nothing_is_announced_on_stderr(nut_path):
    code = (
        "from edge_app.bundle import load_bundle; from edge_app.runtime import open_interpreter; "
        f"open_interpreter(load_bundle({str(nut_path)!r}).encoder)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_encoding_is_repeatable_and_its_own(nut_bundle):
    encoder = Encoder(nut_bundle.encoder, 1 / 127.5, -1.0)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, *encoder.size, 3), np.uint8)
    first = encoder.encode(one)
    kept = first.embedding.copy(), first.patches.copy()
    encoder.encode(other)  # must not write into what was handed out
    np.testing.assert_array_equal(first.embedding, kept[0])
    np.testing.assert_array_equal(first.patches, kept[1])
    np.testing.assert_array_equal(encoder.encode(one).embedding, kept[0])
    assert first.embedding.shape == (encoder.embedding_dim,)
    assert first.patches.shape == encoder.patch_shape


def test_the_embedding_is_the_mean_of_its_map(nut_bundle):
    # In the shipped bundle both outputs come from one layer, so the one checks the other.
    encoder = build_encoder(nut_bundle, 1)
    pixels = np.random.default_rng(1).integers(0, 256, (*encoder.size, 3), np.uint8)
    encoding = encoder.encode(pixels)
    np.testing.assert_allclose(encoding.embedding, encoding.patches.mean((0, 1)), atol=1e-5)


def test_a_network_without_the_two_outputs_is_refused(nut_bundle):
    with pytest.raises(BundleError, match=r"encoder\.tflite: input has shape"):
        Encoder(nut_bundle.decoder, 1 / 127.5, -1.0)


def test_quantise_rounds_and_clips():
    detail = {"dtype": np.int8, "quantization": (0.5, 3)}
    values = np.array([-100.0, -1.5, 0.0, 0.26, 100.0])
    np.testing.assert_array_equal(quantise(values, detail), [-128, 0, 3, 4, 127])
