"""Images of other sizes than a checkpoint's position table, against the code that each format comes from.

The formats, and the names of that code, are the table of big_ssl/models/position_embedding.py.
"""

import ast
import importlib.util
import logging
import math
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax.traverse_util import unflatten_dict

from big_ssl.inference import Model
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.weights.formats import read_checkpoint
from tests.parity.other_sizes import CLOSE, SIZES, random_images

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import clip_peers, dino_peers, peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402
from tests.parity.test_clip import big_vision_arrays  # noqa: E402

pytestmark = pytest.mark.parity

# Not (8, 2): open_clip keeps a table of as many rows as it needs, whatever their shape.
GRIDS = [(5, 5), (2, 2), (3, 7), (8, 3), (1, 4), (4, 6), (9, 9)]
HF = dict(
    hf_clip=clip_peers.hf_clip,
    hf_siglip=clip_peers.hf_siglip,
    hf_vit=dino_peers.hf_vit,
    hf_dinov2=dino_peers.hf_dinov2,
    hf_dinov3=dino_peers.hf_dinov3,
    hf_tipsv2=dino_peers.hf_tipsv2,
)


def model(kind, path):
    config, ours = read_checkpoint(kind, path)
    return Model(config, unflatten_dict(ours, sep="/"))


@pytest.mark.parametrize("kind", HF)
def test_transformers_models_at_seven_sizes(kind, tmp_path):
    peer = HF[kind](seed=11)
    peer.save_pretrained(tmp_path)
    ours = model(kind, tmp_path)
    for size in SIZES:
        images = random_images(size)
        if kind in ("hf_clip", "hf_siglip"):
            expected = clip_peers.run_patches(peer, images)
        else:
            expected = run_dino(peer, clip_peers.pixels(images, ours.config["views"]["image"]))
        found = ours.patch_features(images, resize=False)
        np.testing.assert_allclose(found, expected, **CLOSE, err_msg=f"{kind} {size}")
        parity_figure(kind, "other sizes", found, expected)


def run_dino(peer, pixels):
    """float32[B, N, D] after the final norm; all but ViT always take images of other sizes."""
    first = 1 + getattr(peer.config, "num_register_tokens", 0)
    options = dict(interpolate_pos_encoding=True) if isinstance(peer, transformers.ViTModel) else {}
    with torch.no_grad():
        return peer(pixels, **options).last_hidden_state[:, first:].numpy()


@pytest.fixture(scope="module")
def open_clips_resize():
    """open_clip's resize_pos_embed from its source: the package itself needs torchvision and timm."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("make parity installs open_clip")
    tree = ast.parse(pathlib.Path(spec.submodule_search_locations[0], "model.py").read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if getattr(node, "name", "") == "resize_pos_embed")
    names = dict(F=torch.nn.functional, torch=torch, math=math, logging=logging)
    names["to_2tuple"] = lambda x: x if isinstance(x, tuple) else (x, x)
    exec(ast.unparse(function), names)
    return names["resize_pos_embed"]


@pytest.mark.parametrize("grid", GRIDS)
def test_open_clip_resizes_tables_of_this_kind(grid, open_clips_resize):
    """It does so while it loads a checkpoint into a model of another size."""
    table = np.random.default_rng(0).normal(size=(1 + 4 * 4, 6)).astype(np.float32)
    state = {"visual.positional_embedding": torch.tensor(table)}
    open_clips_resize(state, types.SimpleNamespace(visual=types.SimpleNamespace(grid_size=grid)))
    found = resize_position_embedding(jnp.asarray(table), (4, 4), grid, "bicubic_antialias")
    expected = state["visual.positional_embedding"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    parity_figure("open_clip", "other sizes", found, expected, "open_clip_torch")


def test_big_vision_siglip_at_other_sizes(tmp_path):
    """Its resample_posemb zooms the table linearly while it loads; then the model is transformers' SigLIP."""
    peer = clip_peers.hf_siglip(seed=8)
    state = peers.state(peer)
    np.savez(tmp_path / "siglip.npz", **big_vision_arrays(state, dict(img=3, txt=2)))
    ours = model("siglip_npz", tmp_path / "siglip.npz")
    name = "vision_model.embeddings.position_embedding.weight"
    for side in (2, 5, 7):
        large = clip_peers.hf_siglip(image_size=8 * side)
        grid = scipy.ndimage.zoom(state[name].reshape(3, 3, -1), (side / 3, side / 3, 1), order=1)
        resized = state | {name: grid.reshape(side * side, -1)}
        resized = {key: torch.tensor(value) for key, value in resized.items() if "position_ids" not in key}
        large.load_state_dict(resized)
        images = random_images((8 * side, 8 * side))
        found = ours.patch_features(images, resize=False)
        expected = clip_peers.run_patches(large, images)
        np.testing.assert_allclose(found, expected, **CLOSE)
        parity_figure("siglip_npz", "other sizes", found, expected)
