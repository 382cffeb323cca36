"""Writes tests/data/golden_*: small random models in PyTorch, their inputs and outputs; token ids.

    python -m tests.parity.make_goldens [FOLDER]

needs PyTorch (`make parity` installs it), timm and, for the ids, open_clip_torch with ftfy and regex; it is
run from the repository's root. The files of models hold their published names, so that the mapping
of names is tested with them.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import timm
import tokenizers
import torch
import transformers
from flax.traverse_util import flatten_dict

from big_ssl.data.clip_bpe import clean
from big_ssl.weights.tensor_files import read_tensors
from tests.parity import (
    align_peers,
    clip_peers,
    dino_peers,
    goldens,
    other_sizes,
    peers,
    swin_peers,
    timm_peers,
)
from tests.parity.clip_texts import TEXTS
from tests.parity.open_clip_tokenizer import simple_tokenizer


def main(folder):
    """Writes all files into folder."""
    torch.set_num_threads(1)
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    peer, _ = peers.bert()
    ids, mask = peers.bert_inputs()
    write(
        folder / "golden_bert.npz", peer, made_by, ids=ids, mask=mask, tokens=peers.run_bert(peer, ids, mask)
    )
    peer, _ = peers.efficientnet()
    images = peers.image_inputs()
    evaluation = peers.run_efficientnet(peer, images)
    weights = peers.state(peer)
    training = peers.run_efficientnet(peer.train(), images)  # moves the running statistics
    peer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    write(
        folder / "golden_efficientnet.npz",
        peer,
        made_by,
        images=images,
        evaluation=evaluation,
        training=training,
    )
    for name, peer in (("hf_clip", clip_peers.hf_clip()), ("hf_siglip", clip_peers.hf_siglip())):
        write_clip(folder / f"golden_{name}.npz", peer, made_by)
    write_align(folder / "golden_hf_align.npz", align_peers.hf_align(align_peers.THIN, half=True), made_by)
    write_resnet(folder / "golden_clip_resnet.npz", clip_peers.openai_clip("resnet"), made_by)
    write_dino(folder / "golden_hf_dinov2.npz", dino_peers.hf_dinov2(registers=3, swiglu=True), made_by)
    small = dict(hidden_size=16, num_attention_heads=2)
    gated = dict(intermediate_size=24, use_gated_mlp=True, hidden_act="silu")
    write_dino(folder / "golden_hf_dinov3.npz", dino_peers.hf_dinov3(**small, **gated), made_by)
    write_dino(folder / "golden_hf_tipsv2.npz", dino_peers.hf_tipsv2(**small), made_by)
    write_swin(folder / "golden_hf_swin.npz", swin_peers.swin(**swin_peers.SMALL, mask_token=True), made_by)
    write_swin(folder / "golden_hf_swinv2.npz", swin_peers.swinv2(**swin_peers.SMALL), made_by)
    write_coswin(folder / "golden_coswin.npz", swin_peers.coswin(), made_by)
    for name, (architecture, options) in timm_peers.GOLDEN.items():
        path = folder / f"golden_{name}.npz"
        write_timm(path, architecture, options, f"timm {timm.__version__}, torch {torch.__version__}")
    write_other_sizes(folder / "golden_other_sizes.npz", made_by)
    write_ids(folder)


def write_dino(path, peer, made_by):
    """transformers' DINOv2, DINOv3 or TIPSv2: its config.json, and all tokens that it makes of images of two
    sizes, masked and not. Its names in memory are not those of its files."""
    with tempfile.TemporaryDirectory() as saved:
        peer.save_pretrained(saved)
        weights = dict(read_tensors(pathlib.Path(saved) / "model.safetensors"))
        arrays = dict(config=(pathlib.Path(saved) / "config.json").read_text())
        for name, size in (("native", (32, 32)), ("wide", (24, 48))):
            images, masks = dino_peers.images(size), dino_peers.masks(size)
            arrays |= {f"{name}_images": images, f"{name}_masks": masks}
            arrays[f"{name}_tokens"] = dino_peers.run(peer, images)
            arrays[f"{name}_masked"] = dino_peers.run(peer, images, masks)
        write_arrays(path, weights, made_by, **arrays)


def write_swin(path, peer, made_by):
    """transformers' Swin or Swin V2: its config.json, and the maps and tokens that it makes of images whose
    maps are padded to whole windows."""
    with tempfile.TemporaryDirectory() as saved:
        peer.save_pretrained(saved)
        weights = dict(read_tensors(pathlib.Path(saved) / "model.safetensors"))
        config = (pathlib.Path(saved) / "config.json").read_text()
    images = dino_peers.images(swin_peers.PADDED)
    write_arrays(path, weights, made_by, config=config, images=images, **swin_peers.outputs(peer, images))


def write_coswin(path, peer, made_by):
    """The CoSwin of tests/parity/swin_peers.py, with our names."""
    images = dino_peers.images(swin_peers.PADDED)
    weights = flatten_dict(swin_peers.coswin_params(peer), sep="/")
    write_arrays(path, weights, made_by, images=images, **swin_peers.outputs(peer, images))


def write_timm(path, architecture, options, made_by):
    """timm's model in its own names, its config.json, and what it makes of images of two sizes."""
    with tempfile.TemporaryDirectory() as saved:
        peer = timm_peers.saved(architecture, options, saved)
        arrays = dict(config=(pathlib.Path(saved) / "config.json").read_text())
    for name, size in (("native", (32, 32)), ("wide", (24, 48))):
        images = dino_peers.images(size)
        arrays[f"{name}_images"] = images
        arrays |= {f"{name}_{key}": value for key, value in timm_peers.run(peer, images).items()}
    write(path, peer, made_by, **arrays)


