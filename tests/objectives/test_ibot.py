"""iBOT's two terms in the system: who sees what, whose gradient goes where, and whatever the devices."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data.masking import BlockMask
from big_ssl.models.vit import ViT
from big_ssl.objectives.ibot import PatchHead
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build
from big_ssl.training.setup import set_up
from configs import ibot
from tests import compiling

CONFIG = ibot.get_config("tiny").to_dict()
KEY = jax.random.key(1)


# Both terms; at step 1 the first alone, at step 2 the second alone: one compilation for all three.
for _name, _weights in (("dino", (1.0, 1.0, 0.0)), ("ibot", (1.0, 0.0, 1.0))):
    CONFIG["streams"]["images"]["objectives"][_name]["weight"] = dict(
        kind="steps", values=tuple(enumerate(_weights))
    )


def system(devices=1):
    mesh = mesh_lib.make_mesh(CONFIG["mesh"], jax.devices()[:devices])
    return build.system(CONFIG, mesh), mesh


@functools.cache
def example():
    """(params, mutable, teacher, batch): a teacher of other weights than the student's, centers not zero."""
    made, rng = system()[0], np.random.default_rng(0)
    shapes = batches.abstract_global_batch(CONFIG, None)
    batch = jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)
    like = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(CONFIG)))

    def drawn(tree, scale):
        return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), tree)

    params, mutable = drawn(like[0], 0.3), like[1]
    other = jax.tree.map(np.add, params, drawn(params, 0.1))
    kept = drawn(mutable["objectives"], 0.1)
    return params, mutable | dict(objectives=kept), dict(params=other, encoders=mutable["encoders"]), batch


@functools.cache
def compiled(devices):
    """f(step) -> ((loss, (features, metrics, kept)), gradients by (params, teacher))."""
    made, mesh = system(devices)
    params, mutable, teacher, batch = example()

    def loss(params, teacher, batch, step):
        features, _ = made.features(params, mutable, batch, KEY, teacher)
        losses, metrics, kept = made.losses(features, batch, mutable["objectives"], step)
        return made.total(losses, step), (features, made.metrics(losses, metrics, step), kept)

    function = jax.jit(fsdp.within(mesh, jax.value_and_grad(loss, (0, 1), has_aux=True)))
    placed = mesh_lib.global_batch(mesh, batch)

    def run(step):
        with compiling.quickly():
            return jax.device_get(function(params, teacher, placed, jnp.int32(step)))

    return run


@functools.cache
def prepared():
    """What the encoders are given, by view."""
    made, batch = system()[0], example()[3]
    with compiling.quickly():
        return jax.jit(
            lambda batch: {
                view: given for (_, view), given in made._view_inputs(batch, KEY, train=True).items()
            }
        )(batch)


def inputs():
    """What they are given of the large crops."""
    return prepared()["global_crops"]


def small_crops():
    """And of the small ones."""
    return prepared()["local_crops"]["images"]


def tower(made, weights, images, **mask):
    """What the image encoder gives for [N, H, W, 3] in evaluation."""
    apply = jax.jit(made.encoders["image"].apply)
    with compiling.quickly():
        return apply({"params": weights["encoders"]["image"]}, images, **mask)


@pytest.fixture(scope="module")
def whole():
    return compiled(1)(0)


def test_each_pass_runs_once_and_only_the_student_sees_a_mask(monkeypatch):
    """Two objectives, one pass over the large and the small crops, and one of the teacher's."""
    seen, original = [], ViT.__call__

    def spy(self, images, train=False, mask=None, **rest):
        several = isinstance(images, tuple)
        pairs = zip(images, mask, strict=True) if several else [(images, mask)]
        seen.append((train, [(x.shape, m is not None) for x, m in pairs]))
        return original(self, images, train=train, mask=mask, **rest)

    params, mutable, teacher, batch = example()
    monkeypatch.setattr(ViT, "__call__", spy)
    jax.eval_shape(
        lambda p, t: system()[0].features(p, mutable, batch, jax.random.key(0), t),
        params,
        teacher,
    )
    large, small = (32, 32, 32, 3), (32, 16, 16, 3)
    assert seen == [(True, [(large, True), (small, False)]), (False, [(large, False)])]


def test_no_gradient_reaches_the_teacher(whole):
    _, (by_params, by_teacher) = whole
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_teacher)) == 0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_params))


def test_the_targets_are_the_teachers_of_unmasked_crops(whole):
    """The class-token term once more from its parts: towers and head applied by hand."""
    (_, (_, metrics, kept)), _ = whole
    params, mutable, teacher, _ = example()
    made = system()[0]
    own = inputs()["images"]
    seen = tower(made, teacher["params"], own.reshape(-1, 32, 32, 3))
    tokens = seen["pooled"].reshape(16, 2, -1)
    head = made.terms["dino"].objective.head.projection

    def logits(weights, tokens):
        return np.asarray(head.apply({"params": weights["heads"]["dino"]["projection"]}, tokens))

    known = logits(teacher["params"], tokens)
    said = logits(params, said_by_student(made, params, own))
    center = mutable["objectives"]["dino"]["center"]
    targets = jax.nn.softmax((known - center) / 0.04)
    log = jax.nn.log_softmax(said / 0.1)
    each = [-(targets[:, t] * log[:, s]).sum(-1) for t in range(2) for s in range(4) if s != t]
    np.testing.assert_allclose(metrics["dino/loss"], np.mean(each), rtol=1e-4)
    moved = 0.9 * center + 0.1 * known.mean((0, 1))
    np.testing.assert_allclose(kept["dino"]["center"], moved, rtol=1e-4, atol=1e-6)


