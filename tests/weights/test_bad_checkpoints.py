"""Files that are no checkpoint of the requested format: one-line errors with the file and the reason."""

import numpy as np
import pytest

from big_ssl.weights.formats import read_checkpoint
from tests.parity import goldens
from tests.weights.test_tensor_files import Global, write_archive

WEIGHTS = "model.safetensors"
NORM = "vision_model.post_layernorm.bias"


def hf(folder, **changes):
    return goldens.write_checkpoint("hf_clip", folder, **changes)


def cut(folder):
    hf(folder)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    return folder


def cut_pt(folder):
    write_archive(folder / "clip.pt", {"a": 1}, {"0": np.zeros(1000, np.float32)})
    data = (folder / "clip.pt").read_bytes()
    (folder / "clip.pt").write_bytes(data[: len(data) // 2])
    return folder / "clip.pt"


def npz_named(name):
    def write(folder):
        with (folder / name).open("wb") as file:
            np.savez(file, **goldens.golden("hf_clip")[0])
        return folder if name == WEIGHTS else folder / name

    return write


def safetensors_named(name):
    def write(folder):
        hf(folder)
        return (folder / WEIGHTS).rename(folder / name)

    return write


def code(name, path):
    def write(folder):
        hf(folder)
        (folder / WEIGHTS).unlink()
        write_archive(folder / name, {"state_dict": Global("os", "system", "touch bad")}, {})
        return folder / path

    return write


def text(name):
    def write(folder):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 605247071\n")
        return folder / name

    return write


RUNS_CODE = (
    "no PyTorch state dict: it pickles os.system, which would run code; only dicts of tensors are read"
)
BEFORE_ZIP = "no PyTorch zip archive, or a truncated one"


@pytest.mark.parametrize(
    ("write", "kind", "file", "message"),
    [
        (cut, "hf_clip", WEIGHTS, "the file is truncated"),
        (cut_pt, "openai_clip", "clip.pt", BEFORE_ZIP),
        (npz_named(WEIGHTS), "hf_clip", WEIGHTS, "no safetensors file, or a truncated one"),
        (npz_named("clip.pt"), "openai_clip", "clip.pt", "a zip archive without PyTorch's data.pkl"),
        (safetensors_named("siglip.npz"), "siglip_npz", "siglip.npz", "no npz file, or a truncated one"),
        (safetensors_named("clip.pt"), "openai_clip", "clip.pt", BEFORE_ZIP),
        (text("siglip.npz"), "siglip_npz", "siglip.npz", "no npz file, or a truncated one"),
        (text("x.safetensors"), "hf_clip", "x.safetensors", "no safetensors file, or a truncated one"),
        (text("clip.pt"), "openai_clip", "clip.pt", BEFORE_ZIP),
        (code("pytorch_model.bin", ""), "hf_clip", "pytorch_model.bin", RUNS_CODE),
        (code("clip.pt", "clip.pt"), "openai_clip", "clip.pt", RUNS_CODE),
        (hf, "open_clip", "", "there is none of open_clip_model.safetensors, open_clip_pytorch_model.bin"),
        (hf, "siglip_npz", "", "give the weights' own file"),
        (
            safetensors_named("open_clip_model.safetensors"),
            "open_clip",
            "",
            "open_clip_config.json is missing",
        ),
        (lambda folder: hf(folder, **{NORM: None}), "hf_clip", WEIGHTS, f"{NORM} is missing"),
        (
            lambda folder: hf(folder, **{NORM: np.zeros(24, np.int8)}),
            "hf_clip",
            WEIGHTS,
            f"{NORM} is of dtype int8; weights are floating point",
        ),
        (
            lambda folder: hf(folder, **{NORM: np.zeros((24, 1), np.float32)}),
            "hf_clip",
            WEIGHTS,
            f"{NORM} is [24, 1]; the architecture has [24]",
        ),
        (lambda folder: folder / "none.pt", "openai_clip", "none.pt", "no file "),
    ],
)
def test_the_error_for_a_bad_checkpoint_is_one_line(write, kind, file, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_checkpoint(kind, write(tmp_path))
    error = str(caught.value)
    assert message in error
    assert str(tmp_path / file) in error
    assert "\n" not in error
    assert not (tmp_path / "bad").exists()


def test_a_duplicate_name_in_one_file_is_an_error(tmp_path):
    text = b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "x": {"dtype": "F32"}}'
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*x is there twice"):
        read_checkpoint("hf_clip", tmp_path)
