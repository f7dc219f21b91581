"""
The frame loop's inside: one frame in, its results out.

The inspector owns the stages, what they remember between frames, and the clock that times them. It
does no I/O.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from edge_app.align import (
    Aligned,
    Aligner,
    median_level,
    on_frame,
    part_weight,
    read_alignment,
)
from edge_app.bundle import Bundle
from edge_app.config import DecisionConfig, QualityConfig
from edge_app.decision import Rules, State, decide, finish, open_part
from edge_app.encoder import Encoder
from edge_app.errors import BundleError
from edge_app.gaussian import KIND as GAUSSIAN
from edge_app.gaussian import GaussianScorer, read_levels
from edge_app.heatmap import ColourScale, Decoder, difference_map, overlay
from edge_app.patches import PatchScorer, finest_grid, read_components
from edge_app.preprocess import Preprocessing, prepare, region_box, unusable
from edge_app.presence import empty_view_of, locate
from edge_app.quality import LEAST_LIGHT, Memory, check, read_limits, sees_nothing
from edge_app.records import Decision, Encoding, Finding, Frame, PartVerdict, Result, Verdict
from edge_app.scorer import NeighbourScorer, build_scorer

HEATMAPS = ("patch", "decoder")
# A background darker than this, grey levels, tells nothing of the light.
LEAST_LEVEL = 8.0
# Why a part is UNKNOWN during which another inspector took over: neither saw all of it.
CUT_OFF = "bundle: it or the settings changed while the part was in view"


@dataclass(frozen=True)
class Seen:
    """
    A frame that has been scored, with what its heatmap needs.

    Attributes
    ----------
    frame : Frame
    pixels_rgb : ndarray of uint8, shape (height, width, 3)
        The part as the encoder saw it.
    matrix : ndarray of float64, shape (2, 3)
        From its pixels to the frame's.
    encoding : Encoding
    anomaly : ndarray of float32, shape (h, w), or None
        The patch scorer's map; None where the bundle scores what is pooled over the picture.
    score : float
    offset : float
        How far the part lies from where, or how, the good ones did; smaller is better evidence.
    """

    frame: Frame
    pixels_rgb: np.ndarray
    matrix: np.ndarray
    encoding: Encoding
    anomaly: np.ndarray | None
    score: float
    offset: float


def build_encoder(
    bundle: Bundle, threads: int, maps_wanted: Collection[int] | None = None
) -> Encoder:
    """
    The bundle's encoder, checked against its manifest.

    Parameters
    ----------
    bundle : Bundle
    threads : int
    maps_wanted : collection of int, optional
        Indices of the maps to read, as `Encoder` takes them; None reads all.

    Raises
    ------
    BundleError
        If the network's shapes are not the manifest's.
    """
    recipe, section = bundle.manifest["input"], bundle.manifest["encoder"]
    # Bundles from before there were several maps name only the patches.
    map_shapes = section.get("map_shapes", [section["patch_shape"]])
    try:
        encoder = Encoder(
            bundle.encoder, recipe["scale"], recipe["offset"], threads, map_shapes, maps_wanted
        )
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from None
    for field, wanted, got in (
        ("input.size", recipe["size"], encoder.size),
        ("encoder.embedding_shape", section["embedding_shape"], (encoder.embedding_dim,)),
    ):
        if tuple(wanted) != tuple(got):
            raise BundleError(
                f"{bundle.path}: manifest.json: {field} is {list(wanted)}, "
                f"encoder.tflite has {list(got)}"
            )
    return encoder


def build_decoder(bundle: Bundle, encoder: Encoder, threads: int) -> Decoder | None:
    """The bundle's decoder, if it has one, checked against the encoder."""
    if bundle.decoder is None:
        return None
    source = bundle.manifest["decoder"]["source"]
    shapes = {"patches": encoder.patch_shape, "embedding": (encoder.embedding_dim,)}
    return Decoder(bundle.decoder, source, shapes[source], encoder.size, threads)


def _blind(reason: str) -> Finding:
    """A frame that shows nothing; after a lost camera or a pause nobody knows what came between."""
    lost = reason.partition(":")[0] in ("camera", "heat", "stopped", "verify")
    return Finding(None, reason=reason, in_part=False, lost=lost)


