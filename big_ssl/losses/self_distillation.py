"""A student's prototype scores against an averaged teacher's (DINO, iBOT, DINOv2).

What is compared are distributions over many thousand prototypes, of many patches: neither the student's nor
the teacher's scores need ever exist as a whole. Both are points, whose scores are made in chunks, and made
again for the gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_ssl.losses.chunks import fold, mapped


class Scores(NamedTuple):
    """points @ prototypes / temperature: [G, N, K], not made yet.

    points: float32[G, N, D], of length 1, in G groups that are split over devices; prototypes: float32[D, K];
    temperature: float32[]; dtype: of the factors of the product, whose sums, and whose gradients over all
    chunks, are float32.
    """

    points: jax.Array
    prototypes: jax.Array
    temperature: jax.Array | float
    dtype: Any = jnp.float32

    def of(self, points):
        """float32[..., K] of these points [..., D]."""
        scores = jnp.matmul(
            points.astype(self.dtype), self.prototypes.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return scores / self.temperature

    def at(self, which: list[int]) -> "Scores":
        """Of the points [:, which] alone, in that order."""
        return self._replace(points=self.points[:, jnp.array(which)])


class Agreement(NamedTuple):
    """cross_entropy, entropy (the target's own): float32[G, N]; mean_target: float32[K]."""

    cross_entropy: jax.Array
    entropy: jax.Array
    mean_target: jax.Array


def moved_centre(centre, mean, momentum: float):
    """The centre after a step, from the mean of this step's teacher scores (arXiv 2104.14294, equation 4)."""
    return momentum * centre + (1 - momentum) * mean


def sinkhorn_offset(teacher: Scores, iterations: int, chunk: int):
    """What Sinkhorn and Knopp's iterations take from each prototype's score: float32[K] (Caron et al. 2020,
    arXiv 2006.09882, appendix A; Cuturi 2013).

    The published loop divides exp(scores) in turn by the sums over all points, of each prototype, and over
    prototypes, of each point. In logarithms the first subtracts this offset and the second is a softmax:
    after the last, the targets are softmax(scores - offset). Its sums are over all devices' points.
    """
    groups, _, _ = teacher.points.shape
    size = teacher.prototypes.shape[1]
    offset = None
    for _ in range(iterations):

        def add(sums, points, offset=offset):
            scores = teacher.of(points)
            if offset is not None:
                scores -= jax.nn.logsumexp(scores - offset, axis=-1, keepdims=True)
            return jnp.logaddexp(sums, jax.nn.logsumexp(scores, axis=1))

        sums = fold(add, jnp.full((groups, size), -jnp.inf), teacher.points, chunk)
        offset = jax.nn.logsumexp(sums, axis=0)
    return offset


def agreement(student: Scores, teacher: Scores, offset, chunk: int) -> Agreement:
    """The cross-entropy of softmax(student) against targets softmax(teacher - offset), point by point.

    offset: float32[K]; chunk: points of a group at a time, 0 for all at once.
    """

    def compare(points):
        scores, taught = student.of(points["student"]), teacher.of(points["teacher"]) - offset
        targets = jax.nn.softmax(taught)
        # The logarithm of a softmax, without another array of its size.
        said = jax.nn.logsumexp(scores, axis=-1) - (targets * scores).sum(-1)
        own = jax.nn.logsumexp(taught, axis=-1) - (targets * taught).sum(-1)
        return (said, own), targets.sum(1)

    (said, own), sums = mapped(compare, dict(student=student.points, teacher=teacher.points), chunk)
    return Agreement(said, own, sums.sum((0, 1)) / said.size)


def pairs(views: int, taught: int) -> tuple[list[int], list[int]]:
    """(student crops, teacher crops): all pairs of different crops; the first `taught` are the teacher's too
    (arXiv 2104.14294, equation 3)."""
    chosen = [(s, t) for s in range(views) for t in range(taught) if s != t]
    return [s for s, _ in chosen], [t for _, t in chosen]


def target_metrics(found: Agreement, weights) -> dict:
    """teacher_entropy, log K where the teacher says nothing and 0 where it always says one thing with all
    certainty; target_kl, the part of the cross-entropy that the student could still lose; and
    target_spread, the entropy of the mean target: falling to teacher_entropy it shows a collapse, all
    pictures being told the same. weights: of each point, broadcast."""
    mean = lambda x: jnp.average(x, weights=jnp.broadcast_to(weights, x.shape))  # noqa: E731
    p = found.mean_target
    spread = -jax.scipy.special.xlogy(p, p).sum()
    kl = mean(found.cross_entropy - found.entropy)
    return dict(teacher_entropy=mean(found.entropy), target_kl=kl, target_spread=spread)
