"""The files of transformers' tokenizers, for exports: CLIP's BPE and BERT's WordPiece."""

import json
from collections.abc import Mapping

from big_ssl import io
from big_ssl.data import clip_bpe, tokenizers

_CLIP = dict(
    tokenizer_class="CLIPTokenizer",
    bos_token="<|startoftext|>",
    eos_token="<|endoftext|>",
    unk_token="<|endoftext|>",
    pad_token="<|endoftext|>",
)
_BERT = dict(
    tokenizer_class="BertTokenizer",
    do_lower_case=True,
    unk_token="[UNK]",
    sep_token="[SEP]",
    pad_token="[PAD]",
    cls_token="[CLS]",
    mask_token="[MASK]",
)


def known_vocabulary(tokenizer: Mapping) -> str:
    """The file of a ModelConfig's tokenizer that the config itself names; "" if there is none."""
    try:
        path = tokenizers.vocabulary_path(tokenizer["vocabulary"])
    except FileNotFoundError:
        return ""
    return path if path and io.as_path(path).is_file() else ""


def describe(tokenizer: Mapping, path: str) -> dict[str, str]:
    """{file name: text} that transformers' AutoTokenizer reads; empty for a kind that has no export.

    Args:
      tokenizer: a ModelConfig's.
      path: its vocabulary.

    Raises:
      ValueError: for a vocabulary that can't be read.
    """
    settings = dict(model_max_length=tokenizer["length"])
    if tokenizer["kind"] == "clip_bpe":
        vocabulary, merges = clip_bpe.read_vocabulary(path)
        lines = ["#version: 0.2", *map(" ".join, merges)]
        files = {
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "".join(f"{line}\n" for line in lines),
        }
        settings |= _CLIP
    elif tokenizer["kind"] == "wordpiece":
        files = {"vocab.txt": "".join(f"{word}\n" for word in tokenizers.read_words(path))}
        settings |= _BERT
    else:
        return {}
    return files | {"tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}
