"""The error of unreadable and unwritable checkpoints."""


class WeightsError(ValueError):
    """A checkpoint that can't be read or written; the message is one line that names the offender."""
