"""Records the wall time spent in each part of a run, across restarts."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

# "other" is the time outside all parts: imports, set-up, restoring, the report. "lost" is the time of steps
# that a killed run logged after its last checkpoint and that the resumed run repeats.
PARTS = ("compute", "data", "compile", "checkpoint", "evaluate")
ALL_PARTS = (*PARTS, "other", "lost")


class WallTime:
    """Seconds by part of a run, for this segment and earlier ones (a segment lasts until a restart).

    before: seconds by part of the earlier segments. began: time.monotonic() at the start. The host runs ahead
    of the accelerator: "compute" is the time that the host waits for the accelerator, and "data" the time
    that the accelerator may be idle because the host waits for data.
    """

    def __init__(self, before: Mapping[str, float], began: float):
        self._before = {part: before.get(part, 0.0) for part in ALL_PARTS}
        self._segment, self._began = dict.fromkeys(PARTS, 0.0), began

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to one of PARTS."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._segment[name] += time.monotonic() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by part so far; their sum is the wall time of all segments."""
        other = time.monotonic() - self._began - sum(self._segment.values())
        segment = self._segment | {"other": other, "lost": 0.0}
        return {part: self._before[part] + segment[part] for part in ALL_PARTS}

    def metrics(self) -> dict[str, float]:
        """{"time/<part>": seconds, "time/fraction/<part>": fraction of the wall time}."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {f"time/{part}": value for part, value in seconds.items()} | {
            f"time/fraction/{part}": value / total for part, value in seconds.items()
        }


def earlier_seconds(lines: Iterable[dict], start_step: int) -> dict[str, float]:
    """Seconds by part of the earlier segments of a run that resumes after start_step.

    lines: of metrics.jsonl. The time logged after start_step counts as "lost".
    """
    before = last = dict.fromkeys(ALL_PARTS, 0.0)
    for line in lines:
        if "time/compute" in line:
            last = {part: line.get(f"time/{part}", 0.0) for part in ALL_PARTS}
            if line["step"] <= start_step:
                before = last
    lost = sum(last.values()) - sum(before.values())
    return before | {"lost": before["lost"] + lost}
