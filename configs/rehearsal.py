"""A full recipe, narrow and short: --config=configs/RECIPE.py:rehearsal, for launch/rehearse.sh.

What a pod would run stays as it is: bfloat16, loops over layers, recomputation, FSDP, the optimiser, the
objectives, the shapes of the schedules, TFDS's files, a vocabulary of the recipe's kind. Widths, depths,
images, the batch and the steps are small enough for two processes on a laptop.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from big_ssl.training import stages
from configs import emoji

STEPS, BATCH = 12, 16
# Words at the most, of the vocabulary that is trained for it.
VOCABULARY = 768
# Examples of a device: of launch/rehearse.sh's four. Groups within a device must divide it.
_PER_DEVICE = BATCH // 4
# Images have about a quarter of their side.
_SHRINK = 4
# The name of the dataset of launch/rehearsal_data.py, and its number of classes.
DATA_SET, CLASSES = "rehearsal", emoji.CATEGORIES
# So wide that FSDP splits the kernels of an MLP: smaller arrays stay whole.
_WIDTH, _POOLED = 128, 80

_NARROW: dict[str, dict[str, Any]] = {
    "vit": dict(width=_WIDTH, depth=2, heads=2),
    "resnet": dict(width=8, blocks=(1, 2, 2, 1), pooled_dim=_POOLED),
    # Four maps, two blocks in a loop in the third; wide enough for FSDP in the last two.
    "swin": dict(width=32, depths=(2, 2, 4, 2), heads=(1, 2, 4, 8)),
    # Its pooled output has 320 * width channels; one stage still has two blocks, in a loop.
    "efficientnet": dict(width=_POOLED / 320, depth=0.3),
    "bert": dict(width=_WIDTH, depth=2, heads=2),
    "text_transformer": dict(width=_WIDTH, depth=2, heads=2),
}
_HEAD = dict(prototypes=64, hidden=32, bottleneck=16)


def shrink(full: dict) -> dict:
    """The recipe `full`, made narrow and short, with its stages; `full` itself is not changed."""
    if not full.get("stages"):
        return _shrunk(full, STEPS)
    # Each stage is as long as the others: by their shares the last ones would have one step.
    steps = STEPS // len(full["stages"])
    first, *later = (_shrunk(stage.config, steps) for stage in stages.resolve(full))
    listed = [
        {key: value for key, value in stage.items() if key in ("name", "handover")}
        | dict(steps=steps)
        | _changes(first, config)
        for stage, config in zip(full["stages"], (first, *later), strict=True)
    ]
    return first | dict(total_steps=steps * len(listed), stages=tuple(listed))


def _changes(config, changed):
    """What a stage says to turn a config into another one."""
    parts = {
        key: _changes(config[key], value) if _are_mappings(config.get(key), value) else value
        for key, value in changed.items()
        if key not in config or config[key] != value
    }
    return dict.fromkeys(config.keys() - changed.keys()) | parts


def _are_mappings(*values):
    return all(isinstance(value, Mapping) for value in values)


def _shrunk(full, steps):
    """A recipe without stages, or one of the stages; steps: of it."""
    config = copy.deepcopy(full)
    config.update(name=f"{full['name']}_rehearsal", log_every=1, eval_every=STEPS // 2)
    config["mesh"].update(data=-1, fsdp=2)
    config["checkpoint"].update(every=STEPS // 4, keep=2)
    config["tokenizer"].update(vocabulary="", size=min(VOCABULARY, full["tokenizer"]["size"]))
    config["requires"].update(preset_here="tiny")
    image = full["encoders"]["image"]
    patch, pooled = _patch(image), _WIDTH if image["kind"] == "vit" else _POOLED
    for stream in config["streams"].values():
        _shrink_stream(stream, patch, pooled)
    _shrink_size(config["eval_transform"], patch)
    for encoder in config["encoders"].values():
        _narrow(encoder, patch)
    config["evals"] = _evals(config)
    if not config["checkpoint"]["best"] and "emoji" in config["evals"]:
        config["checkpoint"].update(best="eval/zero_shot/twemoji/top1")
    return _shorten(config, full["total_steps"], steps) | dict(total_steps=steps)


def _patch(encoder):
    """An image's side must be a multiple of this."""
    return encoder.get("patch", {"resnet": 32, "swin": 32}.get(encoder["kind"], 1))


