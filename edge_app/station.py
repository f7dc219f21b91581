"""
A station: the frames of one source, inspected as fast as trigger and heat allow.

What `inspect`, the live window and the service share of the frame loop. It owns no thread and
draws nothing: a frame goes in, its results come out.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from types import TracebackType

from edge_app.bundle import Bundle
from edge_app.config import Config, DecisionConfig
from edge_app.errors import InputError
from edge_app.inspector import Inspector
from edge_app.records import Frame, Result
from edge_app.sources import Source
from edge_app.thermal import ThermalWatch
from edge_app.trigger import Gate, GpioInput

# Who must be there to fire a trigger.
_FIRED_BY = {
    "key": "only edge-app live has a key to press",
    "mqtt": "nobody listens: edge-app run does, with [mqtt] enabled",
    "http": "nobody listens: edge-app run does, with [web] enabled",
}


class Station:
    """
    Inspects those frames of a source whose turn it is.

    Parameters
    ----------
    inspector : Inspector
        May be replaced between two frames: `replace_inspector`.
    watch : ThermalWatch, optional
        Sets the pace; without it every frame is taken.
    gate : Gate, optional
        Opens parts by a trigger; the inspector's mode must be ``triggered``.
    gpio : GpioInput, optional
        What fires the gate; closed with the station.

    Attributes
    ----------
    hold : str or None
        While set, every frame is UNKNOWN for this reason, as ``kind: detail``, and not looked at.
    skipped, idle : int
        Frames that were left out to keep cool, and since no part was announced.
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
        self.hold: str | None = None
        self.skipped = self.idle = 0
        self._gpio = gpio
        self._told = 0
        # The part that is open, or was last, and its time: no two are open at once.
        self._announced: tuple[int, float | None] | None = None

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

        A frame without a picture is always taken: that the camera is lost must be said at once. One
        that heat or trigger leaves out is still looked at so far that the parts before and after it
        are not taken for one, and that a frozen camera is noticed. While a heat pause or a hold
        lasts, frames are UNKNOWN without being looked at.
        """
        return [self._dated(result, frame) for result in self._take(frame)]

    def _take(self, frame: Frame) -> list[Result]:
        results: list[Result] = []
        if frame.frame_bgr is not None and self.hold is not None:
            frame = replace(frame, frame_bgr=None, problem=self.hold)
            if self.watch is not None:
                self.watch.due()  # reads the sensor
        seen, watch, inspector = frame.frame_bgr is not None, self.watch, self.inspector
        # Asked of every frame, so that the sensor is read whatever the trigger does.
        due = not seen or watch is None or watch.due()
        heat = None if watch is None else watch.heat
        degraded = () if heat is None else heat.degraded
        turn = None
        if self.gate is not None:
            at_s = time.monotonic() if frame.captured_s is None else frame.captured_s
            turn = self.gate.take(at_s)
            results += self._unseen(frame)
            if turn == "idle" and seen:
                self.idle += 1
                return results + inspector.glance(frame, "trigger: no part announced", degraded)
            if turn in ("first", "only"):
                # One that is open still has been overtaken by the next.
                results += inspector.finish()
                inspector.open_part(frame)
            # An announced part gets its frames: slowed down it would have left before.
            due = True
        if not due:
            self.skipped += 1
            return results + inspector.glance(frame, "heat: slowed down", degraded)
        if seen and heat is not None and heat.state == "paused":
            pause = f"heat: paused at {heat.temperature_c:.0f} °C"
            frame = replace(frame, frame_bgr=None, problem=pause)
        heatmaps = heat is None or not heat.too_hot_to_draw
        started = time.perf_counter()
        results += inspector.inspect(frame, degraded, heatmaps)
        if turn in ("last", "only"):
            results += inspector.finish()
        if seen and watch is not None:
            watch.worked(time.perf_counter() - started)
        return results

    def _unseen(self, frame: Frame) -> list[Result]:
        """The verdicts on announced parts of which there was no frame."""
        results = []
        while self._told < self.gate.unseen:
            self._told += 1
            results += self.inspector.finish()
            self.inspector.open_part(frame, "trigger: no frame in time")
            announced_s = self.gate.unseen_s.popleft() if self.gate.unseen_s else None
            results += [
                replace(result, announced_s=announced_s) for result in self.inspector.finish()
            ]
        return results

    def _dated(self, result: Result, frame: Frame) -> Result:
        """The result with the time at which its part was announced, or first seen."""
        part = result.decision.part
        if part is None or result.announced_s is not None:
            return result
        if self._announced is None or self._announced[0] != part:
            self._announced = part, frame.captured_s if self.gate is None else self.gate.opened_s
        return replace(result, announced_s=self._announced[1])

    def replace_inspector(self, inspector: Inspector) -> list[Result]:
        """
        Go on with another inspector, which numbers the parts on.

        Returns
        -------
        list of Result
            Of the part that is open, which this cuts off: UNKNOWN, and the only one it gets.
        """
        results = [self._dated(result, Frame(-1, "", None)) for result in self.inspector.cut_off()]
        inspector.follow(self.inspector)
        self.inspector = inspector
        return results

    def finish(self) -> list[Result]:
        """The verdict on the part that is still open when the frames end."""
        none = Frame(-1, "", None)
        return [self._dated(result, none) for result in self.inspector.finish()]


def tells_empty(bundle: Bundle) -> bool:
    """Whether a bundle knows a view without a part, which is what ends a part in mode part."""
    manifest = bundle.manifest
    return manifest["presence"] is not None or manifest["alignment"]["recipe"] != "none"


def rules_for(
    bundle: Bundle,
    config: Config,
    source: Source,
    mode: str = "auto",
    fires: Collection[str] = (),
) -> tuple[DecisionConfig, str]:
    """
    The inspector's settings and mode for a source; parameters and errors as `build_station`.

    Returns
    -------
    decision : DecisionConfig
    mode : {'single', 'continuous', 'part', 'triggered'}
    """
    kind, decision = config.trigger.kind, config.decision
    if source.live and kind != "presence":
        if mode in ("single", "continuous"):
            raise InputError(
                f"[trigger] kind is {kind!r}, which opens parts: wanted mode part or auto"
            )
        if kind != "gpio" and kind not in fires:
            raise InputError(f"[trigger] kind is {kind!r}, but {_FIRED_BY[kind]}")
        # A part that is announced has so many frames and no more.
        usable = min(decision.least_usable_frames, config.trigger.frames)
        return replace(decision, least_usable_frames=usable), "triggered"
    if mode == "auto":
        mode = "part" if tells_empty(bundle) else "continuous"
        mode = "single" if source.separate_parts else mode
    return decision, mode


def build_station(
    bundle: Bundle,
    config: Config,
    source: Source,
    threads: int = 1,
    mode: str = "auto",
    heatmaps: bool = True,
    heatmap: str | None = None,
    fires: Collection[str] = (),
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
    fires : collection of str
        Kinds of trigger, other than an input pin, that somebody can fire here.

    Raises
    ------
    BundleError, ConfigError, InputError
        If the bundle cannot inspect, there is no input pin where one is wanted, or nothing that
        could trigger.
    """
    decision, mode = rules_for(bundle, config, source, mode, fires)
    inspector = Inspector(
        bundle,
        decision,
        mode,
        threads,
        heatmaps,
        heatmap or config.heatmap.kind,
        config.quality,
    )
    return Station(inspector, *conditions_for(config, source, mode))


def conditions_for(
    config: Config, source: Source, mode: str
) -> tuple[ThermalWatch | None, Gate | None, GpioInput | None]:
    """
    What a station of this source goes by: heat watch, gate, and the input pin that fires it.

    Parameters
    ----------
    config : Config
    source : Source
        Only a live one is slowed down by heat.
    mode : str
        From `rules_for`.

    Raises
    ------
    ConfigError, InputError
        If there is no input pin where one is wanted, or it cannot be had now.
    """
    watch = ThermalWatch(config.thermal) if source.live and config.thermal.enabled else None
    gate = Gate(config.trigger) if mode == "triggered" else None
    gpio = GpioInput(config.trigger, gate) if gate and config.trigger.kind == "gpio" else None
    return watch, gate, gpio
