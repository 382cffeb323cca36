"""Parts of a model that learn at their own rate, or not at all: config.rates.

Pairs of (pattern, factor): a regular expression searched in a parameter's path, such as
"encoders/image/layer0/query/kernel", and what its learning rate is multiplied by: a number, a schedule
(training/schedules.py), or a decay by layers (training/layer_decay.py). The first pattern that is found
counts; without one it is 1.
A locked image tower (LiT, Zhai et al. 2022, arXiv 2111.07991) is ("encoders/image/", 0.0).
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
class Rates:
    """rules: (compiled pattern, schedule or LayerDecay), None for the number 0: frozen.
    encoders: {name: module}, whose layers a decay by layers reads.

    What is frozen has neither gradient nor moments, and an encoder of which all is frozen runs as in
    evaluation. A schedule that is 0 for a while only stops the updates; the moments go on.
    """

    rules: Sequence[tuple]
    encoders: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(
        cls, config: Sequence, total_steps: int, encoders: Mapping[str, Encoder] = MappingProxyType({})
    ) -> "Rates":
        """From config.rates. Raises ValueError for an unknown schedule."""
        rules = ((re.compile(pattern), build_factor(value, total_steps)) for pattern, value in config)
        return cls(tuple(rules), encoders)

    def frozen(self, name: str) -> bool:
        """Whether the parameter of this path never changes."""
        return self._rule(name)[1] is None

    def factors(self, params, step):
        """What each parameter's learning rate is multiplied by at this step: numbers, and for a stack with
        a decay by layers an array that broadcasts to it."""

        def factor(path, leaf):
            found = self._rule(path_name(path))[1]
            if isinstance(found, LayerDecay):
                return found.factor(path, leaf, self.encoders)
            return 0.0 if found is None else found(step)

        return jax.tree_util.tree_map_with_path(factor, params)

    def check(self, params) -> None:
        """Raises ValueError for a pattern that no path has, where nothing is left to train, and for a decay
        by layers of what has none."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in self.rules:
            if not any(pattern.search(name) for name in names):
                raise ValueError(f"rates: {pattern.pattern!r} is found in no path of the parameters")
        if all(map(self.frozen, names)):
            raise ValueError("rates: every parameter is frozen")
        jax.eval_shape(lambda: self.factors(params, 0))

    def mask(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser for what is not frozen."""
        if not any(schedule is None for _, schedule in self.rules):
            return optimizer

        def trained(params):
            return jax.tree_util.tree_map_with_path(lambda path, _: not self.frozen(path_name(path)), params)

        return optax.masked(optimizer, trained)

    def _rule(self, name):
        return next((rule for rule in self.rules if rule[0].search(name)), (None, _one))


def build_factor(value, total_steps: int) -> optax.Schedule | LayerDecay | None:
    """What a value in config.rates stands for, None for the number 0. Raises ValueError for anything else."""
    if layer_decay.is_layer_decay(value):
        return layer_decay.build(value)
    return None if value == 0 else schedules.build(value, total_steps)


def _one(step):
    del step
    return 1.0