def _side(size, patch):
    """About a quarter of a side, in whole patches, two at least."""
    return max(2, round(size / patch / _SHRINK)) * patch


def _shrink_stream(stream, patch, pooled):
    data = stream["data"]
    data.update(threads=2)
    for entry in data.get("sources", (data,)):
        changes = entry.get("fields", {})
        entry.update(source=_source([f | changes.get(name, {}) for name, f in data["fields"].items()]))
        for change in changes.values():
            if "label_set" in change:
                change.update(label_set="")  # the set's own names of classes, which are others
    for field in data["fields"].values():
        _shrink_field(field, patch)
    stream.update(batch_size=BATCH)
    for options in stream["objectives"].values():
        _shrink_objective(options, pooled)


def _source(fields):
    """The rehearsal's data, with the keys that these fields read."""
    texts = [field for field in fields if field["kind"] in ("text", "label")]
    keys = tuple("label" if f["kind"] == "label" or f.get("class_key") else "text" for f in texts)
    return dict(kind="tfds", name=DATA_SET, split="train", data_dir="", image_key="image", text_keys=keys)


def _shrink_field(field, patch):
    if field["kind"] == "text":
        field.update(captions=dict(text=1.0))
    if field["kind"] == "image":
        _shrink_size(field["crop"], patch)
    if field.get("mask"):
        grid, mask_group = field["crop"]["size"] // patch, min(field["mask"]["mask_group"], _PER_DEVICE)
        field["mask"].update(grid=grid, min_patches=1, mask_group=mask_group)
    if "mix_group" in field:
        field.update(mix_group=_PER_DEVICE)


def _shrink_size(options, patch):
    """The size of a crop, and in proportion the size that images are resized to before."""
    size = _side(options["size"], patch)
    if "resize" in options:
        options.update(resize=math.ceil(options["resize"] * size / options["size"]))
    options.update(size=size)


def _shrink_objective(options, pooled):
    if options["kind"] == "contrastive":
        options.update(embed_dim=pooled)  # what the image encoder returns, since not all recipes project it
    if isinstance(options.get("head"), Mapping):
        options["head"].update(_HEAD)
    if options.get("chunk"):
        options.update(chunk=2)
    if options.get("koleo_group"):
        options.update(koleo_group=_PER_DEVICE)
    if "classes" in options:
        options.update(classes=CLASSES)


def _narrow(encoder, patch):
    encoder.update(_NARROW[encoder["kind"]])
    if "image_size" in encoder:
        encoder.update(image_size=_side(encoder["image_size"], patch))
    if encoder.get("drop_path_groups", 1) > 1:
        encoder.update(drop_path_groups=BATCH // _PER_DEVICE)
    if encoder.get("bn_group"):
        encoder.update(bn_group=_PER_DEVICE)


def _evals(config):
    """The recipe's own on the rehearsal's data; of one without any, those of the embedded drawings."""
    evals = copy.deepcopy(config["evals"])
    for evaluator in evals.values():
        evaluator["data"].update(name=DATA_SET)
    if evals:
        return evals
    fields = [field for stream in config["streams"].values() for field in stream["data"]["fields"].values()]
    if any(field["kind"] == "text" for field in fields):
        return emoji.evals(("twemoji",), ("fxemoji",))
    return emoji.neighbours(("fxemoji",), ("fxemoji",))


def _shorten(value, total, steps):
    """A part of a config with its schedules scaled, from `total` steps to `steps`."""
    if not isinstance(value, Mapping):
        return tuple(_shorten(item, total, steps) for item in value) if isinstance(value, tuple) else value
    scaled = {key: _shorten(item, total, steps) for key, item in value.items()}
    if scaled.get("warmup_steps"):
        scaled["warmup_steps"] = min(max(1, round(scaled["warmup_steps"] * steps / total)), steps - 1)
    if scaled.get("kind") == "steps":
        starts = [round(step * steps / total) for step, _ in scaled["values"]]
        starts = [max(start, i) for i, start in enumerate(starts)]  # each has a step of its own
        scaled["values"] = tuple((start, x) for start, (_, x) in zip(starts, scaled["values"], strict=True))
    return scaled
