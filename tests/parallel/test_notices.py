"""Warnings about fallbacks are logged once."""

import types

import jax
import jax.numpy as jnp
import pytest

from big_ssl.parallel import fsdp, notices
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.batch_shard_map import shard_map_over_batch


@pytest.fixture
def warnings(monkeypatch):
    """The warnings logged in a test, with the process's cache cleared."""
    logged: list[str] = []
    logging = types.SimpleNamespace(warning=lambda template, *values: logged.append(template % values))
    monkeypatch.setattr(notices, "logging", logging)
    notices.warn_once.cache_clear()
    yield logged
    notices.warn_once.cache_clear()


def test_a_mesh_that_shrinks_warns_once(warnings):
    for _ in range(2):
        mesh_lib.make_mesh(dict(data=-1, fsdp=16, tensor=1))
    assert warnings == [
        "mesh: fsdp 16 is more than the 8 devices: only the batch is split, and every device holds the "
        "whole state"
    ]


def test_a_mesh_that_fits_does_not_warn(warnings):
    for sizes in (dict(data=-1, fsdp=8, tensor=1), dict(data=4, fsdp=2, tensor=1)):
        mesh_lib.make_mesh(sizes)
    assert not warnings


@pytest.mark.parametrize(("size", "count"), [(16, 0), (12, 1)])
def test_a_batch_that_shard_map_cannot_split_warns_once(size, count, warnings):
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2, tensor=1))

    def double(shared, per_example, axes):
        return per_example * shared, jax.lax.psum(per_example.sum(), axes)

    call = fsdp.within(mesh, lambda x: shard_map_over_batch(double, jnp.float32(2), x))
    for _ in range(2):
        jax.eval_shape(call, jax.ShapeDtypeStruct((size,), jnp.float32))
    assert len(warnings) == count
    for warning in warnings:
        assert f"{size} examples, or mask groups of them, are no multiple of data x fsdp = 8" in warning


def test_other_processes_do_not_warn(warnings, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    notices.warn_once("a notice")
    assert not warnings
