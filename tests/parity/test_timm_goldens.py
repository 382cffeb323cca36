"""Perception Encoder, DINOv3 and a plain ViT as timm stores them, against what make_goldens.py wrote."""

import json

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

KINDS = ("timm_pe", "timm_dinov3", "timm_vit")


@pytest.mark.parametrize("kind", KINDS)
def test_timms_features(kind, tmp_path):
    folder = goldens.write_checkpoint(kind, tmp_path)
    assert guess(folder) == guess(folder / "model.safetensors") == kind
    config, ours = read_checkpoint(kind, folder)
    arrays = goldens.golden(kind)[1]
    for size in ("native", "wide"):
        expected = {name: arrays[f"{size}_{name}"] for name in ("patches", "pooled", "output")}
        goldens.assert_outputs(config, ours, arrays[f"{size}_images"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_the_arrays_tell(kind, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", goldens.golden(kind)[0], {})
    assert guess(tmp_path / "a.safetensors") == kind


def test_a_file_without_its_config(tmp_path):
    """The published models have heads of width 64, and the grid of their table as reference."""
    write_safetensors(tmp_path / "pe.safetensors", goldens.golden("timm_pe")[0], {})
    config = read_checkpoint("timm_pe", tmp_path / "pe.safetensors", dict(num_heads=4))[0]
    image = config["encoders"]["image"]
    assert (image["heads"], image["pooling_heads"], image["rope_side"], image["rope_base"]) == (4, 8, 4, 1e4)
    assert (config["resize"], config["views"]["image"]["mean"]) == ("crop", (0.5,) * 3)
    assert config["embedding_head"] == dict(embed_dim=5, bias=True)
    write_safetensors(tmp_path / "dinov3.safetensors", goldens.golden("timm_dinov3")[0], {})
    image = read_checkpoint("timm_dinov3", tmp_path / "dinov3.safetensors")[0]["encoders"]["image"]
    assert (image["heads"], image["pooling"], image["qkv_bias"]) == (1, "cls", "qv")
    write_safetensors(tmp_path / "vit.safetensors", goldens.golden("timm_vit")[0], {})
    assert read_checkpoint("timm_vit", tmp_path / "vit.safetensors")[0]["classes"] == 5


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("timm_pe", "architecture", "vit_pe_lang_large_patch14_448", "architecture is 'vit_pe_lang_large_p"),
        ("timm_pe", "architecture", "vit_pe_core_vast_patch14_448", "architecture is 'vit_pe_core_vast_pat"),
        ("timm_pe", "model_args.depth", 3, "config.json: depth is 3; the weights have 2"),
        ("timm_pe", "model_args.img_size", [16, 64], r"img_size is \[16, 64\]; the weights have 32"),
        ("timm_pe", "model_args.num_heads", 8, "heads is 8; it must divide the width 16 by 4"),
        (
            "timm_pe",
            "model_args.rope_grid_offset",
            0.5,
            "rope_grid_offset is 0.5, which this format does not",
        ),
        ("timm_pe", "model_args.num_heads", "2", "model_args.num_heads is '2'; it must be a whole number"),
        ("timm_pe", "global_pool", "token", "global_pool is 'token'; there is map"),
        ("timm_dinov3", "model_args.embed_dim", 32, "embed_dim is 32; the weights have 16"),
        ("timm_dinov3", "model_args.rope_rotate_half", False, "--model.accept=rope_rotate_half ignores it"),
        ("timm_dinov3", "global_pool", "max", "global_pool is 'max'; there is avg, token"),
        ("timm_vit", "architecture", "vit_base_patch16_clip_224", "architecture is 'vit_base_patch16_clip_2"),
        ("timm_vit", "model_args.depth", 3, "config.json: depth is 3; the weights have 2"),
        ("timm_vit", "model_args.qk_norm", True, "model_args.qk_norm is True, which this format does not"),
        ("timm_vit", "pretrained_cfg.crop_mode", "border", "crop_mode is 'border'; there is center, squash"),
        (
            "timm_vit",
            "pretrained_cfg.interpolation",
            "nearest",
            "interpolation is 'nearest'; there is bicubic",
        ),
        ("timm_vit", "pretrained_cfg.input_size", [3, 32, 64], r"input_size is \[3, 32, 64\]; it must be"),
    ],
)
def test_a_config_that_does_not_fit(kind, path, value, message, tmp_path):
    folder = goldens.write_checkpoint(kind, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    *parts, key = path.split(".")
    (config[parts[0]] if parts else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(kind, folder)


def test_arrays_that_are_not_read(tmp_path):
    cases = {
        "timm_pe": ("blocks.0.gamma_1", "blocks.0.gamma_1 is no weight of this architecture"),
        "timm_dinov3": ("blocks.0.attn.k_bias", "blocks.0.attn.k_bias is no weight of this architecture"),
        "timm_vit": ("norm_pre.weight", "norm_pre.weight is no weight of this architecture"),
    }
    for kind, (name, message) in cases.items():
        folder = goldens.write_checkpoint(kind, tmp_path / kind, **{name: np.ones(16, np.float32)})
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(kind, folder)
    folder = goldens.write_checkpoint("timm_pe", tmp_path / "pool", attn_pool__latent=None)
    with pytest.raises(WeightsError, match=r"attn_pool\.latent is missing"):
        read_checkpoint("timm_pe", folder)
