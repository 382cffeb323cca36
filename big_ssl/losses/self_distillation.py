"""A student's prototype logits against an averaged teacher's (DINO, iBOT, DINOv2)."""

import jax
import jax.numpy as jnp


def centred_softmax(logits, centre, temperature):
    """The teacher's targets: softmax((logits - centre) / temperature). logits: [..., K]; centre: [K]."""
    return jax.nn.softmax((logits.astype(jnp.float32) - centre) / temperature)


def moved_centre(centre, mean, momentum: float):
    """The centre after a step, from the mean of this step's teacher logits (arXiv 2104.14294, equation 4)."""
    return momentum * centre + (1 - momentum) * mean


def cross_view(student, targets, temperature: float):
    """The mean cross-entropy between each student crop and each target of another crop.

    student: [B, S, K] logits, of which the first T crops are those of targets: float32[B, T, K].
    Returns (float32[], metrics): -sum t log s, averaged over the T * S - T pairs of different crops and
    over examples (arXiv 2104.14294, equation 3); see `target_metrics`.
    """
    log_probabilities = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    pairs = -jnp.einsum("btk,bsk->bts", targets, log_probabilities)
    other = 1 - jnp.eye(pairs.shape[1], pairs.shape[2])
    loss = (pairs * other).sum() / (len(pairs) * other.sum())
    return loss, target_metrics(loss, targets)


def masked_patches(student, targets, weights, crops: int, temperature: float):
    """The cross-entropy of masked patches, averaged in each crop and then over all crops.

    student: [..., M, K] logits; targets: float32[..., M, K]; weights: float32[..., M], one by how many
    patches are masked in the same crop; crops: how many there are, those without a mask included, as
    published (arXiv 2111.07832, equation 2). Returns (float32[], metrics); see `target_metrics`.
    """
    log_probabilities = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    each = -(targets * log_probabilities).sum(-1)
    loss = (each * weights).sum() / crops
    return loss, target_metrics((each * weights).sum() / weights.sum(), targets)


def target_metrics(cross_entropy, targets):
    """teacher_entropy, log K where the teacher says nothing and 0 where it always says one thing with all
    certainty; target_kl, the part of the cross-entropy that the student could still lose; and
    target_spread, the entropy of the mean target: falling to teacher_entropy it shows a collapse, all
    pictures being told the same."""
    entropy = _entropy(targets).mean()
    spread = _entropy(targets.reshape(-1, targets.shape[-1]).mean(0))
    return dict(teacher_entropy=entropy, target_kl=cross_entropy - entropy, target_spread=spread)


def _entropy(p):
    return -jax.scipy.special.xlogy(p, p).sum(-1)
