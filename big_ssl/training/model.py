"""From a config to what is trained, and how it begins: system, optimiser and initial state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from big_ssl.data import pipeline
from big_ssl.training import batches, build, optimizers, schedules
from big_ssl.training import state as state_lib
from big_ssl.training.lr_multipliers import LrMultipliers
from big_ssl.training.system import System


class Model(NamedTuple):
    """init: () -> TrainState, pure and jittable; optimizer: for what is not frozen by lr_multipliers."""

    system: System
    optimizer: optax.GradientTransformation
    lr_multipliers: LrMultipliers
    init: Callable


def build_model(config: Mapping, mesh: Mesh) -> Model:
    """The parts for batches that are split over mesh; nothing is computed.

    Raises ValueError where parts do not fit together, as far as that shows before they are traced.
    """
    system = build.system(config, mesh)
    lr_multipliers = LrMultipliers.build(config["lr_multipliers"], config["total_steps"], system.encoders)
    system = dataclasses.replace(system, frozen=lr_multipliers.frozen)
    schedule = functools.partial(schedules.build, total_steps=config["total_steps"])
    optimizer = lr_multipliers.mask(optimizers.build(config["optimizer"], schedule))
    if system.has_teacher and not config["ema"]:
        raise ValueError("ema is 0; the average is the teacher of this config's objectives")

    counters = {stream: pipeline.counters(fields) for stream, fields in system.fields.items()}

    def init():
        key = jax.random.key(config["seed"])
        params, mutable = system.init(key, batches.abstract_batch(config))
        return state_lib.create(
            params, mutable, optimizer, bool(config["ema"]), lr_multipliers.frozen, counters
        )

    return Model(system, optimizer, lr_multipliers, init)