def said_by_student(made, params, large):
    """The student's class tokens of masked large, and of small crops: [16, 4, W]."""
    masks = inputs()["mask"]["mask"].reshape(32, -1)
    small = small_crops()
    tokens = [
        tower(made, params, large.reshape(-1, 32, 32, 3), mask=masks)["pooled"],
        tower(made, params, small.reshape(-1, 16, 16, 3))["pooled"],
    ]
    return np.concatenate([x.reshape(16, 2, -1) for x in tokens], axis=1)


def test_the_patch_term_averages_over_masked_patches_and_all_crops(whole):
    """Crop by crop from the boolean mask, where the term itself reads gathered patches."""
    (_, (_, metrics, kept)), _ = whole
    params, mutable, teacher, _ = example()
    made = system()[0]
    masks = np.asarray(inputs()["mask"]["mask"]).reshape(32, -1)
    assert (masks.sum(1) > 0).sum() == 16
    images = inputs()["images"].reshape(-1, 32, 32, 3)
    head = made.terms["ibot"].objective.head.projection

    def logits(weights, **mask):
        seen = tower(made, weights, images, **mask)
        return head.apply({"params": weights["heads"]["dino"]["projection"]}, seen["patches"])

    said, known = logits(params, mask=masks), logits(teacher["params"])
    center = mutable["objectives"]["ibot"]["center"]
    targets = jax.nn.softmax((known - center) / 0.04)
    each = -np.asarray((targets * jax.nn.log_softmax(said / 0.1)).sum(-1))
    expected = sum(each[i][masks[i]].mean() for i in range(32) if masks[i].any()) / 32
    np.testing.assert_allclose(metrics["ibot/loss"], expected, rtol=1e-4)
    # What is told of the targets is a mean over the 16 masked crops alone.
    own = -np.asarray(jax.scipy.special.xlogy(targets, targets).sum(-1))
    entropy = sum(own[i][masks[i]].mean() for i in range(32) if masks[i].any()) / 16
    np.testing.assert_allclose(metrics["ibot/teacher_entropy"], entropy, rtol=1e-3)
    np.testing.assert_allclose(metrics["ibot/target_kl"], 2 * expected - entropy, rtol=1e-3)
    # The center is over all patches, not only the masked ones.
    moved = 0.9 * center + 0.1 * np.asarray(known).mean((0, 1))
    np.testing.assert_allclose(kept["ibot"]["center"], moved, rtol=1e-3, atol=1e-6)


def test_both_terms_share_one_head(whole):
    """Its gradient is the sum of both terms' own."""
    _, (grads, _) = whole
    assert set(grads["heads"]) == {"dino"}
    alone = [compiled(1)(step)[1][0] for step in (1, 2)]
    for part in alone:
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(part["heads"])) > 0

    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))

    def close(total, first, second):  # the second part for gradients that are zero on paper
        atol = 1e-4 * np.abs(total).max() + 1e-7 * largest
        np.testing.assert_allclose(total, first + second, rtol=1e-3, atol=atol)

    jax.tree.map(close, grads, *alone)


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one(whole):
    (loss, (_, metrics, kept)), (grads, _) = compiled(8)(0)
    np.testing.assert_allclose(loss, whole[0][0], rtol=1e-5)

    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max() + 1e-7 * largest)

    jax.tree.map(close, (metrics, kept), whole[0][1][1:])
    jax.tree.map(close, grads, whole[1][0])


def test_masked_patches_are_gathered_in_groups():
    head, rng = PatchHead(_Identity(), all_patches=False), np.random.default_rng(0)
    mask = CONFIG["streams"]["images"]["data"]["fields"]["global_crops"]["mask"] | dict(mask_group=4)
    drawn = jax.jit(BlockMask(**mask), static_argnums=(1, 2))(jax.random.key(0), 8, 2)
    patches = rng.normal(size=(8, 2, 16, 3)).astype(np.float32)
    found = head.apply({}, dict(global_crops=dict(patches=patches, mask=drawn)))["points"]
    for group in range(2):
        own = slice(4 * group, 4 * group + 4)
        np.testing.assert_array_equal(found[group], patches[own][np.asarray(drawn["mask"])[own]])


class _Identity:
    def project(self, x):
        return x

    def kernel(self):
        return None


def test_a_teacher_needs_an_average():
    with pytest.raises(ValueError, match=r"^ema is 0; the average is the teacher"):
        set_up(copy.deepcopy(CONFIG) | dict(ema=0.0))


def test_the_head_of_nobody_is_named():
    config = copy.deepcopy(CONFIG)
    config["streams"]["images"]["objectives"]["ibot"]["head"] = "dinosaur"
    with pytest.raises(ValueError, match=r"^ibot\.head is 'dinosaur', which is no objective of this stream"):
        set_up(config)
