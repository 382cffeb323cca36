"""Ring, gathered and dense forms of both losses: against float64, on 1 to 8 devices, for all positives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from big_ssl.losses.pairwise import IMPLEMENTATIONS, Pairwise
from big_ssl.parallel.mesh import global_batch, make_mesh

N, D, SMOOTHING = 32, 12, 0.1
TEMPERATURE, BIAS = 0.06, -3.0
rng = np.random.default_rng(0)


def rows():
    x = rng.normal(size=(N, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


IMAGE = rows()
TEXT = IMAGE + 2 * rows()
TEXT /= np.linalg.norm(TEXT, axis=1, keepdims=True)
POSITIVES = dict(
    diagonal=None,
    labels=rng.integers(0, 12, N) * 1000 - 5000,  # any integers, negative ones too
    mask=np.eye(N, dtype=bool) | (rng.random((N, N)) < 0.1),  # not symmetric
)


def mask_of(positives):
    if positives is None:
        return np.eye(N, dtype=bool)
    return positives[:, None] == positives[None] if positives.ndim == 1 else positives


def softmax_reference(image, text, temperature, bias, mask):
    """Equations 3 and 4 of UniCL (arXiv 2204.03610) with smoothed targets, float64."""
    del bias
    total = 0.0
    for own, other, positive in ((image, text, mask), (text, image, mask.T)):
        logits = own @ other.T / temperature
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = (1 - SMOOTHING) * positive / positive.sum(1, keepdims=True) + SMOOTHING / N
        total -= (targets * log_probabilities).sum() / N
    return total


def sigmoid_reference(image, text, temperature, bias, mask):
    """Equation 1 of SigLIP (arXiv 2303.15343), float64."""
    logits = image @ text.T / temperature + bias
    return np.log1p(np.exp(-np.where(mask, 1, -1) * logits)).sum() / N


def softmax(image, text, temperature, bias, positives, pairwise):
    del bias
    return softmax_contrastive(image, text, temperature, SMOOTHING, positives, pairwise)


LOSSES = dict(softmax=(softmax, softmax_reference), sigmoid=(sigmoid_contrastive, sigmoid_reference))


def numeric_gradients(reference, mask):
    """Central differences by image, text, temperature and bias."""
    arguments = [IMAGE, TEXT, np.array(TEMPERATURE), np.array(BIAS)]
    for which, value in enumerate(arguments):
        grad = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arguments]
                moved[which][index] += step
                ends.append(reference(*moved, mask))
            grad[index] = (ends[0] - ends[1]) / 2e-6
        yield grad


@functools.cache
def expected(loss, positives):
    """(value, gradients) of the reference."""
    mask = mask_of(POSITIVES[positives])
    reference = LOSSES[loss][1]
    return reference(IMAGE, TEXT, TEMPERATURE, BIAS, mask), list(numeric_gradients(reference, mask))


@functools.cache
def computed(loss, positives, form, devices, tile=3):
    """((value, metrics), gradients) on so many devices, fsdp two of them where there are four."""
    return jax.device_get(gradient(loss, positives, form, devices, tile)(1.0))


@functools.cache
def gradient(loss, positives, form, devices, tile=3):
    """A function, compiled once, of the factor in front of the loss."""
    sizes = dict(data=-1, fsdp=2 if devices >= 4 else 1, tensor=1)
    mesh = make_mesh(sizes, jax.devices()[:devices])
    pairwise = Pairwise(form, mesh, tile)

    def value(image, text, temperature, bias, positives, scale):
        result, metrics = LOSSES[loss][0](image, text, temperature, bias, positives, pairwise)
        return scale * result, metrics

    given = POSITIVES[positives]
    image, text = global_batch(mesh, (np.float32(IMAGE), np.float32(TEXT)))
    given = given if given is None else global_batch(mesh, given)
    compiled = jax.jit(jax.value_and_grad(value, (0, 1, 2, 3), has_aux=True))
    return lambda scale: compiled(image, text, jnp.float32(TEMPERATURE), jnp.float32(BIAS), given, scale)


def assert_close(found, wanted):
    """To 1e-5 of the largest entry."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


# Each form with each kind of positives that it treats in a way of its own, and rings of 2, 4 and 8: what
# test_metrics compiles is among them. A ring of one device: test_contrastive.
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("positives", "form", "devices"),
    [
        ("labels", "dense", 1),
        ("labels", "dense", 8),
        ("labels", "gathered", 8),
        ("labels", "ring", 8),
        ("diagonal", "gathered", 8),
        ("diagonal", "ring", 2),
        ("mask", "gathered", 8),
        ("mask", "ring", 4),
    ],
)
def test_value_and_gradients_agree_with_the_equations(loss, positives, form, devices):
    (value, _), grads = computed(loss, positives, form, devices)
    wanted, wanted_grads = expected(loss, positives)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for found, grad in zip(grads, wanted_grads, strict=True):
        assert_close(found, grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_agree_in_every_form(loss):
    (_, wanted), _ = computed(loss, "labels", "dense", 1)
    assert 0 < wanted["image_to_text_accuracy"] < 1
    for form in IMPLEMENTATIONS:
        (_, found), _ = computed(loss, "labels", form, 8)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=f"{form} {name}")


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_carry_the_factor_in_front_of_the_loss(loss):
    """A weight in a config multiplies the loss: its cotangent must reach the ring's own derivative."""
    _, grads = jax.device_get(gradient(loss, "diagonal", "ring", 2)(-2.5))
    for found, grad in zip(grads, expected(loss, "diagonal")[1], strict=True):
        assert_close(found, -2.5 * grad)


@pytest.mark.parametrize("tile", [1, 5, 1024])
def test_the_size_of_a_tile_changes_nothing(tile):
    (value, _), grads = computed("softmax", "diagonal", "ring", 2, tile=tile)
    wanted, wanted_grads = expected("softmax", "diagonal")
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert_close(grads[0], wanted_grads[0])


def test_rows_far_below_the_best_of_their_tile_keep_their_sums():
    """At a scale of 100 a row's logits can all lie 100 below another's: no exponential may vanish."""
    x = np.float32([[1, 0], [1, 0], [-1, 0], [-1, 0]])
    y = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8], [1, 0]])
    found = Pairwise("ring", None, tile=2).logsumexp(x, y, 100.0)
    logits = 100 * np.float64(x) @ np.float64(y).T
    np.testing.assert_allclose(found.rows, [np.logaddexp.reduce(row) for row in logits], rtol=1e-6)
    np.testing.assert_allclose(found.columns, [np.logaddexp.reduce(row) for row in logits.T], rtol=1e-6)


def test_a_collapsed_model_has_no_accuracy():
    x = jnp.ones((N, 1))
    for form in IMPLEMENTATIONS:
        _, metrics = softmax_contrastive(x, x, 0.07, pairwise=Pairwise(form, None, 4))
        assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 0, form


def temporary_bytes(form, batch):
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
    pairwise = Pairwise(form, mesh, tile=32)
    x = jax.ShapeDtypeStruct((batch, 16), jnp.float32)

    def loss(x, y):
        return softmax_contrastive(x, y, 0.1, pairwise=pairwise)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_rings_memory_grows_with_the_batch_and_not_with_its_square():
    small, large = (temporary_bytes("ring", batch) for batch in (1024, 4096))
    assert large < 4.2 * small
    assert large < temporary_bytes("gathered", 4096) / 10
