"""KoLeo: spreads embeddings over the sphere (Sablayrolles et al. 2019, arXiv 1806.03198, section 3.3)."""

import jax
import jax.numpy as jnp

# As published; distances below this are clamped.
_EPSILON = 1e-8


def koleo(embeddings, koleo_group: int):
    """The mean of -log of the distance to the nearest neighbour, and the mean distance: both float32[].

    embeddings: float32[B, D], L2-normalised; koleo_group: nearest neighbours are searched within groups of
    this many consecutive examples, 0 searches the whole batch. Between equal embeddings the gradient is zero,
    where the published form's is very large. Raises ValueError if a group has one example or groups do not
    divide the batch.
    """
    count, size = len(embeddings), koleo_group or len(embeddings)
    if count % size or size < 2:
        raise ValueError(f"koleo: koleo_group {size} must be at least 2 and divide a batch of {count}")
    grouped = embeddings.astype(jnp.float32).reshape(-1, size, embeddings.shape[-1])
    cosines = jnp.einsum("gid,gjd->gij", grouped, grouped, precision="highest")
    others = jax.lax.stop_gradient(jnp.where(jnp.eye(size, dtype=bool), -2.0, cosines))
    nearest = jnp.take_along_axis(grouped, others.argmax(-1)[..., None], axis=1)
    distance = jnp.sqrt(jnp.sum((grouped - nearest) ** 2, axis=-1) + _EPSILON**2)
    return -jnp.log(distance + _EPSILON).mean(), distance.mean()
