"""The golden files of whole models, and the checkpoints that they hold; needs no PyTorch."""

import functools
import pathlib

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from big_ssl.weights import architecture, formats
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.tensor_files import write_safetensors

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
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


def assert_tokens(kind, size, config, ours):
    """Compares the features of a ViT with all tokens in the file, "native" or "wide", masked and not."""
    module = architecture.modules(config).image
    variables = architecture.encoder_variables(unflatten_dict(ours, sep="/"), "image")
    run = jax.jit(lambda x, mask: module.apply(variables, x, mask=mask), **UNOPTIMISED)
    arrays = golden(kind)[1]
    masks = arrays[f"{size}_masks"]
    for name, mask in (("masked", masks), ("tokens", np.zeros_like(masks))):
        found, expected = run(arrays[f"{size}_images"], mask), arrays[f"{size}_{name}"]
        np.testing.assert_allclose(found["pooled"], expected[:, 0], **CLOSE)
        if module.registers:
            np.testing.assert_allclose(found["registers"], expected[:, 1 : 1 + module.registers], **CLOSE)
        np.testing.assert_allclose(found["patches"], expected[:, 1 + module.registers :], **CLOSE)
    assert np.abs(arrays[f"{size}_masked"] - arrays[f"{size}_tokens"]).max() > 0.1


def assert_outputs(config, ours, images, expected):
    """Compares patches and pooled of an image encoder alone, and `output`, its head's or pooled; returns its
    outputs."""
    modules, variables = architecture.modules(config), unflatten_dict(ours, sep="/")
    run = jax.jit(modules.image.apply, **UNOPTIMISED)
    found = run(architecture.encoder_variables(variables, "image"), images)
    head = modules.embedding or modules.classifier
    output = found["pooled"]
    if head is not None:
        (params,) = variables["params"]["heads"].values()
        (output,) = head.apply(dict(params=params), dict(image=found)).values()
    for name, value in (dict(found) | dict(output=output)).items():
        if name in expected:
            np.testing.assert_allclose(value, expected[name], err_msg=name, **CLOSE)
    return found


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
