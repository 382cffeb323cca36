"""What a stop request does to the process that it is made in."""

import errno
import io
import os
import sys

import pytest

from big_ssl.training.stopping import StopRequest


class Closed(io.StringIO):
    """A terminal's stream after the terminal was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        raise OSError(errno.EIO, "Input/output error")


def close_terminal(monkeypatch):
    """Not in a fixture: pytest's own streams would take the place of these for the test."""
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", Closed())
    return sys.stdout, sys.stderr


def test_a_write_to_a_closed_terminal_does_not_end_the_run(monkeypatch):
    """It fails before the handler of SIGHUP runs."""
    streams = close_terminal(monkeypatch)
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor in (1, 2))
    stop = StopRequest()
    try:
        print("step 1")
        print("warning", file=sys.stderr, flush=True)
    finally:
        stop.close()
    assert (sys.stdout, sys.stderr) == streams


def test_without_a_terminal_a_failed_write_is_an_error(monkeypatch):
    """As on a full disk, where the output goes to a file."""
    close_terminal(monkeypatch)
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    stop = StopRequest()
    try:
        with pytest.raises(OSError, match="Input/output"):
            print("step 1")
    finally:
        stop.close()
