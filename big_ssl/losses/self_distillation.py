"""Cross-entropy of a student's prototype logits against an EMA teacher's (DINO, iBOT, DINOv2).

Logits over ~100k prototypes would not fit in memory. We keep the bottleneck features and compute logits in
chunks, recomputing them in the backward pass. Only class tokens are few enough to hold all teacher logits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_ssl.losses.chunks import fold_chunks, map_chunks
from big_ssl.parallel.batch_shard_map import shard_map_over_batch


class LazyLogits(NamedTuple):
    """bottleneck @ prototypes / temperature: [G, N, K], computed on demand.

    bottleneck: float32[G, N, D], L2-normalised, in G groups that are sharded over devices; prototypes:
    float32[D, K]; temperature: float32[]; dtype: of the matmul's operands. Products and gradients accumulate
    in float32.
    """

    bottleneck: jax.Array
    prototypes: jax.Array
    temperature: jax.Array | float
    dtype: Any = jnp.float32

    @property
    def shared(self):
        """The arrays that are not per example."""
        return self.prototypes, self.temperature

    def logits_fn(self, shared):
        """The function bottleneck [..., D] -> logits float32[..., K], given a device's copy of `shared`."""
        prototypes, temperature = shared

        def logits(bottleneck):
            operands = bottleneck.astype(self.dtype), prototypes.astype(self.dtype)
            return jnp.matmul(*operands, preferred_element_type=jnp.float32) / temperature

        return logits


class CrossEntropy(NamedTuple):
    """cross_entropy: float32[G, N], or [G, S, T] for all pairs; entropy of the targets: float32[G, N] or
    [G, T]; mean_target: float32[K]."""

    cross_entropy: jax.Array
    entropy: jax.Array
    mean_target: jax.Array


def update_center(center, mean, momentum: float):
    """The EMA of the teacher's mean logits after a step (arXiv 2104.14294, equation 4)."""
    return momentum * center + (1 - momentum) * mean


def sinkhorn_log_normalizer(teacher: LazyLogits, iterations: int, chunk: int):
    """The log normalizer of each prototype after Sinkhorn-Knopp iterations: float32[K] (Caron et al. 2020,
    arXiv 2006.09882, appendix A; Cuturi 2013).

    The published loop divides exp(logits) in turn by each prototype's sum over all examples and by each
    example's sum over prototypes. In logarithms, the first subtracts this normalizer (Sinkhorn's dual
    potential) and the second is a softmax: the targets are softmax(logits - normalizer). Sums run over all
    devices.
    """

    def local(shared, bottleneck, axes):
        logits_fn, normalizer = teacher.logits_fn(shared), None
        for _ in range(iterations):

            def add(sums, part, normalizer=normalizer):
                logits = logits_fn(part)
                if normalizer is not None:
                    logits -= jax.nn.logsumexp(logits - normalizer, axis=-1, keepdims=True)
                return jnp.logaddexp(sums, jax.nn.logsumexp(logits, axis=1))

            start = jnp.full((len(bottleneck), teacher.prototypes.shape[1]), -jnp.inf)
            start = jax.lax.pcast(start, axes, to="varying")
            device_sum = jax.nn.logsumexp(fold_chunks(add, start, bottleneck, chunk), axis=0)
            largest = jax.lax.pmax(device_sum, axes)
            normalizer = largest + jnp.log(jax.lax.psum(jnp.exp(device_sum - largest), axes))
        return (), normalizer

    return shard_map_over_batch(local, teacher.shared, teacher.bottleneck)[1]


