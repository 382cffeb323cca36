"""The error of unreadable and unwritable checkpoints."""

import contextlib
from collections.abc import Iterator

# Names in a file can be of any length; a message is read on a terminal.
_LONGEST = 1000


class WeightsError(ValueError):
    """A checkpoint that can't be read or written; the message is one printable line that names the offender.

    Line breaks and half surrogates, which names in a file may contain, are escaped.
    """

    def __init__(self, message: str):
        printable = (c if c.isprintable() else ascii(c)[1:-1] for c in message[:_LONGEST])
        super().__init__("".join(printable))


@contextlib.contextmanager
def all_errors_named(prefix: str) -> Iterator[None]:
    """Raises every error inside as WeightsError, with a prefix that names the file.

    Catches all kinds, since the parsers of pickles, zip archives and arrays document no full list of what a
    malformed file makes them raise. A WeightsError inside stays as it is.
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{prefix}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, with its type where the message alone would not explain it."""
    message = next(iter(str(error).splitlines()), "")
    if isinstance(error, (ValueError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
