"""Small random models of transformers, and ours of the same shape. Needs PyTorch.

Every parameter and statistic is random: what starts as zeros or ones hides a swapped scale, a
missing bias or a wrong axis.
"""

import numpy as np
import torch
import transformers

from big_ssl.models.bert import Bert
from big_ssl.models.efficientnet import EfficientNet, Stage

BERT = dict(
    vocab_size=40,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=10,
)
# Widths double as published ones do: a stage of stride 1 whose width equals its input's has a
# residual in the paper's code and ours, and none in transformers.
STAGES = (Stage(3, 16, 1, 1, 1), Stage(5, 48, 2, 2, 3), Stage(3, 80, 1, 2, 2), Stage(5, 112, 2, 1, 2))
EFFICIENTNET = dict(width=0.5, depth=1.0, stages=STAGES)


def randomise(module, seed=0):
    """Draws every parameter and running statistic, keeping activations of order one."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            value.copy_(torch.from_numpy(np.asarray(_draw(rng, name, tuple(value.shape)))))
    return module


def _draw(rng, name, shape):
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) > 1 and "embeddings.weight" not in name:
        return rng.normal(size=shape) * (1.5 / np.prod(shape[1:])) ** 0.5
    if name.endswith(("LayerNorm.weight", "norm.weight", "bn.weight")):
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape, p=[0.2, 0.8])
    return 0.5 * rng.normal(size=shape)


def state(module):
    """Its parameters and statistics, {name: float32 array}."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def bert(seed=0, **changes):
    """(transformers' BertModel without pooler, our Bert)."""
    config = BERT | changes
    settings = transformers.BertConfig(**config, attn_implementation="eager")
    peer = transformers.BertModel(settings, add_pooling_layer=False)
    ours = Bert(
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["max_position_embeddings"],
    )
    return randomise(peer, seed).eval(), ours


def bert_inputs(length=10, seed=1):
    """Token ids and mask, captions of three lengths."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < np.array([length, length // 2, 1])[:, None]
    return rng.integers(0, BERT["vocab_size"], (3, length)), mask


def run_bert(peer, ids, mask):
    """float32[B, L, D], the last layer's states."""
    with torch.no_grad():
        output = peer(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())
    return output.last_hidden_state.numpy()


def efficientnet(kind="align", seed=0, width=0.5, depth=1.0, stages=STAGES):
    """(transformers' AlignVisionModel or EfficientNetModel, our EfficientNet), no drop-connect."""
    config = dict(
        width_coefficient=width,
        depth_coefficient=depth,
        kernel_sizes=[s.kernel for s in stages],
        in_channels=[32, *(s.channels for s in stages[:-1])],
        out_channels=[s.channels for s in stages],
        strides=[s.stride for s in stages],
        num_block_repeats=[s.repeats for s in stages],
        expand_ratios=[s.expand for s in stages],
        depthwise_padding=[],
        drop_connect_rate=0.0,
    )
    if kind == "align":
        peer = transformers.AlignVisionModel(transformers.AlignVisionConfig(**config))
    else:
        hidden = max(8, int(1280 * width + 4) // 8 * 8)
        peer = transformers.EfficientNetModel(transformers.EfficientNetConfig(**config, hidden_dim=hidden))
    return randomise(peer, seed).eval(), EfficientNet(width, depth, stages, drop_connect=0.0)


def image_inputs(size=(32, 48), batch=2, seed=1):
    """float32[B, H, W, 3], even at every stage, where the two paddings agree."""
    return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype(np.float32)


def run_efficientnet(peer, images):
    """float32[B, H', W', C], the last block's output, in the mode that the model is in."""
    with torch.no_grad():
        output = peer(torch.tensor(images.transpose(0, 3, 1, 2)), output_hidden_states=True)
    return output.hidden_states[-1].numpy().transpose(0, 2, 3, 1)
