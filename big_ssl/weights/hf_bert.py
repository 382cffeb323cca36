"""transformers' BertModel: config.json, model.safetensors or pytorch_model.bin.

It is read as a text encoder, from which ALIGN's can start; transformers' ALIGN shares the rules for its
text encoder. The pooler and heads are ignored: our pooled output is the last layer's state of [CLS].
"""

import re
from collections.abc import Mapping

from big_ssl.weights import hf_layers, hf_tokenizer_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import TEXT, Format, ModelConfig, count, json_file, shape_of, text_model_config
from big_ssl.weights.rules import SAME, Rule, linear, norm, within

_LAYER = [
    *linear("attention.self.query", "query"),
    *linear("attention.self.key", "key"),
    *linear("attention.self.value", "value"),
    *linear("attention.output.dense", "out"),
    *norm("attention.output.LayerNorm", "attention_norm"),
    *linear("intermediate.dense", "mlp_in"),
    *linear("output.dense", "mlp_out"),
    *norm("output.LayerNorm", "mlp_norm"),
]
RULES = [
    Rule("embeddings.word_embeddings.weight", ("word/embedding",), SAME),
    Rule("embeddings.position_embeddings.weight", ("position/embedding",), SAME),
    Rule("embeddings.token_type_embeddings.weight", ("token_type/embedding",), SAME),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *within("encoder.layer.{i}.", "layer{i}/", _LAYER),
]

# Options of BertConfig and AlignTextConfig that our module fixes.
FIXED = dict(hidden_act="gelu", layer_norm_eps=1e-12)
_FIXED_FEATURES = dict(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
# The defaults of both.
_DEFAULTS = FIXED | dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    vocab_size=30_522,
    max_position_embeddings=512,
)


def check_fixed(part: str, config: Mapping, fixed: Mapping) -> None:
    """Checks the settings that our modules fix.

    Args:
      part: what stands before the key in the message.
      config: of config.json.
      fixed: {key: value}; the value is also the default.

    Raises:
      WeightsError: if config.json states another value.
    """
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise WeightsError(f"config.json: {part}{key} is {config[key]!r}; only {value!r} is known")


def text_options(tensors: Mapping, prefix: str, part: str, config: Mapping) -> dict:
    """Infers the options of models.bert.

    Args:
      tensors: {name: array}.
      prefix: of the encoder's names.
      part: what stands before config.json's keys in messages.
      config: this part of config.json, without nulls.

    Raises:
      WeightsError: where config.json and the arrays differ, or for a setting that our module does not have.
    """
    check_fixed(part, config, FIXED | _FIXED_FEATURES)
    vocab_size, width = shape_of(tensors, f"{prefix}embeddings.word_embeddings.weight", 2)
    max_len = shape_of(tensors, f"{prefix}embeddings.position_embeddings.weight", 2)[0]
    shape = dict(
        width=width,
        depth=count(tensors, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
    )
    complete = {**_DEFAULTS, **config}
    hf_layers.compare_shape(part, complete, shape)
    hf_layers.compare_text(part, complete, vocab_size, max_len)
    return dict(
        kind="bert",
        vocab_size=vocab_size,
        **shape,
        heads=hf_layers.settings(config, _DEFAULTS, width)["heads"],
        max_len=max_len,
        dropout=config.get("hidden_dropout_prob", 0.1),
    )


def wordpiece(text: Mapping, length: int) -> dict:
    """The ModelConfig's tokenizer of a text encoder with these options; length: the most tokens of a text."""
    length = min(length, text["max_len"])
    return dict(kind="wordpiece", vocabulary="", size=text["vocab_size"], length=length)


def _config(tensors, files, options) -> ModelConfig:
    del options
    config = hf_layers.stated(json_file(files, "config.json"))
    if config.get("model_type", "bert") != "bert":
        raise WeightsError(f"config.json: model_type is {config['model_type']!r}; it must be bert")
    text = text_options(tensors, "", "", config)
    return text_model_config(text, hf_tokenizer_config.read(files, wordpiece(text, text["max_len"])))


# Of names in files: the prefix below heads, and TensorFlow's names of norms in the first published files.
_SPELLINGS = {r"^bert\.": "", r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}


def _prepare(tensors, options):
    del options
    for theirs, ours in _SPELLINGS.items():
        tensors = {re.sub(theirs, ours, name): array for name, array in tensors.items()}
    return tensors


FORMAT = Format(
    config=_config,
    rules=lambda config: within("", TEXT, RULES),
    # The pooler and the heads of pre-training and classification, which no embedding uses; a buffer.
    ignored=(r"(pooler|cls|classifier)\..*", r"embeddings\.position_ids"),
    weights=hf_layers.WEIGHTS,
    files=("config.json", hf_tokenizer_config.FILE),
    prepare=_prepare,
    encoders=("text",),
)
