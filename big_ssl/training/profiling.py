"""An xprof trace of a few steps."""

import tempfile

import jax

from big_ssl import io

# The first steps of a run compile, and fill caches and queues.
_STEPS_BEFORE = 5


class Profile:
    """Traces `steps` steps of a run, starting a few after `start`, into workdir/profile.

    Open it with `xprof --logdir WORKDIR/profile` (pip install xprof). steps: 0 traces nothing.
    A run with too few steps left is traced from its second one.
    """

    def __init__(self, workdir, steps: int, start: int, total: int):
        self._folder, self._tracing = io.as_path(workdir) / "profile", False
        self._first = max(start + 2, min(start + 1 + _STEPS_BEFORE, total + 1 - steps))
        self._last = self._first + steps - 1

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first <= self._last:
            # JAX writes to buckets by a client of its own, with other settings.
            self._scratch = tempfile.TemporaryDirectory() if io.is_remote(self._folder) else None
            jax.profiler.start_trace(self._scratch.name if self._scratch else str(self._folder))
            self._tracing = True

    def after(self, step: int, metrics) -> None:
        """To be called after each step, with what it returned."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still going on."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            if self._scratch:
                with self._scratch as folder:
                    io.upload(folder, self._folder)
