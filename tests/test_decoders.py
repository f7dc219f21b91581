"""The decoders' shapes and size, and that training makes one that restores instead of copying."""

import json

import numpy as np
import pytest

from edge_app.errors import InputError
from tools.decoders import build_decoder
from tools.drawn_defects import draw_defect

keras = pytest.importorskip("keras")

SIZE = (32, 64)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_mobile_takes_patches_of_every_cut_and_any_size(stride):
    patch_shape = (64 // stride, 96 // stride, 48)
    decoder = build_decoder("mobile", (64, 96), 1280, patch_shape)
    assert decoder.input_shape == (None, *patch_shape)
    assert decoder.output_shape == (None, 64, 96, 3)
    assert decoder.count_params() < 300_000


def test_standard_is_the_articles_network():
    decoder = build_decoder("standard", (96, 96), 1280, (6, 6, 576))
    assert decoder.input_shape == (None, 1280)
    assert decoder.output_shape == (None, 96, 96, 3)
    assert decoder.count_params() == pytest.approx(20.3e6, rel=0.005)
    dense = sum(layer.count_params() for layer in decoder.layers if "dense" in layer.name)
    assert dense / decoder.count_params() > 0.98


def test_mobile_under_a_million_at_the_largest_input_and_widest_encoder():
    decoder = build_decoder("mobile", (320, 320), 1792, (20, 20, 816))
    assert decoder.count_params() < 1_000_000


@pytest.mark.parametrize(
    ("kind", "size", "patch_shape"),
    [
        ("big", (64, 64), (4, 4, 8)),
        ("standard", (64, 72), (4, 5, 8)),
        ("mobile", (64, 0), (4, 0, 8)),
        ("mobile", (64, 64), (2, 4, 8)),
        ("mobile", (64, 64), (32, 32, 8)),
    ],
)
def test_what_does_not_fit_is_refused(kind, size, patch_shape):
    with pytest.raises(ValueError, match="wanted"):
        build_decoder(kind, size, 16, patch_shape)


def _parts(count: int) -> np.ndarray:
    """Bright disks at slightly different places and of different brightness on a dark ground."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    pictures = []
    for _ in range(count):
        cy, cx = 16 + rng.uniform(-2, 2), 32 + rng.uniform(-4, 4)
        disk = (y - cy) ** 2 + (x - cx) ** 2 < 11**2
        grey = np.where(disk, rng.uniform(160, 200), 50) + rng.normal(0, 3, SIZE)
        pictures.append(np.repeat(grey[..., None], 3, axis=2))
    return np.clip(pictures, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder():
    """Random but fixed features: enough to copy a picture from, so restoring must be learnt."""
    pixels = keras.Input((*SIZE, 3))
    init = keras.initializers.GlorotUniform(seed=3)
    x = keras.layers.Conv2D(24, 8, strides=8, activation="relu", kernel_initializer=init)(pixels)
    return keras.Model(pixels, [keras.layers.GlobalAveragePooling2D()(x), x])


@pytest.fixture(scope="module")
def trained(encoder):
    from tools.train_decoder import train_decoder

    pictures = _parts(40)
    before = encoder.get_weights()
    decoder, report = train_decoder(encoder, pictures, "mobile", 0, 14, progress=False)
    for was, now in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    return decoder, report, pictures


def test_report_describes_the_training(trained):
    decoder, report, pictures = trained
    assert report["held_out_images"] == len(report["held_out"]) == 4
    assert report["train_images"] == 36
    assert report["parameters"] == decoder.count_params()
    assert 1 <= report["best_epoch"] <= report["epochs"] <= 14
    json.dumps(report, allow_nan=False)
    # The mean picture is what a decoder that ignores its input would draw at best.
    held = np.isin(np.arange(40), report["held_out"])
    mean = np.abs(pictures[held] / 255.0 - pictures[~held].mean(axis=0) / 255.0).mean()
    assert report["redraw_mae"] < mean


def test_redraw_lacks_the_drawn_defect(encoder, trained):
    decoder, report, pictures = trained
    rng = np.random.default_rng(11)
    good = pictures[report["held_out"]].repeat(8, axis=0)
    drawn, masks = map(np.array, zip(*(draw_defect(p, rng) for p in good), strict=True))
    redrawn = decoder.predict(encoder.predict(drawn / 127.5 - 1.0, verbose=0)[1], verbose=0)
    to_good = np.abs(redrawn - good / 255.0)[masks].mean()
    to_defect = np.abs(redrawn - drawn / 255.0)[masks].mean()
    assert to_good < 0.7 * to_defect


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("int8", 0.08)])
def test_tflite_redraws_the_same(encoder, trained, dtype, tolerance):
    from tools.convert import to_tflite
    from tools.parity import parity

    decoder, _, pictures = trained
    rows = encoder.predict(pictures / 127.5 - 1.0, verbose=0)[1]
    figures = parity(decoder, to_tflite(decoder, dtype, rows), rows[:4])["output"]
    assert figures["max_abs_difference"] < tolerance


def test_standard_learns_from_the_embedding(encoder):
    from tools.train_decoder import train_decoder

    decoder, report = train_decoder(encoder, _parts(8), "standard", 0, 1, progress=False)
    assert decoder.input_shape == (None, 24)
    assert report["drawings_per_image"] == 0 and "restored_mae" not in report


def test_too_few_or_misshapen_pictures_are_refused(encoder):
    from tools.train_decoder import train_decoder

    with pytest.raises(InputError, match="got 3 good pictures, wanted 4 or more"):
        train_decoder(encoder, _parts(3), "mobile", 0, progress=False)
    with pytest.raises(ValueError, match="pictures must be uint8"):
        train_decoder(encoder, _parts(5)[:, :, :32], "mobile", 0, progress=False)


@pytest.fixture
def run_dir(tmp_path, encoder):
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "run"
    folder.mkdir()
    encoder.save(folder / "encoder.keras")
    (folder / "run.json").write_text(json.dumps({"size": list(SIZE), "loss": "doc"}))
    good = tmp_path / "data" / "train" / "good"
    good.mkdir(parents=True)
    for index, picture in enumerate(_parts(6)):
        cv2.imwrite(str(good / f"{index}.png"), picture[..., ::-1])
    return folder


def _command(*arguments) -> int:
    import argparse

    from tools import train_decoder

    parser = argparse.ArgumentParser()
    train_decoder.configure(parser)
    args = parser.parse_args([str(word) for word in arguments])
    args.typed = ["train-decoder", *map(str, arguments)]
    return train_decoder.run(args)


def test_command_leaves_a_decoder_that_fit_can_take(run_dir, encoder, tmp_path):
    import cv2

    from tools.train_decoder import decoder_of_run, train_decoder

    assert decoder_of_run(run_dir, encoder) is None
    sheet = tmp_path / "redraws.png"
    data = tmp_path / "data"
    assert _command("--run", run_dir, "--data", data, "--epochs", 1, "--redraws", sheet) == 0
    record = json.loads((run_dir / "run.json").read_text())
    assert record["loss"] == "doc" and record["decoder"]["kind"] == "mobile"
    assert {path.name for path in run_dir.iterdir()} == {
        "encoder.keras",
        "decoder.keras",
        "run.json",
    }
    assert cv2.imread(str(sheet)).shape == (2 * SIZE[0], 6 * SIZE[1], 3)

    decoder, report = decoder_of_run(run_dir, encoder)
    assert report["kind"] == "mobile" and report["held_out"] == []
    assert decoder.input_shape == encoder.output_shape[1]

    # The command and the function do the same from the same seed, to the last bit.
    again, again_report = train_decoder(encoder, _parts(6), "mobile", 0, 1, progress=False)
    for one, two in zip(decoder.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert again_report["redraw_mse"] == report["redraw_mse"]

    other = keras.Model(encoder.input, [encoder.output[0], encoder.output[1][:, ::2]])
    assert decoder_of_run(run_dir, other) is None
    (run_dir / "decoder.keras").write_bytes(b"no archive")
    with pytest.raises(InputError, match="decoder.keras: cannot be loaded"):
        decoder_of_run(run_dir, encoder)


@pytest.mark.parametrize("extra", [("--epochs", "0"), ("--redraws", "sheet.jpg")])
def test_command_refuses_bad_options_before_any_work(tmp_path, extra):
    with pytest.raises(InputError, match=extra[0]):
        _command("--run", tmp_path / "none", "--data", tmp_path / "none", *extra)
