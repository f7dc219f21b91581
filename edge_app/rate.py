"""How many a second, of what a counter counts; and what stages take on average."""

from __future__ import annotations

from collections import deque

# Over so many seconds it is counted.
RATE_S = 2.0
# Of a stage's time, the share of the newest in its average.
NEWEST_SHARE = 0.1


class Rate:
    """The pace of a counter over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, count: int, now_s: float) -> float:
        """
        Counts a second, lately.

        Parameters
        ----------
        count : int
            Where it stands; one that has gone back begins anew.
        now_s : float
            Seconds that never go back.
        """
        seen = self._seen
        if seen and count < seen[-1][1]:
            seen.clear()
        seen.append((now_s, count))
        while now_s - seen[0][0] > RATE_S:
            seen.popleft()
        took_s = now_s - seen[0][0]
        return (count - seen[0][1]) / took_s if took_s > 0 else 0.0


def averaged(average_ms: dict[str, float], stage: str, ms: float) -> None:
    """Take a stage's newest time, milliseconds, into its moving average, in place."""
    before = average_ms.get(stage, ms)
    average_ms[stage] = before + NEWEST_SHARE * (ms - before)
