"""
The check of the master parts: known good and known bad ones, judged as on the line.

It is the shift's proof that camera, light and bundle still tell them apart. A single good part that
is not OK, or a single bad one that is not NG, fails it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_app.inspector import Inspector
from edge_app.records import Frame, Verdict


@dataclass(frozen=True)
class Master:
    """
    One master part as it was judged.

    Attributes
    ----------
    name : str
        Of its picture and the folder it is in.
    wanted, verdict : Verdict
    score : float or None
        Higher is more anomalous.
    reason : str or None
        ``kind: detail`` where UNKNOWN.
    """

    name: str
    wanted: Verdict
    verdict: Verdict
    score: float | None
    reason: str | None

    @property
    def right(self) -> bool:
        """Whether it was judged as it should be; UNKNOWN and EMPTY are not."""
        return self.verdict is self.wanted


def judge_masters(inspector: Inspector, frames: Iterable[Frame], wanted: Verdict) -> list[Master]:
    """
    Judge pictures of master parts.

    Parameters
    ----------
    inspector : Inspector
        In mode 'single'.
    frames : iterable of Frame
        One part each.
    wanted : Verdict
        What they should be called.
    """
    masters = []
    for frame in frames:
        for result in inspector.inspect(frame):
            decision = result.decision
            masters.append(
                Master(
                    _short(frame.source), wanted, decision.verdict, decision.score, decision.reason
                )
            )
    return masters


def _short(path: str) -> str:
    """``good/7.png``: what is shown to all must not tell where else things are."""
    return "/".join(Path(path).parts[-2:])


def summary(masters: Sequence[Master]) -> str:
    """One sentence: what was judged, and which of them wrongly."""
    sums = []
    for wanted, what in ((Verdict.OK, "good"), (Verdict.NG, "bad")):
        asked = [master for master in masters if master.wanted is wanted]
        if asked:
            right = sum(master.right for master in asked)
            sums.append(f"{right} of {len(asked)} {what} masters {wanted}")
    wrong = [master for master in masters if not master.right]
    if not wrong:
        return ", ".join(sums)
    named = ", ".join(f"{master.name} is {master.verdict}" for master in wrong[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{', '.join(sums)}: {named}{more}"
