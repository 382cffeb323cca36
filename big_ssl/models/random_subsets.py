"""Random subsets with static size, for jit."""

import jax
import jax.numpy as jnp


def random_subsets(key, rows: int, size: int, count: int):
    """Draws random subsets of equal size.

    Args:
      key: random key.
      rows: the number of subsets.
      size: subsets are of 0 ... size - 1.
      count: elements of a subset.

    Returns:
      int32[rows, count], each row without repetition, in ascending order.
    """
    order = jnp.argsort(jax.random.uniform(key, (rows, size)), axis=1)
    return jnp.sort(order[:, :count], axis=1)


def take(x, indices):
    """x: [R, N, ...], indices: int32[R, K] -> [R, K, ...], row by row."""
    return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(x, indices)


def add_on_subset(sequences, branch, rate: float, groups: int, key):
    """x + branch(x) / keep for a random fraction `keep` of the examples, and x for the others.

    DINOv2's stochastic depth (Oquab et al. 2023, arXiv 2304.07193, section 5): the branch is computed
    only for the chosen examples, max(1, int((1 - rate) * B / groups)) of each group of neighbours in a
    batch; keep is that number divided by B / groups. Groups exchange no examples, so there is no
    communication between devices that hold whole groups.

    Args:
      sequences: x: [B, ...], or a pytree of such arrays.
      branch: a function of the chosen examples, in the structure of sequences, to as many arrays.
      rate: the fraction of examples that skip the branch.
      groups: the number of groups.
      key: random key.

    Raises:
      ValueError: if groups does not divide B.
    """
    leaves, structure = jax.tree.flatten(sequences)
    chosen = [_chosen(x, rate, groups, key) for x, key in zip(leaves, _keys(key, len(leaves)), strict=True)]
    taken = [take(_grouped(x, groups), index) for x, index in zip(leaves, chosen, strict=True)]
    taken = [x.reshape(-1, *x.shape[2:]) for x in taken]
    added = jax.tree.leaves(branch(jax.tree.unflatten(structure, taken)))
    triples = zip(leaves, chosen, added, strict=True)
    return jax.tree.unflatten(structure, [_scatter(x, index, y) for x, index, y in triples])


def _keys(key, count):
    return [key] if count == 1 else jax.random.split(key, count)


def _chosen(x, rate, groups, key):
    """int32[groups, count]: the chosen examples of each group of neighbours."""
    if len(x) % groups:
        raise ValueError(f"drop path: {groups} groups do not divide a batch of {len(x)}")
    size = len(x) // groups
    return random_subsets(key, groups, size, max(1, int(size * (1 - rate))))


def _grouped(x, groups):
    return x.reshape(groups, -1, *x.shape[1:])


def _scatter(x, chosen, y):
    """x: [B, ...], plus y: [groups * count, ...] / keep at the chosen examples."""

    def add(row, index, y):
        return row.at[index].add(y, mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True)

    groups, count = chosen.shape
    y = _grouped(y * (len(x) // groups / count), groups)
    return jax.vmap(add)(_grouped(x, groups), chosen, y).reshape(x.shape)
