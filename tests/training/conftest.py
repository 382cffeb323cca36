"""A micro run that compiles in seconds, its compiled parts shared by every test of the session."""

import copy
import importlib.util
import json
import pathlib
from collections.abc import Sequence

import jax
import pytest

from big_ssl.data import sources
from big_ssl.models import encoders
from big_ssl.training import loop
from tests import compiling

_compiled: dict = {}


def _load_recipe():
    path = pathlib.Path(__file__).with_name("micro.py")
    spec = importlib.util.spec_from_file_location("micro_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


_get_config = _load_recipe()


class Spoiled(sources.EmojiPairs):
    """The emoji with every n-th record spoiled: a picture cut short, then an empty caption, by turns."""

    def __init__(self, every: int, what: str = "both", styles: Sequence[str] = (), concepts: str = "all"):
        super().__init__(styles, concepts)
        self._every, self._what = every, what

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if index % self._every:
            return record
        image = self._what == "image" or (self._what == "both" and index // self._every % 2 == 0)
        if image:
            return record | dict(image=record["image"][: len(record["image"]) // 2])
        bad = ("", None, 7)[index // self._every % 3]
        return {"image": record["image"], "label": bad, "name": bad}


@pytest.fixture(autouse=True, scope="session")
def _register():
    sources.SOURCES["spoiled"] = Spoiled
    yield
    del encoders.ENCODERS["micro"], sources.SOURCES["spoiled"]


def _micro_config(**changes):
    config = _get_config().to_dict()
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


def _shared_set_up(config, devices=None, first=0):
    """loop.set_up, with equal models on equal devices compiled once."""
    config = copy.deepcopy(config)
    apart = ("checkpoint", "log_every", "eval_every", "evals", "failure_limits", "init_from", "name")
    shaping = {k: v for k, v in config.items() if k not in apart}
    for stream in shaping["streams"].values():
        stream["data"] = dict(stream["data"], source=None)
    count = len(devices or jax.devices())
    key = json.dumps([shaping, count, first], sort_keys=True, default=str)
    if key not in _compiled:
        setup = _original_set_up(config, devices, first)
        _compiled[key] = setup._replace(init=_quick(setup.init), step=_quick(setup.step))
    return _compiled[key]


_original_set_up = loop.set_up


def _quick(function):
    def call(*arguments):
        with compiling.quickly():
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
