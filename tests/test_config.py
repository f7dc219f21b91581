"""The configuration: defaults, overrides, refusals."""

from __future__ import annotations

import tomllib
from dataclasses import asdict

import pytest

from edge_app.config import DEFAULT_FILE, load_config
from edge_app.errors import ConfigError
from edge_app.learn_neighbours import ScorerSettings


def write(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_the_packaged_file_is_the_default_and_documents_every_key():
    shipped = tomllib.loads(DEFAULT_FILE.read_text())
    assert asdict(load_config(DEFAULT_FILE)) == shipped
    lines = DEFAULT_FILE.read_text().splitlines()
    for keys in shipped.values():
        for key in keys:
            above = lines[
                next(i for i, line in enumerate(lines) if line.startswith(f"{key} =")) - 1
            ]
            assert above.startswith("# "), key


def test_workstation_and_device_fit_the_same_scorer_by_default():
    enroll = load_config(DEFAULT_FILE).enroll
    settings = ScorerSettings(enroll.scorer, enroll.neighbours, enroll.feature_scaling)
    assert settings == ScorerSettings()


def test_a_file_overrides_what_it_names_only(tmp_path):
    config = load_config(write(tmp_path, "[runtime]\nthreads = 3\n[decision]\nng_share = 1\n"))
    assert config.runtime.threads == 3 and config.decision.ng_share == 1
    assert config.enroll == load_config(DEFAULT_FILE).enroll


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[runtme]\nthreads = 1", r"unknown section \[runtme\], the nearest known is runtime"),
        ("[decision]\nsmoothing_frame = 1", "unknown key .*nearest known is smoothing_frames"),
        ("[runtime]\nthreads = 0", "threads is 0, wanted a whole number from 1 to 16"),
        ("[runtime]\nthreads = true", "threads is True, wanted"),
        ("[runtime]\nthreads = '2'", "threads is '2', wanted"),
        ("[enroll]\nfalse_reject_rate = 0.5", "wanted a number above 0, below 0.5"),
        ("[enroll]\nscorer = 'svm'", 'wanted one of "patches", "lof", "knn"'),
        ("[decision]\nng_share = nan", "ng_share is nan, wanted"),
        ("runtime = 1", r"wanted a section \[runtime\]"),
        ("[runtime", "is not TOML"),
    ],
)
def test_refusals_name_file_and_key(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as refused:
        load_config(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[thermal]\ntarget_c = 80\n", "target_c is 80, wanted at most hot_c, which is 78"),
        ("[camera]\nretry_first_s = 60\n", "wanted at most retry_most_s, which is 30"),
    ],
)
def test_limits_that_belong_together_must_rise(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text))
