"""Parameters that live split over "fsdp" and are used whole: ZeRO stage 3 (arXiv 1910.02054).

Left to itself the compiler may carry a parameter's split over into the activations, and give up
that of the batch: each device then computes a few channels of every example. So it is said
here: gather the parameter, use it, and hand its gradient back split as the parameter is.
"""

import functools

import jax
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.sharding import fsdp_spec
from big_ssl.parallel.stacked import is_stacked


def within(mesh: Mesh, function):
    """The function, so that what is traced in it finds the mesh; for inside jax.jit."""

    @functools.wraps(function)
    def call(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return call


def gather(params, specs):
    """The parameters as they are used: whole, but for a split over "tensor".

    specs: the PartitionSpec of each. Stacks of layers are left as they are: the loop over them
    gathers one layer at a time, by `gather_layer`.
    """

    def place(path, x, spec):
        return x if is_stacked(path) else _gather(x, spec)

    return jax.tree_util.tree_map_with_path(place, params, specs)


def gather_layer(params):
    """The same for one layer of a stack, placed by the rule; nothing where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    return jax.tree.map(lambda x: _gather(x, fsdp_spec(x.shape, mesh.shape["fsdp"])), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x, spec):
    if "fsdp" not in spec:
        return x
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
    return jax.lax.with_sharding_constraint(x, used)


def _gather_forward(x, spec):
    return _gather(x, spec), None


def _gather_backward(spec, _, grad):
    return (jax.lax.with_sharding_constraint(grad, spec) if "fsdp" in spec else grad,)


_gather.defvjp(_gather_forward, _gather_backward)
