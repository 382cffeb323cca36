"""iBOT's and DINO's objectives on Swin and CoSwin: masks on the grid of the last map."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl import config as config_lib
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build
from configs import ibot
from tests import compiling


def swin_config(embedding):
    """iBOT's tiny preset; crops of 32 and 16 pixels have maps of 4 x 4 and 2 x 2 positions at stride 8."""
    config = copy.deepcopy(ibot.get_config("tiny").to_dict())
    config["encoders"]["image"] = dict(
        kind="swin", width=16, depths=(2, 2), heads=(2, 4), window=4, embedding=embedding, mask_token=True,
        drop_path=0.1, scan=True,
    )  # fmt: skip
    config["lr_multipliers"] = (("encoders/", dict(kind="layer_decay", decay=0.8)),)
    return config


def test_a_config_with_a_swin_is_valid():
    config = swin_config("conv")
    config_lib.validate(config)
    config["encoders"]["image"]["depths"] = (2, 0)
    with pytest.raises(config_lib.ConfigError, match=r"image\.depths\.1 is 0; it must be at least 1"):
        config_lib.validate(config)


def random_batch(config):
    rng, shapes = np.random.default_rng(0), batches.abstract_global_batch(config, None)
    return jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["patch", "conv"])
def test_masked_patches_and_self_distillation_on_a_swin(embedding):
    """The loss of four devices is that of one, and every parameter of the encoder has a gradient."""
    config, results = swin_config(embedding), []
    for sizes, devices in ((dict(data=1, fsdp=1, tensor=1), 1), (dict(data=2, fsdp=2, tensor=1), 4)):
        mesh = mesh_lib.make_mesh(sizes, jax.devices()[:devices])
        system, batch = build.system(config, mesh), random_batch(config)
        params, mutable = system.init(jax.random.key(0), batches.abstract_batch(config))
        teacher = dict(params=params, encoders=mutable["encoders"])

        def loss(params, batch, system=system, mutable=mutable, teacher=teacher):
            features, _ = system.features(params, mutable, batch, jax.random.key(1), teacher)
            losses, _, _ = system.losses(features, batch, mutable["objectives"], jnp.int32(0))
            return system.total(losses, 0)

        with compiling.quickly():
            function = jax.jit(fsdp.within(mesh, jax.value_and_grad(loss)))
            results.append(jax.device_get(function(params, mesh_lib.global_batch(mesh, batch))))
    (one, grads), (four, _) = results
    np.testing.assert_allclose(four, one, rtol=1e-4)
    for path, grad in flatten_dict(grads["encoders"]["image"]).items():
        assert np.isfinite(grad).all(), path
        # A softmax does not see its keys' bias.
        assert path[-2:] == ("key", "bias") or np.abs(grad).max() > 0, path
