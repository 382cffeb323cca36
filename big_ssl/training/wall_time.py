"""Where the wall time of a run went, kept across restarts."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

# "other" is what lies outside all parts: imports, set-up, restoring, the report. "lost" are the
# seconds of steps that a killed run had logged after its last checkpoint, and that were done again.
PARTS = ("compute", "data", "compile", "checkpoint", "evaluate")
ALL_PARTS = (*PARTS, "other", "lost")


class WallTime:
    """Seconds by part of a run, this stretch of it and those before.

    before: seconds by part of the stretches before this one. began: time.monotonic() at the start.
    A process waits for one step while the accelerator computes the next, so "compute" is the
    time spent waiting for it, and "data" the time in which it had nothing to do.
    """

    def __init__(self, before: Mapping[str, float], began: float):
        self._before = {part: before.get(part, 0.0) for part in ALL_PARTS}
        self._own, self._began = dict.fromkeys(PARTS, 0.0), began

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside to one of PARTS."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._own[name] += time.monotonic() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by part so far; their sum is the wall time of all stretches."""
        other = time.monotonic() - self._began - sum(self._own.values())
        own = self._own | {"other": other, "lost": 0.0}
        return {part: self._before[part] + own[part] for part in ALL_PARTS}

    def metrics(self) -> dict[str, float]:
        """time/<part>, in seconds, and time/fraction/<part> of the wall time."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {f"time/{part}": value for part, value in seconds.items()} | {
            f"time/fraction/{part}": value / total for part, value in seconds.items()
        }


def earlier_seconds(lines: Iterable[dict], start_step: int) -> dict[str, float]:
    """Seconds by part of the stretches that logged `lines` and are resumed after start_step."""
    before = last = dict.fromkeys(ALL_PARTS, 0.0)
    for line in lines:
        if "time/compute" in line:
            last = {part: line.get(f"time/{part}", 0.0) for part in ALL_PARTS}
            if line["step"] <= start_step:
                before = last
    lost = sum(last.values()) - sum(before.values())
    return before | {"lost": before["lost"] + lost}
