"""The main job on photographs: enrol thirty good ones, judge the rest."""

from __future__ import annotations

import json
import math

import pytest
from conftest import SHARED

from edge_app.cli import main
from edge_app.sources.folder import list_pictures

PRESENCE = SHARED / "data" / "screw_presence"

pytestmark = pytest.mark.skipif(
    not PRESENCE.is_dir(), reason="needs the photographs of screw_presence beside the checkout"
)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory, base_path):
    root = tmp_path_factory.mktemp("presence")
    thirty = root / "thirty"
    thirty.mkdir()
    for path in list_pictures(PRESENCE / "train" / "good")[:30]:
        (thirty / path.name).symlink_to(path)
    argv = ["enroll", thirty, "--bundle", base_path, "--out", root / "bundle"]
    assert main([str(arg) for arg in argv]) == 0
    return root / "bundle"


def scores(bundle, kind, out):
    path = out / f"{kind}.jsonl"
    argv = ["inspect", PRESENCE / "test" / kind, "--bundle", bundle, "--json", path]
    assert main([str(arg) for arg in argv]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_missing_screws_are_found(enrolled, tmp_path):
    good, missing = (scores(enrolled, kind, tmp_path) for kind in ("good", "missing"))

    def scored(line):
        # Where no screw is found there is none: the surest find of all.
        return math.inf if line["score"] is None else line["score"]

    # A good part that could not be judged is no false alarm and no find: left out.
    judged = [line for line in good if line["verdict"] != "UNKNOWN"]
    assert len(judged) >= 0.95 * len(good)
    pairs = [(scored(a), scored(b)) for a in missing for b in judged]
    auroc = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    # Brightness, contrast or sharpness alone reach 0.49 to 0.66 here.
    assert auroc > 0.995
    # One that is too blurred to be judged is not passed either.
    passed = sum(line["verdict"] == "OK" for line in missing)
    assert passed <= 0.02 * len(missing)
    assert sum(line["verdict"] == "OK" for line in good) >= 0.9 * len(good)
