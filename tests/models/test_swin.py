"""Swin's windows, masks, layers and tables. Its numbers: tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.models import encoders, swin, windows
from big_ssl.models.layer_layouts import stack_layers, unstack_layers
from big_ssl.models.map_embeddings import ConvEmbedding, PatchMerging
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.models.swin import VARIANTS, Swin
from big_ssl.models.windows import Windows
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import state_shardings
from big_ssl.training.layer_decay import LayerDecay
from tests import compiling

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TINY = dict(width=8, depths=(2, 4), heads=(1, 2), window=2, mask_token=True)
# Maps of 4 x 6 and 2 x 3 positions: shifted, padded windows.
IMAGES = RNG.normal(size=(2, 16, 24, 3)).astype(np.float32)


def drawn(model, images=IMAGES):
    """Random in every entry."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(model.init, KEY, images)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)


def apply(model, variables, images=IMAGES, **options):
    with compiling.quickly():
        return jax.jit(functools.partial(model.apply, **options))(variables, images)


def parameters(model):
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 64, 64, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "exactly"),
    [
        ("swin_t", 27_519_354),
        ("swin_s", 48_837_258),
        ("swin_b", 86_743_224),
        ("swin_l", 194_995_476),
        ("swinv2_t", 27_578_154),
        ("swinv2_b", 86_893_816),
    ],
)
def test_as_many_parameters_as_published(name, exactly):
    """Those of the published files without their classifier."""
    assert parameters(Swin(**VARIANTS[name], scan=True)) == exactly


def test_kernels_start_as_in_the_published_code():
    """normal(0.02), cut at 2; Swin's convolution keeps PyTorch's default, CvT's does not."""
    patch = Swin(width=32, depths=(2,), heads=(2,), window=4)
    merging = PatchMerging(epsilon=1e-5, dtype=jnp.float32)
    conv = ConvEmbedding(kernel=7, stride=4, padding=2, epsilon=1e-5, dtype=jnp.float32, width=32)

    def start():  # the outputs are not computed
        images, x = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4, 32))
        parts = dict(swin=patch.init(KEY, images), merging=merging.init(KEY, x), conv=conv.init(KEY, images))
        return {name: part["params"] for name, part in parts.items()}

    with compiling.quickly():
        params = flatten_dict(jax.jit(start)(), sep="/")
    assert {"swin/stage0_pair0/plain/position_bias/table", "conv/kernel"} < params.keys()
    for name, x in params.items():
        if name.endswith(("kernel", "table")):
            is_patch = name == "swin/patch_embedding/projection/kernel"
            expected = (3 * 4 * 4 * 3) ** -0.5 if is_patch else 0.02
            assert float(x.std()) == pytest.approx(expected, rel=0.15), name
        else:
            assert set(np.unique(x)) == ({1.0} if name.endswith("scale") else {0.0}), name


@pytest.mark.parametrize(
    ("name", "millions"),
    [("coswin_t", 29.5), ("coswin_b", 90.2), ("coswin_l", 202.8), ("coswin_h", 636.5 - 2.816 * 1.024)],
)
def test_coswin_is_as_large_as_reconstructed(name, millions):
    """H: 637M in the paper, with a projection to 1,024 dimensions."""
    assert parameters(Swin(**VARIANTS[name], scan=True)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "size", "billions"), [("swin_t", 224, 4.5), ("swin_s", 224, 8.7), ("swin_b", 224, 15.4)]
)
def test_as_many_multiplications_as_published(name, size, billions):
    """In table 1 of the paper. Ours add those that look up the biases, once for all images."""
    flops = Swin(**VARIANTS[name], scan=True).flops(64, size, size, 3) / 64
    assert flops / 2e9 == pytest.approx(billions, abs=0.08)


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_put_together_again(shift):
    grid = windows.split(5, 7, 3, clamp=True)
    assert grid == Windows(3, 1, 5, 7)
    x = RNG.normal(size=(2, 5, 7, 4)).astype(np.float32)
    parts = windows.partition(x, grid, shift)
    assert parts.shape == (2, 9, 6, 4)
    np.testing.assert_array_equal(windows.merge(parts, grid, shift), x)
    # The second window of the upper row, its positions row by row.
    expected = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))[:, shift : 3 + shift, 3 + shift : 6 + shift]
    np.testing.assert_array_equal(parts[:, :, 1], expected.reshape(2, 9, 4))


