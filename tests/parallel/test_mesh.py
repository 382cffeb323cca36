"""The mesh and the sharding of arrays on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel import sharding


def _sizes(data, fsdp=1, tensor=1):
    return dict(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize(
    ("sizes", "devices", "shape"),
    [
        (_sizes(-1), 8, (8, 1, 1)),
        (_sizes(-1, 2), 8, (4, 2, 1)),
        (_sizes(2, -1, 2), 8, (2, 2, 2)),
        (_sizes(4, 2), 8, (4, 2, 1)),
        (_sizes(-1), 1, (1, 1, 1)),
        # The full recipe specifies fsdp = 16; on fewer devices every config still runs.
        (_sizes(-1, 16), 8, (8, 1, 1)),
        (_sizes(-1, 16), 1, (1, 1, 1)),
        (_sizes(64, 16), 4, (4, 1, 1)),
    ],
)
def test_shapes(sizes, devices, shape):
    mesh = mesh_lib.make_mesh(sizes, jax.devices()[:devices])
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh_lib.batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize("sizes", [_sizes(3), _sizes(2, 2), _sizes(-1, 3)])
def test_sizes_that_do_not_divide_the_devices_are_an_error(sizes):
    with pytest.raises(ValueError, match=r"mesh: .* does not divide 8 devices"):
        mesh_lib.make_mesh(sizes)


@pytest.mark.parametrize("place", [mesh_lib.global_batch, mesh_lib.from_every_host])
def test_a_batch_keeps_its_order_and_is_split_over_data_and_fsdp(place):
    mesh = mesh_lib.make_mesh(_sizes(4, 2))
    batch = dict(image=np.arange(32).reshape(16, 2), text=dict(ids=np.arange(16)))
    placed = place(mesh, batch)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    shards = sorted(placed["image"].addressable_shards, key=lambda shard: shard.index[0].start)
    assert [shard.data.shape for shard in shards] == [(2, 2)] * 8


@pytest.mark.parametrize("sizes", [_sizes(-1), _sizes(2, 2, 2)])
def test_one_process_holds_every_row_once(sizes):
    # Several processes: tests/cluster.
    np.testing.assert_array_equal(mesh_lib.local_rows(mesh_lib.make_mesh(sizes), 16), np.arange(16))


@pytest.mark.parametrize(
    ("shape", "num_shards", "spec"),
    [
        ((1024, 4096), 2, PartitionSpec(None, "fsdp")),
        ((4096, 1024), 2, PartitionSpec("fsdp")),
        ((4097, 1024), 2, PartitionSpec(None, "fsdp")),
        ((4096, 1024), 1, PartitionSpec()),
        ((4097, 1023), 2, PartitionSpec()),
        ((255, 256), 2, PartitionSpec()),  # small: just below the limit
        ((256, 256), 2, PartitionSpec("fsdp")),
        ((), 2, PartitionSpec()),
    ],
)
def test_the_fsdp_rule(shape, num_shards, spec):
    assert sharding.fsdp_spec(shape, num_shards) == spec


def test_the_whole_state_follows_the_rule():
    mesh = mesh_lib.make_mesh(_sizes(4, 2))
    state = dict(w=jax.ShapeDtypeStruct((512, 256), jnp.float32), step=jax.ShapeDtypeStruct((), jnp.int32))
    placed = sharding.state_shardings(mesh, state)
    assert placed["w"] == NamedSharding(mesh, PartitionSpec("fsdp"))
    assert placed["step"] == sharding.replicated(mesh) == NamedSharding(mesh, PartitionSpec())
    assert sharding.bytes_per_device(state["w"], placed["w"]) == 512 * 256 * 4 // 2
    assert sharding.bytes_per_device(state["step"], placed["step"]) == 4


def test_mesh_rules_choose_by_device_kind():
    rules = (("v5 lite|v5e", _sizes(-1, 16)), ("TPU", _sizes(-1, 4)))
    assert mesh_lib.sizes_for("TPU v5 lite", _sizes(-1), rules) == _sizes(-1, 16)
    assert mesh_lib.sizes_for("TPU v5p", _sizes(-1), rules) == _sizes(-1, 4)
    assert mesh_lib.sizes_for("cpu", _sizes(-1), rules) == _sizes(-1)


def _place(overrides, **shapes):
    mesh = mesh_lib.make_mesh(_sizes(2, 2, 2))
    state = dict(params={name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
    placed = sharding.state_shardings(mesh, state, overrides)["params"]
    return {name: placed[name].spec for name in shapes}


def test_the_first_matching_override_replaces_the_rule():
    overrides = (("params/word$", ("tensor", "fsdp")), ("wor", ()), ("other", (None, "tensor")))
    placed = _place(overrides, word=(512, 256), world=(512, 256), other=(4, 6), rest=(512, 256))
    assert placed == dict(
        word=PartitionSpec("tensor", "fsdp"),
        world=PartitionSpec(),
        other=PartitionSpec(None, "tensor"),
        rest=PartitionSpec("fsdp"),
    )


def test_an_override_does_not_split_the_layers_of_a_stack():
    mesh = mesh_lib.make_mesh(_sizes(2, 2, 2))
    state = dict(layer_stack=dict(w=jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)))
    placed = sharding.state_shardings(mesh, state, (("w$", (None, None, "tensor")),))
    assert placed["layer_stack"]["w"].spec == PartitionSpec(None, None, "tensor")
    with pytest.raises(ValueError, match=r"'w\$' splits the layers of layer_stack/w \(4, 8, 8\), .* be None"):
        sharding.state_shardings(mesh, state, (("w$", ("tensor",)),))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((("w", ("fsdp", None, None)),), "3 axes, but params/w is"),
        ((("w", ("model",)),), "the axis 'model'; there are data, fsdp, tensor"),
        ((("w", (None, "tensor")),), "over tensor = 2, which does not divide 5"),
        ((("word", ()),), "'word' is found in no path"),
    ],
)
def test_the_error_names_an_override_that_does_not_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        _place(overrides, w=(4, 5))


def test_a_large_array_is_replicated_only_by_an_override():
    odd = (2049, 2049)
    with pytest.raises(ValueError, match=r"params/w \(2049, 2049\) would stay whole .* config.sharding"):
        _place((), w=odd)
    assert _place((("w$", ()),), w=odd)["w"] == PartitionSpec()
    assert _place((), w=(2047, 2047))["w"] == PartitionSpec()  # just below the limit of 16 MiB
