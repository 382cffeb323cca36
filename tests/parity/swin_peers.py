"""Small random Swins of transformers, a CoSwin put together of their parts, and ours. Needs PyTorch and
transformers.

Every parameter is random, for the reason that tests/parity/peers.py gives.
"""

import itertools
import re

import numpy as np
import torch
import transformers
from flax.traverse_util import unflatten_dict
from transformers.models.cvt.modeling_cvt import CvtConvEmbeddings

from big_ssl.weights import formats
from big_ssl.weights.format import IMAGE
from tests.parity import dino_peers

SHAPE = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=32, patch_size=4)
# Of the golden files; PADDED images have maps of 6 x 9 and 3 x 5 positions, for windows of 2.
SMALL = dict(embed_dim=8, num_heads=(1, 2), window_size=2, mlp_ratio=2.0)
PADDED = (21, 36)


def swin(seed=0, mask_token=False, **options):
    """transformers' SwinModel."""
    config = transformers.SwinConfig(**SHAPE | dict(attn_implementation="eager") | options)
    return dino_peers.randomise(transformers.SwinModel(config, use_mask_token=mask_token), seed)


def swinv2(seed=0, **options):
    """transformers' Swinv2Model; scales of cosines around the published start, some above their maximum."""
    config = transformers.Swinv2Config(**SHAPE | dict(attn_implementation="eager") | options)
    peer = dino_peers.randomise(transformers.Swinv2Model(config), seed)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in peer.named_parameters():
            if name.endswith("logit_scale"):
                value.copy_(torch.from_numpy(rng.uniform(1.0, 5.5, value.shape)))
    return peer


class CoSwin(torch.nn.Module):
    """Swin's stages and norm with CvT's embeddings in place of its own; no clamping of windows if always."""

    def __init__(self, always=False, **options):
        super().__init__()
        config = transformers.SwinConfig(**SHAPE | dict(attn_implementation="eager") | options)
        swin = transformers.SwinModel(config)
        self.stages, self.norm, self.always = swin.encoder.layers, swin.layernorm, always
        widths = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.embeddings = torch.nn.ModuleList(
            [CvtConvEmbeddings(7, 3, widths[0], 4, 2)]
            + [CvtConvEmbeddings(3, a, b, 2, 1) for a, b in itertools.pairwise(widths)]
        )
        for stage in self.stages:
            stage.downsample = None

    def forward(self, x):
        """[B, 3, H, W] -> the maps after each stage, [B, C, H, W]; the tokens after the norm, [B, N, C]."""
        maps = []
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            x = embedding(x)
            size = x.shape[2:]
            tokens = stage(x.flatten(2).transpose(1, 2), tuple(size), always_partition=self.always)[0]
            x = tokens.transpose(1, 2).reshape(*x.shape)
            maps.append(x)
        return maps, self.norm(tokens)


def coswin(seed=0, always=False, **options):
    """A random CoSwin, by default of the golden file's size."""
    return dino_peers.randomise(CoSwin(always, **options or SMALL), seed)


def outputs(peer, images):
    """{name: array} of what `run` returns, for a golden file."""
    maps, tokens = run(peer, images)
    return dict(tokens=tokens) | {f"map{i}": x for i, x in enumerate(maps)}


def run(peer, images, mask=None, **options):
    """(the maps after each stage, float32[B, H_i, W_i, C_i]; tokens after the norm: float32[B, N, C])."""
    pixels = dino_peers.pixels(images)
    with torch.no_grad():
        if isinstance(peer, CoSwin):
            maps, tokens = peer(pixels)
        else:
            maps = []
            hooks = [stage.blocks[-1].register_forward_hook(_keeping(maps)) for stage in peer.encoder.layers]
            mask = None if mask is None else torch.tensor(mask)
            tokens = peer(pixels, bool_masked_pos=mask, **options).last_hidden_state
            for hook in hooks:
                hook.remove()
    return [_channels_last(x) for x in maps], tokens.numpy()


def _keeping(maps):
    def keep(module, arguments, output):
        del module
        x, (height, width) = output[0], arguments[1]
        maps.append(x.transpose(1, 2).reshape(len(x), -1, height, width))

    return keep


