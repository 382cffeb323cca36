"""transformers' tokenizer_config.json: what is heeded, refused by name, and ignored."""

import json

import pytest

from big_ssl.weights import hf_tokenizer_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from tests.parity import goldens

# Excerpts of published files, by the ModelConfig's kind of tokenizer.
TOKEN = dict(__type="AddedToken", lstrip=False, normalized=True, rstrip=False, single_word=False)
PUBLISHED = {
    "clip_bpe": dict(
        add_prefix_space=False,
        bos_token=TOKEN | dict(content="<|startoftext|>"),
        eos_token=TOKEN | dict(content="<|endoftext|>"),
        pad_token="<|endoftext|>",
        do_lower_case=True,
        errors="replace",
        model_max_length=77,
        name_or_path="a/path",
        special_tokens_map_file="./special_tokens_map.json",
        tokenizer_class="CLIPTokenizer",
    ),
    "sentencepiece": dict(
        added_tokens_decoder={"1": dict(content="</s>"), "2": dict(content="<unk>")},
        additional_special_tokens=["</s>"],
        do_lower_case=True,
        eos_token="</s>",
        model_input_names=["input_ids"],
        model_max_length=64,
        pad_token="</s>",
        processor_class="SiglipProcessor",
        sp_model_kwargs={},
        tokenizer_class="SiglipTokenizer",
    ),
    "sentencepiece_gemma": dict(
        add_bos_token=False,
        add_eos_token=True,
        added_tokens_decoder={"0": dict(content="<pad>"), "106": dict(content="<start_of_turn>")},
        additional_special_tokens=["<start_of_turn>"],
        clean_up_tokenization_spaces=False,
        extra_special_tokens={},
        model_max_length=1000000000000000019884624838656,
        padding_side="right",
        tokenizer_class="GemmaTokenizer",
    ),
    "sentencepiece_xlm": dict(
        add_prefix_space=True, mask_token="<mask>", tokenizer_class="XLMRobertaTokenizer"
    ),
    "wordpiece": dict(
        do_lower_case=True,
        never_split=None,
        strip_accents=None,
        tokenize_chinese_chars=True,
        tokenizer_class="BertTokenizerFast",
    ),
}
SIZE = 50_000


def read(kind, length=100, **changes):
    tokenizer = dict(kind=kind, vocabulary="", size=SIZE, length=length)
    return hf_tokenizer_config.read({"tokenizer_config.json": PUBLISHED[kind] | changes}, tokenizer)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("clip_bpe", 77),
        ("sentencepiece", 64),
        ("sentencepiece_gemma", 100),
        ("sentencepiece_xlm", 100),
        ("wordpiece", 100),
    ],
)
def test_published_settings_are_heeded(kind, length):
    assert read(kind) == dict(kind=kind, vocabulary="", size=SIZE, length=length)
    assert read(kind, 30)["length"] == 30


def test_without_the_file_nothing_changes():
    tokenizer = dict(kind="wordpiece", vocabulary="", size=9, length=5)
    assert hf_tokenizer_config.read({}, tokenizer) == tokenizer


