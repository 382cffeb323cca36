"""A ViT with rotary positions against transformers' DINOv3, every parameter randomised."""

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.models import vit

pytestmark = pytest.mark.parity

SIZES = dict(width=16, depth=2, heads=2)
_LAYER = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "attention.o_proj": "out",
    "mlp.up_proj": "mlp_in",
    "mlp.down_proj": "mlp_out",
}


@pytest.fixture(scope="module")
def peer():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=4,
        image_size=16, num_register_tokens=2, key_bias=True, layer_norm_eps=1e-6, hidden_act="gelu",
    )  # fmt: skip
    model = transformers.DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def ours(model):
    """Its parameters by our names."""
    state = {name.removeprefix("model."): x.numpy() for name, x in model.state_dict().items()}
    found = {
        "class_token": state["embeddings.cls_token"].reshape(-1),
        "registers": state["embeddings.register_tokens"][0],
        "mask_token": state["embeddings.mask_token"].reshape(-1),
        "patch_embedding/kernel": state["embeddings.patch_embeddings.weight"].transpose(2, 3, 1, 0),
        "patch_embedding/bias": state["embeddings.patch_embeddings.bias"],
        "final_norm/scale": state["norm.weight"],
        "final_norm/bias": state["norm.bias"],
    }
    for i in range(2):
        for theirs, name in _LAYER.items():
            weight = state[f"layer.{i}.{theirs}.weight"]
            kind = "scale" if weight.ndim == 1 else "kernel"
            found[f"layer{i}/{name}/{kind}"] = weight.T
            found[f"layer{i}/{name}/bias"] = state[f"layer.{i}.{theirs}.bias"]
        for j, name in ((1, "attention_scale"), (2, "mlp_scale")):
            found[f"layer{i}/{name}"] = state[f"layer.{i}.layer_scale{j}.lambda1"]
    return unflatten_dict(found, sep="/")


@pytest.mark.parametrize("shape", [(16, 16), (8, 24)])
@pytest.mark.parametrize("masked", [False, True])
def test_features_are_those_of_dinov3(peer, shape, masked):
    import torch

    rng = np.random.default_rng(1)
    pictures = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    mask = rng.random((2, shape[0] * shape[1] // 16)) < 0.5 if masked else None
    with torch.no_grad():
        said = peer(
            torch.from_numpy(pictures.transpose(0, 3, 1, 2)),
            bool_masked_pos=None if mask is None else torch.from_numpy(mask),
        ).last_hidden_state.numpy()
    model = vit.ViT(**(vit.DINOV2 | SIZES), patch=4, registers=2, rope_base=100.0)
    found = jax.jit(model.apply)({"params": ours(peer)}, pictures, mask=mask)
    np.testing.assert_allclose(found["pooled"], said[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["patches"], said[:, 3:], rtol=1e-4, atol=1e-4)
