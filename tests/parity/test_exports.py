"""What we export works in transformers with nothing added: AutoProcessor and AutoModel give our features."""

import numpy as np
import pytest

import big_ssl
from big_ssl.convert import convert
from big_ssl.data import clip_bpe
from tests.parity.figures import parity_figure

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")
align_peers = pytest.importorskip("tests.parity.align_peers")

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
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(text=TEXTS, images=list(images), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()(**inputs)
    ours = big_ssl.load(tmp_path / "ours")
    parity_figure("hf_clip", "export", ours.encode_text(TEXTS), theirs.text_embeds)
    parity_figure("hf_clip", "export", ours.encode_image(images), theirs.image_embeds)
    np.testing.assert_allclose(ours.encode_text(TEXTS), theirs.text_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.encode_image(images), theirs.image_embeds, rtol=0, atol=1e-5)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "don", "'", "t", "run", ",", "!"]


def align(folder):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    text = align_peers.TEXT | dict(vocab_size=len(WORDS), max_position_embeddings=64)
    align_peers.hf_align(align_peers.SMALL, 64, text).save_pretrained(folder)
    settings = dict(size=dict(height=70, width=70), crop_size=dict(height=64, width=64), include_top=True)
    processors = transformers.models.efficientnet.image_processing_pil_efficientnet
    processors.EfficientNetImageProcessorPil(**settings).save_pretrained(folder)


def test_align(tmp_path):
    align(tmp_path / "theirs")
    convert("hf_align", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_align", tmp_path / "out", {})
    images = np.random.default_rng(0).integers(0, 256, (2, 81, 96, 3), np.uint8)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    inputs = processor(text=TEXTS, images=list(images), return_tensors="pt")
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()(**inputs)
    ours = big_ssl.load(tmp_path / "ours")
    parity_figure("hf_align", "export", ours.encode_text(TEXTS), theirs.text_embeds)
    parity_figure("hf_align", "export", ours.encode_image(images), theirs.image_embeds)
    np.testing.assert_allclose(ours.encode_text(TEXTS), theirs.text_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.encode_image(images), theirs.image_embeds, rtol=0, atol=1e-5)


BACKBONE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    layer_norm_eps=1e-6,
)


def backbone(kind):
    if kind == "hf_vit":
        config = transformers.ViTConfig(**BACKBONE, intermediate_size=64)
        return transformers.ViTModel(config, add_pooling_layer=False)
    if kind == "hf_dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**BACKBONE))
    config = transformers.Dinov2WithRegistersConfig(**BACKBONE, num_register_tokens=3)
    return transformers.Dinov2WithRegistersModel(config)


@pytest.mark.parametrize("kind", ["hf_vit", "hf_dinov2", "hf_dinov2 with registers"])
def test_a_backbone(kind, tmp_path):
    source = kind.split()[0]
    randomized(backbone(kind)).save_pretrained(tmp_path / "theirs")
    pillow = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil
    settings = dict(size=dict(shortest_edge=40), crop_size=dict(height=32, width=32), resample=3)
    settings |= dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3])
    pillow(**settings).save_pretrained(tmp_path / "theirs")
    convert(source, tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", source, tmp_path / "out", {})
    images = np.random.default_rng(0).integers(0, 256, (2, 41, 56, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    inputs = processor(list(images), return_tensors="pt")
    with torch.no_grad():
        peer = transformers.AutoModel.from_pretrained(tmp_path / "out")
        theirs = peer.eval()(**inputs).last_hidden_state
    ours = big_ssl.load(tmp_path / "ours")
    found = ours.encode_image(images, normalize=False)
    parity_figure(source, "export", found, theirs[:, 0])
    np.testing.assert_allclose(found, theirs[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.patch_features(images), theirs[:, -16:], rtol=1e-4, atol=1e-4)
