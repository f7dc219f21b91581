"""Backoff: how long to wait before something that has failed is tried again."""

from __future__ import annotations


class Backoff:
    """
    How long to wait before each try: `first_s`, then twice as long each time, at most `most_s`.

    Parameters
    ----------
    first_s, most_s : float
        Seconds.
    """

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self.reset()

    def reset(self) -> None:
        """It has worked: begin again with `first_s`."""
        self._next_s = self._first_s

    def wait_s(self) -> float:
        """The next wait in seconds."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._most_s)
        return wait_s
