"""A micro run that compiles in seconds, its compiled parts shared by every test of the session."""

import contextlib
import copy
import json

import jax
import pytest

from big_ssl.data import sources
from big_ssl.models import efficientnet, encoders
from big_ssl.training import loop
from configs.align_l2 import get_config

_STAGES = efficientnet.B0_STAGES[:2]
_compiled: dict = {}


def _micro_tower(**options):
    """EfficientNet's first two stages: batch norm, squeeze-excite and strides, a fifth of the compilation."""
    return efficientnet.EfficientNet(stages=_STAGES, width=0.25, depth=0.3, drop_connect=0.0, **options)


class Spoiled(sources.EmojiPairs):
    """The emoji with every n-th record spoiled: a picture cut short, then an empty caption, by turns."""

    def __init__(self, every: int, what: str = "both", **options):
        super().__init__(**options)
        self._every, self._what = every, what

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if index % self._every:
            return record
        image = self._what == "image" or (self._what == "both" and index // self._every % 2 == 0)
        if image:
            return record._replace(image=record.image[: len(record.image) // 2])
        bad = ("", None, 7)[index // self._every % 3]
        return record._replace(texts={"label": [bad], "name": [bad]})


@pytest.fixture(autouse=True, scope="session")
def _register():
    encoders.ENCODERS["micro"] = _micro_tower
    sources.SOURCES["spoiled"] = Spoiled
    yield
    del encoders.ENCODERS["micro"], sources.SOURCES["spoiled"]


def _micro_config(**changes):
    config = get_config("tiny").to_dict()
    config.update(total_steps=6, log_every=1, eval_every=100, evals={})
    config["checkpoint"].update(every=2, keep=2, best="")
    config["learning_rate"].update(warmup_steps=2)
    config["encoders"]["image"] = dict(kind="micro", group_size=0, bn_momentum=0.9)
    config["streams"]["pairs"]["objectives"]["contrastive"].update(
        dim=efficientnet.round_channels(_STAGES[-1].channels, 0.25)
    )
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        node[last] = value
    return config


@pytest.fixture(scope="session")
def micro_config():
    """micro_config(a__b=1) -> a fresh config dict with config["a"]["b"] = 1."""
    return _micro_config


@contextlib.contextmanager
def _compiling_quickly():
    """LLVM's passes cost more than these runs do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _shared_set_up(config, devices=None):
    """loop.set_up, with equal models on equal devices compiled once."""
    config = copy.deepcopy(config)
    shaping = {k: v for k, v in config.items() if k not in ("checkpoint", "log_every", "evals", "faults", "name")}
    for stream in shaping["streams"].values():
        stream["data"] = dict(stream["data"], source=None)
    count = len(devices or jax.devices())
    key = json.dumps([shaping, count], sort_keys=True, default=str)
    if key not in _compiled:
        setup = _original_set_up(config, devices)
        _compiled[key] = setup._replace(init=_quick(setup.init), step=_quick(setup.step))
    return _compiled[key]


_original_set_up = loop.set_up


def _quick(function):
    def call(*arguments):
        with _compiling_quickly():
            return function(*arguments)

    return call


@pytest.fixture(scope="session")
def set_up():
    """Like training.loop.set_up, compiled once in a session for each config and number of devices."""
    return _shared_set_up


@pytest.fixture
def train(monkeypatch):
    """Like training.loop.train, on the shared compiled parts."""
    monkeypatch.setattr(loop, "set_up", _shared_set_up)
    return loop.train


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(step) makes a run believe that it was sent SIGTERM before the end of that step."""
    from big_ssl.training.stopping import StopRequest

    return lambda step: monkeypatch.setattr(StopRequest, "reached", lambda self, now: now == step)
