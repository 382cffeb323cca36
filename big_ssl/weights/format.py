"""What a public checkpoint format is, and the questions that all formats ask of their arrays."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.rules import Rule

IMAGE, TEXT, HEAD = (f"params/{name}/" for name in ("encoders/image", "encoders/text", "heads/contrastive"))
IMAGE_STATISTICS = "encoders/image/batch_stats/"

# Of SigLIP 2's vocabulary (arXiv 2502.14786, section 2); SigLIP's have 32,000 and 250,000.
GEMMA_SIZE = 256_000

# What a model is, in the keys of a training config where there are such: encoders, views,
# tokenizer; and head (objectives.contrastive.ContrastiveHead), image_size and resize
# (data.preprocessing). Of a model of images alone, tokenizer and head are None. Of a trained classifier there
# is `classes` too, how many; where heads of self-distillation came with a model, `projections` too:
# {objective: options of models.projection_head.ProjectionHead}, for training that goes on.
Config = dict[str, Any]


class Format(NamedTuple):
    """A public layout of weights.

    config: (arrays, its JSON files by name, options of the command line) -> Config.
    rules: Config -> the names, for weights.rules; ignored: patterns of names that are no weights.
    weights: names of its weights file, the one that is written first; files: its JSON files.
    options: what the command line may add to a checkpoint that does not say it.
    prepare: (arrays, options) -> arrays, without the spellings of one layout. describe: Config ->
    {file name: JSON} to write beside the weights, None for a format that is only read.
    towers: what the models that are written embed; empty for anything.
    """

    config: Callable[[Mapping, Mapping[str, dict], Mapping], Config]
    rules: Callable[[Config], Sequence[Rule]]
    ignored: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    prepare: Callable[[Mapping, Mapping], Mapping] = lambda tensors, options: tensors
    describe: Callable[[Config], dict[str, dict]] | None = None
    towers: tuple[str, ...] = ("image", "text")


def shape_of(tensors: Mapping, name: str, rank: int) -> tuple[int, ...]:
    """The shape of an array that every checkpoint of a format has."""
    if name not in tensors:
        raise WeightsError(
            f"{name} is missing; is it another format? there is {next(iter(tensors), 'nothing')}"
        )
    if tensors[name].ndim != rank:
        raise WeightsError(f"{name} is {list(tensors[name].shape)}; it must have {rank} axes")
    return tensors[name].shape


def json_file(files: Mapping[str, dict], name: str) -> dict:
    """A JSON file that a format can't do without."""
    if name not in files:
        raise WeightsError(f"{name} is missing beside the weights")
    return files[name]


def count(tensors: Mapping, pattern: str) -> int:
    """How many layers there are: one more than the largest number that the pattern's group finds."""
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def grid_side(places: int, name: str) -> int:
    """The side of a square grid of so many places."""
    side = round(places**0.5)
    if side**2 != places:
        raise WeightsError(f"{name} has {places} places, no square grid")
    return side


def check_options(kind: str, part: str, options: Mapping, model: str, wanted: Mapping) -> None:
    """Raises WeightsError where a part of a Config is not what the format's model always is."""
    for key, value in wanted.items():
        if options[key] != value:
            raise WeightsError(f"{kind}: {part}.{key} is {options[key]!r}; a {model} has {value!r}")


def image_config(image: dict, image_size: int, **changes) -> Config:
    """A model of images alone, a ViT of these options; by default it sees what DINO's children see."""
    return (
        dict(
            encoders=dict(image=dict(kind="vit", **image)),
            head=None,
            views=dict(image=IMAGENET_PIXELS),
            image_size=image_size,
            resize="crop 256",
            tokenizer=None,
        )
        | changes
    )


def clip_config(image: dict, text: dict, embed_dim: int, image_size: int, **changes) -> Config:
    """CLIP's model around its two towers' configs; changes: to the keys below."""
    return (
        dict(
            encoders=dict(image=image, text=dict(kind="text_transformer", **text)),
            head=dict(
                embed_dim=embed_dim,
                image_projection=image["kind"] == "vit",  # a ResNet's attention pool projects by itself
                text_projection_bias=False,
                temperature=0.07,
                temperature_form="log",
                logit_bias=None,
            ),
            views=dict(image=CLIP_PIXELS),
            image_size=image_size,
            resize="crop",
            tokenizer=dict(
                kind="clip_bpe", vocabulary="clip", size=text["vocab_size"], length=text["max_len"]
            ),
        )
        | changes
    )


def siglip_config(image: dict, text: dict, image_size: int, **changes) -> Config:
    """SigLIP's model: its pooled image is the embedding, its text head has a bias."""
    config = clip_config(image, text, image["width"], image_size)
    config["head"] |= dict(
        image_projection=False, text_projection_bias=True, temperature=0.1, logit_bias=-10.0
    )
    gemma = text["vocab_size"] == GEMMA_SIZE
    config["tokenizer"] |= dict(kind="sentencepiece_gemma" if gemma else "sentencepiece", vocabulary="")
    return config | dict(views=dict(image=HALF_PIXELS), resize="stretch") | changes


CLIP_PIXELS = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), flip=False
)
IMAGENET_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), flip=False)
HALF_PIXELS = dict(mean=(0.5,) * 3, std=(0.5,) * 3, flip=False)
