"""transformers' AlignModel: config.json, model.safetensors or pytorch_model.bin; read and written.

Names and shapes: transformers, models/align; the published weights are kakaobrain/align-base.
Batch norm's counts and BERT's pooler, which embeddings do not use, are ignored and not written.
"""

from collections.abc import Iterator

from big_ssl.models import efficientnet
from big_ssl.weights import hf_bert, hf_layers, hf_preprocessing
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    HALF_PIXELS,
    HEAD,
    IMAGE,
    IMAGE_STATISTICS,
    TEXT,
    Format,
    ModelConfig,
    check_options,
    one_side,
    shape_of,
)
from big_ssl.weights.rules import CONVOLUTION, DEPTHWISE, POINTWISE, SAME, Rule, linear, norm, within

_HEAD = [
    *linear("text_projection", f"{HEAD}text_projection"),
    Rule("temperature", (f"{HEAD}temperature",), SAME),
]
_BLOCK = [
    Rule("expansion.expand_conv.weight", ("expand",), POINTWISE),
    Rule("depthwise_conv.depthwise_conv.weight", ("depthwise",), DEPTHWISE),
    Rule("squeeze_excite.reduce.weight", ("squeeze_excite/reduce/kernel",), POINTWISE),
    Rule("squeeze_excite.reduce.bias", ("squeeze_excite/reduce/bias",), SAME),
    Rule("squeeze_excite.expand.weight", ("squeeze_excite/expand/kernel",), POINTWISE),
    Rule("squeeze_excite.expand.bias", ("squeeze_excite/expand/bias",), SAME),
    Rule("projection.project_conv.weight", ("project",), POINTWISE),
]
_BLOCK_NORMS = {
    "expansion.expand_bn": "expand_bn",
    "depthwise_conv.depthwise_norm": "depthwise_bn",
    "projection.project_bn": "project_bn",
}

# Options of AlignVisionConfig that our module fixes.
_STAGES = efficientnet.B0_STAGES
_FIXED = dict(
    depth_divisor=8,
    kernel_sizes=[stage.kernel for stage in _STAGES],
    in_channels=[32, *(stage.channels for stage in _STAGES[:-1])],
    out_channels=[stage.channels for stage in _STAGES],
    depthwise_padding=[],  # no blocks pad as for an odd map
    num_block_repeats=[stage.repeats for stage in _STAGES],
    expand_ratios=[stage.expand for stage in _STAGES],
    squeeze_expansion_ratio=0.25,
    hidden_act="swish",
    pooling_type="mean",
    batch_norm_eps=1e-3,
)


def _rules(config: ModelConfig) -> list[Rule]:
    stem = Rule("vision_model.embeddings.convolution.weight", (f"{IMAGE}stem",), CONVOLUTION)
    rules = [
        *within("text_model.", TEXT, hf_bert.RULES),
        *_HEAD,
        stem,
        *_batch_norm("embeddings.batchnorm", "stem_bn"),
    ]
    for i, ours in enumerate(_blocks(config["encoders"]["image"]["depth"])):
        theirs = f"encoder.blocks.{i}."
        rules += within(f"vision_model.{theirs}", f"{IMAGE}{ours}/", _BLOCK)
        for name, our_name in _BLOCK_NORMS.items():
            rules += _batch_norm(f"{theirs}{name}", f"{ours}/{our_name}")
    return rules


def _blocks(depth) -> Iterator[str]:
    """Our names of the blocks; theirs are numbered throughout."""
    for i, stage in enumerate(_STAGES):
        for j in range(efficientnet.round_repeats(stage.repeats, depth)):
            yield f"stage{i}_block{j}"


def _batch_norm(theirs, ours):
    return [
        *norm(f"vision_model.{theirs}", f"{IMAGE}{ours}"),
        Rule(f"vision_model.{theirs}.running_mean", (f"{IMAGE_STATISTICS}{ours}/mean",), SAME),
        Rule(f"vision_model.{theirs}.running_var", (f"{IMAGE_STATISTICS}{ours}/var",), SAME),
    ]


