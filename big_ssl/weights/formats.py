"""Reads and writes checkpoints of all formats, including our own."""

import json
from collections.abc import Mapping

import numpy as np

from big_ssl import io, version
from big_ssl.weights import (
    architecture,
    dino_heads,
    dinov2,
    dinov3,
    hf_align,
    hf_bert,
    hf_clip,
    hf_dinov2,
    hf_dinov3,
    hf_metaclip2,
    hf_siglip,
    hf_swin,
    hf_tipsv2,
    hf_vit,
    ibot,
    image_channels,
    json_files,
    open_clip,
    openai_clip,
    position_tables,
    rules,
    siglip_npz,
    swin,
    timm_dinov2,
    timm_dinov3,
    timm_pe,
    timm_vit,
    unicl,
)
from big_ssl.weights.errors import WeightsError, reason
from big_ssl.weights.format import Format, ModelConfig, json_file
from big_ssl.weights.tensor_files import INDEX, read_tensors, write_safetensors

# Our own format: a ModelConfig, and the weights under their parameter paths.
_OURS = Format(
    config=lambda tensors, files, options: json_file(files, "config.json"),
    rules=lambda config: [rules.Rule(path, (path,), rules.SAME) for path in architecture.shapes(config)],
    weights=("model.safetensors",),
    files=("config.json",),
    describe=lambda config: {"config.json": config},
    encoders=(),
)

FORMATS: dict[str, Format] = {
    "big_ssl": _OURS,
    "openai_clip": openai_clip.FORMAT,
    "open_clip": open_clip.FORMAT,
    "hf_clip": hf_clip.FORMAT,
    "hf_metaclip2": hf_metaclip2.FORMAT,
    "hf_siglip": hf_siglip.FORMAT,
    "siglip_npz": siglip_npz.FORMAT,
    "hf_align": hf_align.FORMAT,
    "hf_bert": hf_bert.FORMAT,
    "dinov2": dinov2.FORMAT,
    "hf_dinov2": hf_dinov2.FORMAT,
    "dinov3": dinov3.FORMAT,
    "hf_dinov3": hf_dinov3.FORMAT,
    "hf_tipsv2": hf_tipsv2.FORMAT,
    "timm_dinov2": timm_dinov2.FORMAT,
    "timm_dinov3": timm_dinov3.FORMAT,
    "timm_pe": timm_pe.FORMAT,
    "timm_vit": timm_vit.FORMAT,
    "ibot": ibot.FORMAT,
    "hf_vit": hf_vit.FORMAT,
    "swin": swin.FORMAT,
    "hf_swin": hf_swin.FORMAT,
    "hf_swinv2": hf_swin.FORMAT_V2,
    "unicl": unicl.FORMAT,
}
WRITABLE = tuple(name for name, format_ in FORMATS.items() if format_.describe)


