"""A parameter may be cast to the dtype that encoders.compute_dtypes names before its encoder reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import encoders
from tests import compiling

TEXT = dict(ids=np.ones((2, 6), np.int32), mask=np.ones((2, 6), bool))
IMAGES = dict(images=np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32))
TINY_VIT = dict(kind="vit", patch=8, width=16, depth=2, heads=2, image_size=48)
CASES = dict(
    # Its table is of six by six patches, and is resized to the images' four by four.
    vit=(dict(TINY_VIT, registers=2, layer_scale=0.1, mask_token=True), IMAGES),
    vit_scanned=(dict(TINY_VIT, feed_forward="swiglu", pooling="map", class_token=False, scan=True), IMAGES),
    efficientnet=(dict(kind="efficientnet", width=0.1, depth=0.1, strides=(1, 2, 1, 1, 1, 1, 1)),
                  IMAGES),
    resnet=(dict(kind="resnet", width=8, blocks=(1, 2, 1, 1), pooled_dim=8, image_size=64, scan=True),
            IMAGES),
    swin=(dict(kind="swin", width=16, depths=(2, 2), heads=(1, 2), window=2, mask_token=True), IMAGES),
    swin_v2=(dict(kind="swin", width=16, depths=(2, 2), heads=(1, 2), window=2, version=2, scan=True),
             IMAGES),
    coswin=(dict(kind="swin", width=16, depths=(2, 2), heads=(1, 2), window=2, embedding="conv"), IMAGES),
    bert=(dict(kind="bert", width=16, depth=2, heads=2, scan=True), TEXT),
    text_transformer=(dict(kind="text_transformer", width=16, depth=2, heads=2), TEXT),
)  # fmt: skip


# One of each family in `make test`; the others compile for a second or two each.
SLOW = ("vit_scanned", "efficientnet", "swin", "coswin", "bert")


def test_every_encoder_is_tried():
    assert {options["kind"] for options, _ in CASES.values()} == encoders.ENCODERS.keys() - {"micro"}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_the_cast_changes_no_output(case):
    options, inputs = CASES[case]
    encoder = encoders.build(options, "bfloat16", vocab_size=32, text_length=6)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), **inputs)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.3, 1.0, leaf.shape).astype(np.float32), shapes)
    dtypes = encoders.compute_dtypes(variables["params"], jnp.bfloat16)
    cast = variables | dict(
        params=jax.tree.map(lambda x, dtype: x.astype(dtype), variables["params"], dtypes)
    )
    apply = jax.jit(encoder.apply)
    with compiling.quickly():
        jax.tree.map(np.testing.assert_array_equal, apply(variables, **inputs), apply(cast, **inputs))
    split = {jnp.dtype(dtype).name for dtype in jax.tree.leaves(dtypes)}
    assert split == {"bfloat16", "float32"}
