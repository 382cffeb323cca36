"""Small random CLIPs and SigLIPs in PyTorch, and inputs for them. Needs PyTorch and transformers.

Every parameter and statistic is random, for the reason that tests/parity/peers.py gives.
"""

import numpy as np
import torch
import transformers

from tests.parity import clip_reference

_LAYERS = dict(hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
TEXT = _LAYERS | dict(vocab_size=50, max_position_embeddings=9)
VISION = _LAYERS | dict(hidden_size=24, num_attention_heads=3, image_size=24, patch_size=8)
_IDS = dict(bos_token_id=48, pad_token_id=0)


def hf_clip(activation="quick_gelu", eos_token_id=49, seed=0):
    """transformers' CLIPModel."""
    common = dict(hidden_act=activation, projection_dim=12)
    config = transformers.CLIPConfig(
        text_config=TEXT | common | _IDS | dict(eos_token_id=eos_token_id),
        vision_config=VISION | common,
        projection_dim=12,
        attn_implementation="eager",
    )
    return randomise(transformers.CLIPModel(config), seed)


def hf_metaclip2(seed=0):
    """transformers' MetaClip2Model, whose end of text is token 2, as in the published ones."""
    config = transformers.MetaClip2Config(
        text_config=TEXT | _IDS | dict(eos_token_id=2),
        vision_config=VISION,
        projection_dim=12,
        attn_implementation="eager",
    )
    return randomise(transformers.MetaClip2Model(config), seed)


def hf_siglip(image_size=24, seed=0, vocab_size=50):
    """transformers' SiglipModel, whose image tower's width is its text head's."""
    config = transformers.SiglipConfig(
        text_config=TEXT | _IDS | dict(vocab_size=vocab_size, projection_size=24, eos_token_id=1),
        vision_config=VISION | dict(image_size=image_size),
        attn_implementation="eager",
    )
    return randomise(transformers.SiglipModel(config), seed)


def openai_clip(kind="vit", seed=0, **options):
    """Ours of tests/parity/clip_reference.py; its weights are float16's, as in OpenAI's files."""
    model = randomise(clip_reference.Clip(kind, **options), seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(value.half())
    return model


def randomise(module, seed):
    """Draws every parameter and running statistic, keeping activations of order one."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(torch.from_numpy(_draw(rng, name, tuple(value.shape))))
    return module.eval()


def _draw(rng, name, shape):
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if name in ("logit_scale", "logit_bias"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("weight") and len(shape) == 1:  # of a norm
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape, p=[0.2, 0.8])
    if len(shape) > 1 and "embedding.weight" not in name and "positional" not in name:
        return rng.normal(size=shape) * (1.5 / np.prod(shape[1:])) ** 0.5
    return 0.5 * rng.normal(size=shape)


def images(size=24, count=3, seed=1):
    """uint8[count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def pixels(images, view):
    """What PyTorch's towers see of images: float32[B, 3, H, W]. view: mean and std."""
    scaled = (images / 255 - np.asarray(view["mean"])) / np.asarray(view["std"])
    return torch.tensor(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def ids(seed=2):
    """int32[3, 9]: the end, 49, twice in one text, in the middle, and last; zeros after it."""
    found = np.random.default_rng(seed).integers(1, 49, (3, 9)).astype(np.int32)
    for row, end in enumerate((3, 5, 8)):
        found[row, end:] = 0
        found[row, end] = 49
    found[0, 6] = 49
    return found


CLIP_VIEW = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
HALF_VIEW = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


def run_hf(peer, images, ids):
    """What transformers makes of them: image, text: float32[B, D], normalised; logits: float32[B, B],
    images by texts; patches: float32[B, N, D] after the final norm; and the loss."""
    is_clip = isinstance(peer, transformers.CLIPModel | transformers.MetaClip2Model)
    inputs = pixels(images, CLIP_VIEW if is_clip else HALF_VIEW)
    with torch.no_grad():
        found = peer(pixel_values=inputs, input_ids=torch.tensor(ids), return_loss=True)
        patches = found.vision_model_output.last_hidden_state
        if is_clip:  # there without the norm, and with the class token
            patches = peer.vision_model.post_layernorm(patches)[:, 1:]
    return dict(
        image=found.image_embeds.numpy(),
        text=found.text_embeds.numpy(),
        logits=found.logits_per_image.numpy(),
        patches=patches.numpy(),
        loss=found.loss.numpy(),
    )


def run_patches(peer, images):
    """transformers' patches of images of any size, its positions interpolated.

    peer: a CLIPModel or SiglipModel. Returns float32[B, N, D], after the final norm.
    """
    is_clip = isinstance(peer, transformers.CLIPModel)
    with torch.no_grad():
        inputs = pixels(images, CLIP_VIEW if is_clip else HALF_VIEW)
        tokens = peer.vision_model(inputs, interpolate_pos_encoding=True).last_hidden_state
        if is_clip:  # there without the norm, and with the class token
            tokens = peer.vision_model.post_layernorm(tokens)[:, 1:]
    return tokens.numpy()


def run_openai(peer, images, ids):
    """(image, text): float32[B, D], not normalised, of tests/parity/clip_reference.py's model."""
    with torch.no_grad():
        found = peer(pixels(images, CLIP_VIEW), torch.tensor(ids))
    return tuple(x.numpy() for x in found)
