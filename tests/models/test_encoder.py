"""What encoders describe about themselves, against what they do."""

import functools
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl.models import encoders
from big_ssl.models.bert import Bert
from big_ssl.models.efficientnet import EfficientNet
from big_ssl.models.position_embedding import RESIZES, resize_position_embedding
from big_ssl.models.resnet import ModifiedResNet
from big_ssl.models.swin import Swin
from big_ssl.models.text_transformer import TextTransformer
from big_ssl.models.vit import ViT

TINY = dict(width=8, depth=3, heads=2)
VIT = functools.partial(ViT, patch=8, image_size=32, **TINY)
ENCODERS = dict(
    vit=VIT(),
    vit_without_class_token=VIT(class_token=False, pooling="map", registers=2),
    efficientnet=encoders.efficientnet_from((1, 2, 1, 1, 1, 1, 1), width=0.1, depth=0.1),
    resnet=ModifiedResNet(width=8, blocks=(1, 2, 1, 1), image_size=32, pooled_dim=8),
    swin=Swin(width=8, depths=(2, 2), heads=(1, 2), window=2),
    bert=Bert(10, max_len=6, **TINY),
    text_transformer=TextTransformer(10, max_len=6, **TINY),
)


def inputs(encoder):
    if encoder.input == "image":
        return (jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32),)
    length = encoder.max_len
    return jax.ShapeDtypeStruct((2, length), np.int32), jax.ShapeDtypeStruct((2, length), bool)


def params(encoder):
    return jax.eval_shape(encoder.init, jax.random.key(0), *inputs(encoder))["params"]


def test_every_encoder_is_described():
    assert {type(encoder) for encoder in ENCODERS.values()} == {
        EfficientNet,
        *(make for name, make in encoders.ENCODERS.items() if name not in ("efficientnet", "micro")),
    }


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_are_the_keys_that_a_call_returns(name):
    encoder = ENCODERS[name]
    options = dict(intermediate=(0,)) if "layers" in encoder.outputs else {}
    result = jax.eval_shape(
        lambda *x: encoder.init_with_output(jax.random.key(0), *x, **options)[0], *inputs(encoder)
    )
    assert set(result) == set(encoder.outputs)
    assert len(set(encoder.outputs)) == len(encoder.outputs)
    for output in {"pooled", "cls"} & set(result):
        assert (result[output].dtype, result[output].ndim, len(result[output])) == (np.float32, 2, 2)


PYRAMIDS = dict(
    vit=(8,),
    vit_without_class_token=(8,),
    efficientnet=(4,),
    resnet=(4, 8, 16, 32),
    swin=(4, 8),
)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_pyramid_has_maps_of_its_strides(name):
    encoder = ENCODERS[name]
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), np.float32)
    result = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], images)
    assert encoder.pyramid_strides == PYRAMIDS[name]
    shapes = [x.shape[:3] for x in result["pyramid"]]
    assert shapes == [(2, 64 // stride, 96 // stride) for stride in encoder.pyramid_strides]


def test_published_efficientnets_have_the_last_maps_of_four_strides():
    encoder = EfficientNet()
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    pyramid = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], images)["pyramid"]
    assert encoder.pyramid_strides == (4, 8, 16, 32)
    assert [x.shape for x in pyramid] == [(1, 16, 16, 24), (1, 8, 8, 40), (1, 4, 4, 112), (1, 2, 2, 320)]


def test_the_map_of_a_vit_is_its_patches():
    encoder = ENCODERS["vit"].clone(depth=1)
    images = np.random.default_rng(0).normal(size=(1, 32, 44, 3)).astype(np.float32)
    output = jax.jit(encoder.init_with_output)(jax.random.key(0), images)[0]
    np.testing.assert_array_equal(output["pyramid"][0].reshape(1, 20, 8), output["patches"])
    dropping = encoder.clone(patch_dropout=0.5)
    assert "pyramid" not in dropping.outputs
    assert dropping.pyramid_strides == ()


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
def test_a_pyramid_that_nothing_reads_costs_nothing(name):
    """No array of the program has the shape of such a map, channels last."""
    encoder = ENCODERS[name]
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def pooled(variables, images):
        return encoder.apply(variables, images)["pooled"]

    jaxpr = jax.make_jaxpr(pooled)(variables, images).jaxpr
    used = jax.interpreters.partial_eval.dce_jaxpr(jaxpr, [True])[0]
    maps = jax.eval_shape(encoder.apply, variables, images)["pyramid"]
    results = {out.aval.shape for eqn in used.eqns for out in eqn.outvars}
    assert not {x.shape for x in maps} & results


@pytest.mark.parametrize("name", ENCODERS)
def test_several_sizes_are_taken_or_not(name):
    encoder = ENCODERS[name]
    several = tuple(jax.ShapeDtypeStruct((2, size, size, 3), np.float32) for size in (32, 40))
    call = functools.partial(jax.eval_shape, encoder.init_with_output, jax.random.key(0), several)
    if encoder.takes_several_sizes:
        assert len(call()[0]) == 2
    else:
        with pytest.raises((AttributeError, TypeError)):
            call()


