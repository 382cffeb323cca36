"""The contrastive loss against ALIGN's equations in float64: value, gradients, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.losses import textbook
from big_ssl.losses.contrastive import l2_normalize, sigmoid_contrastive, softmax_contrastive
from big_ssl.losses.pairwise import Pairwise

N, D, TEMPERATURE = 6, 4, 0.35


def embeddings(n=N):
    """Image and text rows of length one, pairs nearer than chance."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(n, D))
    text = image + rng.normal(size=(n, D))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]


def reference(image, text, temperature, smoothing):
    """Equations 1 and 2 of arXiv 2102.05918 as loops over examples, labels smoothed as in section 5.1."""
    n, total = len(image), 0.0
    for own, other in ((image, text), (text, image)):
        for i in range(n):
            logits = [own[i] @ other[j] / temperature for j in range(n)]
            log_sum = np.log(sum(np.exp(z) for z in logits))
            for j in range(n):
                target = smoothing / n + (1 - smoothing) * (i == j)
                total -= target * (logits[j] - log_sum) / n
    return total


def numeric_gradient(function, x, step=1e-5):
    """Central differences in float64, exact to about 1e-9 here."""
    x = np.asarray(x, float)
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        grad[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_equal_the_equations(smoothing):
    image, text = embeddings()
    (loss, metrics), grads = jax.jit(
        jax.value_and_grad(softmax_contrastive, (0, 1, 2), has_aux=True), static_argnums=3
    )(*(np.float32(a) for a in (image, text, TEMPERATURE)), smoothing)
    expected = reference(image, text, TEMPERATURE, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["image_to_text"] + metrics["text_to_image"], expected, rtol=1e-6)
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        grads[0], numeric_gradient(lambda x: reference(x, text, TEMPERATURE, smoothing), image), **close
    )
    np.testing.assert_allclose(
        grads[1], numeric_gradient(lambda x: reference(image, x, TEMPERATURE, smoothing), text), **close
    )
    np.testing.assert_allclose(
        grads[2], numeric_gradient(lambda t: reference(image, text, t, smoothing), TEMPERATURE), **close
    )


def test_the_fast_losses_equal_the_textbook_losses():
    """In value and gradient, with tiles that do not divide the batch; ALIGN's sum is twice CLIP's mean."""
    tiles = Pairwise("ring", None, tile=4)
    arguments = [jnp.float32(x) for x in (*embeddings(), TEMPERATURE, -3.0)]

    labels = jnp.array([3, 1, 3, 3, 0, 1])

    def fast(image, text, temperature, bias):
        softmax, _ = softmax_contrastive(image, text, temperature, pairwise=tiles)
        labelled, _ = softmax_contrastive(image, text, temperature, positives=labels, pairwise=tiles)
        sigmoid, _ = sigmoid_contrastive(image, text, temperature, bias, pairwise=tiles)
        return jnp.stack([softmax / 2, sigmoid, labelled / 2])

    def plain(image, text, temperature, bias):
        softmax = textbook.clip_loss(image, text, temperature)
        labelled = textbook.unicl_loss(image, text, temperature, labels)
        return jnp.stack([softmax, textbook.siglip_loss(image, text, temperature, bias), labelled])

    def value_and_gradients(losses):
        return jax.jit(lambda *args: (losses(*args), jax.jacrev(losses, (0, 1, 2, 3))(*args)))(*arguments)

    actual, expected = value_and_gradients(fast), value_and_gradients(plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), actual, expected)
    np.testing.assert_allclose(2 * expected[0][0], reference(*embeddings(), TEMPERATURE, 0), rtol=1e-6)


# UniCL: positives by identity.

# Some keys are equal in one of their halves; rows 2 and 7 are padding, and row 7 has the key of rows 0 and 5.
KEYS = np.array(
    [[1, 1], [1, 2], [1, 1], [2, 1], [2, 2], [1, 1], [2, 1], [1, 1], [2, 1]], np.uint32
)  # fmt: skip
REAL = ~np.isin(np.arange(len(KEYS)), [2, 7])


def soft_target_reference(image, text, temperature, keys):
    """Soft-target cross-entropy as loops, targets normalised by row, then by column."""
    equal = [[all(a == b) for b in keys] for a in keys]
    directions = []
    for own, other in ((image, text), (text, image)):
        total = 0.0
        for i in range(len(own)):
            logits = [own[i] @ row / temperature for row in other]
            log_sum = np.log(sum(np.exp(z) for z in logits))
            positives = [j for j in range(len(own)) if equal[i][j]]
            total -= sum(logits[j] - log_sum for j in positives) / len(positives)
        directions.append(total / len(own))
    return directions


