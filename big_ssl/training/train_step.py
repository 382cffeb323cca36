"""The one training step of every method: gradient, optionally in microbatches, update, EMA, counters.

With microbatches, objectives that couple examples still see every example of the batch, as in GradCache (Gao
et al. 2021, arXiv 2101.06983). A first pass encodes all microbatches without keeping activations. These
objectives are computed once, on the features of all of them. A second pass runs each microbatch again, with
the same random numbers, and sends the gradient of its features back through it. Objectives that are a mean
over examples are computed in the second pass; their sums are divided by the count of the whole batch.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.objectives.base import Sum
from big_ssl.parallel.mesh import BATCH_AXES, batch_shards
from big_ssl.parallel.sharding import path_name
from big_ssl.random_keys import step_key
from big_ssl.training import state as state_lib
from big_ssl.training.state import TrainState


def make_step(
    grad_fn, project, optimizer, learning_rate, factors, ema_momentum, seed: int, window: int, first: int = 0
):
    """Returns step(state, batch) -> (state, metrics), pure and jittable.

    A step whose loss, gradient or stored values are not finite, or with an example that has no record,
    changes nothing but the step, the counters and the fractions of replaced records: neither the weights nor
    the optimizer's moments nor any running statistic sees it.

    Args:
      grad_fn: `value_and_grad` of a system.
      project: System.project.
      optimizer: gives updates for a learning rate of 1.
      learning_rate, ema_momentum: functions of the step; the latter is read only if the state has an EMA.
      factors: LrMultipliers.factors, one for each parameter's learning rate.
      seed: the run's seed.
      window: the fraction of replaced records covers this many of a stream's last examples.
      first: the steps that the run took in earlier stages; schedules and objectives count from there.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch):
        teacher, stage_step = state_lib.evaluation_variables(state), state.step - first
        (loss, (metrics, mutable)), grads = grad_fn(
            state.params, state.mutable, batch, step_key(seed, state.step), stage_step, teacher
        )
        rate = learning_rate(stage_step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=stage_step)
        updates = jax.tree.map(lambda u, f: -rate * f * u, updates, factors(updates, stage_step))
        params = project(optax.apply_updates(state.params, updates))
        ema = _update_average(state, params, mutable, ema_momentum, stage_step)
        new = state.replace(params=params, opt_state=opt_state, mutable=mutable, ema=ema)
        norms = dict(grad_norm=grads, param_norm=params, update_norm=updates)
        norms = {name: optax.tree.norm(tree) for name, tree in norms.items()}
        missing = sum(stream["data_errors"]["missing_examples"].sum() for stream in batch.values())
        # The parameters are checked by their norm, a sum of squares, which overflows before they do. The
        # average lies between two finite values.
        usable = _all_finite((loss, norms, opt_state, mutable)) & (missing == 0)
        new = jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, state)
        counters = _count(state.counters, usable, batch)
        # By the run's step: a stage goes on with the fraction of the one before, or with 0.
        fractions = _replaced_fractions(state.replaced_fraction, state.step, batch, window)
        metrics |= dict(loss=loss, learning_rate=rate, missing_examples=missing) | norms | counters
        metrics |= {f"replaced_fraction/{stream}": value for stream, value in fractions.items()}
        return new.replace(step=state.step + 1, counters=counters, replaced_fraction=fractions), metrics

    return step


def value_and_grad(system, microbatches: int, mesh: Mesh):
    """System.loss and its gradient by the parameters, in this many microbatches.

    Returns f(params, mutable, batch, key, step, teacher=None) -> ((loss, (metrics, mutable)), gradients).
    Every stream's batch must be divisible by microbatches x the number of the mesh's batch shards.
    """
    if microbatches == 1:
        return jax.value_and_grad(system.loss, has_aux=True)
    return functools.partial(_accumulated, system, microbatches, mesh)