@pytest.mark.parametrize(
    ("size", "window", "clamp", "expected"),
    [
        ((7, 7), 7, True, (7, 0)),
        ((6, 9), 7, True, (6, 0)),
        ((8, 8), 7, True, (7, 3)),
        ((7, 7), 7, False, (7, 3)),
        ((3, 5), 7, False, (7, 3)),
    ],
)
def test_a_map_that_is_no_larger_than_a_window(size, window, clamp, expected):
    assert windows.split(*size, window, clamp) == Windows(*expected, *size)


def test_parts_that_a_shift_brings_together_do_not_see_each_other():
    """Positions of the map see each other where they are neighbours: no further apart than a window."""
    grid = Windows(4, 2, 8, 12)
    rows, columns = np.indices((8, 12), np.float32)
    places = np.stack([rows, columns], -1)[None]
    parts = np.asarray(windows.partition(places, grid, 2))[0]  # [T, n, 2]
    distance = np.abs(parts[:, None] - parts[None]).max(-1)  # [T, T, n]
    bias = windows.shift_bias(grid, 2)[:, 0]
    assert set(np.unique(bias)) == {-100.0, 0.0}
    np.testing.assert_array_equal(bias == 0, (distance < 4).transpose(2, 0, 1))


@pytest.mark.parametrize("side", [3, 2])
def test_a_bias_is_looked_up_by_relative_position(side):
    table = RNG.normal(size=(25, 4)).astype(np.float32)
    result = windows.by_relative_position(jnp.asarray(table), side)
    for i in range(side**2):
        for j in range(side**2):
            row, column = i // side - j // side + 2, i % side - j % side + 2
            np.testing.assert_array_equal(result[:, i, j], table[5 * row + column])


def test_maps_of_all_strides():
    model = Swin(**TINY | dict(depths=(2, 2, 2, 2), heads=(1, 1, 1, 1)))
    result = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((3, 50, 64, 3)))[0])
    shapes = [x.shape for x in result["pyramid"]]
    assert shapes == [(3, 13, 16, 8), (3, 7, 8, 16), (3, 4, 4, 32), (3, 2, 2, 64)]
    assert (result["patches"].shape, result["pooled"].shape) == ((3, 4, 64), (3, 64))
    assert result["pooled"].dtype == np.float32


def test_masked_patches_are_not_seen():
    """A patch of the last map covers 8 x 8 pixels here."""
    model, mask = Swin(**TINY | dict(depths=(2, 2))), np.zeros((2, 6), bool)
    variables = drawn(model)
    mask[:, 1] = True
    other = IMAGES.copy()
    other[:, :8, 8:16] += 1  # patch 1
    plain, masked = (apply(model, variables, mask=m)["patches"] for m in (np.zeros_like(mask), mask))
    assert np.abs(masked - plain).max() > 1e-2
    np.testing.assert_array_equal(apply(model, variables, other, mask=mask)["patches"], masked)
    other[:, 8:, :8] += 1  # patch 3
    assert np.abs(apply(model, variables, other, mask=mask)["patches"] - masked).max() > 1e-2
    np.testing.assert_array_equal(apply(model, variables)["patches"], plain)


@pytest.mark.parametrize(
    ("options", "mask", "message"),
    [
        (dict(mask_token=False), (2, 6), "swin: there is a mask, but mask_token is False"),
        ({}, (2, 4), r"swin: mask is \[2, 4\]; the last maps are \[2, 2, 3\]"),
        (dict(depths=(2, 3)), None, r"swin: depths is \(2, 3\); blocks come in pairs"),
        (dict(heads=(1,)), None, r"swin: heads is \(1,\); there are 2 stages"),
        (dict(heads=(1, 3)), None, "swin: 3 heads do not divide a width of 16, in stage 1"),
        (dict(window=(2, 2, 2)), None, r"swin: window is \(2, 2, 2\); there are 2 stages"),
        (dict(embedding="vit"), None, "swin: embedding is 'vit', patch or conv; version is 1, 1 or 2"),
        (dict(version=3), None, "embedding is 'patch', patch or conv; version is 3, 1 or 2"),
        (dict(activation="swish"), None, "activation is 'swish'; there are gelu"),
    ],
)
def test_what_does_not_fit(options, mask, message):
    mask = None if mask is None else np.zeros(mask, bool)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(Swin(**(TINY | options)).init, mask=mask), KEY, IMAGES)