def _config(tensors, files, options) -> ModelConfig:
    del options
    text_config, vision_config = hf_layers.parts(files, "align")
    text = hf_bert.text_options(tensors, "text_model.", "text_config.", text_config)
    image = _image(vision_config)
    _check_shortcuts(image)
    head = dict(
        embed_dim=shape_of(tensors, "text_projection.weight", 2)[0],
        image_projection=False,
        text_projection_bias=True,
        temperature=1.0,
        temperature_form="raw",
        logit_bias=None,
    )
    image_size = one_side(vision_config.get("image_size", 600))  # AlignVisionConfig's default
    resize = f"stretch {max(346, image_size)} bilinear floor"
    default = dict(views=dict(image=HALF_PIXELS), image_size=image_size, resize=resize)
    if files.get("tokenizer_config.json", {}).get("do_lower_case") is False:
        raise WeightsError("tokenizer_config.json: do_lower_case is false; our WordPiece is uncased")
    return dict(
        encoders=dict(image=image, text=text),
        head=head,
        # AlignProcessor truncates texts to 64; the text encoder has positions for longer ones.
        tokenizer=hf_bert.wordpiece(text, length=64),
        **hf_preprocessing.read(files, default, "EfficientNetImageProcessor"),
    )


def _image(vision_config):
    hf_bert.check_fixed("vision_config.", vision_config, _FIXED)
    strides = vision_config.get("strides", [stage.stride for stage in _STAGES])
    return dict(
        kind="efficientnet",
        width=vision_config.get("width_coefficient", 2.0),
        depth=vision_config.get("depth_coefficient", 3.1),
        strides=tuple(strides),
        padding="fixed",
        drop_connect=vision_config.get("drop_connect_rate", 0.2),
    )


def _check_shortcuts(image):
    """If a stage keeps size and width, our first block has a shortcut; theirs never has one."""
    widths = [efficientnet.round_channels(c, image["width"]) for c in (32, *_FIXED["out_channels"])]
    for i, stride in enumerate(image["strides"]):
        if stride == 1 and widths[i] == widths[i + 1]:
            raise WeightsError(
                f"hf_align: stage {i} keeps stride 1 and {widths[i]} channels; an AlignModel's first block "
                "of a stage has no shortcut, ours has"
            )


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, text, head = config["encoders"]["image"], config["encoders"]["text"], config["head"]
    _check_is_align(image, text, head)
    vision_config = _FIXED | dict(
        model_type="align_vision_model",
        image_size=config["image_size"],
        width_coefficient=image["width"],
        depth_coefficient=image["depth"],
        strides=list(image["strides"]),
        hidden_dim=head["embed_dim"],
        drop_connect_rate=image["drop_connect"],
    )
    text_config = hf_bert.FIXED | dict(
        model_type="align_text_model",
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        num_hidden_layers=text["depth"],
        num_attention_heads=text["heads"],
        intermediate_size=text["mlp_dim"] or 4 * text["width"],
        max_position_embeddings=text["max_len"],
        hidden_dropout_prob=text["dropout"],
    )
    described = dict(
        model_type="align",
        architectures=["AlignModel"],
        projection_dim=head["embed_dim"],
        temperature_init_value=head["temperature"],
        text_config=text_config,
        vision_config=vision_config,
    )
    # include_top would divide by the deviation once more.
    preprocessing = hf_preprocessing.describe(config, "EfficientNetImageProcessor")
    preprocessing |= dict(rescale_offset=False, include_top=False)
    return {"config.json": described, "preprocessor_config.json": preprocessing}


def _check_is_align(image, text, head):
    kinds = image["kind"], text["kind"]
    if kinds != ("efficientnet", "bert"):
        raise WeightsError(f"hf_align holds an efficientnet and a bert, not {kinds[0]} and {kinds[1]}")
    required = dict(
        image_projection=False, text_projection_bias=True, temperature_form="raw", logit_bias=None
    )
    check_options("hf_align", "head", head, "AlignModel", required)
    check_options("hf_align", "image", image, "AlignModel", dict(stem_stride=2, padding="fixed"))
    _check_shortcuts(image)


FORMAT = Format(
    config=_config,
    rules=_rules,
    ignored=(*hf_layers.IGNORED, r".*\.num_batches_tracked", r"text_model\.pooler\.dense\.(weight|bias)"),
    weights=hf_layers.WEIGHTS,
    files=(*hf_layers.FILES, "tokenizer_config.json"),
    describe=_describe,
)