XLM, GEMMA = "sentencepiece_xlm", "sentencepiece_gemma"
NEW = "has '<new>', whose id added_tokens_decoder does not state"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("wordpiece", dict(do_lower_case=False), "do_lower_case is False; our wordpiece has True"),
        ("wordpiece", dict(strip_accents=False), "strip_accents is False; our wordpiece has True"),
        ("wordpiece", dict(never_split=["a"]), "never_split is ['a']; our wordpiece has []"),
        ("wordpiece", dict(tokenizer_class="MPNetTokenizer"), "'MPNetTokenizer'; this encoder's is Bert"),
        ("sentencepiece", dict(do_lower_case=False), "do_lower_case is False; our sentencepiece has True"),
        ("sentencepiece", dict(pad_token="<pad>"), "pad_token is '<pad>'; our sentencepiece has '</s>'"),
        ("sentencepiece", dict(sp_model_kwargs=dict(alpha=1)), "sp_model_kwargs is {'alpha': 1}; our"),
        (GEMMA, dict(add_bos_token=True), f"add_bos_token is True; our {GEMMA} has False"),
        (GEMMA, dict(padding_side="left"), f"padding_side is 'left'; our {GEMMA} has 'right'"),
        (XLM, dict(eos_token="<eos>"), f"eos_token is '<eos>'; our {XLM} has '</s>'"),
        ("clip_bpe", dict(truncation_side="left"), "truncation_side is 'left'; our clip_bpe has 'right'"),
        ("clip_bpe", dict(bos_token=dict(content="<s>")), "bos_token is '<s>'; our clip_bpe has '<|start"),
        ("clip_bpe", dict(additional_special_tokens=["<new>"]), NEW),
        (
            "clip_bpe",
            dict(added_tokens_decoder={"50000": dict(content="<new>")}),
            "added_tokens_decoder has '<new>', id 50000; the encoder has 50000 tokens",
        ),
        ("clip_bpe", dict(reverse=True), "reverse is True, which we do not know; --model.accept=reverse"),
    ],
)
def test_the_error_names_what_our_tokenizer_cannot_heed(kind, changes, message):
    with pytest.raises(WeightsError) as caught:
        read(kind, **changes)
    assert str(caught.value).startswith("tokenizer_config.json: ")
    assert message in str(caught.value)


def test_what_is_switched_off_has_no_effect():
    assert read("clip_bpe", reverse=False, extra_special_tokens={}) == read("clip_bpe")


@pytest.mark.parametrize(
    ("kind", "changes", "length"),
    [
        ("hf_clip", dict(model_max_length=7), 7),
        ("hf_siglip", {}, 9),
        ("hf_align", dict(model_max_length=512), 12),
    ],
)
def test_every_format_with_texts_reads_it(kind, changes, length, tmp_path):
    goldens.write_checkpoint(kind, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(changes))
    assert read_checkpoint(kind, tmp_path)[0]["tokenizer"]["length"] == length
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(padding_side="left")))
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json: padding_side is 'left'"):
        read_checkpoint(kind, tmp_path)
    assert read_checkpoint(kind, tmp_path, dict(accept=["padding_side"]))


def read_with(settings, folder, kind="hf_clip"):
    goldens.write_checkpoint(kind, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_checkpoint(kind, folder)[0]


@pytest.mark.parametrize("kind", ["hf_clip", "hf_align"])
def test_a_mask_token_is_a_text(kind, tmp_path):
    """Swin's option of that name is a flag."""
    settings = dict(mask_token="[MASK]", model_max_length=7)
    assert read_with(settings, tmp_path, kind)["tokenizer"]["length"] == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("added_tokens_decoder", [1]),
        ("added_tokens_decoder", {"a": {}}),
        ("added_tokens_decoder", {"3": {}}),
        ("added_tokens_decoder", {"a": dict(content="x")}),
        ("added_tokens_decoder", {"3": None}),
        ("additional_special_tokens", "abc"),
        ("additional_special_tokens", 5),
        ("additional_special_tokens", [["x"]]),
        ("extra_special_tokens", {"a": 5}),
        ("bos_token", ["x"]),
        ("pad_token", dict(content=["x"])),
        ("mask_token", True),
        ("model_max_length", float("nan")),
        ("model_max_length", float("inf")),
        ("model_max_length", "77"),
        ("model_max_length", 0),
        ("model_max_length", True),
        ("add_bos_token", ["x"]),
        ("tokenizer_class", 3),
    ],
)
def test_the_error_names_a_key_with_a_malformed_value(key, value, tmp_path):
    with pytest.raises(WeightsError) as caught:
        read_with({key: value}, tmp_path)
    assert f"tokenizer_config.json: {key} is {value!r}; it must be " in str(caught.value)
    assert "\n" not in str(caught.value)
