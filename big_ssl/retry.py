"""Transient storage errors: classification, and calls that retry."""

import errno
import random
import re
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any, TypeVar

from absl import logging

T = TypeVar("T")

# Seconds between attempts, half a minute in all; storage clients have already retried before.
DELAYS = (1, 2, 4, 8, 16)

# HTTP: timeout, too many requests, and server errors.
_CODES = frozenset((408, 429, 500, 502, 503, 504))
# absl's status codes as tensorstore and array_record print them, in exceptions of any type.
_STATUS = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED)\b")
# Clients with their own exceptions for lost connections.
_CLIENTS = frozenset(("aiohttp", "http", "urllib3", "requests", "botocore"))
# Raised by mounted network file systems, and by s3fs, which translates to these.
_ERRNO = frozenset(
    (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EHOSTUNREACH, errno.ENETUNREACH)
)


def call(function: Callable[..., T], *arguments: Any) -> T:
    """Calls function(*arguments), and retries with growing pauses after transient errors.

    Raises the last transient error, and any other error at once.
    """
    for delay in DELAYS:
        try:
            return function(*arguments)
        except Exception as error:  # storage clients share no exception class
            if not is_transient(error):
                raise
            # Jitter, so that many hosts do not return to the same server at once.
            pause = delay * random.uniform(0.5, 1.5)
            logging.warning("%s; trying again in %.1f s", one_line(error), pause)
            sleep(pause)
    return function(*arguments)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: a lost connection, a timeout, an overloaded server."""
    return any(_may_pass(cause) for cause in _chain(error))


def root_cause(error: BaseException) -> BaseException:
    """The error at the bottom of a chain of `raise ... from ...`."""
    return list(_chain(error))[-1]


def one_line(error: BaseException) -> str:
    """The root cause in one line; orbax's own message contains the whole state."""
    cause = root_cause(error)
    return f"{type(cause).__name__}: {cause}".split("\n")[0][:300]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _may_pass(error):
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return True
    if type(error).__module__ == "google.auth.exceptions":
        # The token server does not answer, or its answer is marked retryable.
        return type(error).__name__ == "TransportError" or error.retryable
    # gcsfs names the HTTP status `code`, aiohttp `status`. A refusal is permanent.
    for code in (getattr(error, name, None) for name in ("status", "code")):
        if isinstance(code, int) and 400 <= code < 600:
            return code in _CODES
    return type(error).__module__.partition(".")[0] in _CLIENTS or bool(_STATUS.search(str(error)))
