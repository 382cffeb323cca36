"""The one training step of every method."""

import jax
import jax.numpy as jnp
import optax

from big_ssl.training import state as state_lib
from big_ssl.training.random_keys import step_key
from big_ssl.training.state import TrainState


def make_step(grad_fn, project, optimizer, learning_rate, factors, ema_momentum, seed: int):
    """Returns step(state, batch) -> (state, metrics), pure and jittable.

    grad_fn: accumulation.value_and_grad of a system; project: System.project; optimizer: of unit
    rate; learning_rate, ema_momentum: functions of the step (ema_momentum is read only where the
    state has an average); factors: Rates.factors, of each parameter's learning rate.
    A step whose loss or gradient is not finite changes nothing but the step and the counters,
    so neither the optimiser's moments nor any running statistic sees it.
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
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        counters = _count(state.counters, finite, batch)
        metrics |= dict(loss=loss, grad_norm=grad_norm, learning_rate=rate) | counters
        return new.replace(step=state.step + 1, counters=counters), metrics

    return step


def _update_average(state, params, mutable, momentum):
    if state.ema is None:
        return None
    m = momentum(state.step)
    new = state_lib.restricted(state_lib.averaged(params, mutable), state.ema)
    return jax.tree.map(lambda old, new: m * old + (1 - m) * new, state.ema, new)


def _count(counters, finite, batch):
    """The counters after a step; a stream's "faults" are {counter: bool[B]}, records replaced."""
    skipped = 1 - finite.astype(jnp.int32)
    counters = counters | dict(
        skipped=counters["skipped"] + skipped,
        skipped_in_a_row=(counters["skipped_in_a_row"] + 1) * skipped,
    )
    for stream in batch.values():
        for name, replaced in stream["faults"].items():
            counters = counters | {name: counters[name] + replaced.sum(dtype=jnp.int32)}
    return counters