@pytest.mark.parametrize("name", ENCODERS)
def test_layers_are_counted_as_there_are(name):
    encoder = ENCODERS[name]
    tree = params(encoder)
    layers = {key for key in tree if key.startswith("layer")}
    if name != "swin":  # its layers are counted in test_swin.py
        assert encoder.num_layers == len(layers)
    for path in flatten_dict(tree) if layers else ():
        if path[0] in layers:
            expected = int(path[0].removeprefix("layer")) + 1
        else:
            expected = 4 if path[0] in ("final_norm", "pooling") else 0
        assert encoder.layer_id(path) == expected


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_stack_begins_with_its_first_layer(name):
    encoder = ENCODERS[name].clone(scan=True)
    paths = {path for path in flatten_dict(params(encoder)) if path[0] == "layer_stack"}
    assert {encoder.layer_id(path) for path in paths} == {1}


# The same encoder for another image size or text length; of a convolutional network, another one.
OTHERS = dict(
    vit=dict(image_size=64),
    vit_without_class_token=dict(image_size=64),
    efficientnet=dict(width=0.2),
    resnet=dict(image_size=64),
    swin=dict(window=3),
    bert=dict(max_len=4),
    text_transformer=dict(max_len=4),
)
RESIZED = dict(
    vit={"position_embedding"},
    vit_without_class_token={"position_embedding"},
    resnet={"pooling/position_embedding"},
    swin={f"stage{i}_pair0/{block}/position_bias/table" for i in range(2) for block in ("plain", "shifted")},
    bert={"position/embedding"},
)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_parameter_of_another_shape_is_resized_or_none(name):
    encoder = ENCODERS[name]
    other = flatten_dict(params(encoder.clone(**OTHERS[name])), sep="/")
    resized = {}
    for path, leaf in flatten_dict(params(encoder), sep="/").items():
        if leaf.shape != other[path].shape:
            resized[path] = encoder.resize_params(path, np.ones(leaf.shape, np.float32), other[path].shape)
            assert resized[path] is None or resized[path].shape == other[path].shape
    assert resized
    assert {path for path, array in resized.items() if array is not None} == RESIZED.get(name, set())


def test_position_tables_keep_what_stands_before_the_grid():
    rng = np.random.default_rng(0)
    for encoder, name, before in (
        (ENCODERS["vit"], "position_embedding", 1),
        (ENCODERS["vit_without_class_token"], "position_embedding", 0),
        (ENCODERS["resnet"], "pooling/position_embedding", 1),
    ):
        table = rng.normal(size=(before + 16, 5)).astype(np.float32)
        expected = resize_position_embedding(table, (4, 4), (6, 6))
        np.testing.assert_array_equal(encoder.resize_params(name, table, (before + 36, 5)), expected)
        assert encoder.resize_params(name, table, (before + 35, 5)) is None
        assert encoder.resize_params(name, table, (before + 36, 6)) is None


@pytest.mark.parametrize("how", RESIZES)
def test_resized_weights_act_as_the_weights_at_that_size(how):
    """A model of another size, started from weights, sees what the weights' model sees at that size."""
    small = ENCODERS["vit"].clone(depth=1, position_resize=how)
    large = small.clone(image_size=48)
    images = np.random.default_rng(0).normal(size=(1, 48, 48, 3)).astype(np.float32)
    variables = small.init(jax.random.key(0), images)
    table = variables["params"]["position_embedding"]
    resized = large.resize_params("position_embedding", np.asarray(table), (37, table.shape[1]))
    replaced = dict(params=variables["params"] | dict(position_embedding=resized))
    patches = (module.apply(v, images)["patches"] for module, v in ((small, variables), (large, replaced)))
    np.testing.assert_allclose(*patches, rtol=1e-5, atol=1e-5)


def test_longer_texts_have_no_positions_to_cut():
    table = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(
        ENCODERS["bert"].resize_params("position/embedding", table, (4, 2)), table[:4]
    )
    assert ENCODERS["bert"].resize_params("position/embedding", table, (8, 2)) is None


def transformer_flops(tokens, width, mlp_dim):
    """Of a layer: four projections, attention's two products, an MLP."""
    return 2 * tokens * (4 * width * width + 2 * width * mlp_dim) + 4 * tokens * tokens * width


def test_flops_are_those_of_the_products():
    layers = 3 * transformer_flops(17, 8, 32)
    assert ENCODERS["vit"].flops(2, 32, 32, 3) == 2 * (layers + 2 * 16 * math.prod((8, 8, 3, 8)))
    assert ENCODERS["text_transformer"].flops(5, 6) == 5 * 3 * transformer_flops(6, 8, 32)
    assert ENCODERS["bert"].flops(5, 6) == 5 * 3 * transformer_flops(6, 8, 32)
    for name in ("efficientnet", "resnet"):
        assert ENCODERS[name].flops(2, 32, 32, 3) == 2 * ENCODERS[name].flops(1, 32, 32, 3) > 0


def test_scanned_and_recomputed_layers_have_the_same_flops():
    for name in ("vit", "swin", "bert"):
        encoder = ENCODERS[name]
        shape = (2, 6) if name == "bert" else (2, 32, 32, 3)
        assert encoder.clone(scan=True, remat="full").flops(*shape) == encoder.flops(*shape)
