import argparse
import json

import cv2
import numpy as np
import pytest

from edge_app.encoder import Encoder
from edge_app.errors import EdgeAppError, InputError
from tools import convert
from tools.network import build_encoder, layers_of, map_shapes_of

keras = pytest.importorskip("keras", reason="conversion needs the tools extra")
pytest.importorskip("tensorflow", reason="conversion needs the tools extra")


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return build_encoder(None, (32, 48), "block_3_expand_relu", "block_1_expand_relu", alpha=0.35)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 6, 8, 3), np.uint8)
    return np.stack([cv2.resize(one, (48, 32)) for one in coarse])


@pytest.fixture(scope="module")
def converted(encoder, pictures):
    return {dtype: convert.to_tflite(encoder, dtype, pictures) for dtype in convert.DTYPES}


@pytest.fixture(scope="module")
def good_dir(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


@pytest.fixture(scope="module")
def run_dir(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder.save(folder / "encoder.keras")
    embedding_layer, patch_layer = layers_of(encoder)
    run = {
        "alpha": 0.35,
        "size": [32, 48],
        "embedding_layer": embedding_layer,
        "patch_layer": patch_layer,
    }
    (folder / "run.json").write_text(json.dumps(run))
    channels = encoder.outputs[1].shape[-1]
    decoder = keras.Sequential(
        [
            keras.Input((16, 24, channels)),
            keras.layers.Conv2DTranspose(3, 2, strides=2, activation="sigmoid"),
        ]
    )
    decoder.save(folder / "decoder.keras")
    return folder


def arguments(run_dir, dtype, out, data=None):
    parser = argparse.ArgumentParser()
    convert.configure(parser)
    line = ["--run", str(run_dir), "--dtype", dtype, "--out", str(out)]
    return parser.parse_args(line + (["--data", str(data)] if data else []))


@pytest.mark.parametrize(("dtype", "closeness"), [("float32", 1e-6), ("float16", 1e-3)])
def test_float_models_follow_keras(encoder, converted, pictures, dtype, closeness):
    report = convert.parity(encoder, converted[dtype], pictures)
    assert report.pop("inputs") == len(pictures)
    assert {output: figures["layer"] for output, figures in report.items()} == {
        "embedding": "block_3_expand_relu",
        "patches": "block_1_expand_relu",
        "map_block_3_expand_relu": "block_3_expand_relu",
    }
    for figures in report.values():
        assert figures["lowest_cosine"] > 1 - closeness


def test_int8_is_integer_throughout_and_still_follows(encoder, converted, pictures):
    from edge_app.runtime import open_interpreter

    interpreter = open_interpreter(converted["int8"], 1)
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert {detail["dtype"] for detail in details} == {np.int8}
    report = convert.parity(encoder, converted["int8"], pictures)
    assert 0.97 < report["patches"]["lowest_cosine"] < 1
    assert 0.97 < report["embedding"]["lowest_cosine"] < 1
    assert 0.97 < report["map_block_3_expand_relu"]["lowest_cosine"] < 1


def test_int8_input_reaches_black_and_white_whatever_the_sample(encoder, pictures):
    from edge_app.runtime import open_interpreter

    dim = (pictures // 4 + 90).astype(np.uint8)
    interpreter = open_interpreter(convert.to_tflite(encoder, "int8", dim), 1)
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    assert (-128 - zero_point) * scale == pytest.approx(-1, abs=0.02)
    assert (127 - zero_point) * scale == pytest.approx(1, abs=0.02)


def test_float16_halves_the_file(converted):
    assert len(converted["float16"]) < 0.75 * len(converted["float32"])
    assert len(converted["int8"]) < len(converted["float32"])


def test_the_device_reads_the_same_numbers(encoder, converted, pictures):
    shapes = map_shapes_of(encoder)
    device = Encoder(converted["float32"], scale=1 / 127.5, offset=-1.0, map_shapes=shapes)
    encoding = device.encode(pictures[0])
    want = encoder.predict(pictures[:1].astype(np.float32) / 127.5 - 1, verbose=0)
    assert np.allclose(encoding.embedding, want[0][0], atol=1e-4)
    assert np.allclose(encoding.patches, want[1][0], atol=1e-4)
    for have, map_ in zip(encoding.maps, want[1:], strict=True):
        assert np.allclose(have, map_[0], atol=1e-4)


def test_parity_refuses_a_conversion_of_other_outputs(encoder, converted, pictures):
    fewer = keras.Model(encoder.inputs[0], encoder.outputs[:2])
    with pytest.raises(EdgeAppError, match="outputs have shapes"):
        convert.parity(fewer, converted["float32"], pictures)


@pytest.mark.parametrize("dtype", convert.DTYPES)
def test_a_decoder_of_an_embedding(dtype):
    keras.utils.set_random_seed(1)
    decoder = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(4 * 4 * 3, activation="sigmoid"),
            keras.layers.Reshape((4, 4, 3)),
        ]
    )
    features = np.random.default_rng(2).random((10, 20), np.float32)
    report = convert.parity(decoder, convert.to_tflite(decoder, dtype, features), features)
    assert report["output"]["cosine"] > 0.995


def test_int8_needs_representative_inputs_of_the_right_shape(encoder, pictures):
    with pytest.raises(InputError, match="got none"):
        convert.to_tflite(encoder, "int8")
    with pytest.raises(InputError, match=r"\(32, 40, 3\), wanted \(32, 48, 3\)"):
        convert.to_tflite(encoder, "int8", pictures[:, :, :40])


def test_an_unknown_dtype(encoder):
    with pytest.raises(InputError, match="float32, float16, int8"):
        convert.to_tflite(encoder, "float64")


def test_parity_sees_a_wrong_model(encoder, pictures, converted):
    keras.utils.set_random_seed(7)
    other = build_encoder(None, (32, 48), "block_3_expand_relu", "block_1_expand_relu", alpha=0.35)
    report = convert.parity(other, converted["float32"], pictures)
    assert report["embedding"]["cosine"] < convert.MIN_COSINE["int8"]


def test_command_writes_encoder_decoder_and_report(run_dir, good_dir, tmp_path, capsys):
    assert convert.run(arguments(run_dir, "int8", tmp_path / "out", good_dir)) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["decoder.tflite", "encoder.tflite", "parity.json"]
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    # encoder.keras lies there with its outputs, but the maps are chosen anew.
    assert set(report["encoder"]) >= {
        "bytes", "dtype", "embedding", "patches", "map_block_3_expand_relu"
    }  # fmt: skip
    assert report["decoder"]["output"]["cosine"] > 0.9
    assert report["encoder"]["bytes"] == (tmp_path / "out" / "encoder.tflite").stat().st_size
    assert "encoder.tflite" in capsys.readouterr().out


def test_int8_without_pictures_is_refused(run_dir, tmp_path):
    with pytest.raises(InputError, match="--data"):
        convert.run(arguments(run_dir, "int8", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_of_another_encoder_is_refused(run_dir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "encoder.keras"):
        (run / name).write_bytes((run_dir / name).read_bytes())
    keras.Sequential([keras.Input((9,)), keras.layers.Dense(3)]).save(run / "decoder.keras")
    with pytest.raises(InputError, match=r"takes \(9,\)"):
        convert.run(arguments(run, "float32", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cosine", [0.89, float("nan")])
def test_a_model_that_strays_is_refused_with_exit_code_1(cosine):
    outputs = {"embedding": {"cosine": 0.99}, "patches": {"cosine": cosine}}
    with pytest.raises(EdgeAppError, match="patches with Keras' is .*, wanted 0.9") as caught:
        convert.refuse_strayed("encoder", "int8", {"inputs": 16, **outputs})
    assert caught.value.exit_code == 1
