"""What is wrong with a checkpoint, in one line."""


class WeightsError(ValueError):
    """A checkpoint that can't be read or written; the message is one line that names the offender."""
