"""Vision towers alone, as transformers saves them, on random weights."""

import numpy as np
import pytest

import big_ssl

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

pytestmark = pytest.mark.parity

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
SHAPE |= dict(image_size=32, patch_size=8)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_a_vision_tower_gives_transformers_features(family, tmp_path):
    config = getattr(transformers, f"{family}VisionConfig")(**SHAPE)
    peer = getattr(transformers, f"{family}VisionModel")(config).eval()
    torch.manual_seed(0)
    for parameter in peer.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    peer.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    model = big_ssl.load(tmp_path)
    view = {key: np.asarray(model.config["views"]["image"][key], np.float32) for key in ("mean", "std")}
    pixels = (images / np.float32(255) - view["mean"]) / view["std"]
    with torch.no_grad():
        expected = peer(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output.numpy()
    found = model.encode_image(images, normalize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
