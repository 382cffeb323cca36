"""The format that is guessed from a checkpoint's files."""

import json

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests import commands
from tests.parity import goldens

CLIP_NAMES = ("logit_scale", "visual.conv1.weight", "token_embedding.weight")
SWIN_NAME = "layers.0.blocks.0.attn.relative_position_bias_table"
VIT_NAMES = ("blocks.0.attn.qkv.weight", "pos_embed")


def write(path, names):
    write_safetensors(path, {name: np.zeros(1, np.float32) for name in names}, {})
    return path


@pytest.mark.parametrize("kind", ["hf_clip", "hf_siglip", "hf_align", "hf_dinov2", "hf_swin", "hf_swinv2"])
def test_the_config_of_a_folder_tells(kind, tmp_path):
    folder = goldens.write_checkpoint(kind, tmp_path)
    assert guess(folder) == guess(folder / "model.safetensors") == kind


def test_our_folders_and_open_clips(tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    for encoder in config["encoders"].values():
        encoder["activation"] = "gelu"
    for kind in ("big_ssl", "open_clip"):
        write_checkpoint(kind, tmp_path / kind, config, ours)
        assert guess(tmp_path / kind) == kind
    # A hub's folder with both transformers' and open_clip's files of one model.
    for file in (tmp_path / "open_clip").iterdir():
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match="fits open_clip and hf_clip: choose one with --from"):
        guess(tmp_path / "in")
    assert guess(tmp_path / "in" / "open_clip_model.safetensors") == "open_clip"
    assert guess(tmp_path / "in" / "model.safetensors") == "hf_clip"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((*CLIP_NAMES, "input_resolution"), None),
        ((*VIT_NAMES, "blocks.0.ls1.gamma", "mask_token"), "dinov2"),
        (("teacher.backbone.blocks.0.3.attn.qkv.weight", "x.ls1.gamma", "x.mask_token"), "dinov2"),
        ((*VIT_NAMES, "blocks.0.ls1.gamma", "reg_token"), "timm_dinov2"),
        ((*VIT_NAMES, "masked_embed"), "ibot"),
        (("state_dict.module.blocks.0.attn.qkv.weight",), "ibot"),
        ((f"model.{SWIN_NAME}", f"model.{SWIN_NAME.replace('table', 'index')}"), "swin"),
        (("layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.qkv.weight"), "swin"),
        ((f"model.visual.{SWIN_NAME}", "model.logit_scale", "model.text.ln_final.bias"), "unicl"),
    ],
)
def test_the_names_of_the_arrays_tell(names, expected, tmp_path):
    expected = expected or "openai_clip"
    assert guess(write(tmp_path / "weights.safetensors", names)) == expected


def test_an_npz_is_big_visions(tmp_path):
    (tmp_path / "siglip.npz").touch()
    assert guess(tmp_path / "siglip.npz") == "siglip_npz"


def test_what_fits_two_formats_or_none_is_an_error(tmp_path):
    """OpenAI's and open_clip's arrays have the same names, and other activations."""
    both = write(tmp_path / "clip.safetensors", CLIP_NAMES)
    with pytest.raises(WeightsError, match="fits openai_clip and open_clip: choose one with --from"):
        guess(both)
    with pytest.raises(WeightsError, match="no format that we recognize: choose one with --from"):
        guess(write(tmp_path / "other.safetensors", ["a"]))
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="blip")))
    with pytest.raises(
        WeightsError,
        match="model_type 'blip' is not read; there are clip, clip_text_model",
    ):
        guess(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="siglip2")))
    with pytest.raises(WeightsError, match=r"'siglip2', of variable resolution \(NaFlex\), is not read"):
        guess(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json holds a JSON list; it must hold an object"):
        guess(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        guess(tmp_path / "nowhere")


def test_the_command_says_what_it_guessed(tmp_path):
    folder = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    done = commands.run("big_ssl.convert", f"--input={folder}", f"--output={tmp_path / 'out'}")
    assert done.stdout.startswith("read as hf_clip\n")
    assert guess(tmp_path / "out") == "big_ssl"
