"""A comparison of runs that never end, in a process that a test can stop in every way."""

import sys
from pathlib import Path
from types import SimpleNamespace

from tools.compare import carry_out_all


class Endless:
    """Says which process it runs in, and what that has started, and goes on for ever."""

    name = "endless"

    def fit(self, part, seed, state, progress):
        import os
        import subprocess
        import time

        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (state / "pids").write_text(f"{os.getpid()} {started.pid}")
        while seed == 0:
            time.sleep(0.05)
        raise ValueError("a bug in a method")


def main() -> None:
    """Two runs at a time; with ``bug`` the second one fails by a bug."""
    root, bug = Path(sys.argv[1]), len(sys.argv) > 2
    runs = []
    for number in range(2):
        folder = root / str(number)
        folder.mkdir()
        seed = int(bug and number == 1)
        part = SimpleNamespace(name="part", good=())
        runs.append(SimpleNamespace(part=part, method=Endless(), seed=seed, folder=folder))
    bar = SimpleNamespace(set_postfix_str=print, update=print)
    carry_out_all(runs, 2, 600.0, bar)


if __name__ == "__main__":
    main()
