"""An xprof trace of a few steps."""

import tempfile

import jax

from big_ssl import io

# The first steps of a run compile, and fill caches and queues.
_STEPS_BEFORE = 5


class Profile:
    """Traces some steps of a run into workdir/profile.

    Open it with `xprof --logdir WORKDIR/profile` (pip install xprof). Tracing begins a few steps after the
    start, or at the second step if too few are left.

    Args:
      workdir: the run's.
      steps: the number of steps to trace; 0 traces nothing.
      start: the step that the run starts or resumes at.
      total: the run's last step.
    """

    def __init__(self, workdir, steps: int, start: int, total: int):
        self._folder, self._tracing = io.as_path(workdir) / "profile", False
        self._first = max(start + 2, min(start + 1 + _STEPS_BEFORE, total + 1 - steps))
        self._last = self._first + steps - 1

    def before(self, step: int) -> None:
        """Starts the trace before its first step; call it before every step."""
        if step == self._first <= self._last:
            # JAX would write to buckets with another client and other settings.
            self._scratch = tempfile.TemporaryDirectory() if io.is_remote(self._folder) else None
            jax.profiler.start_trace(self._scratch.name if self._scratch else str(self._folder))
            self._tracing = True

    def after(self, step: int, metrics) -> None:
        """Ends the trace after its last step; call it after every step, with the step's metrics."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a running trace."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            if self._scratch:
                with self._scratch as folder:
                    io.upload(folder, self._folder)
