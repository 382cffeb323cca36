"""Our reading of image processors' settings against transformers' own processors, on random settings."""

import json

import numpy as np
import pytest

from big_ssl.data import preprocessing
from big_ssl.weights import hf_preprocessing
from tests.parity.figures import parity_figure

pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("transformers", reason="make parity installs transformers")

pytestmark = pytest.mark.parity

# The formats whose published files name these processors.
READ_BY = dict(
    CLIPImageProcessor=["hf_clip"],
    BitImageProcessor=["hf_dinov2"],
    SiglipImageProcessor=["hf_siglip"],
    ViTImageProcessor=["hf_vit"],
    EfficientNetImageProcessor=["hf_align"],
)
SHAPES = [(40, 60), (97, 31), (48, 48)]


def processors():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return (
        CLIPImageProcessorPil,
        BitImageProcessorPil,
        SiglipImageProcessorPil,
        ViTImageProcessorPil,
        EfficientNetImageProcessorPil,
    )


def random_settings(rng, name):
    """Settings for about half of the keys."""
    side = int(rng.choice([24, 32]))
    crops = bool(rng.random() < 0.6)
    by_edge = dict(shortest_edge=side) if crops else dict(height=side, width=side)
    settings = dict(
        size=rng.choice([by_edge, dict(height=side, width=side)]),
        do_center_crop=crops,
        crop_size=dict(height=24, width=24),
        resample=int(rng.choice([0, 1, 2, 3])),
    )
    options = dict(
        do_rescale=bool(rng.random() < 0.7),
        rescale_factor=float(rng.choice([1 / 255, 1 / 127.5])),
        do_normalize=bool(rng.random() < 0.7),
        image_mean=rng.random(3).tolist(),
        image_std=rng.uniform(0.2, 1, 3).tolist(),
    )
    if name.startswith("EfficientNet"):
        options |= dict(rescale_offset=bool(rng.random() < 0.5), include_top=bool(rng.random() < 0.5))
    return settings | {key: value for key, value in options.items() if rng.random() < 0.6}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", range(5))
def test_pixels_are_the_processors(kind, seed, tmp_path):
    rng = np.random.default_rng([kind, seed])
    processor_class = processors()[kind]
    name = processor_class.__name__.removesuffix("Pil")
    processor = processor_class(**random_settings(rng, name))
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    read = hf_preprocessing.read({"preprocessor_config.json": stored}, {}, name)
    for shape in SHAPES:
        images = rng.integers(0, 256, (2, *shape, 3), np.uint8)
        expected = processor(list(images), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        view = {key: np.asarray(value) for key, value in read["views"]["image"].items()}
        found = (preprocessing.of(read)(images) / 255 - view["mean"]) / view["std"]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-6 * max(np.abs(expected).max(), 1)  # float32 of float64
        scale = max(np.abs(expected).max(), 1)
        for format_ in READ_BY[name]:
            parity_figure(format_, "preprocessing", found / scale, expected / scale)
