import argparse
import json

import cv2
import numpy as np
import pytest

from edge_app.encoder import Encoder
from edge_app.errors import EdgeAppError, InputError
from tools import convert
from tools.network import build_encoder, layers_of, map_shapes_of
from tools.parity import parity

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
def set_dir(pictures, tmp_path_factory):
    """An inspection set: one part under sensor noise, and with a black spot."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(3)
    for name, count in (("train/good", 24), ("test/good", 4), ("test/spot", 4)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = pictures[0] + rng.normal(0, 4, pictures[0].shape)
            if name == "test/spot":
                picture[10:20, 8 * index : 8 * index + 12] = 0
            picture = np.clip(picture, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), picture)
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


def arguments(run_dir, dtype, out, data=None, more=()):
    parser = argparse.ArgumentParser()
    convert.configure(parser)
    line = ["--run", str(run_dir), "--dtype", dtype, "--out", str(out), *more]
    return parser.parse_args(line + (["--data", str(data)] if data else []))


def test_int8_is_integer_throughout_and_still_follows(encoder, converted, pictures):
    from edge_app.runtime import open_interpreter

    interpreter = open_interpreter(converted["int8"], 1)
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert {detail["dtype"] for detail in details} == {np.int8}
    report = parity(encoder, converted["int8"], pictures)
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


def test_the_device_reads_the_same_numbers(encoder, converted, pictures):
    shapes = map_shapes_of(encoder)
    device = Encoder(converted["float32"], scale=1 / 127.5, offset=-1.0, map_shapes=shapes)
    encoding = device.encode(pictures[0])
    want = encoder.predict(pictures[:1].astype(np.float32) / 127.5 - 1, verbose=0)
    assert np.allclose(encoding.embedding, want[0][0], atol=1e-4)
    assert np.allclose(encoding.patches, want[1][0], atol=1e-4)
    for have, map_ in zip(encoding.maps, want[1:], strict=True):
        assert np.allclose(have, map_[0], atol=1e-4)


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
    report = parity(decoder, convert.to_tflite(decoder, dtype, features), features)
    assert report["output"]["cosine"] > 0.995


def test_int8_needs_representative_inputs_of_the_right_shape(encoder, pictures):
    with pytest.raises(InputError, match="got none"):
        convert.to_tflite(encoder, "int8")
    with pytest.raises(InputError, match=r"\(32, 40, 3\), wanted \(32, 48, 3\)"):
        convert.to_tflite(encoder, "int8", pictures[:, :, :40])


def test_an_unknown_dtype(encoder):
    with pytest.raises(InputError, match="float32, float16, int8"):
        convert.to_tflite(encoder, "float64")


@pytest.fixture(scope="module")
def command(run_dir, set_dir, tmp_path_factory):
    """What `convert --dtype int8` wrote."""
    out = tmp_path_factory.mktemp("command") / "out"
    assert convert.run(arguments(run_dir, "int8", out, set_dir)) == 0
    return out


def test_command_writes_encoder_decoder_and_report(command):
    names = sorted(path.name for path in command.iterdir())
    assert names == ["decoder.tflite", "encoder.tflite", "parity.json"]
    report = json.loads((command / "parity.json").read_text())
    # encoder.keras lies there with its outputs, but the maps are chosen anew.
    assert set(report["encoder"]) >= {
        "bytes", "dtype", "embedding", "patches", "map_block_3_expand_relu"
    }  # fmt: skip
    assert report["decoder"]["output"]["cosine"] > 0.9
    for name in ("encoder", "decoder"):
        entry, latency = report[name], report[name]["latency"]
        assert entry["bytes"] == (command / f"{name}.tflite").stat().st_size
        assert entry["float32_bytes"] != entry["bytes"]
        assert latency["float32_over_this"] == latency["float32_ms"] / latency["ms"]


def test_command_compares_what_keras_and_the_file_judge(command):
    judgement = json.loads((command / "parity.json").read_text())["judgement"]
    # All 24 set the ranges, so these are learnt.
    assert (judgement["good"], judgement["good_set_the_ranges"]) == (24, True)
    assert judgement["test"].pop("note")
    assert judgement["test"] == {"good": 4, "defective": 4}
    assert set(judgement["scorers"]) == {"patches", "lof"}
    for figures in judgement["scorers"].values():
        before, after = figures["keras"], figures["converted"]
        assert figures["drawn_auroc_loss"] == before["drawn_auroc"] - after["drawn_auroc"]
        assert before["threshold"] != after["threshold"]
        assert after["drawn_auroc"] > 0.8
    assert judgement["scorers"]["patches"]["converted"]["test_auroc"] == 1.0


def test_without_data_the_command_says_that_nothing_was_judged(run_dir, tmp_path, capsys):
    assert convert.run(arguments(run_dir, "float32", tmp_path / "out")) == 0
    assert "was not compared: 0 good pictures" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert set(report) == {"encoder", "decoder"}
    assert report["encoder"]["latency"]["float32_over_this"] == 1.0


def test_a_loss_above_the_accepted_one_writes_nothing(run_dir, set_dir, tmp_path):
    args = arguments(run_dir, "float32", tmp_path / "out", set_dir, ["--rate", "0.1"])
    # Less than the best that can be: the AUROC would have to rise by more than it can.
    args.accept_loss = -1.5
    with pytest.raises(EdgeAppError, match="AUROC .patches. is .* Keras' is") as caught:
        convert.run(args)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", ["-0.1", "1.5", "nan", "much"])
def test_an_accepted_loss_is_a_share(run_dir, tmp_path, loss, capsys):
    with pytest.raises(SystemExit):
        arguments(run_dir, "int8", tmp_path / "out", more=[f"--accept-loss={loss}"])
    assert "wanted a number from 0 to 1" in capsys.readouterr().err


def test_few_pictures_set_the_ranges_and_are_not_judged(run_dir, set_dir, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in "01":
        (data / f"{name}.png").write_bytes((set_dir / "train/good" / f"{name}.png").read_bytes())
    # The same picture under another name is none.
    (data / "2.png").write_bytes((data / "1.png").read_bytes())
    assert convert.run(arguments(run_dir, "float16", tmp_path / "out", data)) == 0
    assert "was not compared: 2 good pictures" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_batch_of_several_gives_what_one_gives(encoder, converted, pictures, dtype):
    from edge_app.encoder import quantise, read_float
    from edge_app.runtime import open_interpreter

    # 12 pictures and a stretched one set the ranges: not a multiple of 5.
    batched = open_interpreter(convert.to_tflite(encoder, dtype, pictures, batch=5), 1)
    (takes,) = batched.get_input_details()
    assert list(takes["shape"]) == [5, 32, 48, 3]
    batched.set_tensor(takes["index"], quantise(pictures[:5] / 127.5 - 1.0, takes))
    batched.invoke()
    (gives,) = (one for one in batched.get_output_details() if len(one["shape"]) == 2)
    values = batched.get_tensor(gives["index"])
    if dtype == "int8":
        step, zero = gives["quantization"]
        values = (values.astype(np.float32) - zero) * step
    device = Encoder(converted[dtype], 1 / 127.5, -1.0, map_shapes=map_shapes_of(encoder))
    want = np.stack([device.encode(picture).embedding for picture in pictures[:5]])
    tolerance = 1e-5 if dtype == "float32" else 2 * gives["quantization"][0]
    assert np.abs(values - want).max() <= tolerance
    assert np.array_equal(read_float(batched, gives), values[0])


def test_a_batch_below_one_is_refused(encoder):
    with pytest.raises(InputError, match="batch 0: wanted 1"):
        convert.to_tflite(encoder, "float32", batch=0)


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
