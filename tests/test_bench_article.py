"""The two loops that `bench-article` times: that they do the same work, and what it reports."""

import argparse
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tqdm import tqdm

keras = pytest.importorskip("keras", reason="the articles' loop needs Keras (extra 'tools')")

from edge_app.errors import InputError  # noqa: E402
from edge_app.records import Frame  # noqa: E402
from tools import bench_article  # noqa: E402
from tools.bench_article import SIZE, ArticleLoop, device_bundle, device_inspector  # noqa: E402
from tools.convert import to_tflite  # noqa: E402


def _frames(count, seed):
    """Frames at the encoder's own size: the two loops shrink larger ones differently."""
    for frame in bench_article.drawn_frames(count, seed):
        yield Frame(frame.index, frame.source, cv2.resize(frame.frame_bgr, SIZE))


@pytest.fixture(scope="module")
def networks():
    """A small encoder, (embedding, patches) out, and decoders for either output."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    pixels = layers.Input((*SIZE, 3))
    features = layers.Conv2D(12, 7, strides=8, padding="same", activation="tanh")(pixels)
    # Uneven per-channel sums: a plain average of a textured part hardly tells frames apart.
    embedding = layers.GlobalMaxPooling2D(name="embedding")(features)
    encoder = keras.Model(pixels, [embedding, layers.Identity(name="patches")(features)])
    patches = layers.Input((12, 12, 12))
    picture = layers.UpSampling2D(8)(layers.Conv2D(3, 1, activation="sigmoid")(patches))
    vector = layers.Input((12,))
    redraw = layers.Reshape((*SIZE, 3))(layers.Dense(96 * 96 * 3, activation="sigmoid")(vector))
    return encoder, keras.Model(patches, picture), keras.Model(vector, redraw)


@pytest.fixture(scope="module")
def learnt(networks):
    encoder, _, _ = networks
    return bench_article.learn(to_tflite(encoder, "float32"), _frames(40, seed=1))


@pytest.fixture(scope="module")
def bundle(networks, learnt, tmp_path_factory):
    encoder, decoder, _ = networks
    path = tmp_path_factory.mktemp("bench") / "bundle"
    return device_bundle(
        path, to_tflite(encoder, "float32"), to_tflite(decoder, "float32"), learnt, "lof"
    )


def test_both_loops_give_the_same_smoothed_scores(networks, learnt, bundle):
    encoder, _, _ = networks
    article = ArticleLoop(keras.Model(encoder.inputs, encoder.outputs[0]), learnt.embeddings)
    device = device_inspector(bundle, heatmaps=False)
    ours, theirs = [], []
    for frame in _frames(14, seed=2):
        theirs.append(article.inspect(frame.frame_bgr))
        (result,) = device.inspect(frame)
        ours.append(result.decision.score_smoothed)
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_article_loop_draws_a_heatmap_for_every_frame_if_it_has_a_decoder(networks, learnt):
    encoder, _, decoder = networks
    embedder = keras.Model(encoder.inputs, encoder.outputs[0])
    with_heatmap = ArticleLoop(embedder, learnt.embeddings, decoder)
    without = ArticleLoop(embedder, learnt.embeddings)
    overlays = []
    for frame in _frames(2, seed=3):
        assert with_heatmap.inspect(frame.frame_bgr) == without.inspect(frame.frame_bgr)
        overlays.append(with_heatmap.overlay_bgr)
    assert without.overlay_bgr is None
    assert overlays[0].shape == (*SIZE, 3)
    assert overlays[0].dtype == np.uint8
    assert (overlays[0] != overlays[1]).any()


def test_device_loop_is_counted_without_its_warm_up(bundle):
    frames = [frame.frame_bgr for frame in _frames(4, seed=4)]
    every_ng = {**bundle.manifest["threshold"], "value": 0.0}
    never_ng = {**bundle.manifest["threshold"], "value": 1e9}
    for threshold, expected in ((every_ng, 4), (never_ng, 0)):
        changed = replace(bundle, manifest={**bundle.manifest, "threshold": threshold})
        inspector = device_inspector(changed, heatmaps=True)
        with tqdm(disable=True) as bar:
            counted = bench_article.timed_device(inspector, frames, bar)
        assert counted["ng_frames"] == counted["decoder_calls"] == expected
        assert counted["median_ms"] > 0


def test_drawn_frames_are_seeded_and_differ():
    first, again = (list(bench_article.drawn_frames(3, seed=5)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.frame_bgr, other.frame_bgr)
    assert (first[0].frame_bgr != first[1].frame_bgr).mean() > 0.5
    assert first[0].frame_bgr.shape == bench_article.FRAME_SHAPE


def _parse(*options):
    parser = argparse.ArgumentParser()
    bench_article.configure(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0"], "--frames: got 0, wanted at least 1"),
        (["--references", "5"], "--references: got 5, wanted at least 6"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at is no folder"),
        (["--weights", "/nowhere.h5", "--frames", "1"], "/nowhere.h5: no such weights file"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message):
    with pytest.raises(InputError, match=message):
        bench_article.run(_parse(*options))


@pytest.mark.slow
def test_command_reports_every_loop(tmp_path, capsys):
    path = tmp_path / "bench.json"
    options = _parse("--frames", "2", "--references", "12", "--json", str(path))
    assert bench_article.run(options) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    loops = figures["loops"]
    assert list(loops) == list(bench_article._TITLES)
    for kind in ("knn", "lof"):
        assert loops[f"ours_{kind}"]["decoder_calls"] == 0
        assert loops[f"ours_{kind}_heatmap_every_frame"]["decoder_calls"] == 2
        assert figures["article_over_ours"][f"{kind}_heatmap"] == pytest.approx(
            loops["article_heatmap"]["median_ms"] / loops[f"ours_{kind}_heatmap"]["median_ms"]
        )
    printed = capsys.readouterr().out
    assert "12 references" in printed
    assert all(title in printed for title in bench_article._TITLES.values())
