"""What recipes are made with: the text after the colon of --config=FILE:ARG, epochs in steps, learning rates
by batch size."""

import ast
import difflib
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict


def choose(
    name: str, arg: str, presets: Mapping[str, Callable[..., dict]], models: Collection[str] = ()
) -> ConfigDict:
    """Builds the config that `arg` names: `[model][,preset][,key=value ...]`.

    Args:
      name: The recipe's name, for errors.
      arg: For example "", "demo", "vitl14", "vitl14,demo,seed=1,mesh.fsdp=2" or "seed=1".
      presets: {preset: its function}; "" is the recipe itself. A function takes the model's name, or no
        argument if the preset is the same for all models.
      models: The names of the models, the default first; empty if the recipe has one model.

    Returns:
      The config, locked: no key can be added.

    Raises:
      ValueError: in one line, for an unknown model, preset or key, and for a value of the wrong type.
    """
    items = arg.split(",") if arg else []
    words = list(itertools.takewhile(lambda item: "=" not in item, items))
    config = ConfigDict(_build(name, words, presets, models), convert_dict=True).lock()
    for change in items[len(words) :]:
        key, _, value = change.partition("=")
        if key not in (known := _keys(config)):
            close = "".join(f"; did you mean {k}?" for k in difflib.get_close_matches(key, known, n=1))
            raise ValueError(f"{name}: {key} is no key of it{close}")
        try:
            config.update_from_flattened_dict({key: _literal(value)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {change}: {error}") from error
    return config


def _build(name, words, presets, models) -> dict:
    """The dict of the preset and model that `words` names."""
    for word in words:
        if word not in (*models, *presets):
            what = "model or preset" if models else "preset"
            raise ValueError(f"{name}: no {what} {word!r}; {_available(presets, models)}")
    model = [word for word in words[:1] if word in models]
    preset, *extra = words[len(model) :] or [""]
    if extra or preset not in presets:
        order = "MODEL,PRESET" if models else "PRESET"
        raise ValueError(f"{name}: cannot combine {','.join(words)}; write {order},KEY=VALUE in this order")
    build = presets[preset]
    if models and inspect.signature(build).parameters:
        return build(*model or [next(iter(models))])
    if model:
        raise ValueError(f"{name}: preset {preset} is the same for all models; leave out {model[0]}")
    return build()


def _available(presets, models):
    """The words that `choose` takes, as text."""
    known = [preset for preset in presets if preset]
    if not models:
        return f"there are {_listed(known)}"
    return f"models: {_listed(list(models))}; presets: {_listed(known)}"


def _listed(words):
    return f"{', '.join(words[:-1])} and {words[-1]}"


def epochs(count: float, examples: int, batch: int) -> int:
    """The number of steps in `count` epochs; an epoch drops its last, incomplete batch."""
    return int(count * (examples // batch))


def scaled_rate(base: float, batch: int, per: int = 256, rule: str = "linear") -> float:
    """Scales a learning rate to another batch size.

    Args:
      base: The learning rate at a batch of `per` examples.
      batch: The batch size to scale to.
      per: The batch size that `base` belongs to.
      rule: "linear" (Goyal et al. 2017, arXiv 1706.02677), or "sqrt", with the root of the batch size.

    Raises:
      ValueError: for another rule.
    """
    if rule not in ("linear", "sqrt"):
        raise ValueError(f"scaled_rate: rule is {rule!r}; use linear or sqrt")
    return base * (batch / per) ** (1 if rule == "linear" else 0.5)


def _keys(config):
    return flatten_dict(config.to_dict(), sep=".").keys()


def _literal(text):
    """A number, a bool or None if the text is one; otherwise the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
