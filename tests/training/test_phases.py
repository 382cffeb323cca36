"""Phases of the set-up: their announcement, and errors on all hosts."""

import time

import pytest

from big_ssl.parallel import distributed
from big_ssl.training import phases
from big_ssl.training.requirements import RequirementsError


def test_only_long_phases_are_printed(capsys):
    with phases.announced("quick", 0.2):
        pass
    with phases.announced("slow", 0.05):
        time.sleep(0.4)
    assert capsys.readouterr().out == "slow ...\n"


def test_a_phase_fails_if_another_host_fails(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda text: [text, "no such file"])
    with pytest.raises(RequirementsError, match=r"^process 1: no such file$"), phases.phase("reading"):
        pass