class Inspector:
    """
    Inspects frames with one bundle.

    Parameters
    ----------
    bundle : Bundle
    settings : DecisionConfig
    mode : {'single', 'continuous', 'part', 'triggered'}
    threads : int
    heatmaps : bool
        Whether NG results carry an overlay; without it the decoder is never called.
    heatmap : {'auto', 'patch', 'decoder'}
        Which map is laid over; `auto` takes the patch map where the bundle has one.
    quality : QualityConfig, optional
        Without it every frame is good enough to be judged.

    Raises
    ------
    BundleError
        If the bundle has no reference yet or its parts do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: DecisionConfig,
        mode: str,
        threads: int = 1,
        heatmaps: bool = True,
        heatmap: str = "auto",
        quality: QualityConfig | None = None,
    ) -> None:
        manifest = bundle.manifest
        if bundle.reference is None:
            raise BundleError(f"{bundle.path}: knows no good part yet: run edge-app enroll first")
        self.bundle = bundle
        scorer = manifest["scorer"]
        components = read_components(scorer) if scorer["kind"] == "patches" else ()
        levels = read_levels(scorer) if scorer["kind"] == GAUSSIAN else ()
        # A map that nothing compares is not even copied.
        wanted = {component.map for component in components} | set(levels)
        self.encoder = build_encoder(bundle, threads, wanted)
        self.decoder = build_decoder(bundle, self.encoder, threads)
        alignment = read_alignment(manifest["alignment"], bundle.reference)
        self.aligner = Aligner(alignment, bundle.size, bundle.region)
        self.patch_scorer: PatchScorer | None = None
        self.gaussian_scorer: GaussianScorer | None = None
        self.scorer: NeighbourScorer | None = None
        if components:
            weight = part_weight(alignment, finest_grid(components, bundle.map_shapes))
            self.patch_scorer = PatchScorer(
                components, bundle.reference, weight, scorer["image_score"], scorer["smoothing"]
            )
        elif levels:
            self.gaussian_scorer = GaussianScorer(levels, bundle.reference)
        else:
            self.scorer = build_scorer(
                scorer["kind"], scorer["k"], scorer["feature_scaling"], bundle.reference
            )
        self.recipe = Preprocessing(bundle.size, bundle.region)
        self._background = None if alignment.recipe == "none" else alignment.level
        # An aligned part may lie anywhere, and where none is found the view is empty.
        self._empty_view = empty_view_of(bundle) if alignment.recipe == "none" else None
        self.heatmap_kinds = tuple(
            kind
            for kind, there in zip(
                HEATMAPS, (self.patch_scorer is not None, self.decoder is not None), strict=True
            )
            if there
        )
        if heatmap != "auto" and heatmap not in self.heatmap_kinds:
            known = " and ".join(self.heatmap_kinds) or "none"
            raise BundleError(f"{bundle.path}: has no {heatmap} heatmap, it has {known}")
        self.threshold = float(manifest["threshold"]["value"])
        self._rules = Rules(
            mode,
            self.threshold,
            settings.smoothing_frames,
            settings.hysteresis,
            settings.ng_share,
            settings.least_usable_frames,
            settings.empty_frames,
        )
        self._state = State()
        self._quality = quality if quality is not None and quality.enabled else None
        self._limits = read_limits(manifest["quality"])
        self._memory = Memory()
        self._heatmaps = heatmaps and bool(self.heatmap_kinds)
        self._heatmap = heatmap if heatmap != "auto" else next(iter(self.heatmap_kinds), None)
        self._evidence: Seen | None = None
        # The part that is open has had its verdict; what is still seen of it gives no other.
        self._cut_off = False
        self._last_frame: Frame | None = None
        self._degraded: tuple[str, ...] = ()
        self._drawing = True

    def inspect(
        self, frame: Frame, degraded: tuple[str, ...] = (), heatmaps: bool = True
    ) -> list[Result]:
        """
        Judge one frame.

        Parameters
        ----------
        frame : Frame
        degraded : tuple of str
            What is not as it should be, for the results to say.
        heatmaps : bool
            False leaves out the heatmap of this frame's results.

        Returns
        -------
        list of Result
            The frame's own, and before it that of the part which it ended.
        """
        latency_ms = {"read": frame.read_ms}
        self._last_frame, self._degraded, self._drawing = frame, degraded, heatmaps
        finding, seen = self._find(frame, latency_ms)
        started = time.perf_counter()
        decision = self._decide(finding, frame.index)
        latency_ms["decide"] = (time.perf_counter() - started) * 1e3
        results = self._closed(decision.closed)
        if decision.closed is not None:
            # The part has its own result; this frame's speaks of the frame.
            decision = replace(decision, closed=None)
        if self._rules.mode in ("part", "triggered"):
            self._keep_evidence(seen)
            results.append(self._result("frame", frame, decision, latency_ms))
        else:
            event = "part" if self._rules.mode == "single" else "frame"
            results.append(self._result(event, frame, decision, latency_ms, seen))
        return results

    def glance(self, frame: Frame, why: str, degraded: tuple[str, ...] = ()) -> list[Result]:
        """
        Look only whether a part is in view, and not what it is like, to save the encoder's work.

        Where parts are told apart by the empty views between them, each frame must be looked at so
        far, or two parts would be taken for one.

        Parameters
        ----------
        frame : Frame
        why : str
            The reason for which the frame is not judged.
        degraded : tuple of str

        Returns
        -------
        list of Result
            Of the part which this frame ended, if it did.
        """
        self._last_frame, self._degraded = frame, degraded
        if self._rules.mode != "part":
            if frame.frame_bgr is not None and unusable(frame.frame_bgr, self.recipe) is None:
                self._check(frame)
            return []
        finding, _, _ = self._place(frame, {})
        finding = finding or Finding(None, reason=why)
        return self._closed(self._decide(finding, frame.index).closed)

    def open_part(self, frame: Frame, reason: str | None = None) -> None:
        """From this frame on, which is inspected next, a trigger has announced a part."""
        self._last_frame = frame
        self._state = open_part(self._state, frame.index, reason)

    @property
    def mode(self) -> str:
        """How frames are decided: 'single', 'continuous', 'part' or 'triggered'."""
        return self._rules.mode

    @property
    def part_open(self) -> bool:
        """Whether a part is in view, or announced, that has no verdict yet."""
        return self._state.open_part is not None and not self._cut_off

    def cut_off(self) -> list[Result]:
        """
        The verdict on a part during which another inspector takes over: UNKNOWN, whatever was seen.

        It is the part's only one. Its other frames, here or with the inspector that follows, are
        UNKNOWN too and give none, until it was seen to be gone, or is ended by `finish`.
        """
        if not self.part_open:
            return []
        closed, _ = finish(self._state, self._rules)
        self._cut_off = True
        cut = replace(closed, verdict=Verdict.UNKNOWN, score=None, reason=CUT_OFF)
        return [self._part_result(cut)]

    def follow(self, before: Inspector) -> None:
        """
        Go on where another left off: number the next part, and know the pictures just seen.

        A frozen camera is found by them, whichever bundle judges. Scores of another bundle are no
        history of this one's. A part that was cut off is still open here, until it has gone.
        """
        self._state = replace(self._state, next_part=before._state.next_part)
        self._memory = before._memory
        part = before._state.open_part
        # In a mode without parts nothing would ever end it.
        if part is not None and before._cut_off and before.mode == self.mode:
            self._state = replace(self._state, open_part=part)
            self._cut_off = True

    def finish(self) -> list[Result]:
        """The verdict on the part that is still open: in view at the end, or announced."""
        closed, self._state = finish(self._state, self._rules)
        return self._closed(closed)

    def _decide(self, finding: Finding, index: int) -> Decision:
        decision, state = decide(finding, index, self._state, self._rules)
        if self._cut_off and not finding.in_part:
            # Nobody saw the part go: only an EMPTY view says that what comes next is not its rest.
            return replace(decision, closed=None)
        self._state = state
        return decision

    def _closed(self, closed: PartVerdict | None) -> list[Result]:
        """The result of a part that has ended, unless it has had its verdict."""
        if closed is None:
            return []
        cut_off, self._cut_off = self._cut_off, False
        return [] if cut_off else [self._part_result(closed)]

    def _find(self, frame: Frame, latency_ms: dict[str, float]) -> tuple[Finding, Seen | None]:
        """Place, encode and score; each stage's time goes into `latency_ms`."""
        finding, aligned, offset = self._place(frame, latency_ms)
        if finding is not None:
            return finding, None
        if self._cut_off:
            return Finding(None, reason=CUT_OFF), None
        seen = self.look(frame, aligned, latency_ms, offset)
        return Finding(seen.score), seen

    def _place(
        self, frame: Frame, latency_ms: dict[str, float]
    ) -> tuple[Finding | None, Aligned | None, float | None]:
        """Why a frame has no part to be judged, or the part and how far off its place it lies."""
        if frame.frame_bgr is None:
            return _blind(frame.problem or "frame: the source delivered none"), None, None
        reason = unusable(frame.frame_bgr, self.recipe)
        if reason is not None:
            return _blind(reason), None, None
        clock = time.perf_counter
        at = clock()
        poor = self._check(frame)
        latency_ms["quality"] = (clock() - at) * 1e3
        if poor is not None and (
            poor.startswith("camera:") or sees_nothing(frame.frame_bgr, self.recipe.region)
        ):
            return _blind(poor), None, None
        offset = None
        if self._empty_view is not None:
            at = clock()
            location = locate(prepare(frame.frame_bgr, self.recipe), self._empty_view)
            latency_ms["locate"] = (clock() - at) * 1e3
            if not location.present:
                return self._nothing_in(frame, poor), None, None
            reason = None if location.in_place else "part: not where the good parts lay"
            reason = "part: cut by the edge of the view" if location.cut else reason
            if poor or reason:
                return Finding(None, reason=poor or reason), None, None
            offset = location.offset
        at = clock()
        aligned = self.aligner.align(frame.frame_bgr)
        latency_ms["align"] = (clock() - at) * 1e3
        if aligned.empty:
            return self._nothing_in(frame, poor), None, None
        found = aligned.problem is None and aligned.pixels_rgb is not None
        if poor or not found:
            reason = poor or aligned.problem or "part: not found"
            return Finding(None, reason=reason), None, None
        return None, aligned, offset

    def _nothing_in(self, frame: Frame, poor: str | None) -> Finding:
        """
        No part was found: the station is empty, unless it has become too dark or too light to tell.

        Where pictures of the empty station were learnt, they are among what the light is compared
        with. An aligned part's bundle knows the background from behind the good parts; an empty
        view of it may be darker or lighter as a whole than with a part, but the background is not.
        """
        if poor is None or poor.startswith("quality: blurred"):
            return Finding(None, empty=True)
        if self._background is not None:
            x0, y0, x1, y1 = region_box(self.recipe.region, frame.frame_bgr.shape)
            seen = float(median_level(frame.frame_bgr[y0:y1, x0:x1]).mean())
            if (
                abs(math.log(max(seen, LEAST_LEVEL) / max(self._background, LEAST_LEVEL)))
                < LEAST_LIGHT
            ):
                return Finding(None, empty=True)
        return _blind(poor)

    def _check(self, frame: Frame) -> str | None:
        """What is wrong with the picture, as far as its quality goes."""
        if self._quality is None:
            return None
        # Only a camera delivers at a time of its own, and only a camera freezes.
        live = frame.captured_s is not None
        reason, self._memory = check(
            frame.frame_bgr,
            self._limits,
            self._memory,
            live,
            self._quality.frozen_frames,
            self._quality.margin,
            self.recipe.region,
        )
        return reason

    def look(
        self,
        frame: Frame,
        aligned: Aligned,
        latency_ms: dict[str, float] | None = None,
        offset: float | None = None,
    ) -> Seen:
        """Encode and score an aligned picture, whether or not a part is in it."""
        at = time.perf_counter()
        encoding = self.encoder.encode(aligned.pixels_rgb)
        between = time.perf_counter()
        anomaly = None
        if self.patch_scorer is not None:
            anomaly = self.patch_scorer.anomaly_map(encoding.maps)
            score = self.patch_scorer.score(anomaly)
        elif self.gaussian_scorer is not None:
            score = self.gaussian_scorer.score(encoding.maps)
        else:
            score = self.scorer.score(encoding.embedding)
        if latency_ms is not None:
            latency_ms["encode"] = (between - at) * 1e3
            latency_ms["score"] = (time.perf_counter() - between) * 1e3
        if offset is None:
            offset = 0.0 if aligned.agreement is None else 1.0 - aligned.agreement
        return Seen(frame, aligned.pixels_rgb, aligned.matrix, encoding, anomaly, score, offset)

    def _keep_evidence(self, seen: Seen | None) -> None:
        """
        Keep the NG frame that shows the part best, for the overlay should the part be NG.

        Best is where the part lies most as the good ones did: the score is highest on frames
        blurred by its motion. Without an empty view the highest score decides.
        """
        if not self._heatmaps or seen is None or not seen.score > self.threshold:
            return
        kept = self._evidence
        if kept is None or (seen.offset, -seen.score) < (kept.offset, -kept.score):
            self._evidence = seen

    def _part_result(self, closed: PartVerdict) -> Result:
        seen, self._evidence = self._evidence, None
        if closed.verdict is not Verdict.NG:
            seen = None
        frame, score = Frame(closed.frame, self._last_frame.source, None), closed.score
        if seen is not None:
            frame, score = seen.frame, seen.score
        decision = Decision(closed.verdict, score, closed.score, closed.reason, closed.part, closed)
        return self._result("part", frame, decision, {}, seen)

    def _result(
        self,
        event: str,
        frame: Frame,
        decision: Decision,
        latency_ms: dict[str, float],
        seen: Seen | None = None,
    ) -> Result:
        map_01 = overlay_bgr = None
        drawing = self._heatmaps and self._drawing
        if decision.verdict is Verdict.NG and drawing and seen is not None:
            started = time.perf_counter()
            map_01 = self.heatmap(seen, self._heatmap)
            overlay_bgr = overlay(seen.frame.frame_bgr, map_01)
            latency_ms["heatmap"] = (time.perf_counter() - started) * 1e3
        return Result(
            event,
            frame,
            decision,
            time.time(),
            self.threshold,
            self.bundle.sha256,
            self._degraded,
            latency_ms=latency_ms,
            overlay_bgr=overlay_bgr,
            map_01=map_01,
        )

    def heatmap(
        self, seen: Seen, kind: str | None = None, scale: ColourScale | None = None
    ) -> np.ndarray:
        """
        A map of what is unlike good parts, on the full frame.

        Parameters
        ----------
        seen : Seen
        kind : {'patch', 'decoder'}, optional
            By default the one that overlays show.
        scale : ColourScale, optional
            The bundle's own by default; ``ColourScale(0, 1)`` gives the bare values.

        Returns
        -------
        map : ndarray of float32, shape (height, width) of the frame
            0 outside the part's crop.
        """
        manifest = self.bundle.manifest
        if (kind or self._heatmap) == "patch":
            section = manifest["scorer"]
            height, width = seen.pixels_rgb.shape[:2]
            values = cv2.resize(seen.anomaly, (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            section = manifest["decoder"]
            redraw_01 = self.decoder.redraw(seen.encoding)
            values = difference_map(seen.pixels_rgb, redraw_01, section["blur_share"])
        scale = scale or ColourScale(**section["colour_scale"])
        return on_frame(scale.apply(values), seen.matrix, seen.frame.frame_bgr.shape)


class SeeingInspector(Inspector):
    """
    An inspector that remembers what it scored last.

    Attributes
    ----------
    seen : Seen or None
        Set to None before a frame; not None after it if the frame was scored.
    """

    seen: Seen | None = None

    def look(self, *args: Any, **kwargs: Any) -> Seen:
        self.seen = super().look(*args, **kwargs)
        return self.seen
