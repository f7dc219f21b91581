"""
A station: the frames of one source, inspected as fast as trigger and heat allow.

What `inspect`, the live window and the service share of the frame loop. It owns no thread and
draws nothing: a frame goes in, its results come out.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import TracebackType

from edge_app.bundle import Bundle
from edge_app.config import Config
from edge_app.inspector import Inspector
from edge_app.records import Frame, Result
from edge_app.sources import Source
from edge_app.thermal import ThermalWatch
from edge_app.trigger import Gate, GpioInput


class Station:
    """
    Inspects those frames of a source whose turn it is.

    Parameters
    ----------
    inspector : Inspector
        May be replaced between two frames, as `inspector`.
    watch : ThermalWatch, optional
        Sets the pace; without it every frame is taken.
    gate : Gate, optional
        Opens parts by a trigger; the inspector's mode must be ``triggered``.
    gpio : GpioInput, optional
        What fires the gate; closed with the station.

    Attributes
    ----------
    skipped : int
        Frames that were left out to keep cool, or since no part was announced.
    """

    def __init__(
        self,
        inspector: Inspector,
        watch: ThermalWatch | None = None,
        gate: Gate | None = None,
        gpio: GpioInput | None = None,
    ) -> None:
        self.inspector = inspector
        self.watch = watch
        self.gate = gate
        self.skipped = 0
        self._gpio = gpio
        self._announced = False

    def __enter__(self) -> Station:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the input pin."""
        if self._gpio is not None:
            self._gpio.close()

    def take(self, frame: Frame) -> list[Result]:
        """
        The results of a frame; none where it is not its turn.

        A frame without a picture is always taken: that the camera is lost must be said at once.
        While a heat pause lasts, frames are UNKNOWN without being looked at.
        """
        seen = frame.frame_bgr is not None
        # A part that was announced gets its frames: slowed down it would have left before.
        if seen and not self._announced and self.watch is not None and not self.watch.due():
            self.skipped += 1
            return []
        turn, results = None, []
        if self.gate is not None:
            at_s = time.monotonic() if frame.captured_s is None else frame.captured_s
            turn = self.gate.take(at_s)
            self._announced = turn in ("first", "more")
            if turn == "idle" and seen:
                self.skipped += 1
                return []
            if turn in ("first", "only"):
                # One that is open still has been overtaken by the next.
                results = self.inspector.finish()
                self.inspector.open_part(frame)
        degraded, heatmaps = (), True
        if self.watch is not None:
            heat = self.watch.heat
            degraded, heatmaps = heat.degraded, heat.state not in ("hot", "paused")
            if seen and heat.state == "paused":
                pause = f"heat: paused at {heat.temperature_c:.0f} °C"
                frame = replace(frame, frame_bgr=None, problem=pause)
        started = time.perf_counter()
        results += self.inspector.inspect(frame, degraded, heatmaps)
        if turn in ("last", "only"):
            results += self.inspector.finish()
        if seen and self.watch is not None:
            self.watch.worked(time.perf_counter() - started)
        return results

    def finish(self) -> list[Result]:
        """The verdict on the part that is still open when the frames end."""
        return self.inspector.finish()


def build_station(
    bundle: Bundle,
    config: Config,
    source: Source,
    threads: int = 1,
    mode: str = "auto",
    heatmaps: bool = True,
    heatmap: str | None = None,
) -> Station:
    """
    A station as configuration and source want it.

    Parameters
    ----------
    bundle : Bundle
    config : Config
    source : Source
        Only a live one is triggered, and slowed down by heat: files are not to be skipped.
    threads : int
    mode : {'auto', 'single', 'continuous', 'part'}
        `auto`: single for pictures; part where the bundle can tell an empty view or a trigger
        opens parts; continuous elsewhere.
    heatmaps : bool
        Whether NG results carry an overlay.
    heatmap : {'auto', 'patch', 'decoder'}, optional
        By default what the configuration says.

    Raises
    ------
    BundleError, InputError
        If the bundle cannot inspect, or there is no input pin where one is wanted.
    """
    triggered = source.live and config.trigger.kind != "presence" and mode in ("auto", "part")
    if mode == "auto":
        alignment = bundle.manifest["alignment"]["recipe"]
        knows_empty = bundle.manifest["presence"] is not None or alignment != "none"
        mode = "single" if source.separate_parts else "part" if knows_empty else "continuous"
    decision = config.decision
    if triggered:
        mode = "triggered"
        # A part that is announced has so many frames and no more.
        usable = min(decision.least_usable_frames, config.trigger.frames)
        decision = replace(decision, least_usable_frames=usable)
    inspector = Inspector(
        bundle,
        decision,
        mode,
        threads,
        heatmaps,
        heatmap or config.heatmap.kind,
        config.quality,
    )
    watch = ThermalWatch(config.thermal) if source.live and config.thermal.enabled else None
    gate = Gate(config.trigger) if triggered else None
    gpio = GpioInput(config.trigger, gate) if gate and config.trigger.kind == "gpio" else None
    return Station(inspector, watch, gate, gpio)
