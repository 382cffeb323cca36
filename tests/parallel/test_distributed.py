"""Agreements of all hosts: an error on one is an error on all, and none is asked inside another."""

import numpy as np
import pytest
from jax.experimental import multihost_utils

from big_ssl.parallel import distributed


@pytest.fixture
def three_hosts(monkeypatch):
    """three_hosts(["", "text", ""]) makes this process the first of three that gather these texts."""

    def make(texts):
        gathered = iter(
            [np.array([len(text.encode()) for text in texts]), *_padded([text.encode() for text in texts])]
        )
        monkeypatch.setattr(distributed.jax, "process_count", lambda: len(texts))
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: next(gathered))

    return make


def _padded(texts):
    longest = max(map(len, texts))
    yield np.stack([np.frombuffer(text.ljust(longest, b"\0"), np.uint8) for text in texts])


def test_texts_of_any_length_are_gathered(three_hosts):
    three_hosts(["", "é was wrong", "b"])
    assert distributed.gather("") == ["", "é was wrong", "b"]
    three_hosts(["", "", ""])
    assert distributed.gather("") == ["", "", ""]


def test_an_error_of_another_host_is_raised_here_with_its_message(three_hosts):
    three_hosts(["", "", "no such file"])
    with (
        pytest.raises(ValueError, match=r"^process 2: no such file$"),
        distributed.raise_on_all_hosts(ValueError),
    ):
        pass


def test_who_failed_raises_its_own_error(three_hosts, monkeypatch):
    """Of any kind; the others are told which."""
    three_hosts(["", "", "KeyError: 'mine'"])
    message = "process 2: KeyError: 'mine'"
    with pytest.raises(ValueError, match=message), distributed.raise_on_all_hosts(ValueError):
        pass
    told = []
    monkeypatch.setattr(distributed, "gather", lambda text: told.append(text) or [text, ""])
    with pytest.raises(KeyError, match="mine"), distributed.raise_on_all_hosts(ValueError):
        raise KeyError("mine")
    assert told == ["KeyError: 'mine'"]


@pytest.mark.parametrize("inner", [lambda: distributed.all_hosts_agree(True), lambda: distributed.gather("")])
def test_nothing_is_asked_of_the_others_inside_an_agreement(inner):
    """A host that fails inside waits at the end of the agreement, where the others would not come."""
    message = "no host may wait for another"
    with pytest.raises(RuntimeError, match=message), distributed.raise_on_all_hosts(ValueError):
        inner()
    assert distributed.all_hosts_agree(True)  # and afterwards all is as before
