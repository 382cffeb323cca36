"""What the tiny recipes draw: digests of their batches, and sums of what device transforms make of crops.

    python -m tests.data.golden_draws     # writes golden_draws.json

A change of this file changes the data order of every run that is resumed.
"""

import hashlib
import itertools
import json
import pathlib

import jax
import numpy as np
from absl import flags

from big_ssl.data import fields, mixing, pipeline
from big_ssl.data.fields import Image
from big_ssl.data.masking import BlockMask
from big_ssl.data.sources import EmojiPairs
from big_ssl.data.tokenizers import WordPiece, vocabulary_path
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import path_name
from big_ssl.training import batches, build, streams
from configs import align_l2, clip, finetune_ibot_imagenet, ibot

PATH = pathlib.Path(__file__).with_suffix(".json")
CONFIGS = dict(align_l2=align_l2, clip=clip, ibot=ibot, ibot_imagenet=finetune_ibot_imagenet)
# The first steps of a run, and the first of a later epoch: the 627 drawings make 39 batches of 16.
STARTS = (0, 77)


def batch_digests(name: str) -> dict[str, str]:
    """{"step/stream/field": sha256 of its bytes} of two steps from each of STARTS."""
    config = CONFIGS[name].get_config("tiny").to_dict()
    mesh, found = mesh_lib.make_mesh(config["mesh"], jax.devices()[:1]), {}
    loaders = streams.open_streams(config, build.tokenizer(config))
    for start in STARTS:
        iterator = batches.iterate(config, loaders, start, mesh)
        for step, batch in enumerate(itertools.islice(iterator, 2), start):
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
                if "data_errors" not in path_name(path):
                    found[f"{step}/{path_name(path)}"] = hashlib.sha256(leaf.tobytes()).hexdigest()
        iterator.close()
    return found


# Every transform, alone or with all others.
TRANSFORMS: dict[str, dict] = dict(
    normalized=dict(mean=(0.5,), std=(0.5,)),
    flipped=dict(mean=(0.5,), std=(0.5,), flip=True),
    all=dict(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        jitter=(0.4, 0.4, 0.2, 0.1),
        grayscale_prob=0.2,
        blur_prob=(1.0, 0.1),
        solarize_prob=(0.0, 0.2),
        mixup=0.8,
        cutmix=1.0,
        mix_group=4,
    ),
)


def transforms() -> dict[str, list]:
    """{name: float[8, 2, 3], the mean of each channel of each crop's left half}."""
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 16, 16, 3), np.uint8)
    found = {}
    for name, options in TRANSFORMS.items():
        crop = dict(kind="random_resized_crop", size=16, scale=(0.5, 1.0), count=2)
        image = Image(crop, **options)
        x = image.transform(images, jax.random.key(1))
        if image.mixes:
            x, _ = mixing.mix(jax.random.key(2), x, image.mixup, image.cutmix, image.mix_group)
        found[name] = np.asarray(x[..., :8, :].mean((2, 3))).tolist()
    return found


def masks() -> str:
    """The digest of a batch's masks."""
    drawn = BlockMask(grid=6, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=4, mask_group=4)(
        jax.random.key(3), 8, 2
    )
    content = np.asarray(drawn["mask"]).tobytes() + np.asarray(drawn["indices"]).tobytes()
    return hashlib.sha256(content).hexdigest()


def descriptions() -> dict[str, str]:
    """{"step/field/array": its digest} of a mixture of captions and classes in prompts, with their keys."""
    tokenizer, parts = WordPiece(vocabulary_path("emoji"), 16), []
    for text in (dict(captions=dict(name=0.5, tags=0.5)), dict(class_key="category")):
        text |= dict(kind="text", prompts="unicl")
        source = EmojiPairs(["fxemoji"], "seen")
        made = fields.build(dict(text=text, identity=dict(kind="identity", caption_by="pair")), 16)
        load = pipeline.LoadExample(source, fields.opened(made, source, tokenizer))
        parts.append(pipeline.Part(load, len(source), 1.0))
    found = {}
    for start in STARTS:
        iterator = pipeline.batches(parts, 16, seed=0, start=start, threads=2)
        batch = next(iterator)
        iterator.close()
        for field, name in (("text", "ids"), ("identity", "key")):
            found[f"{start}/{field}/{name}"] = hashlib.sha256(batch[field][name].tobytes()).hexdigest()
    return found


def all_draws() -> dict:
    """What golden_draws.json holds."""
    return dict(
        batches={name: batch_digests(name) for name in CONFIGS},
        transforms=transforms(),
        masks=masks(),
        descriptions=descriptions(),
    )


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags in its workers
    PATH.write_text(json.dumps(all_draws(), indent=1) + "\n")
