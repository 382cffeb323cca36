"""Collectives of all hosts: an error on one host is raised on all, and collectives do not nest."""

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


def test_the_failed_host_raises_its_own_error(three_hosts, monkeypatch):
    """Of any type; the others' message contains it."""
    three_hosts(["", "", "KeyError: 'mine'"])
    message = "process 2: KeyError: 'mine'"
    with pytest.raises(ValueError, match=message), distributed.raise_on_all_hosts(ValueError):
        pass
    sent = []
    monkeypatch.setattr(distributed, "gather", lambda text: sent.append(text) or [text, ""])
    with pytest.raises(KeyError, match="mine"), distributed.raise_on_all_hosts(ValueError):
        raise KeyError("mine")
    assert sent == ["KeyError: 'mine'"]


@pytest.mark.parametrize("inner", [lambda: distributed.all_hosts_agree(True), lambda: distributed.gather("")])
def test_collectives_inside_raise_on_all_hosts_are_an_error(inner):
    """A host that fails inside waits at the end of the block, which the others would never reach."""
    message = "no host may wait for another"
    with pytest.raises(RuntimeError, match=message), distributed.raise_on_all_hosts(ValueError):
        inner()
    assert distributed.all_hosts_agree(True)  # works again afterwards