def read_checkpoint(
    kind: str, path, options: Mapping | None = None
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Reads a checkpoint.

    Args:
      kind: a format in FORMATS.
      path: the weights file, the index of its shards, or the folder with it and the format's JSON files.
      options: settings that the checkpoint lacks, such as num_heads; for all formats also `accept`, keys of
        the JSON files to ignore ("a,b" or a sequence), `non_finite`, whether to accept weights that are not
        finite, and `channels`, the images' if the weights of a model of RGB images shall be adapted to them.

    Returns:
      (ModelConfig, our weights {path: float32 array}).

    Raises:
      FileNotFoundError: without a weights file.
      WeightsError: naming the file and what is wrong with it; for an unknown format.
    """
    if kind not in FORMATS:
        raise WeightsError(f"there is no format {kind!r}; there are {', '.join(FORMATS)}")
    format_, file = FORMATS[kind], _weights_file(kind, io.as_path(path))
    stored, options = unwrapped(read_tensors(file)), dict(options or {})
    accepted, non_finite = _accepted(options.pop("accept", None)), options.pop("non_finite", False)
    channels = options.pop("channels", None)
    for option in options:
        if option not in format_.options:
            known = ", ".join(format_.options) or "none"
            raise WeightsError(f"{kind} takes no option {option}; there is {known}")
    files = json_files.read(file.parent, format_.files, accepted)
    try:
        tensors = format_.prepare(stored, options)
        config = format_.config(tensors, files, options)
        of_format = format_.rules(config)
        config = image_channels.stated(config, of_format, tensors)
        ours = rules.read(of_format, format_.ignored, tensors, architecture.shapes(config))
        if not non_finite:
            _check_finite(ours)
        if channels is not None:
            config, ours = image_channels.adapted(config, ours, channels)
    except Exception as error:  # of any kind: from modules and JAX too, for sizes and options they reject
        writer = f" of version {version.written_by(file.parent)}" if kind == "big_ssl" else ""
        raise WeightsError(f"{file}, as {kind}{writer}: {reason(error)}") from error
    return config, ours


def _accepted(keys) -> tuple[str, ...]:
    """The keys in "a,b", or in a sequence of such texts; none of None."""
    texts = [keys] if isinstance(keys, str) else keys or ()
    return tuple(key for text in texts for key in text.split(","))


def write_checkpoint(kind: str, folder, config: ModelConfig, ours: Mapping[str, np.ndarray]) -> dict:
    """Writes a checkpoint: the weights and the format's JSON files.

    Only our own format stores self-distillation heads; public formats store the trained backbone. A position
    table is resized to the images' size if the format's model class would resize it in another way than ours.

    Args:
      kind: a format in WRITABLE.
      folder: where to write; made if missing.
      config: the model's ModelConfig.
      ours: {path: array}.

    Returns:
      {path: array} of the weights written.

    Raises:
      WeightsError: if the format can't store this architecture; nothing is written then.
    """
    format_, folder = FORMATS[kind], io.as_path(folder)
    if format_.describe is None:
        raise WeightsError(f"{kind} can only be read; writable formats: {', '.join(WRITABLE)}")
    encoders = architecture.encoder_names(config)
    if format_.encoders and encoders != format_.encoders:
        actual, required = (" and ".join(names) for names in (encoders, format_.encoders))
        raise WeightsError(f"{kind} is for models of {required}; this is one of {actual}")
    if kind != "big_ssl" and (channels := config["encoders"].get("image", {}).get("channels", 3)) != 3:
        raise WeightsError(f"{kind} is for images of 3 channels; this model reads {channels}")
    if format_.position_resize is not None:
        config, ours = position_tables.at_image_size(config, ours, format_.position_resize)
    described = format_.describe(architecture.with_defaults(config))
    if kind != "big_ssl":
        heads = tuple(map(dino_heads.PROJECTION.format, config.get("projections", {})))
        ours = {path: array for path, array in ours.items() if not path.startswith(heads)}
    tensors = rules.write(format_.rules(config), ours)
    io.make_folder(folder)
    # transformers requires the framework in the metadata.
    write_safetensors(folder / format_.weights[0], tensors, dict(format="pt"))
    for name, content in described.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if kind == "big_ssl":
        version.write(folder)
    return dict(ours)


def _weights_file(kind, path):
    if not path.is_dir():
        return path
    names = FORMATS[kind].weights
    files = [path / (name + end) for name in names for end in ("", INDEX)]
    existing = [file for file in files if file.is_file()]
    if not existing:
        hint = f"there is none of {', '.join(names)}" if names else "give the weights' own file"
        raise FileNotFoundError(f"{path} is a folder; as {kind}, {hint}")
    return existing[0]


# Names under which wrappers put all weights: PyTorch's data parallelism and compilation, Lightning, scripts.
_WRAPPERS = ("module", "_orig_mod", "state_dict", "model")
# What training checkpoints have beside them.
_TRAINING_STATE = {
    "optimizer",
    "optimizers",
    "optimizer_states",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scaler",
    "fp16_scaler",
    "epoch",
    "loops",
    "callbacks",
    "hyper_parameters",
    "hparams",
    "args",
    "iteration",
    "global_step",
    "native_amp_scaling_state",
}


def unwrapped(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays without the names of wrappers before all of theirs, and without training state."""
    roots = {name.partition(".")[0] for name in tensors} - _TRAINING_STATE
    if len(roots) != 1 or (wrapper := roots.pop()) not in _WRAPPERS:
        return tensors
    inner = {n.removeprefix(f"{wrapper}."): x for n, x in tensors.items() if n.startswith(f"{wrapper}.")}
    return unwrapped(inner)


def _check_finite(ours):
    for path, array in ours.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{path} has values that are not finite; --model.non_finite accepts them")
