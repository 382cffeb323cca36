"""Fully sharded data parallelism over the axis "fsdp": ZeRO stage 3 (arXiv 1910.02054).

Left to itself, the compiler may propagate a parameter's sharding to the activations and drop the batch's:
each device then computes a few channels of every example. We therefore constrain it: cast the parameter to
its compute dtype, all-gather it, use it, and reduce-scatter its gradient. Gradients are summed over devices
in the dtype of the matmul that produces them, bfloat16 if the computation is.
"""

import functools
from typing import Any

import flax.struct
import jax
from flax.core.meta import AxisMetadata
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.stacked import is_stacked


def within(mesh: Mesh, function):
    """Wraps a function so that code traced in it sees the mesh; for use inside jax.jit."""

    @functools.wraps(function)
    def call(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return call


def gather(params, specs, dtypes):
    """All-gathers parameters over "fsdp"; a split over other axes, such as "tensor", stays.

    A stack of layers stays split, as a `Stack`: the loop over it gathers one layer at a time.

    Args:
      params: pytree of arrays.
      specs: the PartitionSpec of each array.
      dtypes: the compute dtype of each array, to which it is cast before it is gathered.

    Returns:
      A pytree like params.
    """

    def place(path, x, spec, dtype):
        return Stack(x, spec, dtype) if is_stacked(path) else _gather(x, spec, dtype)

    return jax.tree_util.tree_map_with_path(place, params, specs, dtypes)


class Stack(flax.struct.PyTreeNode, AxisMetadata):
    """A parameter of a layer stack; flax unboxes it, which gathers it, when one layer reads it.

    value: [layers, ...], or one layer's [...] inside flax.linen.scan; spec: its PartitionSpec; dtype: the
    compute dtype, to which it is cast before it is gathered.
    """

    value: Any
    spec: PartitionSpec = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)

    def unbox(self):
        """The gathered parameter, see `gather`."""
        return _gather(self.value, self.spec, self.dtype)

    def replace_boxed(self, val):
        """The same sharding with another value."""
        return self.replace(value=val)

    def remove_axis(self, index, params):
        """One layer's parameter, without the layer axis."""
        del params
        return self.replace(spec=PartitionSpec(*self.spec[:index], *self.spec[index + 1 :]))

    def add_axis(self, index, params):
        """All layers' parameter, with the layer axis."""
        del params
        return self.replace(spec=PartitionSpec(*self.spec[:index], None, *self.spec[index:]))


def _gather(x, spec, dtype):
    """Casts x, then gathers it: in bfloat16 half the bytes are sent."""
    if "fsdp" not in spec:
        return x
    return _constrained(jax.lax.with_sharding_constraint(x.astype(dtype), spec), spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _constrained(x, spec):
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
    return jax.lax.with_sharding_constraint(x, used)


def _gather_forward(x, spec):
    return _constrained(x, spec), None


def _gather_backward(spec, _, grad):
    return (jax.lax.with_sharding_constraint(grad, spec),)


_constrained.defvjp(_gather_forward, _gather_backward)
