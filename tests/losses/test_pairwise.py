"""Both losses in the ring, gathered and dense implementations: against float64, on 1 to 8 devices."""

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
    # 64-bit keys, of which many are equal in one half alone.
    identities=rng.integers(0, 4, (N, 2), np.uint32) + np.uint32(2**32 - 4),
)
# Padding, here the first tile and all rows of the third of eight devices; its embeddings are anything but 0.
PADDING = np.isin(np.arange(N), [0, 1, 2, 8, 9, 10, 11, 17, 31])
VALID = dict(identities=~PADDING)


def mask_of(positives):
    if positives is None:
        return np.eye(N, dtype=bool)
    if positives.dtype == bool:
        return positives
    lanes = positives.reshape(N, -1)
    return (lanes[:, None] == lanes[None]).all(-1)


def softmax_reference(image, text, temperature, bias, mask):
    """Equations 3 and 4 of UniCL (arXiv 2204.03610) with smoothed targets, float64."""
    del bias
    total, N = 0.0, len(image)
    for own, other, positive in ((image, text, mask), (text, image, mask.T)):
        logits = own @ other.T / temperature
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = (1 - SMOOTHING) * positive / positive.sum(1, keepdims=True) + SMOOTHING / N
        total -= (targets * log_probabilities).sum() / N
    return total


def sigmoid_reference(image, text, temperature, bias, mask):
    """Equation 1 of SigLIP (arXiv 2303.15343), float64."""
    logits = image @ text.T / temperature + bias
    return np.log1p(np.exp(-np.where(mask, 1, -1) * logits)).sum() / len(image)


def softmax(image, text, temperature, bias, positives, pairwise, valid):
    del bias
    return softmax_contrastive(image, text, temperature, SMOOTHING, positives, pairwise, valid)


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
    mask, valid = mask_of(POSITIVES[positives]), VALID.get(positives, np.ones(N, bool))
    mask = mask[valid][:, valid]

    def reference(image, text, *scalars):
        """Padding is left out before the loss is computed."""
        return LOSSES[loss][1](image[valid], text[valid], *scalars)

    return reference(IMAGE, TEXT, TEMPERATURE, BIAS, mask), list(numeric_gradients(reference, mask))


@functools.cache
def computed(loss, positives, implementation, devices, tile=3):
    """((value, metrics), gradients) on `devices` devices, with fsdp = 2 from 4 devices on."""
    return jax.device_get(gradient(loss, positives, implementation, devices, tile)(1.0))


@functools.cache
def gradient(loss, positives, implementation, devices, tile=3):
    """A compiled function of the loss's weight."""
    sizes = dict(data=-1, fsdp=2 if devices >= 4 else 1, tensor=1)
    mesh = make_mesh(sizes, jax.devices()[:devices])
    pairwise = Pairwise(implementation, mesh, tile)

    def value(image, text, temperature, bias, positives, valid, scale):
        result, metrics = LOSSES[loss][0](image, text, temperature, bias, positives, pairwise, valid)
        return scale * result, metrics

    labels, valid = global_batch(mesh, (POSITIVES[positives], VALID.get(positives)))
    image, text = global_batch(mesh, (np.float32(IMAGE), np.float32(TEXT)))
    scalars = jnp.float32(TEMPERATURE), jnp.float32(BIAS)
    compiled = jax.jit(jax.value_and_grad(value, (0, 1, 2, 3), has_aux=True))
    return lambda scale: compiled(image, text, *scalars, labels, valid, scale)


def assert_close(actual, expected):
    """To 1e-5 of the largest entry."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# Each implementation with each kind of positives for which it has a branch, and rings of 2, 4 and 8 devices.
# The metrics' test reuses these compilations. A ring of one device: test_contrastive.
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("positives", "implementation", "devices"),
    [
        ("labels", "dense", 1),
        ("labels", "dense", 8),
        ("labels", "gathered", 8),
        ("labels", "ring", 8),
        ("diagonal", "gathered", 8),
        ("diagonal", "ring", 2),
        ("mask", "gathered", 8),
        ("mask", "ring", 4),
        ("identities", "dense", 1),
        ("identities", "gathered", 8),
        ("identities", "ring", 8),
        *(
            pytest.param("identities", implementation, devices, marks=pytest.mark.slow)
            for implementation, devices in [("ring", 1), ("ring", 2), ("ring", 4), ("dense", 8)]
        ),
    ],
)
def test_value_and_gradients_agree_with_the_equations(loss, positives, implementation, devices):
    (value, _), grads = computed(loss, positives, implementation, devices)
    expected_value, expected_grads = expected(loss, positives)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("positives", ["labels", "identities"])
def test_all_implementations_return_equal_metrics(loss, positives):
    (_, expected_metrics), _ = computed(loss, positives, "dense", 1)
    assert 0 < expected_metrics["image_to_text_accuracy"] < 1
    # Dense on eight devices with identities is in the slow test above.
    for implementation in IMPLEMENTATIONS if positives == "labels" else ("ring", "gathered"):
        (_, metrics), _ = computed(loss, positives, implementation, 8)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=f"{implementation} {name}")


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_scale_with_the_losss_weight(loss):
    """The ring's hand-written VJP must multiply by the cotangent."""
    _, grads = jax.device_get(gradient(loss, "diagonal", "ring", 2)(-2.5))
    for grad, expected_grad in zip(grads, expected(loss, "diagonal")[1], strict=True):
        assert_close(grad, -2.5 * expected_grad)


@pytest.mark.parametrize("tile", [1, 5, 1024])
def test_the_result_does_not_depend_on_the_tile_size(tile):
    (value, _), grads = computed("softmax", "diagonal", "ring", 2, tile=tile)
    expected_value, expected_grads = expected("softmax", "diagonal")
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_close(grads[0], expected_grads[0])


def test_rows_far_below_their_tiles_largest_logit_do_not_underflow():
    """At a scale of 100 a row's logits can all lie 100 below another's: no exponential may vanish."""
    x = np.float32([[1, 0], [1, 0], [-1, 0], [-1, 0]])
    y = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8], [1, 0]])
    reduced = Pairwise("ring", None, tile=2).logsumexp(x, y, 100.0)
    logits = 100 * np.float64(x) @ np.float64(y).T
    np.testing.assert_allclose(reduced.rows, [np.logaddexp.reduce(row) for row in logits], rtol=1e-6)
    np.testing.assert_allclose(reduced.columns, [np.logaddexp.reduce(row) for row in logits.T], rtol=1e-6)


def test_a_collapsed_model_has_zero_accuracy():
    x = jnp.ones((N, 1))
    for implementation in IMPLEMENTATIONS:
        _, metrics = softmax_contrastive(x, x, 0.07, pairwise=Pairwise(implementation, None, 4))
        assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 0, implementation


def temporary_bytes(implementation, batch):
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
    pairwise = Pairwise(implementation, mesh, tile=32)
    x = jax.ShapeDtypeStruct((batch, 16), jnp.float32)

    def loss(x, y):
        return softmax_contrastive(x, y, 0.1, pairwise=pairwise)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_rings_memory_is_linear_in_the_batch_size():
    small, large = (temporary_bytes("ring", batch) for batch in (1024, 4096))
    assert large < 4.2 * small
    assert large < temporary_bytes("gathered", 4096) / 10
