"""Multipliers of the learning rate by parameter; 0 freezes: config.lr_multipliers.

Pairs of (pattern, factor): a regular expression searched in a parameter's path, such as
"encoders/image/layer0/query/kernel", and the factor of its learning rate: a number, a schedule
(training/schedules.py), or layer-wise decay (training/layer_decay.py). The first pattern that matches
counts; a parameter that none matches has the factor 1.
A locked image encoder (LiT, Zhai et al. 2022, arXiv 2111.07991) is ("encoders/image/", 0.0).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import optax

from big_ssl.models.encoder import Encoder
from big_ssl.parallel.sharding import path_name
from big_ssl.training import layer_decay, schedules
from big_ssl.training.layer_decay import LayerDecay


@dataclasses.dataclass(frozen=True)
class LrMultipliers:
    """rules: (compiled pattern, schedule or LayerDecay), None in place of the number 0: frozen.
    encoders: {name: module}, whose layer ids layer-wise decay reads.

    Frozen parameters have neither gradient nor moments, and an entirely frozen encoder runs as in
    evaluation. A schedule that is 0 for a while only stops the updates; the moments keep changing.
    """

    rules: Sequence[tuple]
    encoders: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(
        cls, config: Sequence, total_steps: int, encoders: Mapping[str, Encoder] = MappingProxyType({})
    ) -> "LrMultipliers":
        """From config.lr_multipliers. Raises ValueError for an unknown schedule."""
        rules = ((re.compile(pattern), build_factor(value, total_steps)) for pattern, value in config)
        return cls(tuple(rules), encoders)

    def frozen(self, name: str) -> bool:
        """Whether the parameter of this path never changes."""
        return self._rule(name)[1] is None

    def factors(self, params, step):
        """The factor of each parameter's learning rate at this step: numbers, and for a stack with layer-wise
        decay an array that broadcasts to it."""

        def factor(path, leaf):
            schedule = self._rule(path_name(path))[1]
            if isinstance(schedule, LayerDecay):
                return schedule.factor(path, leaf, self.encoders)
            return 0.0 if schedule is None else schedule(step)

        return jax.tree_util.tree_map_with_path(factor, params)

    def check(self, params) -> None:
        """Raises ValueError for a pattern that matches no parameter, if every parameter is frozen, and for
        layer-wise decay of a model without layers."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in self.rules:
            if not any(pattern.search(name) for name in names):
                raise ValueError(f"lr_multipliers: {pattern.pattern!r} is found in no path of the parameters")
        if all(map(self.frozen, names)):
            raise ValueError("lr_multipliers: every parameter is frozen")
        jax.eval_shape(lambda: self.factors(params, 0))

    def mask(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser, restricted to parameters that are not frozen."""
        if not any(schedule is None for _, schedule in self.rules):
            return optimizer

        def trained(params):
            return jax.tree_util.tree_map_with_path(lambda path, _: not self.frozen(path_name(path)), params)

        return optax.masked(optimizer, trained)

    def _rule(self, name):
        return next((rule for rule in self.rules if rule[0].search(name)), (None, _one))


def build_factor(value, total_steps: int) -> optax.Schedule | LayerDecay | None:
    """Builds a factor of config.lr_multipliers; None for 0. Raises ValueError for an invalid one."""
    if layer_decay.is_layer_decay(value):
        return layer_decay.build(value)
    return None if value == 0 else schedules.build(value, total_steps)


def _one(step):
    del step
    return 1.0
