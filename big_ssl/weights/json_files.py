"""Reads the JSON files beside weights, and checks the kinds of the values that formats read."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from big_ssl import io
from big_ssl.weights import hf_tokenizer_config
from big_ssl.weights.errors import WeightsError, all_errors_named

# Larger than any size in a published model; the arithmetic on sizes stays exact below it.
_LARGEST = 2**31
# More layers than this would take hours to trace.
_DEEPEST = 10_000


class _Kind(NamedTuple):
    """What a value must be, in words, and whether it is."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _LARGEST


_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_TEXTS = _Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
_COUNT = _Kind("a whole number from 1", lambda value: type(value) is int and 0 < value < _LARGEST)
_SIDES = _Kind(
    "a whole number from 1, or a list of them",
    lambda value: all(map(_COUNT.fits, value if isinstance(value, list) else [value])),
)
_INDEX = _Kind("a whole number from 0", lambda value: type(value) is int and 0 <= value < _LARGEST)
_INDICES = _Kind(
    "a whole number from 0, or a list of them",
    lambda value: all(map(_INDEX.fits, value if isinstance(value, list) else [value])),
)
_NUMBER = _Kind("a number", _is_number)
_POSITIVE = _Kind("a number above 0", lambda value: _is_number(value) and value > 0)
_DEPTH = _Kind(f"a number from 0 to {_DEEPEST}", lambda value: _is_number(value) and 0 <= value <= _DEEPEST)
_DEPTHS = _Kind(
    f"a list of numbers from 0 to {_DEEPEST}",
    lambda value: isinstance(value, list) and len(value) < _DEEPEST and all(map(_DEPTH.fits, value)),
)
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_FILTER = _Kind("a text or a whole number", lambda value: type(value) in (str, int))
_NUMBERS = _Kind(
    "a number or a list of numbers",
    lambda value: all(map(_is_number, value if isinstance(value, list) else [value])),
)


def _is_token(value):
    return isinstance(value, str) or _is_token_object(value)


def _is_token_object(value):
    return isinstance(value, dict) and isinstance(value.get("content"), str)


_TOKEN_WORDS = 'a text, or an object with a text as "content"'
_TOKEN = _Kind(_TOKEN_WORDS, _is_token)
_TOKENS = _Kind(
    f"a list, or an object's values, each {_TOKEN_WORDS}",
    lambda value: (
        isinstance(value, list | dict)
        and all(map(_is_token, value.values() if isinstance(value, dict) else value))
    ),
)
_TOKENS_BY_ID = _Kind(
    'an object with an object for each id, which has a text as "content"',
    lambda value: (
        isinstance(value, dict)
        and all(len(i) < 20 and i.isdecimal() and _is_token_object(token) for i, token in value.items())
    ),
)
# transformers' number for no limit is beyond _LARGEST.
_LIMIT = _Kind("a number from 1", lambda value: type(value) in (int, float) and 1 <= value < math.inf)

# {kind: the keys that have it, in every format's configuration}; objects are looked into.
_KEYS = {
    _OBJECT: "text_config vision_config model_cfg vision_cfg text_cfg preprocess_cfg pretrained_cfg "
    "model_args encoders image text head embedding_head tokenizer views projections",
    _TEXT: "model_type hidden_act interpolation resize_mode kind activation feed_forward pooling "
    "position_resize resize rope_dtype architecture global_pool crop_mode embedding",
    _TEXTS: "architectures",
    _COUNT: "hidden_size intermediate_size num_attention_heads max_position_embeddings projection_dim "
    "projection_size vocab_size embed_dim context_length head_width patch max_len mlp_dim length "
    "pooling_heads pooling_mlp_dim rope_side attn_pool_num_heads",
    _SIDES: "image_size img_size ref_feat_shape patch_size kernel_sizes in_channels out_channels "
    "num_block_repeats expand_ratios strides heads num_heads window window_size",
    _INDEX: "num_register_tokens registers eot_id",
    _INDICES: "eos_token_id depthwise_padding pretrained_window pretrained_window_sizes",
    _POSITIVE: "width width_coefficient depth_coefficient mlp_ratio crop_pct layer_norm_eps epsilon "
    "rope_theta rope_base pos_embed_rescale rope_rescale rope_temperature",
    _DEPTH: "depth num_hidden_layers version",
    _DEPTHS: "depths",
    _NUMBER: "layerscale_value layer_scale hidden_dropout_prob drop_connect_rate temperature logit_bias",
    _FLAG: "do_resize do_center_crop do_rescale do_normalize do_convert_rgb quick_gelu use_swiglu_ffn "
    "use_gated_mlp query_bias key_bias value_bias bias clamp_window mask_token use_absolute_embeddings",
    _FILTER: "resample",
    _NUMBERS: "image_mean image_std mean std",
}
# The same of a tokenizer's, where some of these keys mean something else, such as mask_token.
_TOKENIZER_KEYS = {
    _TOKEN: "bos_token eos_token unk_token sep_token cls_token pad_token mask_token image_token",
    _TOKENS: "additional_special_tokens extra_special_tokens",
    _TOKENS_BY_ID: "added_tokens_decoder",
    _LIMIT: "model_max_length",
    _FLAG: "add_bos_token add_eos_token add_prefix_space do_lower_case",
    _TEXT: "tokenizer_class",
}


def _kinds(keys_of: Mapping[_Kind, str]) -> dict[str, _Kind]:
    return {key: kind for kind, keys in keys_of.items() for key in keys.split()}


_KINDS = _kinds(_KEYS)
_KINDS_BY_FILE = {hf_tokenizer_config.FILE: _kinds(_TOKENIZER_KEYS)}


def read(folder, names: Iterable[str], accepted: Iterable[str] = ()) -> dict[str, dict]:
    """Reads {name: JSON object} of those files that the folder has, without the accepted keys at any depth.

    Raises WeightsError for a file that holds no JSON object, and for a key of a configuration,
    `*config.json`, with a value of another kind than formats read; null stands for a missing key.
    """
    files = {}
    for name in names:
        path = io.as_path(folder) / name
        if path.is_file():
            files[name] = _without(read_object(path), accepted)
            if name.endswith("config.json"):  # the keys of a vocabulary are words
                _check(path, files[name], "", _KINDS_BY_FILE.get(name, _KINDS))
    return files


def read_object(path) -> dict:
    """The JSON object in a file, unchecked. Raises WeightsError if there is none."""
    with all_errors_named(f"{path} is no JSON"):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a JSON {type(content).__name__}; it must hold an object")
    return content


def _without(content, accepted):
    if not isinstance(content, dict):
        return content
    return {key: _without(value, accepted) for key, value in content.items() if key not in accepted}


def _check(path, values: Mapping, prefix: str, kinds: Mapping[str, _Kind]) -> None:
    for key, value in values.items():
        kind = kinds.get(key)
        if kind is None or value is None:
            continue
        if not kind.fits(value):
            raise WeightsError(f"{path}: {prefix}{key} is {repr(value)[:80]}; it must be {kind.words}")
        if kind is _OBJECT:
            _check(path, value, f"{prefix}{key}.", kinds)
