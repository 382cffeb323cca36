"""What we export works in transformers with nothing added: AutoProcessor and AutoModel give our features."""

import numpy as np
import pytest

import big_ssl
from big_ssl.convert import convert
from big_ssl.data import clip_bpe
from tests.parity.figures import parity_figure

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

pytestmark = pytest.mark.parity

TEXTS = ["a cat", "Don't run,  dog!", "xyzzy & co"]
TOWER = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16
)


def randomized(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    return model.eval()


def clip(folder):
    folder.mkdir()
    (folder / "merges.txt").write_bytes(clip_bpe.train(["a photo of a cat", "a dog that doesn't run"], 560))
    size = len(clip_bpe.read_vocabulary(str(folder / "merges.txt"))[0])
    marks = dict(bos_token_id=size - 2, eos_token_id=size - 1)
    text = TOWER | dict(vocab_size=size, max_position_embeddings=16, **marks)
    vision = TOWER | dict(image_size=32, patch_size=8)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    randomized(transformers.CLIPModel(config)).save_pretrained(folder)


def test_clip(tmp_path):
    clip(tmp_path / "theirs")
    convert("hf_clip", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_clip", tmp_path / "out", {})
    images = np.random.default_rng(0).integers(0, 256, (2, 41, 56, 3), np.uint8)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(text=TEXTS, images=list(images), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()(**inputs)
    ours = big_ssl.load(tmp_path / "ours")
    parity_figure("hf_clip", "export", ours.encode_text(TEXTS), theirs.text_embeds)
    parity_figure("hf_clip", "export", ours.encode_image(images), theirs.image_embeds)
    np.testing.assert_allclose(ours.encode_text(TEXTS), theirs.text_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.encode_image(images), theirs.image_embeds, rtol=0, atol=1e-5)
