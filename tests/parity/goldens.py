"""The golden files of whole models, and the checkpoints that they hold; needs no PyTorch."""

import functools
import pathlib

import numpy as np

from big_ssl.weights import formats
from big_ssl.weights.formats import read_checkpoint
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


def write_talking(folder):
    """Writes to folder, as ours, the golden CLIP with a text tower as large as the tiny merges beside it:
    one that takes texts, too."""
    kind, merges = "hf_clip", DATA / "tiny_merges.txt"
    config, ours = read_checkpoint(kind, write_checkpoint(kind, folder / "from"))
    size = 512 + len(merges.read_text(encoding="utf-8").split("\n")) - 2 + 2
    config["tokenizer"]["size"] = config["encoders"]["text"]["vocab_size"] = size
    config["encoders"]["text"]["eot_id"] = None
    name = "params/encoders/text/token/embedding"
    ours[name] = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
    formats.write_checkpoint("big_ssl", folder, config, ours)
    (folder / "merges.txt").write_bytes(merges.read_bytes())
    return folder
