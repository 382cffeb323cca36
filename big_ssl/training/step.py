"""The one training step of every method."""

import jax
import jax.numpy as jnp
import optax

from big_ssl.training import state as state_lib
from big_ssl.training.random_keys import step_key
from big_ssl.training.state import TrainState


def make_step(grad_fn, project, optimizer, learning_rate, factors, ema_momentum, seed: int, window: int):
    """Returns step(state, batch) -> (state, metrics), pure and jittable.

    grad_fn: accumulation.value_and_grad of a system; project: System.project; optimizer: of unit
    rate; learning_rate, ema_momentum: functions of the step (ema_momentum is read only where the
    state has an average); factors: Rates.factors, of each parameter's learning rate; window: over how many
    of a stream's last examples the fraction of replaced records is taken.
    A step changes nothing but the step, the counters and these fractions where its loss, its gradient or
    anything that it would store is not finite, or an example has no record: neither the weights
    nor the optimiser's moments nor any running statistic sees it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch):
        teacher = state_lib.evaluation_variables(state)
        (loss, (metrics, mutable)), grads = grad_fn(
            state.params, state.mutable, batch, step_key(seed, state.step), state.step, teacher
        )
        grad_norm = optax.tree.norm(grads)
        rate = learning_rate(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        updates = jax.tree.map(lambda u, f: -rate * f * u, updates, factors(updates, state.step))
        params = project(optax.apply_updates(state.params, updates))
        ema = _update_average(state, params, mutable, ema_momentum)
        new = state.replace(params=params, opt_state=opt_state, mutable=mutable, ema=ema)
        norms = dict(
            grad_norm=grad_norm, param_norm=optax.tree.norm(params), update_norm=optax.tree.norm(updates)
        )
        missing = sum(stream["data_errors"]["missing_examples"].sum() for stream in batch.values())
        # Of params the norm is asked: as a sum of squares it overflows before they do. The average is
        # between two finite values.
        usable = _all_finite((loss, norms, opt_state, mutable)) & (missing == 0)
        new = jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, state)
        counters = _count(state.counters, usable, batch)
        fractions = _replaced_fractions(state, batch, window)
        metrics |= dict(loss=loss, learning_rate=rate, missing_examples=missing) | norms | counters
        metrics |= {f"replaced_fraction/{stream}": value for stream, value in fractions.items()}
        return new.replace(step=state.step + 1, counters=counters, replaced_fraction=fractions), metrics

    return step


def _all_finite(tree):
    """bool[]: whether no number of a tree is infinite or NaN."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _update_average(state, params, mutable, momentum):
    if state.ema is None:
        return None
    m = momentum(state.step)
    new = state_lib.restricted(state_lib.averaged(params, mutable), state.ema)
    return jax.tree.map(lambda old, new: m * old + (1 - m) * new, state.ema, new)


def _count(counters, usable, batch):
    """The counters after a step; a stream's "data_errors" are {name: bool[B]}, see data.pipeline."""
    skipped = 1 - usable.astype(jnp.int32)
    counters = counters | dict(
        skipped=counters["skipped"] + skipped,
        skipped_in_a_row=(counters["skipped_in_a_row"] + 1) * skipped,
    )
    for stream in batch.values():
        for name in ("replaced_images", "replaced_texts"):
            replaced = stream["data_errors"][name].sum(dtype=jnp.int32)
            counters = counters | {name: counters[name] + replaced}
    return counters


def _replaced_fractions(state, batch, window):
    """{stream: the part of its recent examples that were replaced}: the mean over all of them until there
    are `window`, and an exponential average over about as many from then on."""
    fractions = {}
    for name, stream in batch.items():
        replaced = jnp.any(jnp.stack(list(stream["data_errors"].values())), axis=0)
        weight = jnp.maximum(min(1.0, replaced.size / window), 1 / (state.step + 1))
        before = state.replaced_fraction[name]
        fractions[name] = before + weight * (replaced.mean(dtype=jnp.float32) - before)
    return fractions
