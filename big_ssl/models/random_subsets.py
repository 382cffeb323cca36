"""Random subsets of fixed size: what a shape must be known for can still be chosen by chance."""

import jax
import jax.numpy as jnp


def random_subsets(key, rows: int, size: int, kept: int):
    """int32[rows, kept]: for each row `kept` of 0 ... size - 1 without repetition, in ascending order."""
    order = jnp.argsort(jax.random.uniform(key, (rows, size)), axis=1)
    return jnp.sort(order[:, :kept], axis=1)


def take(x, indices):
    """x: [R, N, ...], indices: int32[R, K] -> [R, K, ...], each row its own."""
    return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(x, indices)


def add_on_subset(x, branch, rate: float, groups: int, key):
    """x + branch(x) / keep on a part `keep` of the batch, and x on the rest. x: [B, ...] -> same.

    DINOv2's stochastic depth (Oquab et al. 2023, arXiv 2304.07193, section 5): the branch is computed
    for the chosen examples alone, which are max(1, int((1 - rate) * B / groups)) of each group of
    neighbours in the batch; keep is that number by B / groups. Groups exchange no examples, so that
    nothing travels between devices that hold whole ones.
    Raises ValueError where groups does not divide B.
    """
    if len(x) % groups:
        raise ValueError(f"drop path: {groups} groups do not divide a batch of {len(x)}")
    size = len(x) // groups
    kept = max(1, int(size * (1 - rate)))
    grouped = x.reshape(groups, size, *x.shape[1:])
    chosen = random_subsets(key, groups, size, kept)
    y = branch(take(grouped, chosen).reshape(groups * kept, *x.shape[1:])) * (size / kept)

    def add(row, index, y):
        return row.at[index].add(y, mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True)

    y = y.reshape(groups, kept, *x.shape[1:])
    return jax.vmap(add)(grouped, chosen, y).reshape(x.shape)
