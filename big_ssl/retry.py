"""Errors of storage that pass: which errors these are, and calls that wait for them to pass."""

import errno
import random
import re
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any, TypeVar

from absl import logging

T = TypeVar("T")

# Seconds between the attempts of a call, half a minute in all; storage clients have tried for a while before.
DELAYS = (1, 2, 4, 8, 16)

# HTTP: too slow, too many requests, and the server's own errors.
_CODES = frozenset((408, 429, 500, 502, 503, 504))
# absl's status codes as tensorstore and array_record print them, whatever the type of the exception.
_STATUS = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED)\b")
# Clients whose exceptions for lost connections are not Python's own.
_CLIENTS = frozenset(("aiohttp", "http", "urllib3", "requests", "botocore"))
# Of a mounted network file system, or of s3fs, which translates to these.
_ERRNO = frozenset(
    (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EHOSTUNREACH, errno.ENETUNREACH)
)


def call(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments), again with growing pauses after an error that may pass.

    Raises the last error where it does not pass, and at once one that is not of that kind.
    """
    for delay in DELAYS:
        try:
            return function(*arguments)
        except Exception as error:  # the clients of storage share no class
            if not is_transient(error):
                raise
            # Spread out, so that many hosts do not return to the same server at once.
            pause = delay * random.uniform(0.5, 1.5)
            logging.warning("%s; trying again in %.1f s", one_line(error), pause)
            sleep(pause)
    return function(*arguments)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: a lost connection, a timeout, an overloaded server."""
    return any(_passes(each) for each in _chain(error))


def root_cause(error: BaseException) -> BaseException:
    """The error at the bottom of a chain of `raise ... from ...`."""
    return list(_chain(error))[-1]


def one_line(error: BaseException) -> str:
    """The root cause, in a line: orbax's own message recites the whole state."""
    cause = root_cause(error)
    return f"{type(cause).__name__}: {cause}".split("\n")[0][:300]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _passes(error):
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return True
    if type(error).__module__ == "google.auth.exceptions":
        # The server of tokens does not answer, or it answers that it will.
        return type(error).__name__ == "TransportError" or error.retryable
    # gcsfs calls the number of HTTP code, aiohttp status. A server that refuses will refuse again.
    for code in (getattr(error, name, None) for name in ("status", "code")):
        if isinstance(code, int) and 400 <= code < 600:
            return code in _CODES
    return type(error).__module__.partition(".")[0] in _CLIENTS or bool(_STATUS.search(str(error)))
