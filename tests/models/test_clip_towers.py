"""CLIP's and SigLIP's towers: sizes as published, options, what they must not depend on. Their numbers:
tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import encoders, resnet, text_transformer, transformer, vit
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.objectives.contrastive import ContrastiveHead

KEY = jax.random.key(0)
# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
IDS = jnp.zeros((1, 77), int)
RNG = np.random.default_rng(0)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def parameters(image, text, head, image_size):
    """How many a whole model has, nothing computed."""
    images = jnp.zeros((1, image_size, image_size, 3))
    seen, of_image = jax.eval_shape(image.init_with_output, KEY, images)
    read, of_text = jax.eval_shape(text.init_with_output, KEY, IDS[:, : text.max_len])
    of_head = jax.eval_shape(head.init, KEY, dict(image=seen, text=read))
    return size(of_image["params"]) + size(of_text["params"]) + size(of_head["params"])


# Text width and millions of parameters: the paper's models as released, open_clip's model_profile.csv.
@pytest.mark.parametrize(
    ("name", "text_width", "millions"),
    [
        ("50", 512, 102.0),
        ("101", 512, 119.7),
        ("50x4", 640, 178.3),
        ("50x16", 768, 291.0),
        ("50x64", 1024, 623.3),
    ],
)
def test_clip_resnets_have_as_many_parameters_as_published(name, text_width, millions):
    options = resnet.VARIANTS[name]
    text = text_transformer.TextTransformer(49_408, text_width, heads=text_width // 64)
    head = ContrastiveHead(options["pooled_dim"], text_projection_bias=False, temperature_form="log")
    found = parameters(resnet.ModifiedResNet(**options), text, head, options["image_size"])
    assert round(found / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "image_size", "text_width", "millions"),
    [
        ("B/32", 224, 512, 151.3),
        ("B/16", 224, 512, 149.6),
        ("L/14", 224, 768, 427.6),
        ("L/14", 336, 768, 427.9),
    ],
)
def test_clip_vits_have_as_many_parameters_as_published(name, image_size, text_width, millions):
    image = vit.ViT(**vit.VARIANTS[name], **vit.CLIP, image_size=image_size)
    text = text_transformer.TextTransformer(49_408, text_width, heads=text_width // 64)
    head = ContrastiveHead(text_width, True, text_projection_bias=False, temperature_form="log")
    assert round(parameters(image, text, head, image_size) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "image_size", "text", "exactly"),
    [
        ("B/16", 224, dict(width=768, depth=12, heads=12), 203_155_970),
        ("So400m/14", 384, dict(width=1152, depth=27, heads=16, mlp_dim=4304), 877_960_498),
    ],
)
def test_siglip_has_as_many_parameters_as_published(name, image_size, text, exactly):
    """Those of siglip-base-patch16-224 and siglip-so400m-patch14-384, as transformers builds them."""
    image = vit.ViT(**vit.VARIANTS[name], **vit.SIGLIP, image_size=image_size)
    tower = text_transformer.TextTransformer(32_000, **text, max_len=64, **text_transformer.SIGLIP)
    head = ContrastiveHead(text["width"], temperature=0.1, temperature_form="log", logit_bias=-10.0)
    assert parameters(image, tower, head, image_size) == exactly


def drawn(init, *inputs):
    """Random in every entry."""
    shapes = jax.eval_shape(init, KEY, *inputs)
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)


TINY = dict(patch=4, width=8, depth=2, heads=2, image_size=8)
PICTURES = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
TEXTS = np.array([[1, 2, 3, 9, 0, 0], [4, 9, 5, 9, 6, 7]])
TEXT_TOWER = text_transformer.TextTransformer(10, 8, 2, 2, max_len=6)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (vit.CLIP, 5),
        (vit.SIGLIP, 4),
        (dict(pooling="mean"), 5),
        (dict(pooling="mean", class_token=False), 4),
    ],
)
def test_shapes_of_a_vit(options, rows):
    outputs, made = jax.eval_shape(vit.ViT(**(TINY | options)).init_with_output, KEY, PICTURES)
    assert outputs["pooled"].shape == (2, 8)
    assert outputs["patches"].shape == (2, 4, 8)
    assert made["params"]["position_embedding"].shape == (rows, 8)
    assert ("pre_norm" in made["params"]) == options.get("pre_norm", False)
    assert ("bias" in made["params"]["patch_embedding"]) == options.get("patch_bias", True)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float32)}


def test_the_mean_is_that_of_the_patches():
    model = vit.ViT(**TINY, pooling="mean")
    outputs = jax.jit(model.apply, **UNOPTIMISED)(drawn(model.init, PICTURES), PICTURES)
    np.testing.assert_allclose(outputs["pooled"], outputs["patches"].mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        (
            dict(activation="relu"),
            (1, 8, 8, 3),
            "activation is 'relu'; there are gelu, gelu_tanh, quick_gelu",
        ),
        (dict(kernel_init="zeros"), (1, 8, 8, 3), "kernel_init is 'zeros'; there are clip, torch, glorot"),
        (dict(heads=3), (1, 8, 8, 3), "3 heads do not divide a width of 8"),
        (dict(pooling="max"), (1, 8, 8, 3), "pooling is 'max'"),
        (dict(class_token=False), (1, 8, 8, 3), "pooling is 'cls' and class_token False"),
        ({}, (1, 8, 8, 4), r"images are \[1, 8, 8, 4\]; they must be \[B, H, W, 3\]"),
        ({}, (1, 1, 1, 3), "at least 4"),
    ],
)
def test_what_a_vit_cannot_be_or_see(options, images, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vit.ViT(**(TINY | options)).init, KEY, jnp.zeros(images))


@pytest.mark.parametrize(("images", "message"), [((1, 64, 64, 1), "64, 1"), ((1, 31, 64, 3), "at least 32")])
def test_what_a_resnet_cannot_see(images, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(resnet.ModifiedResNet(width=4, blocks=(1, 1, 1, 1)).init, KEY, jnp.zeros(images))


def test_drop_path_skips_branches_by_example_while_training():
    """The last layer's rate is the option, the first layer's 0; without a rate no key is needed."""
    model = vit.ViT(**TINY, drop_path=0.5)
    assert model._drop_rates() == [0.0, 0.5]
    given, images = drawn(model.init, PICTURES), np.tile(PICTURES[:1], (64, 1, 1, 1))

    @functools.partial(jax.jit, static_argnums=1, **UNOPTIMISED)
    def run(key, train):
        return model.apply(given, images, train, rngs=dict(dropout=key))["patches"]

    evaluated, one, same, two = run(KEY, False), *(run(jax.random.key(i), True) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(evaluated - evaluated[:1]).max() < 1e-5
    kinds = np.unique(np.asarray(one).round(3).reshape(64, -1), axis=0)
    assert len(kinds) == 4  # each of the last layer's two branches is there, doubled, or is not
    jax.eval_shape(lambda: vit.ViT(**TINY).apply(given, PICTURES, True))


@functools.cache
def text_variables():
    return drawn(TEXT_TOWER.init, TEXTS)


@functools.partial(jax.jit, **UNOPTIMISED)
def read(ids):
    return TEXT_TOWER.apply(text_variables(), ids)


def test_a_text_is_read_at_its_first_end():
    outputs = read(TEXTS)
    np.testing.assert_array_equal(outputs["pooled"][0], outputs["tokens"][0, 3])
    np.testing.assert_array_equal(outputs["pooled"][1], outputs["tokens"][1, 1])


def test_a_causal_tower_does_not_see_what_follows_the_end():
    other = TEXTS.copy()
    other[0, 4:], other[1, 2:] = (7, 9), (1, 1, 1, 1)
    np.testing.assert_array_equal(read(other)["pooled"], read(TEXTS)["pooled"])
    other[:, 0] += 1
    assert np.abs(read(other)["pooled"] - read(TEXTS)["pooled"]).max(1).min() > 1e-3


def test_siglip_sees_all_and_reads_the_last():
    model = text_transformer.TextTransformer(10, 8, 2, 2, max_len=6, **text_transformer.SIGLIP)
    run, given = jax.jit(model.apply, **UNOPTIMISED), text_variables()
    outputs = run(given, TEXTS)
    np.testing.assert_array_equal(outputs["pooled"], outputs["tokens"][:, -1])
    other = TEXTS.copy()
    other[:, -1] = 8
    assert np.abs(run(given, other)["tokens"] - outputs["tokens"])[:, 0].max(1).min() > 1e-3


def test_what_a_text_tower_cannot_be_or_read():
    with pytest.raises(ValueError, match="7 tokens, but max_len is 6"):
        jax.eval_shape(TEXT_TOWER.init, KEY, jnp.zeros((1, 7), int))
    with pytest.raises(ValueError, match="pooling is 'mean'; there are eot, last"):
        jax.eval_shape(text_transformer.TextTransformer(10, 8, 1, 2, pooling="mean").init, KEY, TEXTS)


@pytest.mark.parametrize("kind", ["vit", "resnet", "text_transformer"])
def test_bfloat16_computes_in_bfloat16_and_pools_in_float32(kind):
    options = dict(
        vit=TINY | vit.SIGLIP,
        resnet=dict(width=4, blocks=(1, 1, 1, 1), image_size=32, pooled_dim=6),
        text_transformer=dict(width=8, depth=1, heads=2),
    )[kind]
    model = encoders.build(dict(kind=kind, **options), "bfloat16", vocab_size=10, text_length=6)
    inputs = TEXTS if kind == "text_transformer" else jnp.zeros((2, 32, 32, 3))
    outputs, made = jax.eval_shape(model.init_with_output, KEY, inputs)
    finer = outputs["tokens" if kind == "text_transformer" else "patches"]
    assert (finer.dtype, outputs["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip", (64**-0.5, (2 * 3 * 64) ** -0.5, 128**-0.5, (2 * 3 * 64) ** -0.5)),
        ("torch", (128**-0.5, 192**-0.5, 192**-0.5, 768**-0.5)),
        ("glorot", (64**-0.5, 64**-0.5, (2 / 320) ** 0.5, (2 / 320) ** 0.5)),
        ("unicl", (128**-0.5, 0.02, 0.02, 0.02)),
    ],
)
def test_initial_deviations_are_the_published_ones(name, expected):
    """Of width 64, an MLP of 256 and three layers."""
    np.testing.assert_allclose(transformer.INITIALISERS[name](64, 256, 3), expected)


@pytest.mark.parametrize(("family", "inner", "positions"), [("CLIP", 128, 0.01), ("UNICL", 0.02**-2, 0.02)])
def test_kernels_start_with_their_deviations(family, inner, positions):
    options = getattr(text_transformer, family)
    model = text_transformer.TextTransformer(500, 64, 1, 2, max_len=60, **options)
    params = jax.jit(model.init, **UNOPTIMISED)(KEY, TEXTS)["params"]
    projections = 64 if family == "CLIP" else 128
    parts = [(name, projections) for name in ("query", "key", "value")]
    parts += [(name, inner) for name in ("out", "mlp_in", "mlp_out")]
    for part, inverse_variance in parts:
        layer = params["layer0"][part]
        assert abs(float(layer["kernel"].std()) * inverse_variance**0.5 - 1) < 0.06
        assert not np.any(layer["bias"])
    assert abs(float(params["token"]["embedding"].std()) / 0.02 - 1) < 0.05
    assert abs(float(params["position_embedding"].std()) / positions - 1) < 0.05


def test_a_residual_block_starts_as_its_shortcut():
    norm = functools.partial(BatchNorm, 0, 0.9, 1e-5)
    params = jax.jit(resnet.Block(2, 1, norm).init, **UNOPTIMISED, static_argnums=2)(
        KEY, jnp.zeros((3, 1, 4, 4)), False
    )["params"]
    assert not np.any(params["conv3_bn"]["scale"])
    assert all(np.all(params[f"{name}_bn"]["scale"] == 1) for name in ("conv1", "conv2", "shortcut"))


def test_quick_gelu():
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(
        transformer.quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-5
    )


def test_average_pool_drops_a_remainder():
    x = np.arange(15.0).reshape(1, 1, 3, 5)
    np.testing.assert_array_equal(resnet.average_pool(x, 2)[0, 0], [[3, 5]])


def test_position_embedding_of_the_same_grid_is_the_same():
    table = jnp.asarray(RNG.normal(size=(7, 3)))
    assert resize_position_embedding(table, (2, 3), (2, 3)) is table
    grown = resize_position_embedding(table, (2, 3), (4, 6))
    assert grown.shape == (25, 3)
    np.testing.assert_array_equal(grown[0], table[0])
    # What is flat stays flat.
    np.testing.assert_allclose(resize_position_embedding(jnp.ones((6, 2)), (2, 3), (5, 5)), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"7 rows are no grid of \(3, 3\)"):
        resize_position_embedding(table, (3, 3), (4, 4))


def test_a_resnet_in_training_uses_the_batch_and_moves_its_statistics():
    model = resnet.ModifiedResNet(width=4, blocks=(1, 1), image_size=32, pooled_dim=6)
    images = RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = drawn(model.init, images)
    run = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), **UNOPTIMISED)
    outputs, moved = run(variables, images)
    scaled, _ = run(variables, 3 * images)
    # The stem's norm undoes a scale, but for its epsilon.
    np.testing.assert_allclose(scaled["pooled"], outputs["pooled"], rtol=1e-2, atol=1e-2)
    before = variables["batch_stats"]["stem0_bn"]["mean"]
    step = np.asarray(moved["batch_stats"]["stem0_bn"]["mean"]) - 0.9 * before
    x = jax.lax.conv_general_dilated(
        images, variables["params"]["stem0"], (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(step, 0.1 * x.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
