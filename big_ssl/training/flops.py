"""Model FLOPs of a training step."""

import dataclasses

import jax

from big_ssl.models.flops import forward_flops
from big_ssl.training.state import evaluation_variables


def model_flops_per_step(system, abstract_state, batch) -> int:
    """FLOPs of one training step's loss and gradient, by convention three times the forward pass.

    The backward pass has two products for each of the forward pass, one for the inputs' gradient
    and one for the weights'; a teacher has no backward pass. What rematerialisation repeats is not in it;
    frozen parts count as if they had a gradient. batch: global, shapes and dtypes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, placeless = abstract_state, dataclasses.replace(system, specs=None)
    teacher = evaluation_variables(state)
    whole = forward_flops(placeless.loss, state.params, state.mutable, batch, key, state.step, teacher)
    return 3 * whole - 2 * forward_flops(placeless.teacher_features, teacher, batch, key)
