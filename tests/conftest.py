"""What the tests share: the shipped bundles and clip, and pictures drawn here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def nut_path() -> Path:
    return ROOT / "models" / "nut"


@pytest.fixture(scope="session")
def base_path() -> Path:
    return ROOT / "models" / "base"


@pytest.fixture(scope="session")
def encoder(base_path):
    """The shipped encoder without a part."""
    from edge_app.bundle import load_bundle
    from edge_app.inspector import build_encoder

    return build_encoder(load_bundle(base_path), 1)


@pytest.fixture(scope="session")
def clip_path() -> Path:
    return ROOT / "models" / "sample" / "clip.mp4"


@pytest.fixture(scope="session")
def nut_bundle(nut_path):
    from edge_app.bundle import load_bundle

    return load_bundle(nut_path)


@pytest.fixture(scope="session")
def clip_frames(clip_path) -> list[np.ndarray]:
    """All frames of the shipped clip, BGR."""
    from edge_app.sources.video import VideoSource

    source = VideoSource(clip_path)
    frames = [frame.frame_bgr for frame in source.frames()]
    source.close()
    return frames


@pytest.fixture(scope="session")
def clip_truth(clip_path) -> dict:
    import json

    return json.loads(clip_path.with_suffix(".json").read_text())


@pytest.fixture(scope="session")
def still_frames(clip_frames, clip_truth) -> dict[str, list[np.ndarray]]:
    """Frames of the clip with a part at rest: `good`, `bad`; and without one: `empty`."""
    parts = clip_truth["parts"]
    by_kind: dict[str, list[np.ndarray]] = {"good": [], "bad": [], "empty": []}
    for part in parts:
        kind = "bad" if part["defect"] else "good"
        first, last = part["still_first_frame"], part["still_last_frame"]
        by_kind[kind] += clip_frames[first : last + 1]
    covered = {
        index for part in parts for index in range(part["first_frame"], part["last_frame"] + 1)
    }
    by_kind["empty"] = [frame for i, frame in enumerate(clip_frames) if i not in covered]
    return by_kind


@pytest.fixture(scope="session")
def pooled_bundle(tmp_path_factory, base_path, still_frames):
    """A bundle that scores pooled embeddings by LOF, enrolled from frames of the clip."""
    from edge_app.bundle import load_bundle
    from edge_app.cli import main

    root = tmp_path_factory.mktemp("pooled")
    (root / "good").mkdir()
    for index, frame in enumerate(still_frames["good"][:84:7]):
        cv2.imwrite(str(root / "good" / f"{index:03d}.png"), frame)
    argv = ["enroll", root / "good", "--bundle", base_path, "--out", root / "b", "--scorer", "lof"]
    assert main([str(arg) for arg in argv]) == 0
    return load_bundle(root / "b")


@pytest.fixture
def good_folder(tmp_path, still_frames) -> Path:
    """A folder of 12 good pictures from the clip, of all its good parts."""
    folder = tmp_path / "good"
    folder.mkdir()
    for index, frame in enumerate(still_frames["good"][:84:7]):
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame)
    return folder


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory) -> Path:
    """Weights of an untrained MobileNetV2 of width 0.35, for whatever needs some."""
    keras = pytest.importorskip("keras", reason="needs the tools extra")
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None)
    path = tmp_path_factory.mktemp("weights") / "random.weights.h5"
    network.save_weights(path)
    return path
