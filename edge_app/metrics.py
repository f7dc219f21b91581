"""
Metrics for Prometheus: what the frame loop counts, as text that a server comes for.

The loop adds to plain numbers and takes no lock; the text is made by whoever asks for it. A reader
may so see a frame in one metric and not yet in the next, which no rate over seconds can tell. Names
and units follow https://prometheus.io/docs/practices/naming/. The station's name is left to the
server that scrapes (`instance` or an external label): it would stand in every line.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from edge_app.errors import ConfigError
from edge_app.records import Frame, Result, Verdict
from edge_app.thermal import Heat

# Upper bounds, seconds. Stages take from some 10 us (decide) to a second (heatmap on a slow board),
# the whole loop from a millisecond to the seconds of a board that swaps.
STAGE_BOUNDS_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
LOOP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
HEAT_STATES = ("normal", "warm", "hot", "paused", "unwatched")
# A reason's kind is a word or two of this program. Anything else, or more than so many, would make
# a new time series of each text, for ever.
KIND = re.compile(r"[a-z][a-z -]{0,30}")
MOST_KINDS = 50
OTHER = "other"


class Counted(Protocol):
    """What is told of an output: an `edge_app.outbox.Outbox`."""

    name: str
    dropped: int
    failures: int

    @property
    def failing(self) -> str | None: ...

    @property
    def waiting(self) -> int: ...


class Histogram:
    """
    How many durations lay below which bound.

    Parameters
    ----------
    bounds_s : sequence of float
        Rising, seconds; each counts what is at most as long.
    """

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Bounds with how many were at most so long, the last without bound; and the sum."""
        counts, total, found = list(self._counts), 0, []
        for bound, count in zip((*self._bounds_s, math.inf), counts, strict=True):
            total += count
            found.append(("+Inf" if math.isinf(bound) else repr(bound), float(total)))
        return found, self._sum_s


