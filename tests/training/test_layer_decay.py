"""Rates that fall from layer to layer: BEiT's numbers, of layers apart and in a stack alike."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl.models import efficientnet, vit
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.training import optimizers
from big_ssl.training import state as state_lib
from big_ssl.training.layer_decay import LayerDecay, build
from big_ssl.training.lr_multipliers import LrMultipliers
from big_ssl.training.train_step import make_step
from tests import compiling

DEPTH, DECAY = 3, 0.75
RULE = dict(kind="layer_decay", decay=DECAY)


@functools.cache
def encoder(scan, pooling="cls"):
    return vit.ViT(
        patch=4, width=8, depth=DEPTH, heads=2, image_size=8, registers=1, mask_token=True,
        pre_norm=True, layer_scale=0.1, scan=scan, pooling=pooling,
    )  # fmt: skip


# Its layers are counted alike, scanned or not.
ENCODERS = dict(image=encoder(scan=False))


def shapes(scan, pooling="cls"):
    """{"encoders": {"image": a ViT's}, "heads": ...} of shapes."""
    tower = encoder(scan, pooling)
    params = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    head = dict(linear=dict(kernel=jax.ShapeDtypeStruct((8, 2), np.float32)))
    return dict(encoders=dict(image=params), heads=dict(classification=head))


def published(name):
    """optim_factory.py of BEiT's code: ids 0 to L + 1, of which the last is the head's."""
    if name.startswith("heads/") or "final_norm" in name or "/pooling/" in name:
        number = DEPTH + 1
    else:
        layer = re.search(r"/layer(\d+)/", name)
        number = int(layer[1]) + 1 if layer else 0
    return DECAY ** (DEPTH + 1 - number)


def factors(rules, params, step=0):
    found = LrMultipliers.build(rules, 10, ENCODERS).factors(params, step)
    return flatten_dict(found, sep="/")


@pytest.mark.parametrize("pooling", ["cls", "map"])
def test_factors_are_the_published(pooling):
    apart = factors((("encoders/", RULE),), shapes(scan=False, pooling=pooling))
    assert {"encoders/image/class_token", "encoders/image/pre_norm/scale"} < set(apart)
    assert {"encoders/image/position_embedding", "encoders/image/registers"} < set(apart)
    for name, factor in apart.items():
        assert factor == pytest.approx(published(name)), name
    assert set(apart) == set(flatten_dict(shapes(scan=False, pooling=pooling), sep="/"))


def test_a_stack_has_the_factors_of_its_layers():
    """Stacked by the module that converts weights, from arrays of one factor a layer."""
    apart = shapes(scan=False)
    filled = LrMultipliers.build((("", RULE),), 10, ENCODERS).factors(apart, 0)
    filled = jax.tree.map(lambda factor, leaf: np.full(leaf.shape, factor), filled, apart)
    wanted = flatten_dict(stack_layers(filled["encoders"]["image"], vit.ViT.stacks), sep="/")
    stacked = shapes(scan=True)["encoders"]["image"]
    found = LrMultipliers.build((("", RULE),), 10, ENCODERS).factors(shapes(scan=True), 0)["encoders"][
        "image"
    ]
    for name, leaf in flatten_dict(stacked, sep="/").items():
        factor = flatten_dict(found, sep="/")[name]
        np.testing.assert_allclose(np.broadcast_to(factor, leaf.shape), wanted[name], rtol=1e-6)


def test_the_patch_embeddings_own_factor():
    """DINOv2's configs: patch_embed_lr_mult 0.2, on top of the decay."""
    found = factors((("encoders/", RULE | dict(patch_embedding=0.2)),), shapes(scan=True))
    assert found["encoders/image/patch_embedding/kernel"] == pytest.approx(0.2 * DECAY ** (DEPTH + 1))
    assert found["encoders/image/class_token"] == pytest.approx(DECAY ** (DEPTH + 1))


def test_rules_before_it_count_first():
    rules = (("token$", 0.0), ("layer", dict(kind="steps", values=((0, 0.0), (5, 0.5)))), ("", RULE))
    for step, layers in ((0, 0.0), (5, 0.5)):
        found = factors(rules, shapes(scan=False), step)
        assert found["encoders/image/mask_token"] == 0
        assert found["encoders/image/layer0/query/kernel"] == layers
        assert found["encoders/image/patch_embedding/bias"] == pytest.approx(DECAY**4)
    lr_multipliers = LrMultipliers.build(rules, 10, ENCODERS)
    assert lr_multipliers.frozen("encoders/image/mask_token")
    assert not lr_multipliers.frozen("encoders/image/patch_embedding/bias")


def test_what_cannot_be_is_named():
    tower = efficientnet.EfficientNet(stages=efficientnet.B0_STAGES[:1], width=0.25, depth=0.3)
    params = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    with pytest.raises(
        ValueError, match=r"^lr_multipliers: layer_decay is for transformers; encoders/image has no"
    ):
        LrMultipliers.build((("", RULE),), 10, dict(image=tower)).check(
            dict(encoders=dict(image=params), heads={})
        )
    for options, message in (
        (dict(decay=0.0), r"layer_decay: decay is 0.0; it must lie in \(0, 1\]"),
        (dict(decay=0.9, patch_embedding=2), "layer_decay: patch_embedding is 2; it must"),
        (dict(decay=0.9, layers=12), "layer_decay: layers is no option; there are decay, patch_embedding"),
        (dict(), "layer_decay: decay is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            build(dict(kind="layer_decay", **options))
    assert build(RULE) == LayerDecay(DECAY)


OPTIMIZER = dict(
    b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, weight_decay_exclude=("bias$",), trust_ratio_exclude=(),
    clip_norm=1.0, clip_scope="parameter",
)  # fmt: skip


def stepped(name, rules, scan):
    """(how far a step moves each parameter, the optimiser's state) for gradients that are always the same."""
    rng = np.random.default_rng(0)
    draw = functools.partial(jax.tree.map, lambda x: rng.normal(size=x.shape).astype(np.float32))
    params, grads = draw(shapes(scan)), draw(shapes(scan))
    lr_multipliers, optimizer = (
        LrMultipliers.build(rules, 10, ENCODERS),
        optimizers.build(OPTIMIZER | dict(name=name)),
    )
    lr_multipliers.check(params)
    optimizer = lr_multipliers.mask(optimizer)
    state = state_lib.create(params, dict(encoders={}), optimizer, use_ema=False)

    def grad_fn(params, mutable, *_):
        return (jnp.zeros(()), ({}, mutable)), grads

    step = make_step(
        grad_fn, lambda params: params, optimizer, lambda _: 0.1, lr_multipliers.factors, None, 0, 1
    )
    with compiling.quickly():
        new, _ = jax.device_get(jax.jit(step)(state, {}))
    moved = jax.tree.map(np.subtract, new.params, params)
    return flatten_dict(moved, sep="/"), new.opt_state


@pytest.mark.parametrize(
    ("name", "scan"), [("adamw", False), pytest.param("lamb", True, marks=pytest.mark.slow)]
)
def test_a_step_moves_by_the_factor_and_the_optimiser_knows_nothing_of_it(name, scan):
    """LAMB's trust ratio, clipping and moments are those of the plain step, in a stack layer by layer."""
    rules = (("registers$", 0.0), ("encoders/", RULE))
    moved, state = stepped(name, rules, scan)
    plain, plain_state = stepped(name, rules[:1], scan)
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)
    found = factors(rules, shapes(scan))
    for path, distance in plain.items():
        np.testing.assert_allclose(moved[path], found[path] * distance, rtol=1e-3, atol=1e-6, err_msg=path)
        assert np.any(distance) == (not path.endswith("registers"))