@pytest.mark.parametrize("implementation", ["ring", "dense"])
def test_identities_are_soft_targets_without_padding(implementation):
    """Padding changes neither the loss, nor a gradient, nor a metric."""
    image, text = (np.float32(x) for x in embeddings(len(KEYS)))
    function = jax.jit(
        jax.value_and_grad(softmax_contrastive, (0, 1, 2), has_aux=True), static_argnums=(3, 5)
    )
    pairwise = Pairwise(implementation, None, tile=3)
    (loss, metrics), grads = function(image, text, TEMPERATURE, 0.0, KEYS, pairwise, REAL)
    expected = soft_target_reference(*(np.float64(x[REAL]) for x in (image, text)), TEMPERATURE, KEYS[REAL])
    np.testing.assert_allclose([metrics["image_to_text"], metrics["text_to_image"]], expected, rtol=1e-6)
    np.testing.assert_allclose(loss, sum(expected), rtol=1e-6)
    (_, alone), alone_grads = function(image[REAL], text[REAL], TEMPERATURE, 0.0, KEYS[REAL], pairwise, None)
    for name, value in alone.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    for grad, alone_grad in zip(grads[:2], alone_grads[:2], strict=True):
        np.testing.assert_allclose(grad[REAL], alone_grad, rtol=1e-5, atol=1e-7)
        assert not grad[~REAL].any()
    np.testing.assert_allclose(grads[2], alone_grads[2], rtol=1e-5)


def test_identities_in_bfloat16_are_float32_inside():
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in embeddings(len(KEYS)))
    loss, metrics = softmax_contrastive(image, text, jnp.float32(0.02), positives=KEYS, valid=REAL)
    assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype("float32")}
    exact = [np.asarray(x, float)[REAL] for x in (image, text)]
    np.testing.assert_allclose(loss, sum(soft_target_reference(*exact, 0.02, KEYS[REAL])), rtol=1e-5)


def test_distinct_identities_are_clips_loss():
    """In value and gradient; a half of a key may be equal."""
    arguments = [np.float32(x) for x in (*embeddings(), TEMPERATURE)]
    keys = np.stack([np.arange(N) // 2, np.arange(N) % 2], 1).astype(np.uint32)

    def value_and_gradients(positives):
        function = jax.value_and_grad(lambda *a: softmax_contrastive(*a, positives=positives)[0], (0, 1, 2))
        return jax.jit(function)(*arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        value_and_gradients(keys),
        value_and_gradients(None),
    )


def test_identities_of_equal_texts_are_clips_loss_again():
    """Where positives have one text, CLIP's loss already spreads its targets over them: only different texts
    of a class, as in prompts, make UniCL another objective."""
    image, text = embeddings()
    classes = np.arange(N) // 3
    keys = jnp.stack([jnp.asarray(classes, jnp.uint32)] * 2, 1)

    def loss(image, texts, positives):
        return softmax_contrastive(image, texts[classes], 0.3, positives=positives)[0]

    texts = text[: classes[-1] + 1]
    unicl, clip = (jax.value_and_grad(loss, (0, 1))(image, texts, x) for x in (keys, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), unicl, clip)
    different = [softmax_contrastive(image, text, 0.3, positives=x)[0] for x in (keys, None)]
    assert abs(different[0] - different[1]) > 1e-2


def test_one_source_of_labels_is_supervised_contrastive_learning():
    """Khosla et al. 2020 (arXiv 2004.11362), the outer sum of equation 2, across the two modalities."""
    labels = np.array([0, 1, 0, 2, 1, 0])
    image, text = embeddings()
    expected = 0.0
    for own, other in ((image, text), (text, image)):
        similarities = np.exp(own @ other.T / TEMPERATURE)
        for anchor, label in enumerate(labels):
            positives = np.flatnonzero(labels == label)
            terms = -np.log(similarities[anchor, positives] / similarities[anchor].sum())
            expected += terms.sum() / len(positives) / N
    keys = np.stack([np.zeros(N), labels], 1).astype(np.uint32)
    loss, _ = softmax_contrastive(np.float32(image), np.float32(text), TEMPERATURE, positives=keys)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_least_loss_with_duplicates_is_the_logarithm_of_their_number():
    """Of one-hot classes at a low temperature; the classes' sizes are 3, 2 and 1."""
    labels = np.array([0, 1, 0, 2, 1, 0])
    x = jnp.eye(3)[labels]
    loss, metrics = softmax_contrastive(x, x, 0.01, positives=labels)
    bound = 2 * np.log([3, 2, 3, 1, 2, 3]).mean()
    np.testing.assert_allclose([loss, metrics["lower_bound"]], bound, rtol=1e-5)
    assert "lower_bound" not in softmax_contrastive(x, x, 0.01)[1]


def test_a_batch_of_padding_has_no_loss_and_no_gradient():
    image, text = (np.float32(x) for x in embeddings())
    keys, nothing = np.zeros((N, 2), np.uint32), np.zeros(N, bool)

    def losses(image, text):
        softmax, _ = softmax_contrastive(image, text, TEMPERATURE, positives=keys, valid=nothing)
        sigmoid, _ = sigmoid_contrastive(image, text, TEMPERATURE, -1.0, positives=keys, valid=nothing)
        return softmax + sigmoid

    loss, grads = jax.jit(jax.value_and_grad(losses, (0, 1)))(image, text)
    assert loss == 0
    assert not np.any(grads)


def test_two_pairs_by_hand():
    """Similarities [[1, 0.6], [0, 0.8]] at temperature 1/2: logits [[2, 1.2], [0, 1.6]]."""
    image, text = jnp.eye(2), jnp.array([[1, 0], [0.6, 0.8]])
    loss, metrics = softmax_contrastive(image, text, 0.5)
    rows = (np.log1p(np.exp(-0.8)) + np.log1p(np.exp(-1.6))) / 2
    columns = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-0.4))) / 2
    np.testing.assert_allclose(metrics["image_to_text"], rows, rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_image"], columns, rtol=1e-6)
    np.testing.assert_allclose(loss, rows + columns, rtol=1e-6)


def test_accuracies_by_row_and_by_column():
    # Similarities [[1, 0, 0], [0, 1, 0], [0, 1, 0]]: image 2 is nearest to text 1, and text 1 ties.
    image = jnp.eye(3)[jnp.array([0, 1, 1])]
    text = jnp.array([[1, 0, 0], [0.0, 1, 0], [0, 0, 1]])
    _, metrics = softmax_contrastive(image, text, 1.0)
    np.testing.assert_allclose(metrics["image_to_text_accuracy"], 2 / 3)
    # Text 0 retrieves image 0; text 1 ties between images 1 and 2, a miss; text 2 retrieves none.
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 1 / 3)
    image = jnp.eye(3)[jnp.array([0, 0, 0])]  # similarities [[1, 0, 0]] * 3
    _, metrics = softmax_contrastive(image + 0.1 * jnp.eye(3), text, 1.0)
    np.testing.assert_allclose(metrics["image_to_text_accuracy"], 1 / 3)
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_swapping_image_and_text_swaps_the_metrics(smoothing):
    image, text = (np.float32(a) for a in embeddings())
    loss, one = softmax_contrastive(image, text, TEMPERATURE, smoothing)
    other_loss, two = softmax_contrastive(text, image, TEMPERATURE, smoothing)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    for suffix in ("", "_accuracy"):
        np.testing.assert_allclose(one[f"image_to_text{suffix}"], two[f"text_to_image{suffix}"], rtol=1e-6)
    assert abs(one["image_to_text"] - one["text_to_image"]) > 1e-3


