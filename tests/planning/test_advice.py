"""Advice for a step that does not fit."""

import types

import jax
import jax.numpy as jnp

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.planning import advice
from big_ssl.planning.planner import Plan

GIB = 2**30


def _plan(arguments, temporaries, state=0, fsdp=1):
    """A plan on eight devices with 16 GiB each; arguments in GiB, `state` unsharded."""
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=fsdp, tensor=1))
    abstract = dict(w=jax.ShapeDtypeStruct((state * GIB // 4096, 1024), jnp.float32))
    record = dict(
        devices=8,
        hbm_limit_bytes=16 * GIB,
        argument_bytes=arguments * GIB,
        temp_bytes=None if temporaries is None else temporaries * GIB,
    )
    return Plan(record, None, types.SimpleNamespace(mesh=mesh, abstract_state=abstract), 0)


def _config(batch=512, **keys):
    return dict(streams=dict(pairs=dict(batch_size=batch)), **keys)


def test_a_large_state_is_sharded_over_as_few_devices_as_needed():
    lines = list(advice.advice(_plan(arguments=24, temporaries=9, state=24), _config()))
    assert lines[0] == "--config.mesh.fsdp=4 shrinks a device's part of the state to 6.00 GiB"


def test_advice_for_large_activations():
    config = _config(remat="none", grad_accum=1)
    assert list(advice.advice(_plan(arguments=4, temporaries=40), config)) == [
        "--config.remat=full recomputes each block in the backward pass instead of keeping it",
        "--config.grad_accum=4 runs about 16 examples a device at a time",
        "--config.streams.pairs.batch_size=152, about",
        "about 27 devices or more, with the same batch",
    ]


def test_advice_names_only_keys_of_the_config():
    lines = list(advice.advice(_plan(arguments=4, temporaries=40), _config()))
    assert not any("remat" in line or "grad_accum" in line for line in lines)
    assert not any("remat" in line for line in advice.advice(_plan(4, 40), _config(remat="full")))


def test_advice_for_a_state_too_large_for_any_mesh():
    lines = list(advice.advice(_plan(arguments=400, temporaries=None, state=400), _config()))
    assert lines == ["a chip with more memory, or more of them to split the state over (config.mesh.fsdp)"]


def test_fsdp_stays_inside_a_slice():
    assert advice.fsdp_sizes(256, 1, 1) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert advice.fsdp_sizes(24, 1, 2) == [1, 2, 4]
    assert advice.fsdp_sizes(16, 4, 2) == [1, 2]
