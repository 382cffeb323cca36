"""transformers' MetaClip2Model (Chuang et al. 2025, arXiv 2507.22062): config.json, model.safetensors or
pytorch_model.bin. Towers alone are read, too, with a projection or without.

The layout is CLIP's, and so is the pooling of the text: the state at the first end of text. The vocabulary is
XLM-V's, whose end of text is token 2; unlike in a CLIP's config, that is no mistake.
"""

from big_ssl.weights import hf_clip, hf_layers
from big_ssl.weights.format import Format


def _read_text(tensors, text_config):
    text = hf_clip.read_text(tensors, text_config)
    tokenizer = dict(kind="sentencepiece_xlm", vocabulary="", size=text["vocab_size"], length=text["max_len"])
    return text, tokenizer


FORMAT = Format(
    config=lambda tensors, files, options: hf_clip.model_config(tensors, files, "metaclip_2", _read_text),
    rules=hf_clip.rules,
    ignored=hf_layers.IGNORED,
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=hf_layers.prepare,
)