@pytest.mark.parametrize("shape", [(2, 16, 16, 1), (2, 3, 16, 3)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"swin: images are \[2, .*must be \[B, H, W, 3\] with H and W at l"):
        jax.eval_shape(Swin(**TINY).init, KEY, jnp.zeros(shape))


def test_a_fused_kernel_takes_no_bias(monkeypatch):
    """XLA computes, and the log states it."""
    logged = []
    monkeypatch.setattr("big_ssl.models.attention.warn_once", logged.append)
    model = Swin(**TINY, attention="splash_interpreted")
    jax.eval_shape(model.apply, drawn(model), IMAGES)
    assert set(logged) == {"attention: XLA's in place of splash_interpreted: it takes no bias"}


def simmim_layer(name):
    """get_swin_layer in optimizer.py of SimMIM's code, for depths of 2 and 4."""
    if name.startswith(("mask_token", "patch_embedding")):
        return 0
    if name.startswith("merging"):
        return (2, 6)[int(name[len("merging")])]
    if name.startswith("stage"):
        stage, pair = name.split("/")[0].removeprefix("stage").split("_pair")
        return (0, 2)[int(stage)] + 2 * int(pair) + ("/shifted/" in name) + 1
    return 7


def test_layers_are_counted_as_in_simmim():
    model = Swin(**TINY)
    assert model.num_layers == 6
    names = flatten_dict(drawn(model)["params"], sep="/")
    ids = {name: model.layer_id(name.split("/")) for name in names}
    assert ids == {name: simmim_layer(name) for name in names}
    assert set(ids.values()) == set(range(8))


def test_layers_of_a_stack_of_pairs_decay_as_separate_ones():
    model, decay = Swin(**TINY), LayerDecay(0.5)

    def factors(model):
        def factor(path, leaf):
            return np.broadcast_to(decay.factor(path, leaf, dict(image=model)), leaf.shape)

        shapes = dict(encoders=dict(image=jax.eval_shape(model.init, KEY, IMAGES)["params"]))
        return jax.tree_util.tree_map_with_path(factor, shapes)["encoders"]["image"]

    expected, result = stack_layers(factors(model), Swin.stacks), factors(model.clone(scan=True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), result, expected)


def test_position_tables_are_resized_and_nothing_else():
    model = Swin(**TINY | dict(window=3))
    for layout in (model, model.clone(scan=True)):
        old, new = (
            flatten_dict(jax.eval_shape(x.init, KEY, IMAGES)["params"], sep="/")
            for x in (layout, layout.clone(window=4))
        )
        resized = {name for name in old if old[name].shape != new[name].shape}
        assert resized == {name for name in old if name.endswith("position_bias/table")}
        for name in resized:
            table = RNG.normal(size=old[name].shape).astype(np.float32)
            result = model.resize_params(name, table, new[name].shape)
            assert result.shape == new[name].shape
            one = (0,) if layout.scan else ()
            expected = resize_position_embedding(table[one], (5, 5), (7, 7), "bicubic")
            np.testing.assert_array_equal(result[one], expected)
            assert model.resize_params(name, table, (*new[name].shape[:-1], 5)) is None
    assert model.resize_params("final_norm/scale", np.ones(16), (32,)) is None


def test_smaller_maps_have_the_middle_of_a_table():
    """A map of 3 x 3 positions gives the same with a table for windows of 3 and, around it, of 5."""
    small, large = (Swin(**TINY | dict(depths=(2,), heads=(1,), window=side)) for side in (3, 5))
    images = IMAGES[:, :12, :12]
    variables = drawn(large)
    cut = jax.tree_util.tree_map_with_path(
        lambda path, x: x.reshape(9, 9, 1)[2:7, 2:7].reshape(25, 1) if path[-1].key == "table" else x,
        variables,
    )
    np.testing.assert_array_equal(
        apply(large, variables, images)["pooled"], apply(small, cut, images)["pooled"]
    )


def test_paths_are_dropped_linearly_over_all_blocks(monkeypatch):
    rates = []
    monkeypatch.setattr(swin, "drop_path", lambda y, rate, key: rates.append(rate) or y)
    model = Swin(**TINY, drop_path=0.5)
    jax.eval_shape(functools.partial(model.apply, train=True, rngs=dict(dropout=KEY)), drawn(model), IMAGES)
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.5, 6), 2))
    rates.clear()
    jax.eval_shape(model.apply, drawn(model), IMAGES)
    assert not rates


