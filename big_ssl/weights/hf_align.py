"""transformers' AlignModel: config.json, model.safetensors or pytorch_model.bin; read and written.

Names and shapes: transformers, models/align; the published weights are kakaobrain/align-base.
Batch norm's counts and BERT's pooler, which embeddings do not use, are ignored and not written.
"""

from collections.abc import Iterator

from big_ssl.models import efficientnet, encoders
from big_ssl.weights import hf_bert, hf_layers, hf_preprocessing, hf_tokenizer_config
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
    count,
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
_FIXED = dict(
    depth_divisor=8,
    depthwise_padding=[],  # no blocks pad as for an odd map
    squeeze_expansion_ratio=0.25,
    hidden_act="swish",
    pooling_type="mean",
    batch_norm_eps=1e-3,
)
# Its columns of the table of stages, by ours.
_COLUMNS = dict(
    kernel="kernel_sizes",
    channels="out_channels",
    repeats="num_block_repeats",
    stride="strides",
    expand="expand_ratios",
)
_STEM = 32
_STEM_NAME = "vision_model.embeddings.convolution"


def _rules(config: ModelConfig) -> list[Rule]:
    stem = Rule(f"{_STEM_NAME}.weight", (f"{IMAGE}stem",), CONVOLUTION)
    rules = [
        *within("text_model.", TEXT, hf_bert.RULES),
        *_HEAD,
        stem,
        *_batch_norm("embeddings.batchnorm", "stem_bn"),
    ]
    for i, ours in enumerate(_blocks(config["encoders"]["image"])):
        theirs = f"encoder.blocks.{i}."
        rules += within(f"vision_model.{theirs}", f"{IMAGE}{ours}/", _BLOCK)
        for name, our_name in _BLOCK_NORMS.items():
            rules += _batch_norm(f"{theirs}{name}", f"{ours}/{our_name}")
    return rules


def _stages(image) -> tuple[efficientnet.Stage, ...]:
    return encoders.efficientnet_from(image.get("strides", ()), image.get("stages", ())).stages


def _blocks(image) -> Iterator[str]:
    """Our names of the blocks; theirs are numbered throughout."""
    for i, stage in enumerate(_stages(image)):
        for j in range(efficientnet.round_repeats(stage.repeats, image["depth"])):
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
    image = _image(tensors, vision_config)
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
    return dict(
        encoders=dict(image=image, text=text),
        head=head,
        # AlignProcessor truncates texts to 64; the text encoder has positions for longer ones.
        tokenizer=hf_tokenizer_config.read(files, hf_bert.wordpiece(text, length=64)),
        **hf_preprocessing.read(files, default, "EfficientNetImageProcessor"),
    )


def _image(tensors, vision_config):
    hf_bert.check_fixed("vision_config.", vision_config, _FIXED)
    channels = shape_of(tensors, f"{_STEM_NAME}.weight", 4)[1]
    hf_layers.compare_channels("vision_config.", vision_config, channels)
    width = vision_config.get("width_coefficient", 2.0)
    stages = _read_stages(vision_config, width)
    strides = tuple(stage.stride for stage in stages)
    are_published = [stage._replace(stride=0) for stage in stages] == [
        stage._replace(stride=0) for stage in efficientnet.B0_STAGES
    ]
    image = dict(
        kind="efficientnet",
        width=width,
        depth=vision_config.get("depth_coefficient", 3.1),
        **(dict(strides=strides) if are_published else dict(stages=stages)),
        padding="fixed",
        drop_connect=vision_config.get("drop_connect_rate", 0.2),
    )
    _check_shortcuts(image)
    _check_blocks(tensors, image)
    return image


def _read_stages(vision_config, width):
    """The table of stages. Raises WeightsError for one that our EfficientNet can't express."""
    columns = {ours: vision_config.get(theirs, _default(ours)) for ours, theirs in _COLUMNS.items()}
    inputs = vision_config.get("in_channels", [_STEM, *_default("channels")[:-1]])
    lengths = {len(column) if isinstance(column, list) else 0 for column in (inputs, *columns.values())}
    if len(lengths) != 1 or 0 in lengths:
        keys = ", ".join(("in_channels", *_COLUMNS.values()))
        raise WeightsError(f"config.json: vision_config has {keys}, which must be lists of one length")
    stages = tuple(efficientnet.Stage(*row) for row in zip(*columns.values(), strict=True))
    for i, (channels, stage) in enumerate(zip(inputs, stages, strict=True)):
        before = stages[i - 1].channels if i else _STEM
        same = efficientnet.round_channels(channels, width) == efficientnet.round_channels(before, width)
        for key, value, fits, required in (
            ("in_channels", channels, same, before),
            ("kernel_sizes", stage.kernel, stage.kernel % 2, "odd"),
            ("strides", stage.stride, stage.stride in (1, 2), "1 or 2"),
        ):
            if not fits:
                raise WeightsError(f"config.json: vision_config.{key}[{i}] is {value}; it must be {required}")
    return stages


def _default(column):
    return [getattr(stage, column) for stage in efficientnet.B0_STAGES]


def _check_shortcuts(image):
    """If a stage keeps size and width, our first block has a shortcut; theirs never has one."""
    stages = _stages(image)
    channels = (_STEM, *(stage.channels for stage in stages))
    widths = [efficientnet.round_channels(c, image["width"]) for c in channels]
    for i, stage in enumerate(stages):
        if stage.stride == 1 and widths[i] == widths[i + 1]:
            raise WeightsError(
                f"hf_align: stage {i} keeps stride 1 and {widths[i]} channels; an AlignModel's first block "
                "of a stage has no shortcut, ours has"
            )


def _check_blocks(tensors, image):
    stated = sum(efficientnet.round_repeats(stage.repeats, image["depth"]) for stage in _stages(image))
    actual = count(tensors, r"vision_model\.encoder\.blocks\.(\d+)\.")
    if stated != actual:
        raise WeightsError(
            "config.json: vision_config's num_block_repeats, times its depth_coefficient, are "
            f"{stated} blocks; the weights have {actual}"
        )


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, text, head = config["encoders"]["image"], config["encoders"]["text"], config["head"]
    _check_is_align(image, text, head)
    stages = _stages(image)
    columns = {theirs: [getattr(stage, ours) for stage in stages] for ours, theirs in _COLUMNS.items()}
    vision_config = (
        _FIXED
        | columns
        | dict(
            model_type="align_vision_model",
            image_size=config["image_size"],
            width_coefficient=image["width"],
            depth_coefficient=image["depth"],
            in_channels=[_STEM, *columns["out_channels"][:-1]],
            hidden_dim=head["embed_dim"],
            drop_connect_rate=image["drop_connect"],
        )
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
    files=hf_layers.FILES,
    describe=_describe,
)
