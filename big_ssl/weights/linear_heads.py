"""Linear classifiers on frozen features, in DINOv2's format: a file with weight [C, F] and bias [C] only.

Layout: facebookresearch/dinov2, dinov2/hub/classifiers.py. F is (n + 1) x the encoder's width: the class
tokens of the last n layers, in the order of the layers, then the last layer's mean patch, all after the final
norm.
"""

import numpy as np

from big_ssl.weights import rules
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import shape_of
from big_ssl.weights.tensor_files import read_tensors, write_safetensors

# The published n: of _linear_head.pth and _linear4_head.pth.
BLOCKS = (1, 4)

_RULES = [rules.Rule(name, (name,), rules.SAME) for name in ("weight", "bias")]


def read_head(path) -> tuple[np.ndarray, np.ndarray]:
    """Reads (weight: float32[C, F], bias: float32[C]) from any file that tensor_files reads.

    Raises FileNotFoundError, or WeightsError that names the file and what is wrong with it.
    """
    tensors = read_tensors(path)
    try:
        shape = shape_of(tensors, "weight", 2)
        head = rules.read(_RULES, (), tensors, dict(weight=shape, bias=shape[:1]))
    except WeightsError as error:
        raise WeightsError(f"{path}, as a linear head: {error}") from error
    return head["weight"], head["bias"]


def write_head(path, weight: np.ndarray, bias: np.ndarray) -> None:
    """Writes weight: float32[C, F] and bias: float32[C] as .safetensors."""
    write_safetensors(path, dict(weight=weight, bias=bias), dict(format="pt"))
