"""Bytes per device, without compiling; the largest tensors of a program that does not fit."""

import jax
import jax.numpy as jnp
import pytest

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel import sharding
from big_ssl.planning import program
from big_ssl.planning.planner import set_up
from big_ssl.training import batches, build, streams
from configs.align_l2 import get_config


@pytest.fixture(scope="module")
def config():
    return get_config("tiny").to_dict()


@pytest.fixture(scope="module")
def setup(config):
    return set_up(config, jax.devices())


def _placed(state, sizes, overrides=()):
    """The state's shapes with their shardings on a real mesh."""
    shardings = sharding.state_shardings(mesh_lib.make_mesh(sizes), state, overrides)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
@pytest.mark.parametrize("overrides", [(), (("word/embedding$", (None, "fsdp")),)])
def test_bytes_of_the_state_equal_the_programs_arguments(setup, fsdp, overrides):
    sizes = dict(data=8 // fsdp, fsdp=fsdp, tensor=1)
    state = _placed(setup.abstract_state, sizes, overrides)
    compiled = jax.jit(lambda x: x).lower(state).compile()
    taken = compiled.memory_analysis().argument_size_in_bytes
    assert program.argument_bytes(state) == taken
    assert program.state_bytes(setup.abstract_state, sizes, overrides) == taken


def test_bytes_of_a_batch_equal_the_programs_arguments(config, setup):
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    compiled = jax.jit(lambda x: x).lower(batch).compile()
    assert program.argument_bytes(batch) == compiled.memory_analysis().argument_size_in_bytes


def test_a_state_that_cannot_be_split_has_no_bytes():
    state = dict(w=jax.ShapeDtypeStruct((2049, 2049), jnp.float32))
    assert program.state_bytes(state, dict(data=4, fsdp=2, tensor=1)) is None


def test_the_abstract_batch_equals_a_real_one(config, setup):
    mesh = setup.mesh
    abstract = batches.abstract_global_batch(config, mesh_lib.batch_sharding(mesh))
    iterator = batches.iterate(config, streams.open_streams(config, build.tokenizer(config)), 0, mesh)
    real = mesh_lib.global_batch(mesh, next(iterator))
    iterator.close()
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), real) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), abstract
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [("26.95G", int(26.95 * 2**30)), ("64.1T", int(64.1 * 2**40)), ("900.5M", 944242688)],
)
def test_the_required_bytes_in_the_compilers_message(size, expected):
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required "
        f"for HLO temporaries ({size}) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert program._required(message) == expected


# Excerpts of libtpu 0.0.52's dumps.
ASSIGNMENT = """BufferAssignment:
allocation 0: size 0, color 1, page 0, preallocated-temp:
allocation 3: size 900, color 0, page 0, preallocated-temp:
 value: <610 fusion.1 @0> (size=400,offset=0): f32[10,10]{1,0:T(8,128)}
 value: <611 fusion.2 @0> (size=300,offset=0): f32[75]{0}
 value: <612 while.1{2} @0> (size=200,offset=400): bf16[100]{0}
 value: <613 fusion.4 @1> (size=999,offset=600): f32[249]{0}
allocation 4: size 100, color 0, page 0, parameter 0:
 value: <614 param.1 @0> (size=100,offset=0): f32[25]{0}
 value: <615 fusion.5 @0> (size=50,offset=0): f32[12]{0}
"""
TEXT = """  %fusion.1 = f32[10,10]{1,0} fusion(%x), metadata={op_name="jit(step)/jvp(Bert)/layer0/mul" id=1}
  %fusion.11 = f32[10,10]{1,0} fusion(%x), calls=%a, metadata={op_name="jit(step)/other" id=1}
  ROOT %while.1 = (f32[]) while(%x), metadata={op_name="jit(step)/while" stack_frame_id=1}
"""


def test_the_largest_tensors_are_one_per_buffer():
    actual = program._largest(ASSIGNMENT, TEXT)
    assert actual == (
        (400, "f32[10,10]", "jvp(Bert)/layer0/mul"),
        (200, "bf16[100]", "while"),
        (100, "f32[25]", "param.1"),
    )
