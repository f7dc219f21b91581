import argparse
import json

import cv2
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="exports need the tools extra")
pytest.importorskip("tensorflow", reason="exports need the tools extra")

from edge_app.errors import InputError  # noqa: E402
from edge_app.learn_neighbours import ScorerSettings, fit_scorer  # noqa: E402
from edge_app.scorer import FEATURE_SCALINGS, SCORERS, build_scorer  # noqa: E402
from tools import bench_stored  # noqa: E402
from tools.bench_stored import BatchEncoder, BatchScorer, embedding_model  # noqa: E402
from tools.convert import to_tflite  # noqa: E402
from tools.network import build_encoder  # noqa: E402

LAYER = "block_3_expand_relu"


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return build_encoder(None, (32, 32), LAYER, "block_1_expand_relu", alpha=0.35)


@pytest.fixture(scope="module")
def set_dir(tmp_path_factory):
    """Grey pictures of 28 x 28: a bar, upright where it is good, lying where not."""
    folder = tmp_path_factory.mktemp("bars")
    rng = np.random.default_rng(0)
    for name, count in (("train/good", 15), ("test/good", 5), ("test/lying", 4)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = rng.normal(60, 8, (28, 28))
            picture[:, 10 : 16 + index % 3] += 120
            if name == "test/lying":
                picture = picture.T
            picture = np.clip(picture, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), picture)
    return folder


def command(weights_file, set_dir, *more):
    parser = argparse.ArgumentParser()
    bench_stored.configure(parser)
    line = [
        "--weights",
        weights_file,
        "--data",
        set_dir,
        "--size",
        "32",
        "--embedding-layer",
        LAYER,
    ]
    return parser.parse_args([str(word) for word in (*line, *more)])


