"""timm's vit_*_patch16_dinov3 and vit_*_patch16_dinov3_qkvb: model.safetensors beside config.json.

Layout: timm/models/eva.py. timm does not store the periods of rotary positions, and does not round them.
"""

from big_ssl.models import vit
from big_ssl.weights import dino_layers, timm_config
from big_ssl.weights.format import Format, ModelConfig, count, image_config, shape_of
from big_ssl.weights.rules import SAME, Rule

ARCHITECTURE = r"vit_(?P<size>[a-z0-9]+)(_plus)?_patch16_dinov3(_qkvb)?"
SIZES = timm_config.SIZES | {"huge": (32, 20), "7b": (40, 32)}
_SWIGLU = ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
_REGISTERS = "reg_token"
_QKV = [
    dino_layers.QKV_WEIGHT,
    Rule("attn.q_bias", ("query/bias",), SAME),
    Rule("attn.v_bias", ("value/bias",), SAME),
]


def _config(tensors, files, options) -> ModelConfig:
    stated = timm_config.arguments(files, ARCHITECTURE, SIZES, ("rope_temperature",))
    width, _, _, patch = shape_of(tensors, "patch_embed.proj.weight", 4)
    gated = f"blocks.0.{_SWIGLU[0]}.weight" in tensors
    shape = dict(
        patch=patch,
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=timm_config.heads(stated, options, width),
        mlp_dim=dino_layers.out_features(tensors, f"blocks.0.{_SWIGLU[0] if gated else 'mlp.fc1'}"),
        registers=shape_of(tensors, _REGISTERS, 3)[1] if _REGISTERS in tensors else 0,
    )
    timm_config.check_shape(stated, shape)
    image = vit.DINOV3 | dict(
        **shape,
        feed_forward="swiglu" if gated else "mlp",
        qkv_bias="qv" if "blocks.0.attn.q_bias" in tensors else "",
        pooling=timm_config.pooling(files, dict(avg="mean", token="cls"), "cls"),
        rope_base=stated.get("rope_temperature", vit.DINOV3["rope_base"]),
        mask_token=False,  # timm drops it
    )
    return image_config(image, **timm_config.preprocessing(files, 256))


FORMAT = Format(
    config=_config,
    rules=lambda config: dino_layers.rules(
        config, registers=_REGISTERS, swiglu=_SWIGLU, qkv=_QKV, layer_scales=("gamma_1", "gamma_2")
    ),
    weights=timm_config.WEIGHTS,
    files=timm_config.FILES,
    options=dino_layers.OPTIONS,
)
