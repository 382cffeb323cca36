"""Classification in the system: labels from the data, pictures and labels mixed together, and whatever the
devices, the microbatches and the other objectives."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, build, loop, requirements, streams, train_step
from configs import emoji, finetune_ibot_imagenet
from tests import compiling

CONFIG = finetune_ibot_imagenet.get_config("tiny").to_dict()
# Small, so that it compiles quickly; with drop path each microbatch would have draws of its own.
CONFIG["encoders"]["image"].update(patch=16, width=8, heads=1, drop_path=0.0)
KEY = jax.random.key(1)


def system(devices=1, config=CONFIG):
    mesh = mesh_lib.make_mesh(config["mesh"], jax.devices()[:devices])
    return build.system(config, mesh), mesh


@functools.cache
def example():
    """(params, mutable, batch): a head whose start is not almost zero, labels of all classes."""
    made, rng = system()[0], np.random.default_rng(0)
    shapes = batches.abstract_global_batch(CONFIG, None)
    batch = jax.tree.map(lambda x: rng.integers(0, 256, x.shape).astype(x.dtype), shapes)
    batch["images"]["label"] = np.arange(16, dtype=np.int32) % emoji.CATEGORIES
    like = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(CONFIG)))
    params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), like[0])
    return params, like[1], batch


@functools.cache
def gradients(devices, count=1):
    """((loss, (metrics, mutable)), gradients)."""
    made, mesh = system(devices)
    params, mutable, batch = example()
    function = train_step.value_and_grad(made, count, mesh)
    function = jax.jit(fsdp.within(mesh, function))
    with compiling.quickly():
        return jax.device_get(
            function(params, mutable, mesh_lib.global_batch(mesh, batch), KEY, jnp.int32(0))
        )


def close(found, wanted, rtol):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))

    def check(a, b):  # the last part for gradients that are zero on paper
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max() + 1e-6 * largest)

    jax.tree.map(check, found, wanted)


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one():
    (loss, (metrics, _)), grads = gradients(8)
    (wanted, (wanted_metrics, _)), wanted_grads = gradients(1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    close(metrics, wanted_metrics, 1e-5)
    close(grads, wanted_grads, 1e-4)


def by_hand(made, params, batch, key):
    """The term from its parts: the mixed pictures are the encoder's, the labels mixed by the same shares."""
    given = made._view_inputs(batch, key, train=True)["images", "crops"]
    images, share = given["images"], given["mix_ratio"]
    tower = made.encoders["image"].apply(
        {"params": params["encoders"]["image"]}, images.reshape(-1, 32, 32, 3)
    )
    linear = params["heads"]["classification"]["linear"]
    logits = tower["pooled"] @ linear["kernel"] + linear["bias"]
    log_p, labels = jax.nn.log_softmax(logits), batch["images"]["label"]
    rows, partners = jnp.arange(len(labels)), labels.reshape(-1, 2)[:, ::-1].ravel()
    picked = share * log_p[rows, labels] + (1 - share) * log_p[rows, partners]
    return -(0.9 * picked + 0.1 * log_p.mean(-1)).mean(), images, share


def test_pictures_and_labels_are_mixed_by_the_same_shares():
    made, (params, _, batch) = system()[0], example()
    with compiling.quickly():
        wanted, images, share = jax.jit(functools.partial(by_hand, made))(params, batch, KEY)
        plain = made.eval_pixels(batch["images"]["crops"][:, 0])
    np.testing.assert_allclose(gradients(1)[0][0], wanted, rtol=1e-5)
    assert len(np.unique(share)) == 4
    assert np.ptp(share) > 0.1
    # Each picture is itself, mirrored or not, to its share.
    images, plain, share = np.asarray(images[:, 0]), np.asarray(plain), np.asarray(share)
    flipped = plain[:, :, ::-1]
    for i in range(16):
        pairs = [
            (
                np.abs(share[i] * own + (1 - share[i]) * other - images[i]).max(),
                np.isclose(own, images[i], atol=1e-5).mean(),
            )
            for own in (plain[i], flipped[i])
            for other in (plain[i ^ 1], flipped[i ^ 1])
        ]
        blended, kept = min(pairs)[0] < 1e-4, max(pair[1] for pair in pairs)
        assert blended or kept == pytest.approx(share[i], abs=0.02)