def _channels_last(x):
    return x.permute(0, 2, 3, 1).numpy()


def coswin_params(peer):
    """Our parameters of a CoSwin: its stages and norm by hf_swin's rules, its embeddings by hand."""
    image = dict(depths=[len(stage.blocks) for stage in peer.stages], version=1)
    format_ = formats.FORMATS["hf_swin"]
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    named = {
        name.replace("stages.", "encoder.layers.").replace("norm.", "layernorm.", name.startswith("norm.")): x
        for name, x in state.items()
    }
    named = format_.prepare(named, {})
    params = {}
    for rule in format_.rules(dict(encoders=dict(image=image))):
        if rule.theirs in named:
            values = rule.transform.read(named[rule.theirs])
            params |= dict(zip(rule.ours, values, strict=True))
    params = unflatten_dict({p.removeprefix(IMAGE): x for p, x in params.items()}, sep="/")
    for i in range(len(peer.embeddings)):
        theirs = f"embeddings.{i}."
        params["patch_embedding" if i == 0 else f"merging{i - 1}"] = dict(
            kernel=state[f"{theirs}projection.weight"].transpose(2, 3, 1, 0),
            bias=state[f"{theirs}projection.bias"],
            patch_norm=dict(
                scale=state[f"{theirs}normalization.weight"], bias=state[f"{theirs}normalization.bias"]
            ),
        )
    return params


# transformers' names in memory, and the official ones.
_OFFICIAL = (
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^embeddings\.mask_token", "mask_token"),
    (r"^encoder\.", ""),
    (r"^layernorm\.", "norm."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.self\.continuous_position_bias_mlp", "attn.cpb_mlp"),
    (r"attention\.self\.", "attn."),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<=\d)\.output\.dense", ".mlp.fc2"),
    (r"attention\.", "attn."),
)


def official(peer):
    """{name: array} as Microsoft's code saves a Swin or Swin V2 of transformers, without its buffers."""
    state = {}
    for name, value in peer.state_dict().items():
        for pattern, replacement in _OFFICIAL:
            name = re.sub(pattern, replacement, name)
        state[name] = value.numpy()
    for name in [name for name in state if name.endswith((".attn.q_proj.weight", ".attn.query.weight"))]:
        block, kind = name.rsplit(".", 2)[0], ("query", "key", "value")
        if name.endswith("q_proj.weight"):
            kind = ("q_proj", "k_proj", "v_proj")
            state[f"{block}.qkv.bias"] = np.concatenate([state.pop(f"{block}.{k}.bias") for k in kind])
        else:
            state[f"{block}.q_bias"] = state.pop(f"{block}.query.bias")
            state[f"{block}.v_bias"] = state.pop(f"{block}.value.bias")
        state[f"{block}.qkv.weight"] = np.concatenate([state.pop(f"{block}.{k}.weight") for k in kind])
    return state


def clip_text(seed=0):
    """transformers' CLIPTextModel with UniCL's epsilon, small."""
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=12,
        layer_norm_eps=1e-12,
        hidden_act="quick_gelu",
        bos_token_id=48,
        eos_token_id=49,
        attn_implementation="eager",
    )
    return dino_peers.randomise(transformers.CLIPTextModel(config), seed)


# transformers' names of a text encoder, and UniCL's.
_TEXT = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^encoder\.layers\.", "resblocks."),
    (r"^final_layer_norm", "ln_final"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def unicl_text(peer):
    """{name: array} of a CLIPTextModel with UniCL's names."""
    state = {}
    for name, value in peer.state_dict().items():
        for pattern, replacement in _TEXT:
            name = re.sub(pattern, replacement, name)
        state[name] = value.numpy()
    for name in [name for name in state if name.endswith("self_attn.q_proj.weight")]:
        block = name.removesuffix("self_attn.q_proj.weight")
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}self_attn.{x}_proj.{kind}") for x in "qkv"]
            state[f"{block}attn.in_proj_{kind}"] = np.concatenate(parts)
    return state
