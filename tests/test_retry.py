"""Transient storage errors, and calls that retry."""

import errno

import aiohttp
import google.auth.exceptions
import pytest
import requests

from big_ssl import retry


class _HttpError(Exception):
    """As gcsfs and google.api_core raise it: the status is an attribute."""

    def __init__(self, code):
        super().__init__(f"{code}")
        self.code = code


def _wrapped(error):
    """As orbax wraps errors of tensorstore or a file system."""
    try:
        raise KeyError("failed to load checkpointable: state") from error
    except KeyError as outer:
        return outer


def _refused(status):
    """As aiohttp raises it."""
    return aiohttp.ClientResponseError(None, (), status=status)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
        OSError(errno.EIO, "Input/output error"),
        requests.exceptions.ChunkedEncodingError("IncompleteRead"),
        _HttpError(503),
        _HttpError(429),
        _refused(503),
        ValueError("UNAVAILABLE: Error reading gs://bucket/a: HTTP response code: 503"),
        ValueError("DEADLINE_EXCEEDED: CURL error Timeout was reached"),
        _wrapped(ConnectionResetError()),
        google.auth.exceptions.TransportError("the metadata server does not answer"),
        google.auth.exceptions.RefreshError("503", retryable=True),
    ],
    ids=repr,
)
def test_transient_errors(error):
    assert retry.is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        google.auth.exceptions.DefaultCredentialsError("no credentials were found"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),  # pyarrow, a damaged file
        _HttpError(404),
        _HttpError(None),
        _refused(403),
        ValueError("DATA_LOSS: Error decoding local file"),
        KeyError("image"),
        _wrapped(ValueError("NOT_FOUND: no such key")),
    ],
    ids=repr,
)
def test_permanent_errors(error):
    assert not retry.is_transient(error)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses of calls, without sleeping."""
    slept = []
    monkeypatch.setattr(retry, "sleep", slept.append)
    return slept


def _failing(errors):
    """A function that raises one of these per call, then returns "done"."""
    left = list(errors)

    def function(argument):
        if left:
            raise left.pop(0)
        return f"{argument} done"

    return function


def test_a_call_waits_longer_each_time(pauses):
    assert retry.call(_failing([TimeoutError()] * 5), "is") == "is done"
    for pause, delay in zip(pauses, retry.DELAYS, strict=True):
        assert 0.5 * delay <= pause <= 1.5 * delay


def test_a_persisting_transient_error_is_raised_at_the_end(pauses):
    with pytest.raises(ConnectionResetError):
        retry.call(_failing([ConnectionResetError()] * 6), "is")
    assert len(pauses) == len(retry.DELAYS)


def test_a_permanent_error_is_raised_at_once(pauses):
    with pytest.raises(FileNotFoundError):
        retry.call(_failing([FileNotFoundError()]), "is")
    assert pauses == []
