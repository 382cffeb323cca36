"""Parameters that live split over "fsdp" and are used whole: ZeRO stage 3 (arXiv 1910.02054).

Left to itself the compiler may carry a parameter's split over into the activations, and give up
that of the batch: each device then computes a few channels of every example. So it is said
here: cast the parameter to the dtype that it is used in, gather it, use it, and hand its gradient
back split as the parameter is. The gradient is added up over devices in the dtype of the product
that makes it: bfloat16 where the computation is.
"""

import functools
from typing import Any

import flax.struct
import jax
from flax.core.meta import AxisMetadata
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.stacked import is_stacked


def within(mesh: Mesh, function):
    """The function, so that what is traced in it finds the mesh; for inside jax.jit."""

    @functools.wraps(function)
    def call(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return call


def gather(params, specs, dtypes):
    """The parameters as they are used: whole, but for a split over other axes, "tensor" say.

    specs: the PartitionSpec of each; dtypes: what each is cast to before it is gathered, in which no
    split of it matters to the result. A stack of layers is left split, as a `Stack`: the loop over it
    gathers one layer at a time.
    """

    def place(path, x, spec, dtype):
        return Stack(x, spec, dtype) if is_stacked(path) else _gather(x, spec, dtype)

    return jax.tree_util.tree_map_with_path(place, params, specs, dtypes)


class Stack(flax.struct.PyTreeNode, AxisMetadata):
    """A parameter of all layers of a stack, which flax gathers for each layer as the layer reads it.

    value: [layers, ...], and in a loop (flax.linen.scan) that of one layer; spec: of its axes; dtype: what
    it is cast to before it is gathered.
    """

    value: Any
    spec: PartitionSpec = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)

    def unbox(self):
        """The parameter as it is used, see `gather`."""
        return _gather(self.value, self.spec, self.dtype)

    def replace_boxed(self, val):
        """Another value in the same places."""
        return self.replace(value=val)

    def remove_axis(self, index, params):
        """That of one layer, which has no axis of layers."""
        del params
        return self.replace(spec=PartitionSpec(*self.spec[:index], *self.spec[index + 1 :]))

    def add_axis(self, index, params):
        """That of all layers."""
        del params
        return self.replace(spec=PartitionSpec(*self.spec[:index], None, *self.spec[index:]))


def _gather(x, spec, dtype):
    """x as it is used. Cast while it is split: in bfloat16 half the bytes travel."""
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
