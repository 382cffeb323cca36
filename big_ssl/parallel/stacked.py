"""The name of layers kept as one stack: what lies below "<prefix>_stack" is [layers, ...].

Models name their stacks so (models/layer_stack.py), and whoever treats a parameter by its shape
asks here, since the first axis of a stack is no axis of the parameter.
"""

SUFFIX = "_stack"


def is_stacked(path: tuple) -> bool:
    """Whether the leaf at this key path, as jax.tree_util gives it, belongs to a stack."""
    return any(str(getattr(key, "key", "")).endswith(SUFFIX) for key in path)
