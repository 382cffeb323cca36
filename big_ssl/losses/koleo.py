"""KoLeo: spreads points over the sphere (Sablayrolles et al. 2019, arXiv 1806.03198, section 3.3)."""

import jax
import jax.numpy as jnp

# As published; below it a distance counts no more.
_EPSILON = 1e-8


def koleo(points, koleo_group: int):
    """-mean log of the distance to the nearest other point: (float32[], the mean distance float32[]).

    points: float32[B, D], of length 1; koleo_group: examples, one after the other, among which the nearest is
    looked for, 0 for all. Of equal points the gradient is zero, where the published form's is very large.
    Raises ValueError where there is no other point, or groups do not divide the batch.
    """
    count, size = len(points), koleo_group or len(points)
    if count % size or size < 2:
        raise ValueError(f"koleo: koleo_group {size} must be at least 2 and divide a batch of {count}")
    grouped = points.astype(jnp.float32).reshape(-1, size, points.shape[-1])
    cosines = jnp.einsum("gid,gjd->gij", grouped, grouped, precision="highest")
    others = jax.lax.stop_gradient(jnp.where(jnp.eye(size, dtype=bool), -2.0, cosines))
    nearest = jnp.take_along_axis(grouped, others.argmax(-1)[..., None], axis=1)
    distance = jnp.sqrt(jnp.sum((grouped - nearest) ** 2, axis=-1) + _EPSILON**2)
    return -jnp.log(distance + _EPSILON).mean(), distance.mean()
