"""Naming of layer stacks: arrays below "<prefix>_stack" are [layers, ...].

models/layer_stack.py names stacks so. Code that treats a parameter by its shape checks here first, because a
stack's first axis is not an axis of the parameter.
"""

SUFFIX = "_stack"


def is_stacked(path: tuple) -> bool:
    """Whether the leaf at this jax.tree_util key path belongs to a stack."""
    return any(str(getattr(key, "key", "")).endswith(SUFFIX) for key in path)
