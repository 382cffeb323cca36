"""What takes longer than a few seconds says what it is."""

import time

import pytest

from big_ssl.training import phases
from big_ssl.training.phases import phase


@pytest.fixture
def printed(monkeypatch):
    """The lines that are printed, after a hundredth of a second rather than a few seconds."""
    lines = []
    monkeypatch.setattr(phases, "_SECONDS", 0.01)
    monkeypatch.setattr(phases.progress.console, "print", lines.append)
    return lines


def test_what_is_quick_says_nothing(printed):
    with phase("reading"):
        pass
    time.sleep(0.05)
    assert printed == []


def test_what_is_slow_says_what_it_is_while_it_lasts(printed):
    with phase("reading"):
        time.sleep(0.1)
        assert printed == ["reading …"]
    assert printed == ["reading …"]


def test_other_processes_say_nothing(printed, monkeypatch):
    monkeypatch.setattr(phases.jax, "process_index", lambda: 1)
    with phase("reading"):
        time.sleep(0.1)
    assert printed == []