@pytest.fixture(scope="module")
def figures(weights_file, set_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("json") / "stored.json"
    more = ("--stored", 50, 15, 8, "--batches", 4, 1, "--neighbours", 3, "--json", out)
    args = command(weights_file, set_dir, *more)
    assert bench_stored.run(args) == 0
    return json.loads(out.read_text())


def test_the_table_has_a_row_for_each_number_and_no_more_than_there_are(figures):
    assert [row["stored"] for row in figures["rows"]] == [15, 8]
    assert figures["images"] == {"good": 5, "defective": 4}
    assert figures["encoder"]["embedding_layer"] == LAYER
    assert set(figures["encoder"]["bytes"]) == {"1", "4"}
    for row in figures["rows"]:
        for kind in SCORERS:
            entry = row[kind]
            assert 0 <= entry["image_auroc"] <= 1
            for batch in ("1", "4"):
                assert entry["encoder_ms"][batch] > 0 and entry["score_ms"][batch] > 0
                parts = entry["encoder_ms"][batch] + entry["score_ms"][batch]
                assert entry["ms"][batch] == pytest.approx(parts)
        # A bar that lies is far from upright ones on raw pixels.
        assert row["raw_pixels"] == {"mean_picture": 1.0, "knn": 1.0}


def test_the_batch_sizes_agree(figures):
    assert figures["batch_agreement"]["auroc"] <= bench_stored.SAME_AUROC
    assert figures["batch_agreement"]["embedding"] < 1e-4


def test_more_than_there_are_is_said(weights_file, set_dir, capsys):
    more = ("--stored", 50, "--batches", 1, "--scorer", "knn", "--seed", 3)
    assert bench_stored.run(command(weights_file, set_dir, *more)) == 0
    out = capsys.readouterr().out
    assert "--stored 50: there are 15 good pictures, so all are stored" in out
    assert "lof" not in out


def test_too_few_stored_are_refused_before_any_work(weights_file, set_dir, tmp_path):
    args = command(weights_file, set_dir, "--stored", 15, 4, "--json", tmp_path / "stored.json")
    with pytest.raises(InputError, match="4 good images are too few for 5 neighbours"):
        bench_stored.run(args)
    assert list(tmp_path.iterdir()) == []


def test_a_test_split_of_one_class_is_refused(encoder, set_dir):
    from dataclasses import replace

    from tools.inspection_set import read_inspection_set

    whole = read_inspection_set(set_dir)
    good = replace(whole, test=tuple(one for one in whole.test if not one.is_anomaly))
    with pytest.raises(InputError, match="5 good and 0 defective"):
        bench_stored.bench(encoder, good, [15], [1], [ScorerSettings("knn")], progress=False)


def test_numbers_wanted_come_once_and_largest_first():
    assert bench_stored.sizes([50, 6000, 100, 3000], 1000) == [1000, 100, 50]


def test_a_run_must_be_a_folder(set_dir, tmp_path):
    parser = argparse.ArgumentParser()
    bench_stored.configure(parser)
    line = ["--run", str(tmp_path / "none"), "--data", str(set_dir)]
    with pytest.raises(InputError, match="none: no such RUN folder"):
        bench_stored.run(parser.parse_args(line))


def test_every_batch_size_gives_the_encoders_embedding(encoder):
    model = embedding_model(encoder)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    want = model.predict(pictures.astype(np.float32) / 127.5 - 1, verbose=0)
    for batch in (1, 3):
        exported = BatchEncoder(to_tflite(model, "float32", batch=batch))
        assert (exported.batch, exported.size, exported.dim) == (batch, (32, 32), want.shape[1])
        # 7 is no multiple of 3: the last call is filled up.
        assert np.allclose(exported.encode_all(pictures), want, atol=1e-5)


@pytest.fixture(scope="module")
def embeddings():
    """Stored rows, some of them twice, and queries: near them, far off, and one of them itself."""
    rng = np.random.default_rng(1)
    stored = np.maximum(rng.normal(0.3, 1, (300, 40)), 0).astype(np.float32)
    stored[250:260] = stored[:10]
    queries = stored[5:45] + rng.normal(0, 0.1, (40, 40)).astype(np.float32)
    queries[0], queries[1] = stored[7], 50.0
    return stored, queries


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("feature_scaling", FEATURE_SCALINGS)
def test_scores_of_a_batch_are_the_devices(embeddings, kind, feature_scaling):
    stored, queries = embeddings
    settings = ScorerSettings(kind, 5, feature_scaling)
    arrays = {"embeddings": stored, **fit_scorer(stored, settings)}
    device = build_scorer(kind, 5, feature_scaling, arrays)
    want = np.array([device.score(one) for one in queries])
    got = BatchScorer(kind, 5, feature_scaling, arrays).score(queries)
    assert np.abs(got / want - 1).max() < 1e-5


def test_near_rows_far_from_the_origin_are_told_apart():
    # |r|^2 - 2 r q alone would round the distances away.
    rng = np.random.default_rng(2)
    stored = (1000 + rng.normal(0, 1e-2, (400, 64))).astype(np.float32)
    stored[0] = 0.0
    settings = ScorerSettings("knn", 3, "none")
    arrays = {"embeddings": stored, **fit_scorer(stored, settings)}
    device = build_scorer("knn", 3, "none", arrays)
    want = np.array([device.score(one) for one in stored[1:21]])
    got = BatchScorer("knn", 3, "none", arrays).score(stored[1:21])
    assert np.abs(got / want - 1).max() < 1e-5


def test_equal_rows_are_all_neighbours_and_a_lost_number_is_no_score(embeddings):
    stored = np.ones((50, 8), np.float32)
    stored[40:] = np.arange(10, dtype=np.float32)[:, None]
    scorer = BatchScorer("knn", 5, "none", {"embeddings": stored})
    queries = np.ones((4, 8), np.float32)
    queries[2, 3] = np.nan
    queries[3] = np.inf
    scores = scorer.score(queries)
    assert scores[0] == scores[1] == 0.0
    assert np.isnan(scores[2:]).all()
