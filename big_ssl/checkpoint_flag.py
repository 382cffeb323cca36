"""The flag --checkpoint, defined once: two commands in one process, as in tests, cannot both define it."""

from absl import flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, a converted folder, or weights.")
