"""Small random ViTs of DINO's family in PyTorch, and inputs for them. Needs PyTorch and transformers.

Every parameter is random, for the reason that tests/parity/peers.py gives; those of this family
start, and are often published, with tokens of zero and layer scales of one.
"""

import numpy as np
import torch
import transformers

from tests.parity import dino_reference

_SHAPE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)


def hf_dinov2(registers=0, swiglu=False, seed=0, **options):
    """transformers' Dinov2Model, or with registers Dinov2WithRegistersModel."""
    config = _SHAPE | dict(use_swiglu_ffn=swiglu, mlp_ratio=2, attn_implementation="eager") | options
    if not registers:
        return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**config)), seed)
    config = transformers.Dinov2WithRegistersConfig(**config, num_register_tokens=registers)
    return randomise(transformers.Dinov2WithRegistersModel(config), seed)


def hf_dinov3(seed=0, head_dim=16, **options):
    """transformers' DINOv3ViTModel, by default with the options of its smaller public models."""
    config = dict(_SHAPE, hidden_size=64, num_attention_heads=64 // head_dim, intermediate_size=40)
    config |= dict(num_register_tokens=4, attn_implementation="eager") | options
    return randomise(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**config)), seed)


def hf_tipsv2(seed=0, text=False, **options):
    """transformers' Tipsv2VisionModel; with text, in the Tipsv2Model around it."""
    config = _SHAPE | dict(mlp_ratio=2.5, attn_implementation="eager") | options
    config = transformers.Tipsv2VisionConfig(**config)
    if not text:
        return randomise(transformers.Tipsv2VisionModel(config), seed)
    text_config = dict(vocab_size=20, hidden_size=24, intermediate_size=30, num_hidden_layers=1)
    text_config |= dict(num_attention_heads=3)
    config = transformers.Tipsv2Config(vision_config=config.to_dict(), text_config=text_config)
    return randomise(transformers.Tipsv2Model(config), seed)


# DINOv3's own names of the arrays that transformers renames and leaves as they are.
_OFFICIAL_DINOV3 = [
    ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.patch_embeddings", "patch_embed.proj"),
    ("embeddings.", ""),
    ("model.layer.", "blocks."),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
]


def official_dinov3(peer):
    """The state dict of DINOv3's own code for a DINOv3ViTModel: one fused projection, whose bias for the keys
    is masked, and whose masked part here is not zero; the periods of positions."""
    gated = peer.config.use_gated_mlp
    mlp = dict(gate="w1", up="w2", down="w3") if gated else dict(up="fc1", down="fc2")
    renames = [*_OFFICIAL_DINOV3, *((f"mlp.{name}_proj", f"mlp.{to}") for name, to in mlp.items())]
    state, fused = {}, {}
    for name, value in peer.state_dict().items():
        for theirs, official in renames:
            name = name.replace(theirs, official)
        layer, found, part = name.partition(".attention.")
        if found:
            projection, _, kind = part.partition(".")
            fused.setdefault(f"{layer}.attn.qkv.{kind}", {})[projection[0]] = value
        elif value.numel():
            state[name] = value
    for name, parts in fused.items():
        state[name] = torch.cat([parts.get(letter, torch.full_like(parts["v"], 3.0)) for letter in "qkv"])
        if "k" not in parts:
            kept = torch.tensor([1.0, 0.0, 1.0])
            state[f"{name}_mask"] = kept.repeat_interleave(len(parts["v"]))
    state["mask_token"] = state["mask_token"][0]
    return state | {"rope_embed.periods": 1 / peer.rope_embeddings.inv_freq}


def hf_vit(seed=0, mask_token=True, pooler=False):
    """transformers' ViTModel."""
    config = transformers.ViTConfig(**_SHAPE, intermediate_size=40, attn_implementation="eager")
    return randomise(transformers.ViTModel(config, add_pooling_layer=pooler, use_mask_token=mask_token), seed)


def reference(seed=0, **options):
    """Ours of tests/parity/dino_reference.py."""
    return randomise(dino_reference.Vit(**options), seed)


def randomise(module, seed):
    """Draws every parameter, keeping activations of order one."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.from_numpy(np.asarray(_draw(rng, name, tuple(value.shape)))))
    return module.eval()


def _draw(rng, name, shape):
    if "norm" in name and name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape, p=[0.2, 0.8])
    if name.endswith("weight"):
        return rng.normal(size=shape) * (1.5 / np.prod(shape[1:])) ** 0.5
    return 0.5 * rng.normal(size=shape)


def images(size=(32, 32), count=2, seed=1):
    """float32[count, H, W, 3], normalised."""
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


def masks(size=(32, 32), count=2, seed=2):
    """bool[count, N], about half of the patches of 8 pixels."""
    return np.random.default_rng(seed).random((count, size[0] // 8 * (size[1] // 8))) < 0.5


def pixels(images):
    """As PyTorch wants them, [B, 3, H, W]."""
    return torch.tensor(images.transpose(0, 3, 1, 2))


def run(peer, images, masks=None):
    """float32[B, 1 + registers + N, D], all tokens after the final norm."""
    masks = None if masks is None else torch.tensor(masks)
    options = dict(interpolate_pos_encoding=True) if isinstance(peer, transformers.ViTModel) else {}
    with torch.no_grad():
        return peer(pixels(images), bool_masked_pos=masks, **options).last_hidden_state.numpy()


def run_reference(peer, images, masks=None):
    """float32[depth, B, 1 + registers + N, D], the same of all blocks."""
    with torch.no_grad():
        return peer(pixels(images), None if masks is None else torch.tensor(masks)).numpy()
