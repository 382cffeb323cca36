"""DINOv2's three terms in the system: Sinkhorn and KoLeo see the whole batch, however it is cut."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build, requirements, train_step
from big_ssl.training.setup import set_up
from configs import dinov2
from tests import compiling
from tests.training.toys import microbatched

CONFIG = dinov2.get_config("vitl14,tiny").to_dict()
_MASK = CONFIG["streams"]["images"]["data"]["fields"]["global_crops"]["mask"]
_MASK.update(mask_group=2)
KEY, STEP = jax.random.key(1), jnp.int32(0)


def system(devices):
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    return build.system(CONFIG, mesh), mesh


@functools.cache
def example():
    """(params, mutable, teacher, batch): a teacher of other weights than the student's."""
    made, rng = system(1)[0], np.random.default_rng(0)
    shapes = batches.abstract_global_batch(CONFIG, None)
    batch = jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)
    params, mutable = jax.eval_shape(lambda: made.init(KEY, batches.abstract_batch(CONFIG)))
    drawn = lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32)  # noqa: E731
    params, other = jax.tree.map(drawn, params), jax.tree.map(drawn, params)
    return params, mutable, dict(params=other, encoders=mutable["encoders"]), batch


def gradients(devices, count):
    """((loss, (metrics, mutable)), gradients) in `count` microbatches."""
    made, mesh = system(devices)
    params, mutable, teacher, batch = example()
    function = jax.jit(fsdp.within(mesh, train_step.value_and_grad(made, count, mesh)))
    with compiling.quickly():
        placed = mesh_lib.global_batch(mesh, batch)
        return jax.device_get(function(params, mutable, placed, KEY, STEP, teacher))


def close(a, b):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))

    def leaf(x, y):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max() + 1e-7 * largest)

    jax.tree.map(leaf, a, b)


def test_two_heads_and_nothing_kept():
    params, mutable, _, _ = example()
    assert set(params["heads"]) == {"dino", "ibot", "koleo"}
    assert params["heads"]["koleo"] == {}
    assert all(kept == {} for kept in mutable["objectives"].values())
    scopes = {name: term.objective.scope for name, term in system(1)[0].terms.items()}
    assert scopes == dict(dino="batch", ibot="batch", koleo="batch")


def test_koleo_reads_the_pass_that_is_there_already():
    passes = [item for _, item in system(1)[0].encoder_calls()]
    assert [(item.view, item.masked, item.teacher) for item in passes] == [
        ("global_crops", True, False),
        ("local_crops", False, False),
        ("global_crops", False, True),
    ]


def test_a_mask_that_does_not_fit_is_named():
    """No mask for a masked pass, and groups that microbatches would cut."""
    config = copy.deepcopy(CONFIG)
    config["streams"]["images"]["data"]["fields"]["global_crops"]["mask"] = None
    with pytest.raises(ValueError, match=r"^dino reads global_crops masked; streams.*crops.mask is missing$"):
        build.system(config, None)
    config = copy.deepcopy(CONFIG) | dict(grad_accum=2)
    config["streams"]["images"]["data"]["fields"]["global_crops"]["mask"].update(mask_group=4)
    message = (
        r"^streams.images.data.fields.global_crops.mask.mask_group is 4; with grad_accum .* microbatch, 1$"
    )
    with pytest.raises(requirements.RequirementsError, match=message):
        set_up(config, jax.devices()[:8])


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one():
    (loss, (metrics, _)), grads = gradients(1, 1)
    (other_loss, (other_metrics, _)), other_grads = gradients(8, 1)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    close(other_metrics, metrics)
    close(other_grads, grads)


@pytest.mark.slow
def test_microbatches_give_the_gradient_of_what_they_are_together():
    """On two devices, masks and all; Sinkhorn's sums and KoLeo's neighbours are the whole batch's."""
    params, mutable, teacher, batch = example()
    (loss, _), grads = gradients(2, 2)
    plain = microbatched(system(1)[0], 2, 2)
    with compiling.quickly():
        (wanted, _), wanted_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(
            params, mutable, batch, KEY, STEP, teacher
        )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    close(grads, jax.device_get(wanted_grads))
