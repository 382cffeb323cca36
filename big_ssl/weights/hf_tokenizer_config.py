"""transformers' tokenizer_config.json: what changes the ids of a text is heeded or refused by name.

The names of special tokens in a text are ordinary characters for our tokenizers, so that tokens added to a
vocabulary need no place in ours; ids outside the encoder's table are refused.
"""

from collections.abc import Mapping
from typing import Any

from big_ssl.weights.errors import WeightsError

FILE = "tokenizer_config.json"

# What our tokenizers fix, besides special tokens, by the ModelConfig's kind; null stands for a default.
_FIXED: dict[str, dict[str, Any]] = {
    "clip_bpe": {},
    "sentencepiece": dict(do_lower_case=True, sp_model_kwargs={}),
    "sentencepiece_gemma": dict(
        do_lower_case=True, add_bos_token=False, add_eos_token=True, sp_model_kwargs={}
    ),
    "sentencepiece_xlm": dict(add_prefix_space=True, sp_model_kwargs={}),
    "wordpiece": dict(
        do_lower_case=True,
        strip_accents=True,
        tokenize_chinese_chars=True,
        do_basic_tokenize=True,
        never_split=[],
    ),
}
_SIDES = dict(padding_side="right", truncation_side="right")
# The special tokens whose ids an encoder sees. Padding that is masked, or after the end of a causal encoder's
# text, may have any.
_TOKENS = {
    "clip_bpe": dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>"),
    "sentencepiece": dict(eos_token="</s>", pad_token="</s>"),
    "sentencepiece_gemma": dict(eos_token="<eos>", pad_token="<pad>"),
    "sentencepiece_xlm": dict(bos_token="<s>", eos_token="</s>"),
    "wordpiece": dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"),
}
_CLASSES = {
    "clip_bpe": ("CLIPTokenizer",),
    "sentencepiece": ("SiglipTokenizer",),
    "sentencepiece_gemma": ("GemmaTokenizer", "Siglip2Tokenizer"),
    "sentencepiece_xlm": ("XLMRobertaTokenizer",),
    "wordpiece": ("BertTokenizer",),
}
# Classes for any tokenizer.json.
_ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")
_ADDED = ("additional_special_tokens", "extra_special_tokens")
# Keys that do not change the ids of a text, by the reason. CLIP's and XLM-R's classes do not read the ignored
# ones, which _FIXED has for the others; a call leaves its own settings behind.
_WITHOUT_EFFECT_BY_REASON = dict(
    tokens="bos_token eos_token unk_token sep_token cls_token pad_token mask_token image_token",
    names="tokenizer_class processor_class backend name_or_path auto_map special_tokens_map_file "
    "tokenizer_file vocab_file merges_file use_fast from_slow is_local local_files_only transformers_version",
    decoding="clean_up_tokenization_spaces spaces_between_special_tokens errors",
    chat="use_default_system_prompt chat_template legacy model_input_names",
    ignored="do_lower_case add_prefix_space add_bos_token add_eos_token",
    calls="max_length stride pad_to_multiple_of pad_token_type_id truncation_strategy padding",
)
_WITHOUT_EFFECT = {key for keys in _WITHOUT_EFFECT_BY_REASON.values() for key in keys.split()}
# transformers' number for no limit is far above this.
_UNLIMITED = 2**31


def read(files: Mapping[str, dict], tokenizer: dict) -> dict:
    """The ModelConfig's tokenizer, its length at most the file's model_max_length.

    Args:
      files: {file name: JSON}, of the kinds that json_files checks.
      tokenizer: as the encoder needs it.

    Raises:
      WeightsError: naming the key that our tokenizer can't heed, or does not know.
    """
    settings = {key: value for key, value in files.get(FILE, {}).items() if value is not None}
    # A CLIP that was trained with BERT's words, as our own exports may be.
    if tokenizer["kind"] == "clip_bpe" and str(settings.get("tokenizer_class")).startswith("BertTokenizer"):
        tokenizer = tokenizer | dict(kind="wordpiece", vocabulary="")
    try:
        _check_class(settings, _CLASSES[tokenizer["kind"]])
        _check_values(settings, tokenizer["kind"])
        _check_added(settings, tokenizer["size"])
        return tokenizer | dict(length=min(tokenizer["length"], _max_length(settings)))
    except WeightsError as error:
        raise WeightsError(f"{FILE}: {error}") from error


def _check_class(settings, classes):
    name = settings.get("tokenizer_class", classes[0])
    if name.removesuffix("Fast") not in (*classes, *_ANY_CLASS):
        raise WeightsError(f"tokenizer_class is {name!r}; this encoder's is {' or '.join(classes)}")


def _check_values(settings, kind):
    fixed = _FIXED[kind] | _SIDES
    for key, value in settings.items():
        if key in fixed and value != fixed[key]:
            raise WeightsError(f"{key} is {value!r}; our {kind} has {fixed[key]!r}")
        expected, actual = _TOKENS[kind].get(key), _content(value)
        if expected is not None and actual != expected:
            raise WeightsError(f"{key} is {actual!r}; our {kind} has {expected!r}")
        handled = {*fixed, *_ADDED, *_WITHOUT_EFFECT, "added_tokens_decoder", "model_max_length"}
        if key not in handled and value is not False:  # what is switched off has no effect
            raise WeightsError(f"{key} is {value!r}, which we do not know; --model.accept={key} ignores it")


def _content(token):
    """The text of a token, which may be stored with its settings."""
    return token.get("content") if isinstance(token, dict) else token


def _check_added(settings, size):
    """Refuses added tokens that are outside the encoder's table, or without a stated id."""
    ids = {_content(token): int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
    for token, i in ids.items():
        if i >= size:
            raise WeightsError(f"added_tokens_decoder has {token!r}, id {i}; the encoder has {size} tokens")
    known = {*ids, *(_content(value) for key, value in settings.items() if key.endswith("_token"))}
    for key in _ADDED:
        added = settings.get(key, [])
        for token in map(_content, added.values() if isinstance(added, dict) else added):
            if token not in known:
                raise WeightsError(f"{key} has {token!r}, whose id added_tokens_decoder does not state")


def _max_length(settings):
    return int(min(settings.get("model_max_length", _UNLIMITED), _UNLIMITED))