class Metrics:
    """
    What the service tells Prometheus.

    Parameters
    ----------
    outputs : iterable of Counted
        Looked at whenever the text is asked for; may be replaced, as `outputs`.
    info : dict of str to str, optional
        Labels of ``edge_app_info``, such as version, part and bundle; may be replaced, as `info`.

    Attributes
    ----------
    content_type : str
        What `render` gives, for the header of the answer.

    Raises
    ------
    ConfigError
        If prometheus-client is not installed.
    """

    def __init__(self, outputs: Iterable[Counted] = (), info: dict[str, str] | None = None) -> None:
        try:
            import prometheus_client
            from prometheus_client import core
        except ImportError:
            raise ConfigError(
                "[metrics] is enabled, which needs prometheus-client: "
                "pip install 'edge-app[service]'"
            ) from None
        self.outputs = outputs
        self.info = {} if info is None else info
        self._families: Any = core
        self._generate = prometheus_client.generate_latest
        self.content_type: str = prometheus_client.CONTENT_TYPE_LATEST
        self._frames = self._skipped = 0
        self._verdicts = {verdict: 0 for verdict in Verdict}
        self._parts = {verdict: 0 for verdict in Verdict if verdict is not Verdict.EMPTY}
        self._unknown: dict[str, int] = {}
        self._unknown_parts: dict[str, int] = {}
        self._stages: dict[str, Histogram] = {}
        self._loop = Histogram(LOOP_BOUNDS_S)
        self._heat: Heat | None = None
        self._threshold: float | None = None
        self._score: float | None = None
        self._dropped = 0
        self._up = False
        self._seen_s: float | None = None
        self._registry = prometheus_client.CollectorRegistry()
        # Memory and handles of the process: what grows over months shows there first.
        prometheus_client.ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def see(
        self, frame: Frame, results: Sequence[Result], heat: Heat | None, work_s: float
    ) -> None:
        """
        Count a frame; the frame loop's thread alone calls it, once a frame.

        Parameters
        ----------
        frame : Frame
        results : sequence of Result
            What it gave: its own, that of a part that it ended, or nothing.
        heat : Heat or None
        work_s : float
            What all of it took, seconds.
        """
        self._frames += 1
        self._heat, self._dropped = heat, frame.dropped
        self._up = frame.frame_bgr is not None
        self._seen_s = time.time()
        if self.count(results):
            self._loop.add(work_s)
        else:
            self._skipped += 1

    def count(self, results: Sequence[Result]) -> bool:
        """
        Count results, of whatever frame; whether a frame's own is among them.

        `see` does so itself. A part that another bundle's coming ended has no frame of its own.
        """
        judged = False
        for result in results:
            decision = result.decision
            verdict = decision.verdict
            self._threshold = result.threshold
            if result.event == "part":
                self._parts[verdict] = self._parts.get(verdict, 0) + 1
                if verdict is Verdict.UNKNOWN:
                    _count(self._unknown_parts, decision.reason)
            # A part on its way into view is UNKNOWN for a frame or two; what counts is its verdict.
            within_part = result.event == "frame" and decision.part is not None
            if verdict is Verdict.UNKNOWN and not within_part:
                _count(self._unknown, decision.reason)
            if decision.closed is not None:
                continue  # the part's; its frames have been counted each
            judged = True
            self._score = decision.score
            self._verdicts[verdict] += 1
            for stage, ms in result.latency_ms.items():
                histogram = self._stages.get(stage)
                if histogram is None:
                    histogram = self._stages[stage] = Histogram(STAGE_BOUNDS_S)
                histogram.add(ms / 1e3)
        return judged

    def render(self) -> bytes:
        """The text, for any thread."""
        return self._generate(self._registry)

    def collect(self) -> Iterator[Any]:
        """The metric families; prometheus-client's registry asks for them."""
        core = self._families

        def counter(name: str, text: str, value: float) -> Any:
            return core.CounterMetricFamily(f"edge_app_{name}", text, value=value)

        def gauge(name: str, text: str, value: float | None) -> Any:
            # One that is not known is left out: Prometheus knows gaps, and 0 would be a value.
            family = core.GaugeMetricFamily(f"edge_app_{name}", text)
            if value is not None:
                family.add_metric([], value)
            return family

        def by(kind: Any, name: str, text: str, label: str, values: dict[str, float]) -> Any:
            family = kind(f"edge_app_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([str(key)], value)
            return family

        counters, gauges = core.CounterMetricFamily, core.GaugeMetricFamily
        info = core.InfoMetricFamily("edge_app", "What runs here.")
        info.add_metric([], {key: str(value) for key, value in self.info.items()})
        yield info
        yield counter("frames", "Frames taken from the source, judged or not.", self._frames)
        yield counter(
            "frames_skipped",
            "Frames that were not judged: to keep cool, or as no part was announced.",
            self._skipped,
        )
        yield counter(
            "camera_dropped", "Pictures of the camera that nobody took in time.", self._dropped
        )
        yield by(counters, "verdicts", "Frames by verdict.", "verdict", dict(self._verdicts))
        yield by(counters, "parts", "Parts by verdict.", "verdict", dict(self._parts))
        yield by(
            counters,
            "unknown",
            "UNKNOWN parts, and UNKNOWN frames outside parts, by reason.",
            "reason",
            dict(self._unknown),
        )
        yield by(
            counters,
            "parts_unknown",
            "UNKNOWN parts by reason.",
            "reason",
            dict(self._unknown_parts),
        )
        stages = core.HistogramMetricFamily(
            "edge_app_stage_seconds", "Time that a stage took for a frame.", labels=["stage"]
        )
        for stage, histogram in list(self._stages.items()):
            stages.add_metric([stage], *histogram.buckets())
        yield stages
        loop = core.HistogramMetricFamily(
            "edge_app_loop_seconds", "Time that all of a judged frame took."
        )
        loop.add_metric([], *self._loop.buckets())
        yield loop
        yield gauge("score", "Score of the newest frame; higher is more anomalous.", self._score)
        yield gauge("threshold", "Scores above it are NG.", self._threshold)
        yield gauge("camera_up", "1 while the camera delivers pictures.", float(self._up))
        yield gauge("last_frame_timestamp_seconds", "When the newest frame came.", self._seen_s)
        heat = self._heat
        yield gauge(
            "temperature_celsius",
            "Temperature of the board, filtered.",
            None if heat is None else heat.temperature_c,
        )
        states = {} if heat is None else {state: state == heat.state for state in HEAT_STATES}
        yield by(gauges, "heat_state", "1 for what is done about the heat.", "state", states)
        outputs = list(self.outputs)
        for kind, name, text, values in (
            (counters, "output_failures", "Tries that failed.", [o.failures for o in outputs]),
            (counters, "output_dropped", "What was never taken.", [o.dropped for o in outputs]),
            (gauges, "output_waiting", "What is not taken yet.", [o.waiting for o in outputs]),
            (
                gauges,
                "output_failing",
                "1 while it does not work.",
                [o.failing is not None for o in outputs],
            ),
        ):
            names = [output.name for output in outputs]
            yield by(kind, name, text, "output", dict(zip(names, values, strict=True)))


def _count(counts: dict[str, int], reason: str | None) -> None:
    kind = (reason or OTHER).partition(":")[0]
    if kind not in counts and (not KIND.fullmatch(kind) or len(counts) >= MOST_KINDS):
        kind = OTHER
    counts[kind] = counts.get(kind, 0) + 1
