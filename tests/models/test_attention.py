"""Every implementation of attention against XLA's, and what happens where one can't be used."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from big_ssl.models import attention as attention_lib
from big_ssl.models.attention import attention
from big_ssl.models.bert import Bert
from big_ssl.models.flops import forward_flops
from big_ssl.models.resnet import ModifiedResNet
from big_ssl.models.text_transformer import TextTransformer
from big_ssl.models.vit import ViT
from big_ssl.parallel import fsdp, notices
from big_ssl.parallel import mesh as mesh_lib
from tests import compiling


def drawn(length, keys=None, batch=2, heads=2, dim=8, dtype=np.float32):
    """Queries, keys, values."""
    rng = np.random.default_rng(0)
    lengths = (length, keys or length, keys or length)
    return [jnp.asarray(rng.normal(size=(batch, n, heads, dim)), dtype) for n in lengths]


def seen(length, *lengths):
    """bool[B, 1, 1, S]: that many keys of each example."""
    return jnp.asarray(np.arange(length) < np.array(lengths)[:, None])[:, None, None]


def outputs_and_gradients(implementation, inputs, **options):
    def loss(*inputs):
        y = attention(*inputs, implementation=implementation, **options).astype(jnp.float32)
        return (jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y).sum(), y

    with compiling.quickly():
        return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs))


CASES = dict(
    longer_than_a_tile=(dict(length=130), {}),
    causal=(dict(length=20), dict(causal=True)),
    mask=(dict(length=20), dict(mask=seen(20, 20, 3))),
    mask_of_all_examples=(dict(length=4, keys=20), dict(mask=seen(20, 7))),
    causal_with_mask=(dict(length=20), dict(causal=True, mask=seen(20, 20, 3))),
)


@pytest.mark.parametrize("case", CASES)
def test_splash_is_xla(case):
    shapes, options = CASES[case]
    inputs = drawn(**shapes)
    result = outputs_and_gradients("splash_interpreted", inputs, **options)
    expected = outputs_and_gradients("xla", inputs, **options)
    for x, y in zip(result, expected, strict=True):
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_splash_is_xla_in_bfloat16():
    """Within the tolerance that the module states."""
    inputs = drawn(20, dtype=jnp.bfloat16)
    result = outputs_and_gradients("splash_interpreted", inputs, mask=seen(20, 20, 3))
    expected = outputs_and_gradients("xla", inputs, mask=seen(20, 20, 3))
    for x, y in zip(result, expected, strict=True):
        np.testing.assert_allclose(x.astype(np.float32), y.astype(np.float32), rtol=2e-2, atol=2e-2)


def test_auto_is_what_jax_computes():
    q, k, v = drawn(9)
    mask, bias = seen(9, 9, 3), jnp.ones((1, 2, 9, 9)) * jnp.arange(9)
    expected = jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=True)
    np.testing.assert_array_equal(attention(q, k, v, mask=mask, bias=bias, causal=True), expected)


def test_an_unknown_implementation_is_named():
    message = r"^attention is 'flash'; there are auto, xla, cudnn, splash, splash_interpreted"
    with pytest.raises(ValueError, match=message):
        attention(*drawn(4), implementation="flash")
    with pytest.raises(ValueError, match=message):  # already where nothing is computed with it
        ViT(attention="flash", depth=1).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that are logged from now on."""
    notices.warn_once.cache_clear()
    logged: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda form, *arguments: logged.append(form % arguments))
    yield logged
    notices.warn_once.cache_clear()


def _on(monkeypatch, platform):
    monkeypatch.setattr(attention_lib, "_platform", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("implementation", "platform", "shapes", "options", "reason"),
    [
        ("splash", "cpu", dict(length=4), {}, "it runs on TPUs, and this is a cpu"),
        ("splash", "tpu", dict(length=4), dict(bias=np.ones((1, 1, 4, 4))), "it takes no bias"),
        (
            "splash", "tpu", dict(length=4), dict(mask=np.ones((2, 1, 4, 4), bool)),
            "it takes masks of keys, [B, 1, 1, S], and this one is [2, 1, 4, 4]",
        ),
        ("splash", "tpu", dict(length=1, keys=4), {}, "a single query would fill 1 of 128 rows of a tile"),
        ("cudnn", "cpu", dict(length=4), {}, "it runs on GPUs, and this is a cpu"),
        (
            "cudnn", "gpu", dict(length=4), {},
            "it computes in bfloat16 and float16, and the inputs are float32",
        ),
        (
            "cudnn", "gpu", dict(length=4, dim=12, dtype=jnp.bfloat16), {},
            "it takes heads of a multiple of 8 up to 128, and theirs is 12",
        ),
        (
            "cudnn", "gpu", dict(length=5, dtype=jnp.bfloat16), dict(mask=np.ones((2, 1, 1, 5), bool)),
            "with a mask or bias it takes even lengths, and these are 5 and 5",
        ),
    ],
)  # fmt: skip
def test_xla_computes_what_a_kernel_cannot_and_the_log_states_why_once(
    implementation, platform, shapes, options, reason, warnings, monkeypatch
):
    _on(monkeypatch, platform)
    inputs = drawn(**shapes)
    for _ in range(2):
        result = attention(*inputs, implementation=implementation, **options)
    np.testing.assert_array_equal(result, attention(*inputs, implementation="xla", **options))
    assert warnings == [f"attention: XLA's in place of {implementation}: {reason}"]


def test_several_devices_without_a_mesh_are_left_to_xla(warnings, monkeypatch):
    monkeypatch.setattr(attention_lib, "_platform", lambda: "tpu")
    assert jax.device_count() > 1
    attention(*drawn(4), implementation="splash")
    assert "no mesh that states how to split it" in warnings[0]


