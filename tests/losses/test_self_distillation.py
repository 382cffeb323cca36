"""Prototype cross-entropy, Sinkhorn-Knopp and KoLeo against the papers' equations in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.losses.koleo import koleo
from big_ssl.losses.self_distillation import (
    LazyLogits,
    between_views,
    cross_entropy,
    pairwise_cross_entropy,
    sinkhorn_log_normalizer,
    target_metrics,
    update_center,
)
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.fsdp import within
from big_ssl.planning import hlo

RNG = np.random.default_rng(0)
GROUPS, ROWS, WIDTH, K = 4, 5, 6, 7
STUDENT, TEACHER = 0.1, 0.04


def unit(*shape):
    x = RNG.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


STUDENT_FEATURES, TEACHER_FEATURES = unit(GROUPS, ROWS, WIDTH), unit(GROUPS, ROWS, WIDTH)
PROTOTYPES, TEACHER_PROTOTYPES, OFFSET = unit(K, WIDTH).T, unit(K, WIDTH).T, RNG.normal(size=K)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lazy_logits(features, prototypes, temperature):
    return LazyLogits(jnp.asarray(features, jnp.float32), jnp.asarray(prototypes, jnp.float32), temperature)


@functools.cache
def compared(chunk):
    """(CrossEntropy, gradients of its weighted sum by the student's bottleneck and prototypes, weights)."""
    weights = np.linspace(1, 2, GROUPS * ROWS).reshape(GROUPS, ROWS)

    @jax.jit
    def run(features, prototypes):
        def loss(features, prototypes):
            result = cross_entropy(
                lazy_logits(features, prototypes, STUDENT),
                lazy_logits(TEACHER_FEATURES, TEACHER_PROTOTYPES, TEACHER),
                jnp.float32(OFFSET),
                chunk,
            )
            return (result.cross_entropy * weights).sum(), result

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(features, prototypes)

    (_, result), grads = run(jnp.float32(STUDENT_FEATURES), jnp.float32(PROTOTYPES))
    return result, grads, weights


@pytest.mark.parametrize("chunk", [0, 2, 5, 100])
def test_cross_entropy_in_chunks_equals_the_equation(chunk):
    """All at once, in chunks with a shorter last one, in one chunk: values and gradients."""
    result, (features_grad, prototypes_grad), weights = compared(chunk)
    targets = softmax(TEACHER_FEATURES @ TEACHER_PROTOTYPES / TEACHER - OFFSET)
    student = softmax(STUDENT_FEATURES @ PROTOTYPES / STUDENT)
    np.testing.assert_allclose(result.cross_entropy, -(targets * np.log(student)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(result.entropy, -(targets * np.log(targets)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.mean_target, targets.mean((0, 1)), rtol=1e-5)
    logits_grad = weights[..., None] * (student - targets) / STUDENT
    np.testing.assert_allclose(features_grad, logits_grad @ PROTOTYPES.T, rtol=1e-4, atol=1e-5)
    expected = np.einsum("gnd,gnk->dk", STUDENT_FEATURES, logits_grad)
    np.testing.assert_allclose(prototypes_grad, expected, rtol=1e-4, atol=1e-5)


def test_chunks_never_hold_all_logits():
    """64 x 4,096 logits, 8 rows at a time: forward and backward need less memory than one matrix."""
    rng = np.random.default_rng(1)
    student, teacher = (jnp.float32(rng.normal(size=(1, 64, 4))) for _ in range(2))
    prototypes, teacher_prototypes = (jnp.float32(rng.normal(size=(4, 4096))) for _ in range(2))

    def loss(student, prototypes, chunk):
        result = cross_entropy(
            LazyLogits(student, prototypes, 0.1),
            LazyLogits(teacher, teacher_prototypes, 0.1),
            jnp.zeros(4096),
            chunk,
        )
        return result.cross_entropy.sum()

    def temp_bytes(chunk):
        gradient = jax.jit(jax.grad(functools.partial(loss, chunk=chunk), (0, 1)))
        return gradient.lower(student, prototypes).compile().memory_analysis().temp_size_in_bytes

    whole = 64 * 4096 * 4
    assert temp_bytes(0) > whole
    assert temp_bytes(8) < whole


def test_the_center_follows_its_recurrence():
    np.testing.assert_allclose(update_center(np.array([1.0, 2.0]), np.array([3.0, 0.0]), 0.9), [1.2, 1.8])


@pytest.mark.parametrize("chunk", [0, 2])
def test_pairwise_cross_entropy_in_chunks_equals_the_equation(chunk):
    """5 student rows against 2 teacher rows: values and gradients."""
    targets = softmax(TEACHER_FEATURES[:, :2] @ TEACHER_PROTOTYPES / TEACHER - OFFSET)
    student = softmax(STUDENT_FEATURES @ PROTOTYPES / STUDENT)
    weights = np.linspace(1, 2, GROUPS * ROWS * 2).reshape(GROUPS, ROWS, 2)

    @jax.jit
    def run(features, prototypes):
        def loss(features, prototypes):
            teacher = lazy_logits(TEACHER_FEATURES[:, :2], TEACHER_PROTOTYPES, TEACHER)
            result = pairwise_cross_entropy(
                lazy_logits(features, prototypes, STUDENT), teacher, jnp.float32(OFFSET), chunk
            )
            return (result.cross_entropy * weights).sum(), result

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(features, prototypes)

    (_, result), (features_grad, prototypes_grad) = run(
        jnp.float32(STUDENT_FEATURES), jnp.float32(PROTOTYPES)
    )
    expected = -np.einsum("gtk,gsk->gst", targets, np.log(student))
    np.testing.assert_allclose(result.cross_entropy, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.entropy, -(targets * np.log(targets)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.mean_target, targets.mean((0, 1)), rtol=1e-5)
    by_pairs = weights[..., None] * (student[:, :, None] - targets[:, None]) / STUDENT
    np.testing.assert_allclose(features_grad, by_pairs.sum(2) @ PROTOTYPES.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        prototypes_grad, np.einsum("gsd,gstk->dk", STUDENT_FEATURES, by_pairs), rtol=1e-4, atol=1e-5
    )


def test_between_views_excludes_pairs_of_the_same_crop():
    """arXiv 2104.14294, equation 3: 2 + 3 crops make 8 pairs and not 10."""
    pairs = np.arange(10.0).reshape(5, 2)
    assert float(between_views(pairs)) == pytest.approx((pairs.sum() - pairs[0, 0] - pairs[1, 1]) / 8)


def over(devices, fsdp=1, tensor=1):
    sizes = dict(data=devices // fsdp // tensor, fsdp=fsdp, tensor=tensor)
    return mesh_lib.make_mesh(sizes, jax.devices()[:devices])


@pytest.mark.parametrize(
    ("loss_fn", "devices", "fsdp", "tensor"),
    [(cross_entropy, 4, 1, 1), (pairwise_cross_entropy, 4, 2, 1), (cross_entropy, 4, 1, 2)],
)
def test_devices_compute_their_own_examples_and_reduce_once(loss_fn, devices, fsdp, tensor):
    """Values and gradients equal those of one device; no collective runs inside the loop over chunks."""

    def gradient(student, teacher, prototypes):
        def loss(student, prototypes):
            pair = (
                lazy_logits(student, prototypes, STUDENT),
                lazy_logits(teacher, TEACHER_PROTOTYPES, TEACHER),
            )
            result = loss_fn(*pair, jnp.float32(OFFSET), 2)
            return (result.cross_entropy**2).mean() + (result.mean_target**2).sum(), result

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(student, prototypes)

    arguments = [jnp.float32(x) for x in (STUDENT_FEATURES, TEACHER_FEATURES, PROTOTYPES)]
    alone = jax.jit(gradient)(*arguments)
    mesh = over(devices, fsdp, tensor)
    split, whole = (NamedSharding(mesh, spec) for spec in (mesh_lib.BATCH, PartitionSpec()))
    placed = jax.device_put(arguments, [split, split, whole])
    compiled = jax.jit(within(mesh, gradient)).lower(*placed).compile()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), compiled(*placed), alone
    )
    program = hlo.parse(compiled.as_text())
    collectives = list(hlo.collectives(program, 4))
    assert {collective.kind for collective in collectives} == {"all-reduce"}
    assert {collective.runs for collective in collectives} == {1}


def test_the_result_is_equal_if_devices_do_not_divide_the_groups():
    pair = (
        lazy_logits(STUDENT_FEATURES[:3], PROTOTYPES, STUDENT),
        lazy_logits(TEACHER_FEATURES[:3], TEACHER_PROTOTYPES, TEACHER),
    )
    run = lambda: cross_entropy(*pair, jnp.float32(OFFSET), 2)  # noqa: E731
    for a, b in zip(jax.jit(within(over(4), run))(), run(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def sinkhorn(logits, iterations):
    """The published loop: logits [M, K] -> targets [M, K]."""
    q = np.exp(logits).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True)
        q /= len(q)
        q /= q.sum(0, keepdims=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("chunk", [0, 2])
def test_sinkhorn_over_devices_equals_one_matrix(devices, chunk):
    """Its column sums run over all devices' rows."""
    mesh = over(devices)
    split = jax.device_put(jnp.float32(TEACHER_FEATURES), NamedSharding(mesh, mesh_lib.BATCH))
    offset = jax.jit(
        within(mesh, lambda x: sinkhorn_log_normalizer(lazy_logits(x, TEACHER_PROTOTYPES, TEACHER), 3, chunk))
    )(split)
    logits = (TEACHER_FEATURES @ TEACHER_PROTOTYPES / TEACHER).reshape(-1, K)
    np.testing.assert_allclose(
        softmax(logits - np.asarray(offset)), sinkhorn(logits, 3), rtol=1e-4, atol=1e-7
    )


def test_sinkhorn_balances_prototypes_and_is_finite_for_extreme_logits():
    features = lazy_logits(1e3 * TEACHER_FEATURES, TEACHER_PROTOTYPES, TEACHER)  # exp(25,000) is no float
    offset = sinkhorn_log_normalizer(features, 3, 0)
    assert np.isfinite(offset).all()
    mild = np.asarray(sinkhorn_log_normalizer(lazy_logits(TEACHER_FEATURES, TEACHER_PROTOTYPES, 1.0), 50, 0))
    targets = softmax((TEACHER_FEATURES @ TEACHER_PROTOTYPES).reshape(-1, K) - mild)
    np.testing.assert_allclose(targets.mean(0), 1 / K, rtol=1e-3)


def test_metrics_of_one_hot_targets():
    """No entropy and no NaN; the spread distinguishes two prototypes from one."""
    result = cross_entropy(
        lazy_logits(STUDENT_FEATURES[:1, :2], PROTOTYPES, STUDENT),
        lazy_logits(np.eye(2)[None], 1e4 * np.eye(2, K), 1.0),
        jnp.zeros(K),
        0,
    )
    metrics = target_metrics(result.cross_entropy.mean(), result.entropy.mean(), result.mean_target)
    assert float(metrics["teacher_entropy"]) == pytest.approx(0, abs=1e-3)
    assert float(metrics["target_spread"]) == pytest.approx(np.log(2), rel=1e-5)
    np.testing.assert_allclose(
        metrics["target_kl"], (result.cross_entropy - result.entropy).mean(), rtol=1e-5
    )


def koleo_reference(features):
    """-mean log(||x - nearest|| + 1e-8) in float64."""
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1) + 9 * np.eye(len(features))
    return -np.log(distances.min(1) + 1e-8).mean(), distances.min(1).mean()


@pytest.mark.parametrize("size", [0, 4, 6])
def test_koleo_uses_the_nearest_neighbour_within_a_group(size):
    features = unit(12, WIDTH)
    parts = features.reshape(-1, size or 12, WIDTH)
    loss, distance = koleo(jnp.float32(features), size)
    np.testing.assert_allclose(loss, np.mean([koleo_reference(x)[0] for x in parts]), rtol=1e-5)
    np.testing.assert_allclose(distance, np.mean([koleo_reference(x)[1] for x in parts]), rtol=1e-5)


def test_koleos_gradient():
    """Against central differences in float64; a point and its nearest neighbour both get a gradient."""
    features, step = unit(6, 3), 1e-6
    grad = jax.grad(lambda x: koleo(x, 0)[0])(jnp.float32(features))
    for i in np.ndindex(6, 3):
        nudge = np.zeros((6, 3))
        nudge[i] = step
        slope = (koleo_reference(features + nudge)[0] - koleo_reference(features - nudge)[0]) / (2 * step)
        np.testing.assert_allclose(grad[i], slope, rtol=2e-3, atol=1e-4)


def test_koleo_has_a_finite_gradient_for_equal_embeddings():
    features = jnp.ones((4, 3)) / np.sqrt(3)
    loss, grad = jax.value_and_grad(lambda x: koleo(x, 0)[0])(features)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("count", "size"), [(1, 0), (6, 4), (6, 1)])
def test_koleo_rejects_groups_of_one_and_uneven_groups(count, size):
    with pytest.raises(ValueError, match=r"^koleo: koleo_group"):
        koleo(jnp.ones((count, 3)), size)
