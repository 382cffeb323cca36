"""Depth as an objective: its heads and its loss against references in float64, and the same result on any
number of devices and microbatches."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import Context
from big_ssl.objectives.depth import Depth, LinearDepth
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build, train_step
from configs import transfer_depth
from tests import compiling
from tests.losses.test_depth import gradient_by_hand, sig_by_hand

RNG = np.random.default_rng(0)
GRID, WIDTH, BINS = (3, 4), 5, 7


def outputs(layers):
    """What an encoder gives of two images: this many layers, and the map and the token after the last one."""
    tokens = RNG.normal(size=(max(layers, 1), 2, 1 + GRID[0] * GRID[1], WIDTH)).astype(np.float32)
    read = dict(cls=tokens[-1, :, 0], pyramid=(tokens[-1, :, 1:].reshape(2, *GRID, WIDTH),))
    every = tuple(dict(cls=x[:, 0], patches=x[:, 1:]) for x in tokens)
    return (read | dict(layers=every) if layers else read), np.float64(tokens)


def interpolation(old, new):
    """float64[new, old]: between the centres of neighbouring pixels, constant outside."""
    centres, places = (np.arange(n) + 0.5 for n in (old, new))
    return np.stack([np.interp(places * old / new, centres, row) for row in np.eye(old)], 1)


def linear_by_hand(tokens, kernel, bias):
    """The published order: features and class tokens side by side, upsampled, and only then the layer."""
    maps = []
    for layer in tokens:
        patches = layer[:, 1:].reshape(2, *GRID, WIDTH)
        maps.append((patches, np.broadcast_to(layer[:, None, None, 0], patches.shape)))
    x = np.concatenate([m for m, _ in maps] + [token for _, token in maps], -1)
    rows, columns = (interpolation(side, 4 * side) for side in GRID)
    x = np.einsum("ia,jb,nabd->nijd", rows, columns, x)
    weights = np.maximum(x @ kernel + bias, 0) + 0.1
    return (weights / weights.sum(-1, keepdims=True)) @ np.linspace(1e-3, 10, BINS)


@pytest.mark.parametrize("layers", [0, 4])
def test_the_linear_head(layers):
    read, tokens = outputs(layers)
    kernel = RNG.normal(size=(2 * WIDTH * len(tokens), BINS))
    bias = RNG.normal(size=BINS)
    params = dict(linear=dict(kernel=np.float32(kernel), bias=np.float32(bias)))
    with compiling.quickly():
        result = jax.jit(LinearDepth(bins=BINS).apply)(dict(params=params), dict(image=read))
    expected = linear_by_hand(tokens, kernel, bias)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(result["depth"], expected, rtol=1e-5, atol=1e-5)


def test_maps_of_several_sizes_are_read_at_the_finest():
    """Without a readout, as of a Swin; in evaluation a regression is clipped to the farthest depth."""
    maps = tuple(RNG.normal(size=(2, side, side, side)).astype(np.float32) for side in (8, 4, 2))
    kernel = RNG.normal(size=(14, 1))
    params = dict(linear=dict(kernel=np.float32(kernel), bias=np.zeros(1, np.float32)))
    head = LinearDepth(readout="", bins=0, upsample=1, max_depth=2.0)
    apply = functools.partial(head.apply, dict(params=params), dict(image=dict(pyramid=maps)))
    full = [np.einsum("ia,jb,nabd->nijd", *[interpolation(len(x[0]), 8)] * 2, np.float64(x)) for x in maps]
    expected = np.maximum(np.concatenate(full, -1) @ kernel, 0)[..., 0] + 1e-3
    assert (expected > 2).any()
    np.testing.assert_allclose(apply(train=True)["depth"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(apply()["depth"], np.minimum(expected, 2), rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def compiled_loss(objective, depth, truth, step):
    loss, metrics, _ = objective.loss(dict(depth=depth), dict(depth=truth), {}, step)
    return loss.mean, {name: x.mean for name, x in metrics.items()}


def losses(objective, depth, truth, step):
    with compiling.quickly():
        loss, metrics = compiled_loss(objective, np.float32(depth), np.float32(truth), np.int32(step))
    return float(loss), {name: float(x) for name, x in metrics.items()}


@pytest.mark.parametrize("group", [0, 2])
def test_the_loss_of_groups_of_images(group):
    """Also of crops [B, n, H, W]; a group without any known depth does not count."""
    shape = (3, 2, 6, 8)
    depth, truth = (RNG.uniform(0.5, 9, shape) for _ in range(2))
    truth = np.where(RNG.random(shape) < 0.3, 0, truth)
    truth[1] = 0
    objective = Depth(LinearDepth(), pixel_group=group)
    pairs = (
        [(depth.reshape(6, 6, 8), truth.reshape(6, 6, 8))]
        if not group
        else [(depth[i], truth[i]) for i in (0, 2)]
    )
    for step, early in ((0, True), (100, False)):
        sig = np.mean([sig_by_hand(*pair, early) for pair in pairs])
        gradient = np.mean([gradient_by_hand(*pair) for pair in pairs])
        loss, metrics = losses(objective, depth, truth, step)
        np.testing.assert_allclose(loss, sig + 0.5 * gradient, rtol=1e-5)
        known = truth > 0
        relative = (np.abs(depth - truth)[known] / truth[known]).mean()
        expected = dict(scale_invariant=sig, gradient=gradient, abs_rel=relative)
        assert metrics == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_a_coarse_prediction_is_upsampled_to_the_truth():
    depth, truth = RNG.uniform(1, 9, (2, 3, 4)), RNG.uniform(1, 9, (2, 9, 12))
    rows, columns = interpolation(3, 9), interpolation(4, 12)
    full = np.einsum("ia,jb,nab->nij", rows, columns, depth)
    loss, _ = losses(Depth(LinearDepth(), gradient_weight=0.0), depth, truth, 100)
    np.testing.assert_allclose(loss, sig_by_hand(full, truth, False), rtol=1e-5)


def test_a_batch_without_depths_has_no_loss():
    loss, metrics = losses(Depth(LinearDepth()), np.ones((2, 4, 4)), np.zeros((2, 8, 8)), 100)
    assert (loss, set(metrics.values())) == (0, {0})


def test_a_group_that_does_not_divide_the_batch_is_named():
    maps = jnp.ones((3, 2, 2))
    with pytest.raises(ValueError, match=r"^depth: pixel_group 2 must divide a batch of 3 images$"):
        Depth(LinearDepth(), pixel_group=2).loss(dict(depth=maps), dict(depth=maps), {}, 0)


CONFIG = transfer_depth.get_config("tiny").to_dict()
CONFIG["streams"]["scenes"].update(batch_size=16)
CONFIG["encoders"]["image"].update(width=8, depth=4, heads=1, patch=16)
# The draws of a microbatch are its own.
CONFIG["streams"]["scenes"]["data"]["fields"]["image"].update(flip=False, jitter=())
CONFIG["streams"]["scenes"]["objectives"]["depth"].update(layers=(0, 3), pixel_group=0)


@functools.cache
def example():
    """(params, mutable, batch): an encoder and a head of random weights; a part of the depths is unknown, and
    of some images all."""
    made, rng = build.system(CONFIG, None), np.random.default_rng(0)
    shapes = batches.abstract_global_batch(CONFIG, None)
    batch = jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)
    depth = rng.uniform(0.5, 9, batch["scenes"]["depth"].shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = 0
    depth[5] = depth[11] = 0
    batch["scenes"]["depth"] = depth
    like = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(CONFIG)))
    params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), like[0])
    return params, like[1], batch


def gradients(devices, count):
    mesh = mesh_lib.make_mesh(CONFIG["mesh"], jax.devices()[:devices])
    function = train_step.value_and_grad(build.system(CONFIG, mesh), count, mesh)
    params, mutable, batch = example()
    with compiling.quickly():
        result = jax.jit(fsdp.within(mesh, function))(
            params, mutable, mesh_lib.global_batch(mesh, batch), jax.random.key(1), jnp.int32(200)
        )
    return jax.device_get(result)


@pytest.mark.slow
def test_devices_and_microbatches_do_not_change_the_loss_and_its_gradient():
    (loss, (metrics, _)), grads = gradients(4, 2)
    (expected, (expected_metrics, _)), expected_grads = gradients(1, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max() + 1e-6 * largest)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected_grads["heads"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head=dict(kind="mlp")), r"^depth.head.kind is 'mlp'; use linear or dpt$"),
        (
            dict(head=dict(kind="linear", channels=3)),
            r"^depth.head.channels is no option of linear; there",
        ),
        (dict(head=dict(kind="dpt"), layers=(0, 1)), r"^depth.layers: a dpt reads 4 maps; there are 2$"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    context = Context(None, "float32", lambda value: value, {})
    with pytest.raises(ValueError, match=message):
        objectives.build(dict(kind="depth") | options, context)


def test_an_encoder_without_the_readout_or_the_layer_is_named():
    config = copy.deepcopy(CONFIG)
    options = config["streams"]["scenes"]["objectives"]["depth"]
    options.update(layers=(4,))
    with pytest.raises(ValueError, match=r"depth reads layer 4 of encoders.image, which has 4$"):
        build.system(config, None)
    config["encoders"]["image"] = transfer_depth.MODELS["swin_t"]["encoder"] | dict(scan=False)
    options.update(layers=())
    with pytest.raises(ValueError, match=r"depth reads cls of encoders.image, a Swin; its outputs are"):
        build.system(config, None)
