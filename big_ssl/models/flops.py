"""FLOPs of a model, counted in its jaxpr.

The compiler's count is different: it counts a scanned block once, however often it runs, and includes
the recomputation of rematerialisation.
"""

import math

import jax
from jax.extend import core

# The name of the jitted function around a fused attention of (q, k, ...), see models/attention.py.
FUSED_ATTENTION = "fused_attention"


def forward_flops(function, *arguments) -> int:
    """FLOPs of the matrix products and convolutions in function(*arguments), two a multiply-add.

    arguments: arrays or jax.ShapeDtypeStructs. A scan counts its body as often as it runs, lax.cond its most
    expensive branch, lax.platform_dependent the default branch. Taps on padding count; element-wise work does
    not. A fused attention counts as the two products that it replaces, independent of its padding and
    skipping; another Pallas kernel by its cost estimate, or without one by its body times the size of the
    grid. Raises ValueError for products inside a while loop, whose trip count the jaxpr does not contain.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr):
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return _branches(params)
    if params.get("name") == FUSED_ATTENTION:
        return _fused_attention(equation)
    if name == "pallas_call" and params["cost_estimate"] is not None:
        return params["cost_estimate"].flops
    inner = sum(_count(jaxpr) for jaxpr in _jaxprs(params))
    if name == "scan":
        return params["length"] * inner
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * inner
    if name == "while" and inner:
        raise ValueError("a while loop with matrix products in it: its trip count is unknown; use lax.scan")
    if name == "shard_map":  # the body is what one device of the manual axes does
        return math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params)) * inner
    return inner


def _manual_axes(params):
    return params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]


def _dot_general(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _fused_attention(equation):
    """The scores of queries [B, T, H, d] and keys [B, S, H, d], and the weighted sum of the values."""
    shapes = [variable.aval.shape for variable in equation.invars if len(variable.aval.shape) == 4]
    if len(shapes) < 3:  # a part that depends on no input, which a scan has split off under the same name
        return 0
    (batch, length, heads, dim), (_, keys, *_) = shapes[:2]
    return 2 * 2 * batch * heads * length * keys * dim


def _convolution(equation):
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    params = equation.params
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    # The kernel's input axis has the channels of one group. Most taps on a dilated input hit zeros.
    return 2 * out.size * (kernel.size // features) // math.prod(params["lhs_dilation"])


def _branches(params):
    platforms = params.get("branches_platforms")
    counts = [_count(branch.jaxpr) for branch in params["branches"]]
    return counts[platforms.index(None)] if platforms and None in platforms else max(counts)


def _jaxprs(params):
    """Every jaxpr among an equation's parameters: the bodies of jit, scan, remat, custom_vjp, ..."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