def cross_entropy(student: LazyLogits, teacher: LazyLogits, offset, chunk: int) -> CrossEntropy:
    """Cross-entropy of softmax(student) against targets softmax(teacher - offset), row by row.

    Args:
      student, teacher: logits [G, N, K].
      offset: float32[K], the center or Sinkhorn's log normalizer.
      chunk: rows of each group whose logits exist at a time; 0 computes and keeps all.

    Returns:
      CrossEntropy, with cross_entropy float32[G, N].
    """

    def compare_all(student_fn, teacher_fn, inputs):
        def compare(part):
            student_logits, teacher_logits = student_fn(part["student"]), teacher_fn(part["teacher"])
            targets = jax.nn.softmax(teacher_logits)
            expected_logit = (targets * student_logits).sum(-1)
            # Not through log_softmax, which would be another array as large as the logits.
            loss = jax.nn.logsumexp(student_logits, axis=-1) - expected_logit
            return (loss, _entropy(teacher_logits, targets)), targets.sum(1)

        per_row, sums = map_chunks(compare, inputs, chunk)
        return per_row, sums.sum((0, 1))

    return _per_device(compare_all, student, teacher, offset)


def pairwise_cross_entropy(student: LazyLogits, teacher: LazyLogits, offset, chunk: int) -> CrossEntropy:
    """Cross-entropy of all pairs of a group's student rows S and teacher rows T; see `cross_entropy`.

    Each row's logits are computed once. chunk: student rows at a time. Returns CrossEntropy, with
    cross_entropy float32[G, S, T].
    """

    def compare_all(student_fn, teacher_fn, inputs):
        teacher_logits = teacher_fn(inputs["teacher"])
        targets = jax.nn.softmax(teacher_logits)

        def compare(part):
            student_logits = student_fn(part["student"])
            expected_logit = jnp.einsum("gsk,gtk->gst", student_logits, targets, precision="highest")
            return jax.nn.logsumexp(student_logits, axis=-1)[..., None] - expected_logit, ()

        loss, _ = map_chunks(compare, dict(student=inputs["student"]), chunk)
        return (loss, _entropy(teacher_logits, targets)), targets.sum((0, 1))

    return _per_device(compare_all, student, teacher, offset)


def _per_device(compare_all, student: LazyLogits, teacher: LazyLogits, offset) -> CrossEntropy:
    """Runs compare_all on each device's groups.

    compare_all: (student_fn, teacher_fn, dict(student=[g, S, D], teacher=[g, T, D])) ->
    ((cross_entropy: [g, ...], entropy: [g, T]), sum of targets: [K]), where teacher_fn subtracts the offset.
    """

    def local(shared, inputs, axes):
        student_fn, teacher_fn = student.logits_fn(shared["student"]), teacher.logits_fn(shared["teacher"])
        per_row, total = compare_all(student_fn, lambda x: teacher_fn(x) - shared["offset"], inputs)
        return per_row, jax.lax.psum(total, axes)

    shared = dict(student=student.shared, teacher=teacher.shared, offset=offset)
    inputs = dict(student=student.bottleneck, teacher=teacher.bottleneck)
    (loss, entropy), total = shard_map_over_batch(local, shared, inputs)
    return CrossEntropy(loss, entropy, total / entropy.size)


def _entropy(logits, targets):
    """Entropy of targets = softmax(logits)."""
    return jax.nn.logsumexp(logits, axis=-1) - (targets * logits).sum(-1)


def between_views(cross_entropy):
    """The mean over all pairs of different crops: [..., S, T] -> float32[].

    The student's first T crops are the teacher's (arXiv 2104.14294, equation 3).
    """
    student_crops, teacher_crops = cross_entropy.shape[-2:]
    different = ~jnp.eye(student_crops, teacher_crops, dtype=bool)
    return jnp.mean(cross_entropy, where=different)


def target_metrics(cross_entropy, entropy, mean_target) -> dict:
    """Metrics of the targets, to see a collapse.

    Args:
      cross_entropy, entropy: float32[], means of CrossEntropy's arrays.
      mean_target: float32[K].

    Returns:
      teacher_entropy: log K for uniform targets, 0 for one-hot ones; target_kl: the part of the
      cross-entropy that the student can still reduce; target_spread: the entropy of the mean target. When it
      falls to teacher_entropy, all images get the same target: a collapse.
    """
    spread = -jax.scipy.special.xlogy(mean_target, mean_target).sum()
    return dict(teacher_entropy=entropy, target_kl=cross_entropy - entropy, target_spread=spread)
