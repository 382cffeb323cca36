"""The cross-entropy of prototype scores, Sinkhorn's offset and KoLeo against float64 written from the
papers' equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.losses.koleo import koleo
from big_ssl.losses.self_distillation import (
    LazyLogits,
    cross_entropy,
    between_views,
    pairwise_cross_entropy,
    update_center,
    sinkhorn_log_normalizer,
    target_metrics,
)
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.fsdp import within
from big_ssl.planning import hlo

RNG = np.random.default_rng(0)
GROUPS, POINTS, WIDTH, K = 4, 5, 6, 7
STUDENT, TEACHER = 0.1, 0.04


def unit(*shape):
    x = RNG.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


SAID, TAUGHT = unit(GROUPS, POINTS, WIDTH), unit(GROUPS, POINTS, WIDTH)
OWN, OTHER, OFFSET = unit(K, WIDTH).T, unit(K, WIDTH).T, RNG.normal(size=K)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores(points, prototypes, temperature):
    return LazyLogits(jnp.asarray(points, jnp.float32), jnp.asarray(prototypes, jnp.float32), temperature)


@functools.cache
def compared(chunk):
    """(cross_entropy, the gradient of its weighted sum by the student's points and prototypes)."""
    weights = np.linspace(1, 2, GROUPS * POINTS).reshape(GROUPS, POINTS)

    @jax.jit
    def run(said, own):
        def loss(said, own):
            found = cross_entropy(
                scores(said, own, STUDENT), scores(TAUGHT, OTHER, TEACHER), jnp.float32(OFFSET), chunk
            )
            return (found.cross_entropy * weights).sum(), found

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(said, own)

    (_, found), grads = run(jnp.float32(SAID), jnp.float32(OWN))
    return found, grads, weights


@pytest.mark.parametrize("chunk", [0, 2, 5, 100])
def test_agreement_is_the_cross_entropy_of_softmaxes(chunk):
    """All at once, in chunks of which the last is shorter, in one chunk: values and gradients."""
    found, (by_points, by_prototypes), weights = compared(chunk)
    targets = softmax(TAUGHT @ OTHER / TEACHER - OFFSET)
    said = softmax(SAID @ OWN / STUDENT)
    np.testing.assert_allclose(found.cross_entropy, -(targets * np.log(said)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found.entropy, -(targets * np.log(targets)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean_target, targets.mean((0, 1)), rtol=1e-5)
    by_scores = weights[..., None] * (said - targets) / STUDENT
    np.testing.assert_allclose(by_points, by_scores @ OWN.T, rtol=1e-4, atol=1e-5)
    expected = np.einsum("gnd,gnk->dk", SAID, by_scores)
    np.testing.assert_allclose(by_prototypes, expected, rtol=1e-4, atol=1e-5)


def test_chunks_never_hold_all_scores():
    """Of 64 points and 4,096 prototypes, 8 at a time: forward and backward keep less than one matrix."""
    rng = np.random.default_rng(1)
    said, taught = (jnp.float32(rng.normal(size=(1, 64, 4))) for _ in range(2))
    own, other = (jnp.float32(rng.normal(size=(4, 4096))) for _ in range(2))

    def loss(said, own, chunk):
        found = cross_entropy(LazyLogits(said, own, 0.1), LazyLogits(taught, other, 0.1), jnp.zeros(4096), chunk)
        return found.cross_entropy.sum()

    def kept(chunk):
        gradient = jax.jit(jax.grad(functools.partial(loss, chunk=chunk), (0, 1)))
        return gradient.lower(said, own).compile().memory_analysis().temp_size_in_bytes

    whole = 64 * 4096 * 4
    assert kept(0) > whole
    assert kept(8) < whole


def test_the_centre_follows_its_recurrence():
    np.testing.assert_allclose(update_center(np.array([1.0, 2.0]), np.array([3.0, 0.0]), 0.9), [1.2, 1.8])


@pytest.mark.parametrize("chunk", [0, 2])
def test_all_pairs_of_a_groups_points(chunk):
    """Of 5 points against 2 targets what cross_entropy gives of each pair, and its gradients."""
    targets = softmax(TAUGHT[:, :2] @ OTHER / TEACHER - OFFSET)
    said = softmax(SAID @ OWN / STUDENT)
    weights = np.linspace(1, 2, GROUPS * POINTS * 2).reshape(GROUPS, POINTS, 2)

    @jax.jit
    def run(points, own):
        def loss(points, own):
            taught = scores(TAUGHT[:, :2], OTHER, TEACHER)
            found = pairwise_cross_entropy(scores(points, own, STUDENT), taught, jnp.float32(OFFSET), chunk)
            return (found.cross_entropy * weights).sum(), found

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(points, own)

    (_, found), (by_points, by_prototypes) = run(jnp.float32(SAID), jnp.float32(OWN))
    expected = -np.einsum("gtk,gsk->gst", targets, np.log(said))
    np.testing.assert_allclose(found.cross_entropy, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(targets * np.log(targets)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean_target, targets.mean((0, 1)), rtol=1e-5)
    by_pairs = weights[..., None] * (said[:, :, None] - targets[:, None]) / STUDENT
    np.testing.assert_allclose(by_points, by_pairs.sum(2) @ OWN.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_prototypes, np.einsum("gsd,gstk->dk", SAID, by_pairs), rtol=1e-4, atol=1e-5)


def test_pairs_are_of_different_crops():
    """arXiv 2104.14294, equation 3: 2 + 3 crops make 8 pairs and not 10."""
    pairs = np.arange(10.0).reshape(5, 2)
    assert float(between_views(pairs)) == pytest.approx((pairs.sum() - pairs[0, 0] - pairs[1, 1]) / 8)


def over(devices, fsdp=1, tensor=1):
    sizes = dict(data=devices // fsdp // tensor, fsdp=fsdp, tensor=tensor)
    return mesh_lib.make_mesh(sizes, jax.devices()[:devices])


@pytest.mark.parametrize(
    ("form", "devices", "fsdp", "tensor"),
    [(cross_entropy, 4, 1, 1), (pairwise_cross_entropy, 4, 2, 1), (cross_entropy, 4, 1, 2)],
)
def test_devices_compute_their_own_examples_and_add_once(form, devices, fsdp, tensor):
    """The values and gradients of one device; nothing is sent inside the loop over chunks."""

    def gradient(said, taught, own):
        def loss(said, own):
            pair = scores(said, own, STUDENT), scores(taught, OTHER, TEACHER)
            found = form(*pair, jnp.float32(OFFSET), 2)
            return (found.cross_entropy**2).mean() + (found.mean_target**2).sum(), found

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(said, own)

    arguments = [jnp.float32(x) for x in (SAID, TAUGHT, OWN)]
    alone = jax.jit(gradient)(*arguments)
    mesh = over(devices, fsdp, tensor)
    split, whole = (NamedSharding(mesh, spec) for spec in (mesh_lib.BATCH, PartitionSpec()))
    placed = jax.device_put(arguments, [split, split, whole])
    compiled = jax.jit(within(mesh, gradient)).lower(*placed).compile()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), compiled(*placed), alone
    )
    program = hlo.parse(compiled.as_text())
    found = list(hlo.collectives(program, 4))
    assert {item.kind for item in found} == {"all-reduce"}
    assert {item.runs for item in found} == {1}


def test_devices_that_do_not_divide_the_groups_give_the_same():
    pair = scores(SAID[:3], OWN, STUDENT), scores(TAUGHT[:3], OTHER, TEACHER)
    run = lambda: cross_entropy(*pair, jnp.float32(OFFSET), 2)  # noqa: E731
    for a, b in zip(jax.jit(within(over(4), run))(), run(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def sinkhorn(logits, iterations):
    """The published loop: [M, K] -> [M, K], each row a target."""
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
def test_sinkhorn_is_that_of_one_large_matrix(devices, chunk):
    """Its column sums are over all devices' points, however many devices there are."""
    mesh = over(devices)
    split = jax.device_put(jnp.float32(TAUGHT), NamedSharding(mesh, mesh_lib.BATCH))
    offset = jax.jit(within(mesh, lambda x: sinkhorn_log_normalizer(scores(x, OTHER, TEACHER), 3, chunk)))(split)
    logits = (TAUGHT @ OTHER / TEACHER).reshape(-1, K)
    np.testing.assert_allclose(
        softmax(logits - np.asarray(offset)), sinkhorn(logits, 3), rtol=1e-4, atol=1e-7
    )


def test_sinkhorn_deals_out_prototypes_evenly_and_survives_extreme_scores():
    points = scores(1e3 * TAUGHT, OTHER, TEACHER)  # exp(25,000) is no float
    offset = sinkhorn_log_normalizer(points, 3, 0)
    assert np.isfinite(offset).all()
    mild = np.asarray(sinkhorn_log_normalizer(scores(TAUGHT, OTHER, 1.0), 50, 0))
    targets = softmax((TAUGHT @ OTHER).reshape(-1, K) - mild)
    np.testing.assert_allclose(targets.mean(0), 1 / K, rtol=1e-3)


def test_metrics_of_a_sure_teacher():
    """No entropy and no NaN; the spread tells two prototypes from one."""
    found = cross_entropy(
        scores(SAID[:1, :2], OWN, STUDENT), scores(np.eye(2)[None], 1e4 * np.eye(2, K), 1.0), jnp.zeros(K), 0
    )
    metrics = target_metrics(found.cross_entropy.mean(), found.entropy.mean(), found.mean_target)
    assert float(metrics["teacher_entropy"]) == pytest.approx(0, abs=1e-3)
    assert float(metrics["target_spread"]) == pytest.approx(np.log(2), rel=1e-5)
    np.testing.assert_allclose(metrics["target_kl"], (found.cross_entropy - found.entropy).mean(), rtol=1e-5)


def koleo_reference(points):
    """-mean log(||x - nearest|| + 1e-8) in float64."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(len(points))
    return -np.log(distances.min(1) + 1e-8).mean(), distances.min(1).mean()


@pytest.mark.parametrize("size", [0, 4, 6])
def test_koleo_is_of_the_nearest_in_each_group(size):
    points = unit(12, WIDTH)
    parts = points.reshape(-1, size or 12, WIDTH)
    loss, distance = koleo(jnp.float32(points), size)
    np.testing.assert_allclose(loss, np.mean([koleo_reference(x)[0] for x in parts]), rtol=1e-5)
    np.testing.assert_allclose(distance, np.mean([koleo_reference(x)[1] for x in parts]), rtol=1e-5)


def test_koleos_gradient():
    """Against central differences in float64; both a point and its nearest one feel it."""
    points, step = unit(6, 3), 1e-6
    grad = jax.grad(lambda x: koleo(x, 0)[0])(jnp.float32(points))
    for i in np.ndindex(6, 3):
        nudge = np.zeros((6, 3))
        nudge[i] = step
        slope = (koleo_reference(points + nudge)[0] - koleo_reference(points - nudge)[0]) / (2 * step)
        np.testing.assert_allclose(grad[i], slope, rtol=2e-3, atol=1e-4)


def test_koleo_of_equal_points_has_a_finite_gradient():
    points = jnp.ones((4, 3)) / np.sqrt(3)
    loss, grad = jax.value_and_grad(lambda x: koleo(x, 0)[0])(points)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("count", "size"), [(1, 0), (6, 4), (6, 1)])
def test_koleo_needs_others(count, size):
    with pytest.raises(ValueError, match=r"^koleo: group_size"):
        koleo(jnp.ones((count, 3)), size)