def trained(model, variables):
    """(outputs, gradients) of a random projection of all outputs in training, pairs unstacked."""

    def loss(variables):
        rngs = dict(dropout=KEY)
        outputs = jax.tree.leaves(model.apply(variables, IMAGES, train=True, rngs=rngs))
        return sum((jnp.cos(jnp.arange(x.size)) * x.ravel()).sum() for x in outputs), outputs

    with compiling.quickly():
        grads, outputs = jax.jit(jax.grad(loss, has_aux=True))(variables)
    return outputs, unstack_layers(grads, Swin.stacks)


@pytest.mark.slow
def test_scanned_and_recomputed_is_unrolled(monkeypatch):
    # Chance put aside, the rate of each block shows in the outputs.
    monkeypatch.setattr(swin, "drop_path", lambda y, rate, key: y * (1 - rate))
    model = Swin(**TINY, drop_path=0.4)
    variables = drawn(model)
    outputs, grads = trained(model, variables)
    scanned, stacked = model.clone(scan=True, remat="full"), stack_layers(variables, Swin.stacks)
    results = trained(scanned, stacked), trained(model.clone(remat="dots"), variables)
    grads = flatten_dict(grads)
    for other_outputs, other_grads in results:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), other_outputs, outputs
        )
        for path, grad in flatten_dict(other_grads).items():
            # A softmax does not see its keys' bias, whose gradient is rounding alone.
            largest = 1 if path[-2:] == ("key", "bias") else max(1e-2, np.abs(grads[path]).max())
            np.testing.assert_allclose(grad, grads[path], rtol=1e-4, atol=1e-4 * largest, err_msg=str(path))


def test_paths_are_dropped_for_whole_examples():
    model = Swin(**TINY | dict(depths=(2,), heads=(1,)), drop_path=0.9)
    images = np.tile(IMAGES[:1], (64, 1, 1, 1))
    variables = drawn(model)
    result = apply(model, variables, images, train=True, rngs=dict(dropout=KEY))["pooled"]
    # The second block's two branches are there, or are not: the first block has a rate of 0.
    assert 2 <= len({tuple(row) for row in np.asarray(result).round(3)}) <= 4


@pytest.mark.parametrize("options", [dict(version=2), dict(embedding="conv", scan=True)])
def test_gradients_are_finite_in_bfloat16(options):
    """Also of a padded map, whose zeros have no direction to normalise."""
    model = Swin(**TINY | dict(depths=(2,), heads=(2,)) | options, dtype=jnp.bfloat16)

    def loss(variables):
        outputs = model.apply(variables, IMAGES)
        return sum((x.astype(jnp.float32) ** 2).sum() for x in jax.tree.leaves(outputs))

    with compiling.quickly():
        grads = jax.jit(jax.grad(loss))(drawn(model))
    for name, grad in flatten_dict(grads, sep="/").items():
        assert np.isfinite(grad).all(), name
        # The mask token is not used here, and a softmax does not see its keys' bias.
        assert name.endswith(("mask_token", "key/bias")) or np.abs(grad).max() > 0, name


@pytest.mark.slow
def test_sharded_parameters_have_the_same_gradients():
    model = Swin(**TINY | dict(width=64, depths=(2, 2)), scan=True, remat="full")
    images = np.tile(IMAGES, (2, 1, 1, 1))
    params = drawn(model)["params"]
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=2, tensor=1), jax.devices()[:2])
    shardings = state_shardings(mesh, params)
    specs, dtypes = jax.tree.map(lambda s: s.spec, shardings), encoders.compute_dtypes(params, jnp.float32)
    assert "fsdp" in str(specs)

    def loss(params, images):
        return (model.apply(dict(params=params), images)["patches"] ** 3).mean()

    def gathered(params, images):
        return loss(fsdp.gather(params, specs, dtypes), images)

    with compiling.quickly():
        expected = jax.jit(jax.grad(loss))(params, images)
        batch = jax.device_put(images, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        result = jax.jit(fsdp.within(mesh, jax.grad(gathered)), out_shardings=shardings)(
            jax.device_put(params, shardings), batch
        )
    expected = flatten_dict(expected)
    for path, grad in flatten_dict(result).items():
        atol = 1e-4 * np.abs(expected[path]).max() + 1e-6
        np.testing.assert_allclose(grad, expected[path], rtol=1e-4, atol=atol, err_msg=str(path))
