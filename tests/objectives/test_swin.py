"""iBOT's and DINO's objectives on Swin and CoSwin: masks on the grid of the last map."""

import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl import config as config_lib
from big_ssl.models import swin
from big_ssl.models.transformer import drop_path
from big_ssl.parallel import fsdp, sharding
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build
from configs import ibot
from tests import compiling


def swin_config(embedding):
    """iBOT's tiny preset; crops of 32 and 16 pixels have maps of 4 x 4 and 2 x 2 positions at stride 8."""
    config = copy.deepcopy(ibot.get_config("tiny").to_dict())
    config["encoders"]["image"] = dict(
        kind="swin", width=16, depths=(2, 2), heads=(2, 4), window=4, embedding=embedding, mask_token=True,
        drop_path=0.3, scan=True,
    )  # fmt: skip
    config["lr_multipliers"] = (("encoders/", dict(kind="layer_decay", decay=0.8)),)
    return config


def test_a_config_with_a_swin_is_valid():
    config = swin_config("conv")
    config_lib.validate(config)
    config["encoders"]["image"]["depths"] = (2, 0)
    with pytest.raises(config_lib.ConfigError, match=r"image\.depths\.1 is 0; it must be at least 1"):
        config_lib.validate(config)


# For each embedding another mesh of four devices, and whether layers are recomputed there.
CASES = {
    "patch": (dict(data=2, fsdp=2, tensor=1), "none"),
    "conv": (dict(data=1, fsdp=4, tensor=1), "full"),
}
ONE = (dict(data=1, fsdp=1, tensor=1), "none")
KEY = jax.random.key(1)


def example(config, system):
    """(params, mutable, teacher, batch), all random; the teacher has other weights than the student."""
    rng = np.random.default_rng(0)
    shapes = batches.abstract_global_batch(config, None)
    batch = jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)
    like = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))

    def drawn(tree, scale):
        return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), tree)

    params, mutable = drawn(like[0], 0.3), like[1]
    teacher = jax.tree.map(np.add, params, drawn(params, 0.3))
    mutable |= dict(objectives=drawn(mutable["objectives"], 0.1))
    return params, mutable, dict(params=teacher, encoders=mutable["encoders"]), batch


def results(config, sizes, remat):
    """(loss, gradients by (params, teacher), the objectives' states, the images) on a mesh of these sizes."""
    mesh = mesh_lib.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    system = build.system(config | dict(remat=remat), mesh)
    params, mutable, teacher, batch = example(config, system)
    shardings = sharding.state_shardings(mesh, params)
    specs = jax.tree.map(lambda placed: placed.spec, shardings)  # as training.setup does
    assert ("fsdp" in str(specs)) == (sizes["fsdp"] > 1)
    system, params = dataclasses.replace(system, specs=specs), jax.device_put(params, shardings)

    def loss(params, teacher, batch, key):
        features, _ = system.features(params, mutable, batch, key, teacher)
        losses, _, states = system.losses(features, batch, mutable["objectives"], jnp.int32(0))
        crops = system._view_inputs(batch, key, train=True)["images", "global_crops"]
        return system.total(losses, 0), (states, crops["images"])

    with compiling.quickly():
        function = jax.jit(fsdp.within(mesh, jax.value_and_grad(loss, (0, 1), has_aux=True)))
        placed = mesh_lib.global_batch(mesh, batch)
        (value, aux), grads = jax.device_get(function(params, teacher, placed, KEY))
    return value, grads, *aux


@pytest.fixture(scope="module", params=list(CASES))
def both(request):
    """(config, results on one device, results on four), with drop path in both."""
    config, dropped = swin_config(request.param), []

    def spy(y, rate, key):
        dropped.append(rate)
        return drop_path(y, rate, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swin, "drop_path", spy)
        patch.setattr(sharding, "_MIN_ELEMENTS", 64)  # so that FSDP splits such small kernels
        one = results(config, *ONE)
        count = len(dropped)
        four = results(config, *CASES[request.param])
    assert 0 < count < len(dropped)
    return config, one, four


@pytest.mark.slow
def test_the_loss_and_gradients_of_four_devices_are_those_of_one(both):
    """With drop path, scanned pairs and FSDP; of CoSwin also with recomputed layers."""
    _, (loss, (grads, _), states, _), (other_loss, (other_grads, _), other_states, _) = both
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), other_states, states)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    other_grads = flatten_dict(other_grads)
    for path, grad in flatten_dict(grads).items():
        # The second part is for gradients that are zero on paper: a softmax does not see its keys' bias.
        atol = 1e-4 * np.abs(grad).max() + 1e-7 * largest
        np.testing.assert_allclose(other_grads[path], grad, rtol=1e-3, atol=atol, err_msg=str(path))
        if path[:2] == ("encoders", "image") and path[-2:] != ("key", "bias"):
            assert np.abs(grad).max() > 1e-6 * largest, path


@pytest.mark.slow
def test_targets_are_the_teachers(both):
    """Centers move towards the logits of the teacher in evaluation, without masks and drop path; the student
    would give others, and gets all gradients."""
    config, (_, (_, by_teacher), states, images), _ = both
    system = build.system(config, mesh_lib.make_mesh(ONE[0], jax.devices()[:1]))
    params, mutable, teacher, _ = example(config, system)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_teacher)) == 0
    module, head = system.encoders["image"], system.terms["dino"].objective.head.projection

    @jax.jit
    def mean_logits(weights):
        outputs = module.apply(
            dict(params=weights["encoders"]["image"]), images.reshape(-1, *images.shape[2:])
        )
        variables = dict(params=weights["heads"]["dino"]["projection"])
        tokens = dict(dino=outputs["pooled"], ibot=outputs["patches"].reshape(-1, 32))
        return {name: head.apply(variables, x).mean(0) for name, x in tokens.items()}

    with compiling.quickly():
        by_teacher, by_student = mean_logits(teacher["params"]), mean_logits(params)
    for name, state in states.items():
        center = mutable["objectives"][name]["center"]
        expected, wrong = (0.9 * center + 0.1 * np.asarray(x[name]) for x in (by_teacher, by_student))
        np.testing.assert_allclose(state["center"], expected, rtol=1e-3, atol=1e-5)
        assert np.abs(wrong - expected).max() > 0.01
