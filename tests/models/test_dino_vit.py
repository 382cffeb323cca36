"""What iBOT and DINOv2 need of the ViT: sizes as published, masks, subsets, layers between. Its numbers:
tests/parity."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from big_ssl.models import random_subsets, transformer, vit
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.training.flops import forward_flops

KEY = jax.random.key(0)
# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
TINY = vit.DINOV2 | dict(patch=4, width=8, depth=2, heads=2, image_size=8, registers=2)
# Six patches: the position table is resized.
PICTURES = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)


def drawn(model, images=PICTURES):
    """Random in every entry."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(model.init, KEY, images)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
MODEL = vit.ViT(**TINY)
VARIABLES = drawn(MODEL)


@functools.partial(jax.jit, **UNOPTIMISED)
def run(variables, images, mask):
    return MODEL.apply(variables, images, mask=mask, intermediate=(-1, 0))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(
    ("name", "exactly"),
    [("S/14", 22_056_576), ("B/14", 86_580_480), ("L/14", 304_368_640), ("g/14", 1_136_480_768)],
)
def test_dinov2_has_as_many_parameters_as_published(name, exactly, registers):
    """Those of dinov2_vit{s,b,l,g}14_pretrain.pth, whose position tables are for 518 pixels."""
    model = vit.ViT(**vit.VARIANTS[name], **vit.DINOV2, image_size=518, registers=registers, scan=True)
    made = jax.eval_shape(model.init, KEY, jnp.zeros((1, 28, 28, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == exactly + registers * model.width


@pytest.mark.parametrize(("width", "inside"), [(1536, 4096), (1024, 2736)])
def test_swiglu_is_as_wide_as_published(width, inside):
    assert transformer.FEED_FORWARDS["swiglu"].default_dim(width) == inside


def test_masked_patches_are_not_seen():
    mask = np.zeros((2, 6), bool)
    mask[:, 1] = True
    other = PICTURES.copy()
    other[:, :4, 4:8] += 1  # patch 1
    plain, masked = (run(VARIABLES, PICTURES, m)["patches"] for m in (np.zeros_like(mask), mask))
    assert np.abs(masked - plain).max() > 1e-2
    np.testing.assert_array_equal(run(VARIABLES, other, mask)["patches"], masked)
    assert np.abs(run(VARIABLES, other, np.zeros_like(mask))["patches"] - plain).max() > 1e-2


def test_the_mask_token_has_the_patches_position():
    """All masked, the image is not seen at all, and yet no two patches are the same."""
    found = run(VARIABLES, PICTURES, np.ones((2, 6), bool))
    np.testing.assert_allclose(found["pooled"][0], found["pooled"][1], rtol=1e-5, atol=1e-5)
    distances = np.linalg.norm(found["patches"][0][:, None] - found["patches"][0], axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 1e-2


@pytest.mark.parametrize(
    ("options", "mask", "message"),
    [
        (dict(mask_token=False), (2, 6), "there is a mask, but mask_token is False"),
        ({}, (2, 4), r"mask is \[2, 4\]; the images' patches are \[2, 6\]"),
        (dict(position_resize="cubic"), None, "position_resize is 'cubic'; there are bicubic_antialias"),
        (dict(drop_path_mode="all"), None, "drop_path_mode is 'all'; there are linear, subset"),
        (dict(feed_forward="glu"), None, "feed_forward is 'glu'; there are mlp, swiglu"),
    ],
)
def test_what_does_not_fit(options, mask, message):
    mask = None if mask is None else np.zeros(mask, bool)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(vit.ViT(**(TINY | options)).init, mask=mask), KEY, PICTURES)


def test_there_are_parameters_for_what_is_on():
    params = VARIABLES["params"]
    assert params["registers"].shape == (2, 8)
    assert params["mask_token"].shape == (8,)
    assert params["layer0"]["attention_scale"].shape == params["layer1"]["mlp_scale"].shape == (8,)
    plain = jax.eval_shape(
        vit.ViT(**(TINY | dict(registers=0, mask_token=False, layer_scale=None))).init, KEY, PICTURES
    )
    assert not {"registers", "mask_token"} & set(plain["params"])
    assert not {"attention_scale", "mlp_scale"} & set(plain["params"]["layer0"])


def test_layer_scale_multiplies_a_branch():
    """A layer whose last products are multiplied by it, and which has ones, is the same layer."""
    params = jax.tree.map(np.copy, VARIABLES["params"])
    for name in ("layer0", "layer1"):
        for scale, last in (("attention_scale", "out"), ("mlp_scale", "mlp_out")):
            params[name][last] = jax.tree.map(lambda x, s=params[name][scale]: x * s, params[name][last])
            params[name][scale] = np.ones(8, np.float32)
    none = np.zeros((2, 6), bool)
    found, expected = (run(v, PICTURES, none)["patches"] for v in ({"params": params}, VARIABLES))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_registers_are_read_and_returned_by_name():
    none = np.zeros((2, 6), bool)
    found = run(VARIABLES, PICTURES, none)
    assert found["patches"].shape == (2, 6, 8)
    assert found.keys() == {"pooled", "cls", "registers", "patches", "pyramid", "layers"}
    assert found["registers"].shape == (2, 2, 8)
    swapped = VARIABLES["params"] | dict(registers=VARIABLES["params"]["registers"][::-1])
    same = run({"params": swapped}, PICTURES, none)  # they have no place
    np.testing.assert_allclose(same["patches"], found["patches"], rtol=1e-4, atol=1e-4)
    other = VARIABLES["params"] | dict(registers=VARIABLES["params"]["registers"][:, ::-1])
    assert np.abs(run({"params": other}, PICTURES, none)["patches"] - found["patches"]).max() > 1e-2


def test_the_class_token_is_there_where_it_is_not_pooled():
    model = vit.ViT(**(TINY | dict(pooling="mean", depth=0)))
    found = jax.jit(model.apply, **UNOPTIMISED)(drawn(model), PICTURES)
    assert found.keys() == {"pooled", "cls", "registers", "patches", "pyramid"}
    assert (found["cls"].shape, found["cls"].dtype) == ((2, 8), jnp.float32)
    np.testing.assert_allclose(found["pooled"], found["patches"].mean(1), rtol=1e-5, atol=1e-5)
    # Nothing between embedding and norm, and so nothing that the images say.
    np.testing.assert_array_equal(found["cls"][0], found["cls"][1])
    assert np.abs(found["cls"] - found["pooled"]).max() > 1e-2


def test_layers_between_are_those_of_a_shallower_tower():
    found = run(VARIABLES, PICTURES, np.zeros((2, 6), bool))
    between = found["layers"]
    shapes = dict(cls=(2, 2, 8), registers=(2, 2, 2, 8), patches=(2, 2, 6, 8))
    assert {name: array.shape for name, array in between.items()} == shapes
    np.testing.assert_array_equal(between["cls"][0], found["pooled"])
    for name in ("registers", "patches"):
        np.testing.assert_array_equal(between[name][0], found[name])
    shallow = vit.ViT(**(TINY | dict(depth=1)))
    expected = jax.jit(shallow.apply, **UNOPTIMISED)(VARIABLES, PICTURES)
    np.testing.assert_allclose(between["cls"][1], expected["pooled"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(between["patches"][1], expected["patches"], rtol=1e-5, atol=1e-5)
    for index in (2, -3):
        with pytest.raises(ValueError, match=f"intermediate has {index}; there are 2 layers"):
            jax.eval_shape(functools.partial(MODEL.apply, intermediate=[index]), VARIABLES, PICTURES)


def test_scanned_is_unrolled():
    """Layers between and the last attention too; what is trained: test_scanned_towers.py."""
    model, stacked = MODEL.clone(scan=True, remat="full"), stack_layers(VARIABLES, vit.ViT.stacks)
    mask = RNG.random((2, 6)) < 0.5

    @functools.partial(jax.jit, **UNOPTIMISED)
    def scanned(variables):
        attention = [vit.attention_maps(model, variables, PICTURES, layer) for layer in (-1, 0)]
        return model.apply(variables, PICTURES, mask=mask, intermediate=(-1, 0)), attention

    found, attention = scanned(stacked)
    expected = run(VARIABLES, PICTURES, mask)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert np.abs(attention[0] - attention[1]).max() > 0.01
    for layer, weights in zip((1, 0), attention, strict=True):
        read = functools.partial(vit.attention_maps, MODEL, layer=layer)
        unrolled = jax.jit(read, **UNOPTIMISED)(VARIABLES, PICTURES)
        assert weights.shape == (2, 2, 9, 9)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(weights, unrolled, rtol=1e-4, atol=1e-5)


@functools.cache
def on_subset(groups, rate):
    """jitted: key -> add_on_subset to zeros of a branch that says what it was given."""
    x = jnp.arange(12.0).reshape(12, 1, 1)

    def branch(x):
        return jnp.full_like(x, 1) + 0 * x

    return jax.jit(
        lambda key: random_subsets.add_on_subset(x, branch, rate, groups, key)[:, 0, 0] - x[:, 0, 0]
    )


@pytest.mark.parametrize(("groups", "rate", "kept"), [(1, 0.25, 9), (3, 0.3, 2), (4, 0.4, 1), (12, 0.9, 1)])
def test_a_subset_has_an_exact_size_in_every_group_and_the_right_mean(groups, rate, kept):
    """The part that is kept is rounded down, and at least one: of 4 at a rate of 0.3 it is 2."""
    run, size = on_subset(groups, rate), 12 // groups
    added = np.stack([run(key) for key in jax.random.split(KEY, 40)]).reshape(40, groups, size)
    assert set(np.unique((added != 0).sum(-1))) == {kept}
    np.testing.assert_allclose(added[added != 0], size / kept, rtol=1e-6)
    np.testing.assert_allclose(added.mean(-1), 1, rtol=1e-6)
    # In forty draws every example has been chosen, and groups do not choose alike.
    assert (added != 0).any(0).all()
    if 1 < groups < 12:
        assert (added[:, 0] != added[:, 1]).any()


def test_subsets_of_several_sizes_each_have_their_own_part():
    """At a rate of a half: of groups of 6 three, counted twice; of groups of 5 two, counted 2.5 times."""
    given = (jnp.zeros((12, 1, 1)), jnp.zeros((10, 1, 1)), jnp.zeros((12, 1, 1)))
    branch = functools.partial(jax.tree.map, lambda x: x + 1)
    added = random_subsets.add_on_subset(given, branch, 0.5, 2, KEY)
    first, second, third = (np.asarray(x).reshape(2, -1) for x in added)
    for found, kept, by in ((first, 3, 2.0), (second, 2, 2.5)):
        assert ((found != 0).sum(1) == kept).all()
        assert set(found[found != 0]) == {by}
    assert (first != third).any()


def test_a_subsets_gradient_is_that_of_the_examples_chosen():
    x, kernel = RNG.normal(size=(8, 3, 4)).astype(np.float32), RNG.normal(size=(4, 4)).astype(np.float32)

    def loss(x, kernel):
        y = random_subsets.add_on_subset(x, lambda x: jnp.tanh(x @ kernel), 0.5, 2, KEY)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    (_, y), found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
    chosen = np.abs(y - x).max((1, 2), keepdims=True) > 1e-6

    def dense(x, kernel):
        y = x + 2 * chosen * jnp.tanh(x @ kernel)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()

    for a, b in zip(found, jax.jit(jax.grad(dense, argnums=(0, 1)))(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="drop path: 3 groups do not divide a batch of 8"):
        random_subsets.add_on_subset(x, jnp.tanh, 0.5, 3, KEY)


def test_both_branches_of_a_layer_are_skipped_apart_and_not_computed():
    model = vit.ViT(**(TINY | dict(depth=1, drop_path=0.5, drop_path_groups=2)))
    given, images = drawn(model), np.tile(PICTURES[:1], (16, 1, 1, 1))

    @functools.partial(jax.jit, static_argnums=1, **UNOPTIMISED)
    def run(key, train):
        return model.apply(given, images, train, rngs=dict(dropout=key))["patches"]

    evaluated, one, same, two = run(KEY, False), *(run(jax.random.key(i), True) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(evaluated - evaluated[:1]).max() < 1e-5
    kinds = {tuple(row) for row in np.asarray(jnp.concatenate([one, two])).round(3).reshape(32, -1)}
    assert len(kinds) == 4  # each branch is there, doubled, or is not
    flops = [
        forward_flops(lambda key, t=train: model.apply(given, images, t, rngs=dict(dropout=key)), KEY)
        for train in (False, True)
    ]
    embedding = 2 * 16 * 6 * 48 * 8
    resizing = forward_flops(lambda: model.clone(depth=0).apply(given, images)) - embedding
    assert flops[1] - resizing - embedding == (flops[0] - resizing - embedding) / 2


@pytest.mark.parametrize(("groups", "travels"), [(8, False), (1, True)])
def test_a_devices_groups_stay_on_it(groups, travels):
    """Of a batch over eight devices, forwards and backwards; what moves is the kernel's gradient alone."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (("data", "fsdp"),)))

    def loss(kernel, x, key):
        ofs, left_out = jax.random.split(key)
        x = random_subsets.take(x, random_subsets.random_subsets(left_out, 32, 6, 3))
        return random_subsets.add_on_subset(x, lambda x: jnp.tanh(x @ kernel), 0.5, groups, ofs).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8), (32, 6, 8))]
    step = jax.jit(jax.grad(loss), in_shardings=(whole, split, whole), **UNOPTIMISED)
    program = step.lower(*shapes, KEY).compile().as_text()
    moved = re.findall(rf" = (.*) (?:{COLLECTIVES})(?:-start)?\(", program)
    shapes = {shape for line in moved for shape in re.findall(r"\w+\[[\d,]*\]", line)}
    assert (shapes == {"f32[8,8]"}) != travels


def test_patch_dropout_leaves_a_part_of_the_patches_in_training():
    """Without layers, what is left is a part of what evaluation gives, in its order."""
    model = vit.ViT(**(TINY | dict(depth=0, patch_dropout=0.4)))
    given, images = drawn(model), RNG.normal(size=(8, 8, 12, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1, **UNOPTIMISED)
    def run(key, train):
        return model.apply(given, images, train, rngs=dict(dropout=key))

    whole, one, same, two = run(KEY, False), *(run(jax.random.key(i), True) for i in (1, 1, 2))
    assert whole["patches"].shape == (8, 6, 8)
    assert one["patches"].shape == (8, 3, 8)  # int(6 * 0.6)
    np.testing.assert_array_equal(one["patches"], same["patches"])
    assert np.abs(one["patches"] - two["patches"]).max() > 1e-2
    np.testing.assert_allclose(one["pooled"], whole["pooled"], rtol=1e-5, atol=1e-5)
    distances = np.abs(np.asarray(one["patches"])[:, :, None] - np.asarray(whole["patches"])[:, None]).max(-1)
    places = distances.argmin(-1)
    assert distances.min(-1).max() < 1e-4
    assert (np.diff(places, axis=1) > 0).all()
    assert len({tuple(row) for row in places}) > 1  # each example has its own


def resized_axis(values, length, scale):
    """[h, D] -> [length, D]: four taps of Keys' kernel with a = -0.75 at (i + 0.5) / scale - 0.5, what is
    beyond an edge being as at it; in float64."""
    a, found = -0.75, []
    for i in range(length):
        at = (i + 0.5) / scale - 0.5
        first = int(np.floor(at)) - 1
        taps = np.clip(np.arange(first, first + 4), 0, len(values) - 1)
        x = np.abs(at - np.arange(first, first + 4))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        found.append(np.where(x <= 1, near, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a) @ values[taps])
    return np.stack(found)


@pytest.mark.parametrize("new", [(2, 7), (4, 6)])
@pytest.mark.parametrize(("how", "offset"), [("dinov2", 0.1), ("bicubic", 0.0)])
def test_positions_are_resized_as_published(how, offset, new):
    table = RNG.normal(size=(1 + 4 * 4, 3)).astype(np.float32)
    grid = table[1:].reshape(4, 4, 3).astype(np.float64)
    for axis in (0, 1):
        moved = np.moveaxis(grid, axis, 0)
        flat = resized_axis(moved.reshape(len(moved), -1), new[axis], (new[axis] + offset) / 4)
        grid = np.moveaxis(flat.reshape(new[axis], *moved.shape[1:]), 0, axis)
    run = jax.jit(lambda table: resize_position_embedding(table, (4, 4), new, how), **UNOPTIMISED)
    found = run(table)
    np.testing.assert_array_equal(found[0], table[0])
    np.testing.assert_allclose(found[1:], grid.reshape(-1, 3), rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_and_float32_is_kept():
    options = dict(pooling="mean", drop_path=0.5, patch_dropout=0.5, feed_forward="swiglu")
    model = vit.ViT(**(TINY | options), dtype=jnp.bfloat16)
    made = jax.eval_shape(model.init, KEY, PICTURES)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float32)}
    run = functools.partial(model.apply, train=True, rngs=dict(dropout=KEY), mask=np.zeros((2, 6), bool))
    outputs = jax.eval_shape(functools.partial(run, intermediate=[0]), made, PICTURES)
    assert (outputs["pooled"].dtype, outputs["cls"].dtype) == (jnp.float32, jnp.float32)
    assert (outputs["patches"].dtype, outputs["layers"]["patches"].dtype) == (
        jnp.bfloat16,
        jnp.bfloat16,
    )


@pytest.mark.parametrize(("family", "of_tokens"), [(vit.DINO, 0.02), (vit.DINOV2, 1e-6)])
def test_parameters_start_as_published(family, of_tokens):
    """DINO's and iBOT's class token with 0.02, DINOv2's with next to nothing; the mask token with nothing."""
    model = vit.ViT(**family, patch=8, width=256, depth=1, heads=2, image_size=64, registers=4)

    @functools.partial(jax.jit, **UNOPTIMISED)
    def start():  # what is not asked for is not computed
        params = model.init(KEY, jnp.zeros((1, 8, 8, 3)))["params"]
        tokens = ("class_token", "registers", "mask_token", "position_embedding")
        return {name: params[name] for name in tokens} | dict(
            patches=params["patch_embedding"]["kernel"],
            query=params["layer0"]["query"]["kernel"],
            scale=params["layer0"].get("attention_scale"),
        )

    found = start()
    deviations = dict(position_embedding=0.02, query=0.02, patches=(3 * 8 * 8 * 3) ** -0.5)
    for name, deviation in (deviations | dict(class_token=of_tokens, registers=of_tokens)).items():
        assert abs(float(found[name].std()) / deviation - 1) < 0.15, name
    assert not np.any(found["mask_token"])
    assert found["scale"] is None if family is vit.DINO else np.all(found["scale"] == np.float32(1e-5))
