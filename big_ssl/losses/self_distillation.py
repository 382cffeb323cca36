"""A student's prototype scores against an averaged teacher's (DINO, iBOT, DINOv2).

What is compared are distributions over many thousand prototypes, of many patches: neither the student's nor
the teacher's scores need ever exist as a whole. Both are points, whose scores are made in chunks, and made
again for the gradient; only of class tokens, of which there are few, a device has all of the teacher's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_ssl.losses.chunks import fold, mapped
from big_ssl.parallel.batch_shard_map import shard_map_over_batch


class LazyLogits(NamedTuple):
    """points @ prototypes / temperature: [G, N, K], not made yet.

    points: float32[G, N, D], of length 1, in G groups that are split over devices; prototypes: float32[D, K];
    temperature: float32[]; dtype: of the factors of the product, whose sums, and whose gradients over all
    chunks, are float32.
    """

    points: jax.Array
    prototypes: jax.Array
    temperature: jax.Array | float
    dtype: Any = jnp.float32

    @property
    def shared(self):
        """What the scores of all points need."""
        return self.prototypes, self.temperature

    def logits_fn(self, shared):
        """The function points [..., D] -> scores float32[..., K], of `shared` as a device has it."""
        prototypes, temperature = shared

        def scores_of(points):
            factors = points.astype(self.dtype), prototypes.astype(self.dtype)
            return jnp.matmul(*factors, preferred_element_type=jnp.float32) / temperature

        return scores_of


class CrossEntropy(NamedTuple):
    """cross_entropy: float32[G, N], or [G, S, T] of all pairs; entropy, the target's own: float32[G, N], or
    [G, T]; mean_target: float32[K]."""

    cross_entropy: jax.Array
    entropy: jax.Array
    mean_target: jax.Array


def update_center(centre, mean, momentum: float):
    """The centre after a step, from the mean of this step's teacher scores (arXiv 2104.14294, equation 4)."""
    return momentum * centre + (1 - momentum) * mean


def sinkhorn_log_normalizer(teacher: LazyLogits, iterations: int, chunk: int):
    """What Sinkhorn and Knopp's iterations take from each prototype's score: float32[K] (Caron et al. 2020,
    arXiv 2006.09882, appendix A; Cuturi 2013).

    The published loop divides exp(scores) in turn by the sums over all points, of each prototype, and over
    prototypes, of each point. In logarithms the first subtracts this offset and the second is a softmax:
    after the last, the targets are softmax(scores - offset). Its sums are over all devices' points.
    """

    def offset_of(shared, points, axes):
        scores_of, offset = teacher.logits_fn(shared), None
        for _ in range(iterations):

            def add(sums, part, offset=offset):
                scores = scores_of(part)
                if offset is not None:
                    scores -= jax.nn.logsumexp(scores - offset, axis=-1, keepdims=True)
                return jnp.logaddexp(sums, jax.nn.logsumexp(scores, axis=1))

            start = jnp.full((len(points), teacher.prototypes.shape[1]), -jnp.inf)
            start = jax.lax.pcast(start, axes, to="varying")
            own = jax.nn.logsumexp(fold(add, start, points, chunk), axis=0)
            largest = jax.lax.pmax(own, axes)
            offset = largest + jnp.log(jax.lax.psum(jnp.exp(own - largest), axes))
        return (), offset

    return shard_map_over_batch(offset_of, teacher.shared, teacher.points)[1]


def cross_entropy(student: LazyLogits, teacher: LazyLogits, offset, chunk: int) -> CrossEntropy:
    """The cross-entropy of softmax(student) against targets softmax(teacher - offset), point by point.

    offset: float32[K]; chunk: points of a group at a time, whose scores are made again for the gradient; 0
    for all at once, whose scores are kept for it.
    """

    def compare_all(said_of, taught_of, split):
        def compare(points):
            scores, taught = said_of(points["student"]), taught_of(points["teacher"])
            targets = jax.nn.softmax(taught)
            # The logarithm of a softmax, without another array of its size.
            said = jax.nn.logsumexp(scores, axis=-1) - (targets * scores).sum(-1)
            return (said, _entropy(taught, targets)), targets.sum(1)

        each, sums = mapped(compare, split, chunk)
        return each, sums.sum((0, 1))

    return _on_own_points(compare_all, student, teacher, offset)


def pairwise_cross_entropy(student: LazyLogits, teacher: LazyLogits, offset, chunk: int) -> CrossEntropy:
    """The same of every point S of a group's student against every target T of its teacher; each point is
    scored once. chunk: of the student's points."""

    def compare_all(said_of, taught_of, split):
        taught = taught_of(split["teacher"])
        targets = jax.nn.softmax(taught)

        def compare(points):
            scores = said_of(points["student"])
            meant = jnp.einsum("gsk,gtk->gst", scores, targets, precision="highest")
            return jax.nn.logsumexp(scores, axis=-1)[..., None] - meant, ()

        said, _ = mapped(compare, dict(student=split["student"]), chunk)
        return (said, _entropy(taught, targets)), targets.sum((0, 1))

    return _on_own_points(compare_all, student, teacher, offset)


def _on_own_points(compare_all, student: LazyLogits, teacher: LazyLogits, offset) -> CrossEntropy:
    """compare_all on each device, of its own groups: (points -> the student's scores, points -> the teacher's
    less the offset, dict(student=[g, S, D], teacher=[g, T, D])) -> ((cross_entropy: [g, ...], entropy:
    [g, T]), the sum of targets [K])."""

    def local(shared, split, axes):
        said_of, taught_of = student.logits_fn(shared["student"]), teacher.logits_fn(shared["teacher"])
        each, total = compare_all(said_of, lambda points: taught_of(points) - shared["offset"], split)
        return each, jax.lax.psum(total, axes)

    shared = dict(student=student.shared, teacher=teacher.shared, offset=offset)
    split = dict(student=student.points, teacher=teacher.points)
    (said, own), total = shard_map_over_batch(local, shared, split)
    return CrossEntropy(said, own, total / own.size)


def _entropy(scores, targets):
    """Of targets = softmax(scores)."""
    return jax.nn.logsumexp(scores, axis=-1) - (targets * scores).sum(-1)


def between_views(cross_entropy):
    """[..., S, T] -> the mean over all pairs of different crops; the first T of the student's crops are the
    teacher's too (arXiv 2104.14294, equation 3)."""
    crops, taught = cross_entropy.shape[-2:]
    different = ~jnp.eye(crops, taught, dtype=bool)
    return jnp.mean(cross_entropy, where=different)


def target_metrics(cross_entropy, entropy, mean_target) -> dict:
    """From an cross_entropy's means. teacher_entropy: log K where the teacher says nothing and 0 where it always
    says one thing with all certainty; target_kl, the part of the cross-entropy that the student could still
    lose; and target_spread, the entropy of the mean target: falling to teacher_entropy it shows a collapse,
    all pictures being told the same."""
    spread = -jax.scipy.special.xlogy(mean_target, mean_target).sum()
    return dict(teacher_entropy=entropy, target_kl=cross_entropy - entropy, target_spread=spread)
