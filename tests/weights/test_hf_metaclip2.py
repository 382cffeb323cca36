"""transformers' MetaCLIP 2: CLIP's arrays with XLM-V's vocabulary."""

import json

import numpy as np
import pytest

import big_ssl
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.data.test_pieces import WORDS, tokenizer_json
from tests.parity import goldens


def write(folder, tower="", **text_changes):
    """The golden CLIP under the name of a MetaCLIP 2, or one of its towers; text_changes: of text_config."""
    goldens.write_checkpoint("hf_clip", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= dict(eos_token_id=2) | text_changes
    config |= dict(model_type="metaclip_2", architectures=["MetaClip2Model"])
    if tower:
        config = config[f"{tower}_config"] | dict(model_type=f"metaclip_2_{tower}_model")
        tensors, prefix = goldens.golden("hf_clip")[0], f"{tower}_model."
        own = {name: np.asarray(x) for name, x in tensors.items() if name.startswith(prefix)}
        write_safetensors(folder / "model.safetensors", own, {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_its_end_of_text_is_token_2(tmp_path):
    assert guess(write(tmp_path)) == "hf_metaclip2"
    config, ours = read_checkpoint("hf_metaclip2", tmp_path)
    clip, expected = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "clip"))
    assert config["encoders"]["text"] == clip["encoders"]["text"] | dict(eot_id=2)
    assert config["encoders"]["image"] == clip["encoders"]["image"]
    assert config["tokenizer"] == dict(kind="sentencepiece_xlm", vocabulary="", size=50, length=9)
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[path], expected[path]) for path in ours)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_its_towers_alone(tower, tmp_path):
    assert guess(write(tmp_path, tower)) == "hf_metaclip2"
    config, _ = read_checkpoint("hf_metaclip2", tmp_path)
    assert list(config["encoders"]) == ["image" if tower == "vision" else "text"]


def test_the_formats_of_clip_and_metaclip_2_refuse_each_other(tmp_path):
    write(tmp_path)
    with pytest.raises(WeightsError, match="model_type is 'metaclip_2'; it must be clip, clip_text_model"):
        read_checkpoint("hf_clip", tmp_path)
    goldens.write_checkpoint("hf_clip", tmp_path)
    with pytest.raises(WeightsError, match="model_type is 'clip'; it must be metaclip_2, "):
        read_checkpoint("hf_metaclip2", tmp_path)


def test_texts_need_its_tokenizer_and_ids_do_not(tmp_path):
    write(tmp_path)
    ids = np.array([[0, 5, 6, 2, 1, 1, 1, 1, 1]])
    expected = big_ssl.load(tmp_path).encode_text(ids)
    with pytest.raises(ValueError, match=r"put tokenizer\.json or sentencepiece\.bpe\.model beside them"):
        big_ssl.load(tmp_path).encode_text(["a cat"])
    words = [*WORDS, *(f"word{i}" for i in range(50 - 4 - len(WORDS)))]
    tokenizer_json(tmp_path / "tokenizer.json", ("<s>", "<pad>", "</s>", "<unk>"), words)
    np.testing.assert_array_equal(big_ssl.load(tmp_path).encode_text(["a cat"]), expected)
