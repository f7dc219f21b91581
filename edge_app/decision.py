"""
Decide: from scores to verdicts, per frame and per part.

Four modes. `single`: every frame stands for itself (pictures of a folder). `continuous`: one view;
a moving average over frames with hysteresis. `part`: frames between two empty views are one part
and give one verdict; nothing carries over to the next. `triggered`: the same, but a part is what
lies between `open_part` and `finish`.

No clock, no I/O: the memory comes in and goes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edge_app.records import Decision, Finding, PartVerdict, Verdict

# A part that rests in front of a camera for hours is judged by its last frames.
MOST_SCORES = 1000

MODES = ("single", "continuous", "part")


@dataclass(frozen=True)
class Rules:
    """
    How to decide.

    Attributes
    ----------
    mode : {'single', 'continuous', 'part', 'triggered'}
    threshold : float
        A score above it is NG.
    smoothing_frames : int
        Length of the moving average of `continuous`, at least 1.
    hysteresis : float
        After an NG the average must fall below ``threshold * (1 - hysteresis)`` to be OK again.
    ng_share : float
        Share of a part's usable frames, above 0 to 1, from which on the part is NG.
    least_usable_frames : int
        Fewer usable frames make a part UNKNOWN.
    empty_frames : int
        So many EMPTY or unreadable frames in a row end a part.
    """

    mode: str
    threshold: float
    smoothing_frames: int = 5
    hysteresis: float = 0.05
    ng_share: float = 0.5
    least_usable_frames: int = 3
    empty_frames: int = 2


@dataclass(frozen=True)
class OpenPart:
    """
    The part in view so far.

    `scores` holds (score, frame) of the last `MOST_SCORES` usable frames; `gap` counts the EMPTY
    and the unreadable frames since the part was last seen, `blind` the unreadable among them.
    """

    part: int
    first_frame: int
    last_frame: int
    scores: tuple[tuple[float, int], ...] = ()
    unknown: int = 0
    last_reason: str | None = None
    gap: int = 0
    blind: int = 0


@dataclass(frozen=True)
class State:
    """What is remembered from frame to frame; the first is ``State()``."""

    recent: tuple[float, ...] = ()
    alarmed: bool = False
    open_part: OpenPart | None = None
    next_part: int = 0


def decide(finding: Finding, index: int, state: State, rules: Rules) -> tuple[Decision, State]:
    """
    Decide one frame.

    Parameters
    ----------
    finding : Finding
    index : int
        Number of the frame.
    state : State
    rules : Rules

    Returns
    -------
    decision : Decision
        `closed` holds the verdict on the part that this frame ended, in mode `part`.
    state : State
    """
    finding = _refuse_nan(finding)
    if rules.mode == "continuous":
        return _continuous(finding, state, rules)
    if rules.mode == "part":
        return _part(finding, index, state, rules)
    if rules.mode == "triggered":
        return _triggered(finding, index, state, rules)
    decision = _single(finding, rules)
    if decision.verdict is Verdict.EMPTY:
        return decision, state
    return replace(decision, part=state.next_part), replace(state, next_part=state.next_part + 1)


def open_part(state: State, index: int, reason: str | None = None) -> State:
    """
    A part that a trigger announced, from frame `index` on; `finish` closes it.

    Without this an empty or unreadable view would open none, and the part be forgotten. `reason` is
    why it may not be seen.
    """
    part = OpenPart(state.next_part, index, index, last_reason=reason)
    return replace(state, open_part=part, next_part=state.next_part + 1)


def finish(state: State, rules: Rules) -> tuple[PartVerdict | None, State]:
    """The verdict on the part that is still open when the frames end, if there is one."""
    if state.open_part is None:
        return None, state
    return _close(state.open_part, rules), replace(state, open_part=None)


def _refuse_nan(finding: Finding) -> Finding:
    if finding.score is not None and not math.isfinite(finding.score):
        return replace(finding, score=None, reason="score: not a finite number")
    return finding


def _single(finding: Finding, rules: Rules) -> Decision:
    if finding.empty:
        return Decision(Verdict.EMPTY)
    if finding.score is None:
        return Decision(Verdict.UNKNOWN, reason=finding.reason)
    verdict = Verdict.NG if finding.score > rules.threshold else Verdict.OK
    return Decision(verdict, finding.score, finding.score)


def _continuous(finding: Finding, state: State, rules: Rules) -> tuple[Decision, State]:
    decision = _single(finding, rules)
    if finding.empty:
        # The next part must not be judged by the scores of the last one.
        return decision, replace(state, recent=(), alarmed=False)
    if finding.score is None:
        # What was seen before a blackout says nothing of what is there after it.
        return decision, replace(state, recent=())
    # Started from real scores: an average that starts at zero passes its first frames unseen.
    recent = (*state.recent, finding.score)[-rules.smoothing_frames :]
    smoothed = sum(recent) / len(recent)
    limit = rules.threshold * (1 - rules.hysteresis) if state.alarmed else rules.threshold
    alarmed = smoothed > limit
    decision = Decision(Verdict.NG if alarmed else Verdict.OK, finding.score, smoothed)
    return decision, replace(state, recent=recent, alarmed=alarmed)


def _part(finding: Finding, index: int, state: State, rules: Rules) -> tuple[Decision, State]:
    decision, part = _single(finding, rules), state.open_part
    # An unreadable frame may hide anything: it opens no part, and parts do not join over it.
    blind = finding.score is None and not finding.in_part and not finding.empty
    if finding.empty or blind:
        if part is None:
            return decision, state
        part = replace(part, gap=part.gap + 1, blind=part.blind + blind)
        if blind:
            part = replace(part, unknown=part.unknown + 1, last_reason=finding.reason)
        # Once the camera was lost, what comes next is another part for all that is known.
        if part.gap < rules.empty_frames and not finding.lost:
            return decision, replace(state, open_part=part)
        return replace(decision, closed=_close(part, rules)), replace(state, open_part=None)
    if part is None:
        part = OpenPart(state.next_part, index, index)
        state = replace(state, next_part=state.next_part + 1)
    part = replace(part, last_frame=index, gap=0, blind=0)
    if decision.verdict is Verdict.UNKNOWN:
        part = replace(part, unknown=part.unknown + 1, last_reason=decision.reason)
    else:
        part = replace(part, scores=(*part.scores, (finding.score, index))[-MOST_SCORES:])
    return replace(decision, part=part.part), replace(state, open_part=part)


def _triggered(finding: Finding, index: int, state: State, rules: Rules) -> tuple[Decision, State]:
    decision, part = _single(finding, rules), state.open_part
    if part is None:
        return decision, state
    part = replace(part, last_frame=index)
    if finding.score is None:
        # A part was announced: that none is in view is not an empty station.
        reason = "part: none in view" if finding.empty else finding.reason
        decision = Decision(Verdict.UNKNOWN, reason=reason)
        blind = part.blind + finding.lost
        part = replace(part, unknown=part.unknown + 1, last_reason=reason, blind=blind)
    else:
        part = replace(part, scores=(*part.scores, (finding.score, index))[-MOST_SCORES:])
    return replace(decision, part=part.part), replace(state, open_part=part)


def _close(part: OpenPart, rules: Rules) -> PartVerdict:
    worst_first = sorted(part.scores, reverse=True)
    usable = len(worst_first)
    ng = sum(score > rules.threshold for score, _ in worst_first)
    # The part is NG where so many of its frames are: where the last of these is.
    deciding = max(math.ceil(rules.ng_share * usable - 1e-9), 1) - 1
    score, frame = worst_first[deciding] if usable else (None, part.first_frame)
    reason = None
    if usable < rules.least_usable_frames:
        verdict, score = Verdict.UNKNOWN, None
        reason = f"frames: {usable} usable, wanted {rules.least_usable_frames}"
        if part.last_reason:
            reason += f" (last: {part.last_reason})"
    elif score > rules.threshold:
        verdict = Verdict.NG
    elif part.blind:
        # Nobody saw it leave: what was wrong with it may have come into view meanwhile.
        verdict, score, reason = Verdict.UNKNOWN, None, f"view: lost ({part.last_reason})"
    else:
        verdict = Verdict.OK
    return PartVerdict(
        part.part,
        verdict,
        reason,
        score,
        frame,
        part.first_frame,
        part.last_frame,
        usable,
        ng,
        part.unknown,
    )