def write_clip(path, peer, made_by):
    """transformers' CLIP or SigLIP: its config.json, what it makes of images and texts, and its loss."""
    images, ids = clip_peers.images(), clip_peers.ids()
    found = clip_peers.run_hf(peer, images, ids)
    config = json.dumps(peer.config.to_dict(), default=str)
    write(path, peer, made_by, config=config, images=images, ids=ids, **found)


def write_other_sizes(path, made_by):
    """The patches that transformers' CLIP and SigLIP of the golden files have at seven other image sizes."""
    arrays = {}
    for kind, model in (("hf_clip", transformers.CLIPModel), ("hf_siglip", transformers.SiglipModel)):
        with tempfile.TemporaryDirectory() as folder:
            peer = model.from_pretrained(goldens.write_checkpoint(kind, pathlib.Path(folder))).eval()
        for size in other_sizes.SIZES:
            images = other_sizes.random_images(size)
            arrays[f"{kind}_{size[0]}x{size[1]}"] = clip_peers.run_patches(peer, images)
    write_arrays(path, {}, made_by, **arrays)


def write_align(path, peer, made_by):
    """transformers' ALIGN: its config.json, and what it makes of images of odd maps and of texts."""
    images, (ids, mask) = align_peers.images(), align_peers.texts()
    found = align_peers.run(peer, images, ids, mask)
    config = json.dumps(peer.config.to_dict(), default=str)
    write(path, peer, made_by, np.float16, config=config, images=images, ids=ids, mask=mask, **found)


def write_resnet(path, peer, made_by):
    """The image tower of tests/parity/clip_reference.py in OpenAI's names, its text tower with it."""
    images, ids = clip_peers.images(64), clip_peers.ids()
    image, text = clip_peers.run_openai(peer, images, ids)
    write(path, peer, made_by, np.float16, images=images, ids=ids, image=image, text=text)


def write_ids(folder):
    """A short file of merges, learnt from the texts, and what open_clip makes of them with it."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.ByteLevel(False, False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, show_progress=False, end_of_word_suffix="</w>")
    words.train_from_iterator([clean(text) for text in TEXTS], trainer)
    merges = json.loads(words.to_str())["model"]["merges"]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "tiny_merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = simple_tokenizer(folder / "tiny_merges.txt")(TEXTS, 20).tolist()
    (folder / "golden_clip_bpe.json").write_text(json.dumps(ids) + "\n")


def write(path, peer, made_by, dtype=None, **arrays):
    """One compressed file: weights under "weights/", made_by, and the arrays under their names.

    dtype: of the weights' floats in the file; it must lose nothing.
    """
    weights = peers.state(peer)
    if dtype is not None:
        floats = {name: value.astype(dtype) for name, value in weights.items() if value.dtype.kind == "f"}
        assert all((floats[name] == weights[name]).all() for name in floats)
        weights |= floats
    write_arrays(path, weights, made_by, **arrays)


def write_arrays(path, weights, made_by, **arrays):
    """The same of weights that are arrays."""
    weights = {f"weights/{name}": value for name, value in weights.items()}
    np.savez_compressed(path, made_by=made_by, **weights, **arrays)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))
