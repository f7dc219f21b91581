"""What Prometheus is told: names, counts and text as it reads them, and what telling costs."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from edge_app.errors import ConfigError
from edge_app.metrics import MOST_KINDS, Histogram, Metrics
from edge_app.records import Decision, Frame, PartVerdict, Result, Verdict
from edge_app.thermal import Heat

parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client")

LIMIT_S = 30.0
PICTURE = np.zeros((2, 2, 3), np.uint8)
STAGES = {"read": 4.0, "quality": 1.0, "align": 3.0, "encode": 20.0, "score": 2.0, "decide": 0.02}
COOL = Heat("normal", 52.5, frozenset(), 0.0, ())


def frame_of(index=0, seen=True, dropped=0):
    return Frame(index, "camera", PICTURE if seen else None, dropped=dropped)


def result_of(verdict, score=None, reason=None, event="frame", closed=None, stages=STAGES):
    decision = Decision(verdict, score, score, reason, closed=closed)
    return Result(event, frame_of(), decision, 0.0, 1.5, "abc", latency_ms=stages)


def part_of(verdict, reason=None):
    closed = PartVerdict(0, verdict, reason, None, 0, 0, 1, 2, 0, 0)
    return result_of(verdict, None, reason, "part", closed, {})


def read(metrics):
    """The samples by name and labels, as Prometheus's own parser has them."""
    text = metrics.render().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_frames_and_parts_are_counted_by_verdict():
    metrics = Metrics()
    metrics.see(frame_of(), [result_of(Verdict.OK, 1.0)], COOL, 0.03)
    metrics.see(frame_of(), [result_of(Verdict.NG, 2.0)], COOL, 0.03)
    end = [part_of(Verdict.NG), result_of(Verdict.EMPTY)]
    metrics.see(frame_of(), end, COOL, 0.03)
    samples = read(metrics)
    assert samples["edge_app_frames_total",] == 3
    frames = {v: samples["edge_app_verdicts_total", ("verdict", v)] for v in Verdict}
    assert frames == {"OK": 1, "NG": 1, "UNKNOWN": 0, "EMPTY": 1}
    parts = {v: samples["edge_app_parts_total", ("verdict", v)] for v in ("OK", "NG", "UNKNOWN")}
    assert parts == {"OK": 0, "NG": 1, "UNKNOWN": 0}
    assert samples["edge_app_loop_seconds_count",] == 3


def test_a_picture_that_is_a_part_by_itself_counts_as_both():
    metrics = Metrics()
    metrics.see(frame_of(), [result_of(Verdict.NG, 2.0, event="part")], None, 0.03)
    samples = read(metrics)
    assert samples["edge_app_parts_total", ("verdict", "NG")] == 1
    assert samples["edge_app_verdicts_total", ("verdict", "NG")] == 1


def test_unknown_is_counted_by_the_kind_of_its_reason():
    metrics = Metrics()
    for why in ("camera: lost (unplugged), next try in 4 s", "camera: no picture for 2.3 s"):
        metrics.see(frame_of(), [result_of(Verdict.UNKNOWN, reason=why)], COOL, 0.01)
    lost = part_of(Verdict.UNKNOWN, "trigger: no frame in time")
    metrics.see(frame_of(), [lost, result_of(Verdict.EMPTY)], COOL, 0.01)
    metrics.see(frame_of(), [result_of(Verdict.UNKNOWN)], COOL, 0.01)
    samples = read(metrics)
    assert samples["edge_app_unknown_total", ("reason", "camera")] == 2
    assert samples["edge_app_unknown_total", ("reason", "other")] == 1
    assert samples["edge_app_parts_unknown_total", ("reason", "trigger")] == 1
    assert samples["edge_app_unknown_total", ("reason", "trigger")] == 1


def test_a_part_on_its_way_into_view_is_not_counted_as_unknown():
    """An alarm on the counter would never end: every part is cut by the edge for a frame or two."""
    metrics = Metrics()
    decision = Decision(Verdict.UNKNOWN, None, None, "part: cut by the edge of the view", part=0)
    cut = Result("frame", frame_of(), decision, 0.0, 1.5, "abc")
    metrics.see(frame_of(), [cut], COOL, 0.01)
    metrics.see(frame_of(), [part_of(Verdict.OK), result_of(Verdict.EMPTY)], COOL, 0.01)
    samples = read(metrics)
    assert not [key for key in samples if key[0].endswith("unknown_total")]
    assert samples["edge_app_verdicts_total", ("verdict", "UNKNOWN")] == 1


