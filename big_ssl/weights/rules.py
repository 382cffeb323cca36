"""Conversion of weights between a public format's names and layouts and ours: invertible rules.

A rule maps one array of the format to one or more of ours. `read` applies the rules, `write` their inverses;
both are strict: every array must be converted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl.weights.errors import WeightsError


class Transform(NamedTuple):
    """A layout change and its inverse: one of their arrays to ours, and ours back to it."""

    read: Callable[[np.ndarray], Sequence[np.ndarray]]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


class Rule(NamedTuple):
    """theirs: a name, with {i} and {j} for indices; ours: the paths of the arrays made from it."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform


def permute(*axes: int) -> Transform:
    """Axis axes[n] of theirs is axis n of ours."""
    inverse = tuple(np.argsort(axes))
    return Transform(lambda x: (x.transpose(axes),), lambda xs: xs[0].transpose(inverse))


SAME = Transform(lambda x: (x,), lambda xs: xs[0])
# [out, in] as [in, out].
LINEAR = permute(1, 0)
# [out, in, k, k] as [k, k, in, out].
CONVOLUTION = permute(2, 3, 1, 0)
# [out, in, 1, 1] as [in, out].
POINTWISE = Transform(lambda x: (x[:, :, 0, 0].T,), lambda xs: xs[0].T[:, :, None, None])

# A depthwise [channels, 1, k, k] as [k, k, channels].
DEPTHWISE = Transform(lambda x: (x[:, 0].transpose(1, 2, 0),), lambda xs: xs[0].transpose(2, 0, 1)[:, None])


def leading(ones: int) -> Transform:
    """[1, ..., 1, *shape] as [*shape]."""
    return Transform(lambda x: (x.reshape(x.shape[ones:]),), lambda xs: xs[0][(None,) * ones])


def linear(theirs: str, ours: str) -> list[Rule]:
    """A linear layer with a bias: .weight [out, in] and .bias."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), LINEAR),
        Rule(f"{theirs}.bias", (f"{ours}/bias",), SAME),
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """A layer norm's .weight and .bias."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/scale",), SAME),
        Rule(f"{theirs}.bias", (f"{ours}/bias",), SAME),
    ]


def fused(theirs: str, *ours: str) -> list[Rule]:
    """Fused linear layers: <theirs>weight [n * out, in] to n kernels [in, out]; likewise <theirs>bias."""
    count = len(ours)
    kernels = Transform(
        lambda x: [part.T for part in np.split(x, count)], lambda xs: np.concatenate([x.T for x in xs])
    )
    biases = Transform(lambda x: np.split(x, count), np.concatenate)
    return [
        Rule(f"{theirs}weight", tuple(f"{name}/kernel" for name in ours), kernels),
        Rule(f"{theirs}bias", tuple(f"{name}/bias" for name in ours), biases),
    ]


def qkv(theirs: str, ours: str) -> list[Rule]:
    """PyTorch's MultiheadAttention, which fuses the three input projections."""
    split = [f"{ours}{name}" for name in ("query", "key", "value")]
    return [*fused(f"{theirs}.in_proj_", *split), *linear(f"{theirs}.out_proj", f"{ours}out")]


def within(theirs: str, ours: str, rules: Iterable[Rule]) -> list[Rule]:
    """Adds prefixes to the names on both sides of rules."""
    return [Rule(theirs + r.theirs, tuple(ours + path for path in r.ours), r.transform) for r in rules]


def read(
    rules: Sequence[Rule],
    ignored: Sequence[str],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple],
) -> dict[str, np.ndarray]:
    """Converts their arrays to ours.

    Args:
      rules: the format's.
      ignored: regexes of non-weight names.
      tensors: {name: array}, theirs.
      shapes: {path: shape} of the architecture's weights.

    Returns:
      {path: float32 array}, with a value for every path.

    Raises:
      WeightsError: for a name that is missing or unknown, a shape that differs from the architecture's, or a
        dtype other than floating point.
    """
    ours, used = {}, set()
    for name, paths, transform in _instances(rules, shapes):
        if name not in tensors:
            raise WeightsError(f"{name} is missing")
        # Their shape, from the inverse transform on arrays that take no memory.
        expected = transform.write([np.broadcast_to(np.float32(0), shapes[path]) for path in paths]).shape
        if tensors[name].shape != expected:
            raise WeightsError(
                f"{name} is {list(tensors[name].shape)}; the architecture has {list(expected)}"
            )
        values = transform.read(_float32(name, tensors[name]))
        ours |= {path: np.asarray(value, order="C") for path, value in zip(paths, values, strict=True)}
        used.add(name)
    unknown = [n for n in tensors if n not in used and not any(re.fullmatch(p, n) for p in ignored)]
    if unknown:
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise WeightsError(f"{unknown[0]} is no weight of this architecture{others}")
    return ours


def write(rules: Sequence[Rule], ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts our {path: array} to their {name: array}. Raises WeightsError for a path without a rule."""
    return {
        name: np.asarray(transform.write([ours[path] for path in paths]), order="C")
        for name, paths, transform in _instances(rules, ours)
    }


def _instances(rules, paths) -> Iterator[tuple[str, tuple[str, ...], Transform]]:
    """Yields (their name, our paths, transform) of every rule with indices filled in from `paths`."""
    patterns = [(re.compile(_pattern(rule.ours[0])), rule) for rule in rules]
    converted = set()
    for path in paths:
        for pattern, rule in patterns:
            if match := pattern.fullmatch(path):
                ours = tuple(other.format(**match.groupdict()) for other in rule.ours)
                converted.update(ours)
                yield rule.theirs.format(**match.groupdict()), ours, rule.transform
    for path in paths:
        if path not in converted:
            raise WeightsError(f"the format has no place for our {path}")


def _pattern(path):
    return re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(path))


def _float32(name, array):
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise WeightsError(f"{name} is of dtype {array.dtype.name}; weights are floating point")
    return array.astype(np.float32)