def test_the_loss_of_equal_embeddings_is_twice_the_logarithm_of_the_batch_size():
    x = jnp.ones((N, 1))
    for smoothing in (0.0, 0.1):
        loss, _ = softmax_contrastive(x, x, 0.07, smoothing)
        np.testing.assert_allclose(loss, 2 * np.log(N), rtol=1e-6)


def test_the_loss_is_finite_and_float32_at_the_lowest_temperature():
    image, text = (jnp.asarray(a, jnp.bfloat16) for a in embeddings())
    run = jax.jit(jax.value_and_grad(softmax_contrastive, (0, 1, 2), has_aux=True))
    (loss, _), grads = run(image, -text, jnp.float32(0.01))
    assert loss.dtype == jnp.float32
    exact = reference(np.asarray(image, float), np.asarray(-text, float), 0.01, 0.0)
    np.testing.assert_allclose(loss, exact, rtol=1e-5)  # bfloat16 logits would be off by 1e-2
    assert all(np.isfinite(np.asarray(g, float)).all() for g in grads)


def test_l2_normalize_divides_by_the_norm_in_value_and_gradient():
    x, weights = np.random.default_rng(1).normal(size=(2, 3, D))
    y, pullback = jax.vjp(jax.jit(l2_normalize), np.float32(x))

    def plain(x):
        return x / np.sqrt((x**2).sum(-1, keepdims=True))

    np.testing.assert_allclose(y, plain(x), rtol=1e-6)
    expected = numeric_gradient(lambda x: (plain(x) * weights).sum(), x)
    np.testing.assert_allclose(pullback(np.float32(weights))[0], expected, rtol=1e-4, atol=1e-6)


def test_l2_normalize_of_zero_is_zero_with_zero_gradient():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    y, pullback = jax.vjp(jax.jit(l2_normalize), x)
    (grad,) = pullback(jnp.ones_like(x))
    np.testing.assert_allclose(y, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(grad[0], [0, 0])
    # (I - y y') 1 / 5 for the second row.
    np.testing.assert_allclose(grad[1], [(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5], rtol=1e-5)


def test_l2_normalize_returns_float32():
    assert l2_normalize(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32