def test_reasons_that_nobody_thought_of_make_no_series_each():
    metrics = Metrics()
    for number in range(500):
        for why in (
            f"Übel {number}: x",
            f"{number}",
            "kind " + "abc"[number // 90 % 3] * (number % 90),
        ):
            metrics.see(frame_of(), [result_of(Verdict.UNKNOWN, reason=why)], COOL, 0.01)
    unknown = {key: value for key, value in read(metrics).items() if "unknown_total" in key[0]}
    assert len(unknown) <= MOST_KINDS + 1
    assert sum(unknown.values()) == 1500


def test_a_frame_that_was_not_judged_is_skipped():
    metrics = Metrics()
    metrics.see(frame_of(), [], COOL, 0.001)
    metrics.see(frame_of(), [part_of(Verdict.OK)], COOL, 0.001)  # a glance that ended one
    samples = read(metrics)
    assert samples["edge_app_frames_skipped_total",] == 2
    assert samples["edge_app_loop_seconds_count",] == 0


def test_durations_lie_in_their_buckets():
    histogram = Histogram((0.001, 0.01))
    for seconds in (0.0005, 0.001, 0.0011, 0.5):
        histogram.add(seconds)
    buckets, total = histogram.buckets()
    assert buckets == [("0.001", 2.0), ("0.01", 3.0), ("+Inf", 4.0)]
    assert total == pytest.approx(0.5026)


def test_stages_are_in_seconds():
    metrics = Metrics()
    metrics.see(frame_of(), [result_of(Verdict.OK, 1.0)], COOL, 0.03)
    samples = read(metrics)
    assert samples["edge_app_stage_seconds_sum", ("stage", "encode")] == pytest.approx(0.02)
    below = {
        float(dict(key[1:])["le"]): value
        for key, value in samples.items()
        if key[0] == "edge_app_stage_seconds_bucket" and ("stage", "encode") in key
    }
    assert below[0.01] == 0 and below[0.025] == 1 and below[math.inf] == 1


def test_what_is_not_known_is_left_out_and_never_zero():
    metrics = Metrics()
    assert not {"edge_app_score", "edge_app_temperature_celsius"} & {
        key[0] for key in read(metrics)
    }
    metrics.see(frame_of(dropped=3), [result_of(Verdict.NG, 2.5)], COOL, 0.03)
    samples = read(metrics)
    assert samples["edge_app_score",] == 2.5 and samples["edge_app_threshold",] == 1.5
    assert samples["edge_app_temperature_celsius",] == 52.5
    assert samples["edge_app_camera_dropped_total",] == 3
    blind = Heat("unwatched", None, frozenset(), 0.0, ())
    lost = result_of(Verdict.UNKNOWN, reason="camera: lost")
    metrics.see(frame_of(seen=False), [lost], blind, 0.0)
    samples = read(metrics)
    assert ("edge_app_score",) not in samples
    assert ("edge_app_temperature_celsius",) not in samples
    assert samples["edge_app_camera_up",] == 0


def test_one_state_of_heat_holds():
    metrics = Metrics()
    metrics.see(frame_of(), [], Heat("hot", 81.0, frozenset(), 1.0, ()), 0.0)
    states = {
        key[1][1]: value for key, value in read(metrics).items() if key[0] == "edge_app_heat_state"
    }
    assert states == {"normal": 0, "warm": 0, "hot": 1, "paused": 0, "unwatched": 0}


def test_outputs_are_asked_when_the_text_is_made():
    output = SimpleNamespace(name="mqtt", failures=0, dropped=0, waiting=0, failing=None)
    metrics = Metrics([output], {"version": "1.2", "part": 'nut "M8"\n'})
    assert read(metrics)["edge_app_output_failures_total", ("output", "mqtt")] == 0
    output.failures, output.dropped, output.failing, output.waiting = 4, 2, "away", 7
    samples = read(metrics)
    said = [
        samples[f"edge_app_output_{what}", ("output", "mqtt")]
        for what in ("failures_total", "dropped_total", "failing", "waiting")
    ]
    assert said == [4, 2, 1, 7]
    assert samples["edge_app_info", ("part", 'nut "M8"\n'), ("version", "1.2")] == 1


def test_the_process_is_watched_too():
    samples = read(Metrics())
    assert samples["process_open_fds",] > 0 and samples["process_resident_memory_bytes",] > 1e6


def test_a_stage_that_is_first_seen_while_the_text_is_made_does_no_harm():
    """The loop goes on counting meanwhile, here in the middle of it."""
    metrics = Metrics()

    class Meanwhile(Histogram):
        def buckets(self):
            stages = {f"new{len(metrics._stages)}": 1.0}
            reason = f"new{'x' * len(metrics._stages)}: x"
            result = result_of(Verdict.UNKNOWN, reason=reason, stages=stages)
            metrics.see(frame_of(), [result], COOL, 0.01)
            return super().buckets()

    metrics._stages["encode"] = Meanwhile((0.1,))
    metrics.see(frame_of(), [result_of(Verdict.OK, 1.0)], COOL, 0.03)
    for asked_for in range(3):
        samples = read(metrics)
        assert samples["edge_app_stage_seconds_count", ("stage", "encode")] == 1
        assert samples["edge_app_frames_total",] == 1 + asked_for


def test_telling_costs_the_loop_little():
    """Against a tenth of the 0.5 ms that the smallest encoder takes; measured as CPU time."""
    metrics = Metrics()
    results, frame = [part_of(Verdict.NG), result_of(Verdict.OK, 1.0)], frame_of()
    best = math.inf
    for _ in range(5):
        started = time.thread_time()
        for _ in range(1000):
            metrics.see(frame, results, COOL, 0.03)
        best = min(best, (time.thread_time() - started) / 1000)
    assert best < 50e-6


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"needs prometheus-client: pip install"):
        Metrics()


