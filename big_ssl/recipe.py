"""What recipes are made with: what follows the colon of --config=FILE:ARG (a preset, changes to it, or
both), epochs in steps, rates by the batch."""

import ast
import difflib
from collections.abc import Callable, Mapping

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict


def choose(name: str, arg: str, presets: Mapping[str, Callable[[], dict]]) -> ConfigDict:
    """The recipe that `arg` asks for: "demo", "demo,seed=1,mesh.fsdp=2", "seed=1" or "".

    name: of the recipe, for errors; presets: what builds each of them, "" the recipe itself.
    Raises ValueError for an unknown preset or key, and for a value of another type than the recipe's.
    """
    preset, *changes = arg.split(",") if "=" not in arg.split(",")[0] else ["", *arg.split(",")]
    if preset not in presets:
        known = [preset for preset in presets if preset]
        raise ValueError(f"{name}: no preset {preset!r}; there are {', '.join(known[:-1])} and {known[-1]}")
    config = ConfigDict(presets[preset](), convert_dict=True).lock()
    for change in changes:
        key, _, value = change.partition("=")
        if key not in (known := _keys(config)):
            close = "".join(f"; did you mean {k}?" for k in difflib.get_close_matches(key, known, n=1))
            raise ValueError(f"{name}: {key} is no key of it{close}")
        try:
            config.update_from_flattened_dict({key: _plain(value)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {change}: {error}") from error
    return config


def epochs(count: float, examples: int, batch: int) -> int:
    """The steps of so many epochs, of which each leaves out what does not fill its last batch."""
    return int(count * (examples // batch))


def scaled_rate(base: float, batch: int, per: int = 256, rule: str = "linear") -> float:
    """The learning rate for this batch, of one that is `base` for a batch of `per`.

    rule: "linear" (Goyal et al. 2017, arXiv 1706.02677), or "sqrt", with the root of the batch. Raises
    ValueError for another.
    """
    if rule not in ("linear", "sqrt"):
        raise ValueError(f"scaled_rate: rule is {rule!r}; use linear or sqrt")
    return base * (batch / per) ** (1 if rule == "linear" else 0.5)


def _keys(config):
    return flatten_dict(config.to_dict(), sep=".").keys()


def _plain(text):
    """A number, a bool or None where the text is one; else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
