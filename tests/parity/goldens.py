"""The golden files of CLIP, SigLIP and DINOv2, and the checkpoints that they hold; needs no PyTorch."""

import functools
import pathlib

import numpy as np

from big_ssl.weights.tensor_files import write_safetensors

DATA = pathlib.Path(__file__).parents[1] / "data"


@functools.cache
def golden(kind):
    """(weights, the other arrays) of the file that make_goldens.py wrote of that kind."""
    arrays = dict(np.load(DATA / f"golden_{kind}.npz"))
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return weights, arrays


def write_checkpoint(kind, folder, **changes):
    """Writes the weights, and config.json where there is one. Returns what to read: folder or file.

    changes: of the weights, {name: array}, None to leave one out; "__" stands for a dot.
    """
    weights, arrays = golden(kind)
    weights = weights | {name.replace("__", "."): value for name, value in changes.items()}
    weights = {name: value for name, value in weights.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", weights, {})
    if "config" not in arrays:
        return folder / "model.safetensors"
    (folder / "config.json").write_text(str(arrays["config"]))
    return folder
