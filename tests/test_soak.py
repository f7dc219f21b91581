"""The soak: what its samples come to, and a short one of the real service."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge_app.errors import InputError
from tools.__main__ import main
from tools.soak import BATCH_MB, KEEP_MB, LEAST_SAMPLES, Sample, judge

STEADY = Sample(0.0, 130.0, 16, 9, 20.0, 1.0, 0, 0.5, 4.0, 4.0, 8.0)


def run_of(*changes, count=50):
    """Samples two seconds apart, 100 frames a second; `changes` take a sample and its share."""
    samples = []
    for number in range(count):
        sample = replace(STEADY, at_s=2.0 * number, frames=200 * number)
        for change in changes:
            sample = change(sample, number / (count - 1))
        samples.append(sample)
    return judge(samples, minutes=count * 2 / 60)


def test_a_steady_run_fails_nothing():
    outcome = run_of()
    assert outcome.failures() == []
    assert outcome.rate == pytest.approx(100.0) and outcome.frames == 9800
    assert (outcome.rss_before_mb, outcome.rss_after_mb) == (130.0, 130.0)


def test_what_happens_in_the_warm_up_does_not_count():
    cold = {"rss_mb": 90.0, "handles": 40, "judged_p99_ms": 90.0, "pictures_mb": 99.0}
    outcome = run_of(lambda s, at: replace(s, **cold) if at < 0.19 else s)
    assert outcome.failures() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, at: replace(s, rss_mb=130.0 + 20 * at), "memory grew by"),
        (lambda s, at: replace(s, handles=16 + int(10 * at)), "handles grew from"),
        (lambda s, at: replace(s, judged_p99_ms=12.1), "p99 of a judged frame is 3.0 times p50"),
        (lambda s, at: replace(s, judged_p99_ms=float("nan")), "p99 of a judged frame is nan"),
        (lambda s, at: replace(s, pictures_mb=KEEP_MB + BATCH_MB + 1.0), "the event store holds"),
    ],
)
def test_each_limit_can_be_left(change, says):
    (failure,) = run_of(change).failures()
    assert failure.startswith(says)


def test_too_few_samples_are_no_soak():
    with pytest.raises(InputError, match=f"wanted at least {LEAST_SAMPLES}"):
        run_of(count=LEAST_SAMPLES - 1)


@pytest.mark.slow
def test_the_real_service_is_soaked(tmp_path, capsys):
    file = tmp_path / "soak.json"
    # Other work on the machine may lengthen the tail: what is tested is that it is measured.
    assert main(["soak", "--minutes", "0.5", "--json", str(file)]) in (0, 1)
    kept = json.loads(file.read_text())
    assert kept["outcome"]["frames"] > 0 and len(kept["samples"]) >= LEAST_SAMPLES
    assert not [failure for failure in kept["failures"] if "p99" not in failure]
    assert "loop, judged frames" in capsys.readouterr().out
