"""The threshold dial: from one held-out score of a good picture to the next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_app.held_out import false_reject_interval

# Beyond the highest held-out score no good picture tells how far to go: steps of this share of it.
STEP = 0.05
# So many steps: more than twice the highest score.
MOST_STEPS = 20


@dataclass(frozen=True)
class Dial:
    """
    A threshold that can be moved, and what good pictures say of where it stands.

    Attributes
    ----------
    scores : tuple of float
        Held-out scores of the good pictures, rising.
    groups : int
        How many of them count as different; near-duplicates tell less than as many parts.
    calibrated : float
        Where the bundle's own calibration put it.
    value : float
    """

    scores: tuple[float, ...]
    groups: int
    calibrated: float
    value: float

    @classmethod
    def of(cls, scores: Sequence[float], section: dict) -> Dial:
        """The dial of a bundle: its held-out scores and its manifest's `threshold`."""
        value = float(section["value"])
        calibrated = float(section.get("calibrated", value))
        groups = section.get("groups") or len(scores)
        return cls(tuple(sorted(float(score) for score in scores)), groups, calibrated, value)

    @property
    def stops(self) -> tuple[float, ...]:
        """Where the dial stops, rising: the scores, the calibrated value, steps beyond."""
        top = max(self.scores[-1], self.calibrated)
        size = STEP * abs(top) or STEP
        beyond = {top + size * number for number in range(1, MOST_STEPS + 1)}
        return tuple(sorted({*self.scores, self.calibrated} | beyond))

    def up(self) -> Dial:
        """One stop higher: fewer good parts are rejected, more defects missed."""
        stops = self.stops
        return replace(self, value=stops[min(bisect_right(stops, self.value), len(stops) - 1)])

    def down(self) -> Dial:
        """One stop lower."""
        stops = self.stops
        return replace(self, value=stops[max(bisect_left(stops, self.value) - 1, 0)])

    def expected(self) -> tuple[float, float, float]:
        """
        The expected false-reject rate and its interval of confidence 95 %, each 0 to 1.

        The rate at which held-out good pictures score above the threshold; the interval counts
        near-duplicates as one picture.
        """
        count = len(self.scores)
        share = (count - bisect_right(self.scores, self.value)) / count
        groups = max(min(self.groups, count), 1)
        low, high = false_reject_interval(min(round(share * groups), groups), groups)
        return share, min(low, share), max(high, share)

    def sentence(self) -> str:
        """For the window."""
        share, low, high = self.expected()
        return f"{share:.1%} ({low:.1%} to {high:.1%}) false rejects expected"
