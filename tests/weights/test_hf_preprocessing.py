"""transformers' settings of image processors: every key is heeded, or refused by one line that names it."""

import json

import numpy as np
import pytest

from big_ssl.weights import hf_preprocessing
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import CLIP_PIXELS, HALF_PIXELS
from big_ssl.weights.formats import read_checkpoint
from tests.parity import goldens

CLIP, SIGLIP, VIT, ALIGN = (f"{name}ImageProcessor" for name in ("CLIP", "Siglip", "ViT", "EfficientNet"))
PLAIN, NESTED = hf_preprocessing.FILES


def read(settings, processor=CLIP):
    return hf_preprocessing.read({PLAIN: settings}, {}, processor)


@pytest.mark.parametrize(
    ("processor", "settings", "size", "resize"),
    [
        (CLIP, {}, 224, "crop floor"),
        (CLIP, dict(size=256, crop_size=224), 224, "crop 256 floor"),
        (
            CLIP,
            dict(size=dict(shortest_edge=256), crop_size=[224, 224], resample=2),
            224,
            "crop 256 bilinear floor",
        ),
        (CLIP, dict(size=dict(height=64, width=64), do_center_crop=False), 64, "stretch"),
        (VIT, dict(size=384), 384, "stretch bilinear"),
        (SIGLIP, dict(size=384, default_to_square=True), 384, "stretch"),
        (CLIP, dict(size=384, crop_size=336, default_to_square=True), 336, "stretch 384 floor"),
        (SIGLIP, dict(size=[64, 64], resample=1), 64, "stretch lanczos"),
        (
            SIGLIP,
            dict(size=dict(height=64, width=64), do_center_crop=True, crop_size=48),
            48,
            "stretch 64 floor",
        ),
        (SIGLIP, dict(size=[64, 64], resample=0), 64, "stretch nearest"),
        (CLIP, dict(image_processor_type="SiglipImageProcessorFast", size=[64, 64]), 64, "stretch"),
        (
            SIGLIP,
            dict(feature_extractor_type="CLIPFeatureExtractor", size=64, crop_size=64),
            64,
            "crop floor",
        ),
        (
            CLIP,
            dict(size=64, crop_size=64, do_convert_rgb=True, do_flip=False, do_pad=None),
            64,
            "crop floor",
        ),
    ],
)
def test_sizes_crops_and_filters_are_read(processor, settings, size, resize):
    found = read(settings, processor)
    assert (found["image_size"], found["resize"]) == (size, resize)


@pytest.mark.parametrize(
    ("processor", "settings", "mean", "std"),
    [
        (CLIP, {}, CLIP_PIXELS["mean"], CLIP_PIXELS["std"]),
        (SIGLIP, {}, HALF_PIXELS["mean"], HALF_PIXELS["std"]),
        (CLIP, dict(image_mean=0.5, image_std=[0.1, 0.2, 0.3]), (0.5,) * 3, (0.1, 0.2, 0.3)),
        (CLIP, dict(do_normalize=False), (0.0,) * 3, (1.0,) * 3),
        # 2 x / 255, then (2 x / 255 - 0.5) / 0.5.
        (SIGLIP, dict(rescale_factor=2 / 255), (0.25,) * 3, (0.25,) * 3),
        # Of pixels from 0 to 255.
        (SIGLIP, dict(do_rescale=False, image_mean=127.5, image_std=127.5), (0.5,) * 3, (0.5,) * 3),
        (
            ALIGN,
            dict(
                resample=2,
                rescale_factor=1 / 127.5,
                rescale_offset=True,
                do_normalize=False,
                include_top=False,
            ),
            (0.5,) * 3,
            (0.5,) * 3,
        ),
        (ALIGN, dict(resample=2), (0.5,) * 3, (0.25,) * 3),  # the last layer's normalisation: twice by 0.5
    ],
)
def test_the_scale_the_offset_and_the_normalisation_become_one_mean_and_deviation(
    processor, settings, mean, std
):
    view = read(settings, processor)["views"]["image"]
    np.testing.assert_allclose(view["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(view["std"], std, rtol=1e-12)


@pytest.mark.parametrize(
    ("processor", "settings", "message"),
    [
        (
            CLIP,
            dict(do_flip=True),
            "do_flip is True, which we do not know; --model.accept=do_flip ignor",
        ),
        (CLIP, dict(do_resize=False), "do_resize is false; all images of a batch must have one size"),
        (
            CLIP,
            dict(resample=9),
            "resample is 9; there are 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicu",
        ),
        (
            CLIP,
            dict(do_center_crop=False),
            "size is {'shortest_edge': 224} without do_center_crop; images",
        ),
        (CLIP, dict(crop_size=256), "crop_size is 256, larger than size 224; images would be padded"),
        (CLIP, dict(size=dict(longest_edge=224)), "size is {'longest_edge': 224}; it must contain one side"),
        (
            CLIP,
            dict(size=dict(height=64, width=32)),
            "size is {'height': 64, 'width': 32}; it must contain",
        ),
        (SIGLIP, dict(size=384), "size is 384 without do_center_crop; images would not be square"),
        (CLIP, dict(size="224"), "size is 224; it must contain one side"),
        (CLIP, dict(image_mean=[]), "image_mean is []; it must be one number, or one for each channel"),
        (
            CLIP,
            dict(image_processor_type="FuyuImageProcessor"),
            "FuyuImageProcessor is no image processor",
        ),
        (ALIGN, {}, "resample is missing, and an EfficientNetImageProcessor has no default"),
        (CLIP, dict(rescale_offset=True), "rescale_offset is True, which we do not know"),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(processor, settings, message):
    with pytest.raises(WeightsError) as caught:
        read(settings, processor)
    assert str(caught.value).startswith(f"{PLAIN}: {message}")


def test_processor_config_is_read_and_preferred_as_transformers_does():
    files = {NESTED: dict(image_processor=dict(size=64, crop_size=64), processor_class="CLIPProcessor")}
    assert hf_preprocessing.read(files, {}, CLIP)["image_size"] == 64
    assert hf_preprocessing.read(files | {PLAIN: dict(size=32, crop_size=32)}, {}, CLIP)["image_size"] == 64
    older = {NESTED: dict(processor_class="CLIPProcessor"), PLAIN: dict(size=32, crop_size=32)}
    assert hf_preprocessing.read(older, {}, CLIP)["image_size"] == 32


def test_without_a_file_the_formats_own_preprocessing_stands():
    default = dict(image_size=3)
    assert hf_preprocessing.read({}, default, CLIP) == default
    assert hf_preprocessing.read({NESTED: dict(processor_class="CLIPProcessor")}, default, CLIP) == default


@pytest.mark.parametrize(("name", "kind"), [("hf_clip", "hf_clip"), ("hf_siglip", "hf_siglip")])
def test_an_unknown_key_is_accepted_if_it_is_named(name, kind, tmp_path):
    path = goldens.write_checkpoint(name, tmp_path)
    (tmp_path / PLAIN).write_text(json.dumps(dict(do_flip=True)))
    with pytest.raises(WeightsError, match="do_flip is True, which we do not know"):
        read_checkpoint(kind, path)
    read_checkpoint(kind, path, dict(accept=("do_flip",)))