def test_the_platform_is_the_meshs():
    """It is compiled for the devices of a topology that this machine does not have, too."""
    devices = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    assert fsdp.within(devices, attention_lib._platform)() == attention_lib._platform() == "cpu"


def test_over_devices_splash_splits_the_batch(warnings):
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    inputs, mask = drawn(6, batch=4), seen(6, 6, 3, 1, 2)
    expected = outputs_and_gradients("xla", inputs, mask=mask)
    placed = jax.device_put(inputs, mesh_lib.batch_sharding(mesh))
    run = fsdp.within(mesh, functools.partial(outputs_and_gradients, "splash_interpreted", mask=mask))
    for x, y in zip(run(placed), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert not warnings
    fsdp.within(mesh, functools.partial(attention, implementation="splash_interpreted"))(*drawn(6, batch=3))
    assert warnings[0].endswith("3 examples are no multiple of data x fsdp = 4")


def test_cudnn_gets_the_arguments(monkeypatch):
    """It runs on no machine of these tests: XLA's stands in for it."""
    _on(monkeypatch, "gpu")
    calls, computed = [], jax.nn.dot_product_attention

    def stand_in(*arguments, implementation, **options):
        calls.append(implementation)
        return computed(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    inputs = drawn(6, dtype=jnp.bfloat16)
    options = dict(mask=seen(6, 6, 3), bias=jnp.arange(6.0).reshape(1, 1, 1, 6), causal=True)
    result, expected = (attention(*inputs, implementation=i, **options) for i in ("cudnn", "xla"))
    np.testing.assert_array_equal(result, expected)
    assert calls == ["cudnn", "xla"]


TINY = dict(width=16, depth=2, heads=2)
IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
TEXTS = np.array([[1, 2, 3, 9], [4, 9, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
ENCODERS = dict(
    vit=(ViT(patch=8, image_size=16, scan=True, remat="dots", rope_base=100.0, **TINY), (IMAGES,)),
    bert=(Bert(10, max_len=4, scan=True, **TINY), TEXTS),
    text_transformer=(TextTransformer(10, max_len=4, scan=True, **TINY), TEXTS),
)


@pytest.mark.parametrize(
    "name", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "text_transformer"))]
)
def test_an_encoder_gives_the_same_by_splash(name, warnings):
    encoder, inputs = ENCODERS[name]
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    results = []
    for implementation in ("auto", "splash_interpreted"):
        model = encoder.clone(attention=implementation)

        def loss(variables, model=model):
            output = model.apply(variables, *inputs)
            return (output["pooled"] ** 2).sum(), output["pooled"]

        with compiling.quickly():
            results.append(jax.jit(jax.grad(loss, has_aux=True))(variables))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)
    jaxpr = str(jax.make_jaxpr(encoder.clone(attention="splash_interpreted").apply)(variables, *inputs))
    assert "splash" in jaxpr
    assert not warnings


def test_pools_ask_with_one_query(warnings):
    """CLIP's ResNet and SigLIP's head: nothing for a kernel of tiles."""
    resnet = ModifiedResNet(width=8, blocks=(1, 1), image_size=32, pooled_dim=8)
    siglip = ViT(patch=8, image_size=32, depth=0, width=16, heads=2, pooling="map", class_token=False)
    for encoder in (resnet, siglip):
        model = encoder.clone(attention="splash_interpreted")
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
        assert not warnings
        jax.eval_shape(model.apply, shapes, jnp.zeros((2, 32, 32, 3)))
        assert "a single query" in warnings.pop()
        notices.warn_once.cache_clear()


def test_flops_are_equal_for_every_implementation():
    for implementation in attention_lib.IMPLEMENTATIONS:
        compute = functools.partial(attention, implementation=implementation)
        assert forward_flops(compute, *drawn(130, keys=20)) == 2 * 2 * 2 * 2 * 130 * 20 * 8
    for encoder, (batch, *_) in ENCODERS.values():
        fused = encoder.clone(attention="splash_interpreted")
        assert fused.flops(*batch.shape) == encoder.flops(*batch.shape)


def test_flops_of_cudnns_opaque_call_are_those_of_the_products_that_it_replaces(monkeypatch):
    _on(monkeypatch, "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: q)
    compute = functools.partial(attention, implementation="cudnn")
    inputs = drawn(130, keys=20, dtype=jnp.bfloat16)
    assert forward_flops(compute, *inputs) == 2 * 2 * 2 * 2 * 130 * 20 * 8


def _step(implementation):
    def loss(*inputs):
        return attention(*inputs, implementation=implementation).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def test_on_a_tpu_splash_is_a_kernel_forward_and_backward(monkeypatch):
    """Lowered for a TPU, which needs no TPU compiler."""
    _on(monkeypatch, "tpu")
    shapes = [jax.ShapeDtypeStruct((2, 197, 2, 64), jnp.bfloat16)] * 3
    exported = jax.export.export(_step("splash"), platforms=["tpu"])(*shapes)
    assert exported.mlir_module().count("tpu_custom_call") >= 3  # forward, dq, dkv


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu"
)
def test_a_tpu_compiles_splash():
    """For a slice of v5e, its batch split: the compiled program calls the kernels."""
    from big_ssl.planning import topology

    devices = topology.devices(topology.parse("v5e:2x2"))
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=1), devices)
    sharding = mesh_lib.batch_sharding(mesh)
    shapes = [jax.ShapeDtypeStruct((8, 197, 12, 64), jnp.bfloat16, sharding=sharding)] * 3
    step = jax.jit(fsdp.within(mesh, _step("splash")))
    assert step.lower(*shapes).compile().as_text().count("tpu_custom_call") >= 3