class Page(http.server.BaseHTTPRequestHandler):
    def __init__(self, metrics, *rest):
        self.metrics = metrics
        super().__init__(*rest)

    def do_GET(self):
        body = self.metrics.render()
        self.send_response(200)
        self.send_header("Content-Type", self.metrics.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(metrics):
    page = functools.partial(Page, metrics)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: edge-app
    static_configs: [{{targets: ["{target}"]}}]
"""


def asked(port, query):
    """The value of a query, or None while there is none."""
    query = urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=LIMIT_S
        ) as answer:
            found = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return None
    return float(found[0]["value"][1]) if found else None


def until(port, query, wanted):
    """Ask until the value is as wanted; the server scrapes once a second."""
    ended = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not wanted(value := asked(port, query)):
        assert time.monotonic() < ended, f"{query} is {value}"
        pause.wait(0.1)
    return value


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (apt: prometheus)")
def test_prometheus_own_lint_finds_nothing():
    metrics = Metrics(
        [SimpleNamespace(name="mqtt", failures=0, dropped=0, waiting=0, failing=None)], {"a": "b"}
    )
    metrics.see(frame_of(), [result_of(Verdict.UNKNOWN, reason="camera: lost")], COOL, 0.03)
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), capture_output=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (apt: prometheus)")
def test_a_real_prometheus_scrapes_it(tmp_path):
    metrics = Metrics(
        [SimpleNamespace(name="mqtt", failures=3, dropped=0, waiting=0, failing="away")]
    )
    for _ in range(5):
        metrics.see(frame_of(), [result_of(Verdict.NG, 2.0)], COOL, 0.03)
    with served(metrics) as target, contextlib.ExitStack() as ending:
        config = tmp_path / "prometheus.yml"
        config.write_text(CONFIG.format(target=target))
        port = free_port()
        with open(tmp_path / "log", "wb") as log:
            server = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        ending.callback(server.wait, LIMIT_S)
        ending.callback(server.terminate)
        until(port, "up", lambda value: value == 1)
        assert asked(port, 'edge_app_verdicts_total{verdict="NG"}') == 5
        assert asked(port, 'edge_app_output_failures_total{output="mqtt"}') == 3
        assert asked(port, "edge_app_temperature_celsius") == 52.5
        assert asked(port, 'edge_app_heat_state{state="normal"}') == 1
        for _ in range(45):
            metrics.see(frame_of(), [result_of(Verdict.NG, 2.0)], COOL, 0.03)
        ng = 'edge_app_verdicts_total{verdict="NG"}'
        until(port, ng, lambda value: value == 50)
        until(port, f"rate({ng}[30s])", lambda value: value is not None and value > 0)
        p95 = 'histogram_quantile(0.95, edge_app_stage_seconds_bucket{stage="encode"})'
        assert 0.01 < asked(port, p95) <= 0.025
