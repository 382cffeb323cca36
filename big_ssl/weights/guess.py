"""The format of a checkpoint, from its files' names, its config, or the names of its arrays."""

import re
from collections.abc import Callable, Set

from big_ssl import io
from big_ssl.weights import json_files, swin, timm_dinov2, timm_dinov3, timm_pe, timm_vit
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, unwrapped
from big_ssl.weights.tensor_files import INDEX, read_tensors

# config.json's model_type.
_MODEL_TYPES = dict(
    clip="hf_clip",
    clip_text_model="hf_clip",
    clip_vision_model="hf_clip",
    metaclip_2="hf_metaclip2",
    metaclip_2_text_model="hf_metaclip2",
    metaclip_2_vision_model="hf_metaclip2",
    siglip="hf_siglip",
    siglip_text_model="hf_siglip",
    siglip_vision_model="hf_siglip",
    align="hf_align",
    bert="hf_bert",
    dinov2="hf_dinov2",
    dinov2_with_registers="hf_dinov2",
    dinov3_vit="hf_dinov3",
    tipsv2="hf_tipsv2",
    tipsv2_vision_model="hf_tipsv2",
    vit="hf_vit",
    swin="hf_swin",
    swinv2="hf_swinv2",
)
# The architecture in timm's config.json.
_ARCHITECTURES = {
    timm_dinov2.ARCHITECTURE: "timm_dinov2",
    timm_dinov3.ARCHITECTURE: "timm_dinov3",
    timm_pe.ARCHITECTURE: "timm_pe",
    timm_vit.ARCHITECTURE: "timm_vit",
    swin.ARCHITECTURE: "swin",
}


def guess(path) -> str:
    """The format of a checkpoint, a key of FORMATS.

    path: as in weights.formats.read_checkpoint. Raises FileNotFoundError, or WeightsError if no format fits
    or several do.
    """
    path = io.as_path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    kinds = _of_folder(path) if path.is_dir() else _of_file(path)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise WeightsError(f"{path} fits {' and '.join(kinds)}: choose one with --from")
    if path.is_dir():
        raise FileNotFoundError(f"{path} has neither checkpoints of a run nor weights beside their config")
    raise WeightsError(f"{path} is of no format that we recognize: choose one with --from")


def _of_folder(folder):
    described = _described(folder)
    with_weights = [kind for kind in described if _has_weights(folder, kind)]
    return with_weights or described or (["big_ssl"] if (folder / "checkpoints").exists() else [])


def _of_file(file):
    kinds = [kind for kind in FORMATS if file.name.removesuffix(INDEX) in FORMATS[kind].weights]
    # A config beside a file of another name is not this one's.
    described = _described(file.parent) if kinds else []
    return [kind for kind in described if kind in kinds] or _by_content(file)


def _described(folder):
    """Formats whose JSON files are in a folder."""
    kinds = []
    if (folder / "open_clip_config.json").is_file():
        kinds.append("open_clip")
    if (file := folder / "config.json").is_file():
        kinds += _of_config(file)
    return kinds


def _of_config(file):
    config = json_files.read_object(file)
    if "encoders" in config:
        return ["big_ssl"]
    architecture = str(config.get("architecture"))
    if kinds := [kind for pattern, kind in _ARCHITECTURES.items() if re.fullmatch(pattern, architecture)]:
        return kinds
    model_type = config.get("model_type")
    if model_type is None:
        return []
    if str(model_type).startswith("siglip2"):
        raise WeightsError(
            f"{file}: model_type {model_type!r}, of variable resolution (NaFlex), is not read; SigLIP 2 of "
            "fixed resolution is stored as 'siglip'"
        )
    if model_type not in _MODEL_TYPES:
        known = ", ".join(_MODEL_TYPES)
        raise WeightsError(f"{file}: model_type {model_type!r} is not read; there are {known}")
    return [_MODEL_TYPES[model_type]]


def _has_weights(folder, kind):
    return any((folder / (name + end)).is_file() for name in FORMATS[kind].weights for end in ("", INDEX))


def _by_content(path):
    """Formats that the names of a file's arrays fit."""
    if path.suffix == ".npz":
        return ["siglip_npz"]
    names = unwrapped(read_tensors(path)).keys()
    return [kind for kind, fits in _SIGNS.items() if fits(names)]


_ROPE = r"rope_embed\.periods$"
_NO_PLAIN_VIT = rf"ls1\.gamma$|{_ROPE}|\.gamma_1$|^norm_pre\.|^attn_pool\.|(^|\.)layers\."


def _has(names: Set[str], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in names)


def _is_clip(names):
    return "logit_scale" in names and _has(names, r"^visual\.(conv1|layer1)\.")


def _is_vit(names):
    return _has(names, r"(^|\.)blocks\.(\d+\.)*attn\.qkv\.weight$")


def _is_dinov2(names):
    return _is_vit(names) and _has(names, r"ls1\.gamma$") and not _has(names, _ROPE)


def _is_timm(names, marks: str) -> bool:
    return _is_vit(names) and _has(names, rf"^({marks})$")


def _is_swin(names):
    return _has(names, r"layers\.0\.blocks\.0\.attn\.(relative_position_bias_table|logit_scale)$")


# OpenAI's archives state the resolution. The same arrays without it may be from either code, and their
# activations differ.
_SIGNS: dict[str, Callable[[Set[str]], bool]] = {
    "openai_clip": _is_clip,
    "open_clip": lambda names: _is_clip(names) and "input_resolution" not in names,
    "dinov3": lambda names: _is_vit(names) and _has(names, _ROPE),
    "dinov2": lambda names: _is_dinov2(names) and _has(names, r"mask_token$"),
    "timm_dinov2": lambda names: _is_dinov2(names) and not _has(names, r"mask_token$"),
    "timm_dinov3": lambda names: _is_timm(names, r"blocks\.0\.gamma_1"),
    "timm_pe": lambda names: _is_timm(names, r"norm_pre\.weight") and _has(names, r"^attn_pool\.latent$"),
    # Of plain ViTs, timm's alone have this classifier.
    "timm_vit": lambda names: _is_timm(names, r"head\.weight") and not _has(names, _NO_PLAIN_VIT),
    "ibot": lambda names: _is_vit(names) and not _has(names, rf"{_NO_PLAIN_VIT}|^head\.weight$"),
    "swin": lambda names: _is_swin(names) and "logit_scale" not in names,
    "unicl": lambda names: _is_swin(names) and "logit_scale" in names,
}