@pytest.mark.slow
def test_microbatches_give_the_mean_of_their_own_mixtures():
    """Each is mixed by its own draws, so that the whole is computed here from its parts."""
    made, (params, _, batch) = system()[0], example()
    parts = jax.tree.map(lambda x: np.asarray(x).reshape(2, 8, *x.shape[1:]), batch)
    run = jax.jit(functools.partial(by_hand, made))
    with compiling.quickly():
        wanted = [
            run(params, jax.tree.map(lambda x, i=i: x[i], parts), key)[0]
            for i, key in enumerate(jax.random.split(KEY, 2))
        ]
    np.testing.assert_allclose(gradients(1, 2)[0][0], np.mean(wanted), rtol=1e-5)


def test_evaluation_mixes_nothing():
    made, (_, _, batch) = system()[0], example()
    given = made._view_inputs(batch, KEY, train=False)["images", "crops"]
    assert set(given) == {"images"}


def test_it_goes_with_another_objective_on_one_pass():
    """A contrastive term on the same pictures: one pass of the image tower, the sum of both terms."""
    from configs import align_l2

    config = align_l2.get_config("tiny").to_dict()
    pairs = config["streams"]["pairs"]
    pairs["objectives"]["classification"] = dict(kind="classification", weight=0.5, classes=10)
    pairs["data"]["fields"]["label"] = dict(kind="label", key="category")
    made = system(config=config)[0]
    assert len(list(made.encoder_calls())) == 2
    batch = batches.abstract_global_batch(config, None)
    assert batch["pairs"]["label"].shape == (16,)
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    _, (metrics, _) = jax.eval_shape(
        lambda params, mutable, batch: made.loss(params, mutable, batch, KEY, 0), *shapes, batch
    )
    assert {
        "classification/loss",
        "classification/weighted_loss",
        "classification/accuracy",
        "contrastive/loss",
    } < set(metrics)


def test_the_data_bring_labels():
    iterator = batches.iterate(CONFIG, streams.open_streams(CONFIG, None), 0, system()[1])
    found = next(iterator)["images"]
    iterator.close()
    assert found["label"].dtype == np.int32
    assert found["label"].shape == (16,)
    assert 0 <= found["label"].min() < found["label"].max() < emoji.CATEGORIES
    without = copy.deepcopy(CONFIG)
    without["streams"]["images"]["objectives"] = {}
    assert build.stream_fields("images", without) == {}


def test_two_classifications_of_one_stream_read_a_label_each():
    config = copy.deepcopy(CONFIG)
    images = config["streams"]["images"]
    images["data"]["fields"]["concept"] = dict(kind="label", key="subcategory")
    classification = images["objectives"]["classification"]
    images["objectives"]["fine"] = classification | dict(classes=99, label="concept")
    config["predictors"] = dict(classify="classification")
    made, _ = system(config=config)
    assert {name: term.field_names[1] for name, term in made.terms.items()} == dict(
        classification="label", fine="concept"
    )
    iterator = batches.iterate(config, streams.open_streams(config, None), 0, system()[1])
    found = next(iterator)["images"]
    iterator.close()
    assert found["concept"].max() >= emoji.CATEGORIES > found["label"].max()


@pytest.mark.parametrize(
    ("classes", "key", "message"),
    [
        (
            9,
            "category",
            r"^streams.images.objectives.classification.classes is 9; the field label has 10$",
        ),
        (
            10,
            "tags",
            "^streams.images.data.fields.label: emoji: 'tags' is no label; there are label, category, sub",
        ),
        (99, "subcategory", r"^evals.fxemoji: classification: the data has 10 classes, the classifier 99$"),
    ],
)
def test_what_does_not_fit_is_said_first(classes, key, message, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["streams"]["images"]["objectives"]["classification"].update(classes=classes)
    config["streams"]["images"]["data"]["fields"]["label"].update(key=key)
    with pytest.raises(requirements.RequirementsError, match=message):
        loop.train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_an_unknown_loss_is_named():
    config = copy.deepcopy(CONFIG)
    config["streams"]["images"]["objectives"]["classification"]["loss"] = "hinge"
    with pytest.raises(ValueError, match=r"^classification.loss is 'hinge'; use softmax, sigmoid$"):
        build.system(config, None)