def _accumulated(system, count, mesh, params, mutable, batch, key, step, teacher=None):
    keys = jax.random.split(key, count)
    parts = jax.vmap(system.flipped)(jax.tree.map(functools.partial(_split, count, mesh), batch), keys), keys
    # Fields that a batch-scoped loss reads from the whole batch are mirrored as in the microbatches.
    join = functools.partial(_join, batch_shards(mesh))
    batch = {stream: dict(values) for stream, values in batch.items()}
    for stream, name in system.mirrored:
        batch[stream][name] = jax.tree.map(join, parts[0][stream][name])
    states = mutable["objectives"]
    batch_scoped = [name for name, term in system.terms.items() if term.objective.scope == "batch"]

    def features_of(params, part, key):
        """(features of batch-scoped objectives, features of the others, the new statistics)."""
        features, statistics = system.features(params, mutable, part, key, teacher)
        return {name: features.pop(name) for name in batch_scoped}, features, statistics

    def first_pass(part):
        """(per-example and shared features of batch-scoped objectives, the counts of the others' sums)."""
        coupled, others, _ = features_of(params, *part)
        return *_partition(coupled), _counts(system.losses(others, part[0], states, step)[:2])

    def coupled_loss(per_example, shared):
        losses, metrics, after = system.losses(_merge(per_example, shared), batch, states, step)
        return system.total(losses, step), (system.metrics(losses, metrics, step), after)

    per_example, counts = jax.lax.map(lambda part: first_pass(part)[::2], parts)
    counts = jax.tree.map(lambda x: x.sum(0), counts)
    # Shared features are taken from one microbatch; the compiler leaves the encoders out.
    shared = first_pass(jax.tree.map(lambda x: x[0], parts))[1]
    per_example = jax.tree.map(join, per_example)
    grad_fn = jax.value_and_grad(coupled_loss, (0, 1), has_aux=True)
    (total, (coupled_metrics, coupled_states)), (grads_per_example, grads_shared) = grad_fn(
        per_example, shared
    )
    grads_per_example = jax.tree.map(functools.partial(_split, count, mesh), grads_per_example)
    grads_shared = jax.tree.map(lambda x: x / count, grads_shared)

    def part_loss(params, part, key, grads_per_example):
        """Surrogate loss whose gradient is this microbatch's contribution to the batch gradient; and aux."""
        coupled, others, statistics = features_of(params, part, key)
        vjp = jax.tree.map(jnp.vdot, _partition(coupled), (grads_per_example, grads_shared))
        losses, metrics, after = system.losses(others, part, states, step)
        losses, metrics = _with_counts((losses, metrics), counts)
        return jax.tree.reduce(jnp.add, vjp, 0.0) + system.total(losses, step), (
            _values((losses, metrics)),
            (after, statistics),
        )

    def add(grads, part):
        part_grads, aux = jax.grad(part_loss, has_aux=True)(params, *part)
        return jax.tree.map(jnp.add, grads, part_grads), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (values, after) = jax.lax.scan(add, zeros, (*parts, grads_per_example))
    values = jax.tree.map(lambda x: x.sum(0), values)
    losses, metrics = jax.tree.map(Sum, values, counts)
    # States and running statistics are linear in the batch's, so the mean of all updates is the one update.
    states, statistics = jax.tree.map(lambda x: x.mean(0), after)
    metrics = coupled_metrics | system.metrics(losses, metrics, step)
    mutable = statistics | {"objectives": coupled_states | states}
    return (total + system.total(losses, step), (metrics, mutable)), grads


def _is_sum(x):
    return isinstance(x, Sum)


def _counts(sums):
    """The counts of a tree of Sum, without gradient."""
    counts = jax.tree.map(lambda x: jnp.asarray(x.count, jnp.float32), sums, is_leaf=_is_sum)
    return jax.lax.stop_gradient(counts)


def _values(sums):
    """The values of a tree of Sum."""
    return jax.tree.map(lambda x: jnp.asarray(x.value, jnp.float32), sums, is_leaf=_is_sum)


def _with_counts(sums, counts):
    """A tree of Sum with other counts."""
    return jax.tree.map(lambda x, count: Sum(x.value, count), sums, counts, is_leaf=_is_sum)


def _partition(features):
    """Splits features into per-example arrays and shared ones (scalars, and all under "shared"): two trees
    with None in the complementary places."""

    def is_per_example(path, x):
        return x.ndim > 0 and "shared" not in path_name(path).split("/")

    return tuple(
        jax.tree_util.tree_map_with_path(
            lambda path, x, per_example=per_example: x if is_per_example(path, x) == per_example else None,
            features,
        )
        for per_example in (True, False)
    )


def _merge(per_example, shared):
    """The inverse of _partition."""
    return jax.tree.map(lambda a, b: b if a is None else a, per_example, shared, is_leaf=lambda x: x is None)


def _split(count, mesh, x):
    """[B, ...] -> [count, B / count, ...]: every microbatch has examples from each device."""
    shards = batch_shards(mesh)
    x = x.reshape(shards, count, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(count, -1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)))


def _join(shards, x):
    """The inverse of _split."""
    count = len(x)
    return x.reshape(count, shards, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _all_finite(tree):
    """bool[]: whether no number in a tree is infinite or NaN."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
    # Not finite.all(): XLA takes that apart into an `and` for each leaf, and repeats all of them in the
    # fusion of each array that depends on the result. The demo then compiles in 200 s instead of 20.
    return finite[jnp.argmin(finite)]


def _update_average(state, params, mutable, momentum, step):
    if state.ema is None:
        return None
    m = momentum(step)
    new = state_lib.restricted(state_lib.averaged(params, mutable), state.ema)
    return jax.tree.map(lambda old, new: m * old + (1 - m) * new, state.ema, new)


def _count(counters, usable, batch):
    """The counters after a step; a stream's "data_errors" are {counter: bool[B]}, see data.pipeline."""
    skipped = 1 - usable.astype(jnp.int32)
    counters = counters | dict(
        skipped=counters["skipped"] + skipped,
        skipped_in_a_row=(counters["skipped_in_a_row"] + 1) * skipped,
    )
    for stream in batch.values():
        # In an order that is the same on all hosts, as that of a set is not: they compile one program.
        for name, marks in stream["data_errors"].items():
            if name in counters:
                counters = counters | {name: counters[name] + marks.sum(dtype=jnp.int32)}
    return counters


def _replaced_fractions(fractions, step, batch, window):
    """{stream: the fraction of its recent examples that were replaced}: the mean over all examples until
    there are `window`, then an exponential average over about as many."""
    after = {}
    for name, stream in batch.items():
        replaced = jnp.any(jnp.stack(list(stream["data_errors"].values())), axis=0)
        weight = jnp.maximum(min(1.0, replaced.size / window), 1 / (step + 1))
        after[name] = fractions[name] + weight * (replaced.mean(dtype=jnp.float32) - fractions[name])
    return after
