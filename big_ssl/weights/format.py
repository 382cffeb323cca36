"""The description of a public checkpoint format, and helpers that infer an architecture from arrays."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.rules import Rule

IMAGE, TEXT = "params/encoders/image/", "params/encoders/text/"
HEAD, EMBEDDING = "params/heads/contrastive/", "params/heads/embedding/"
IMAGE_STATISTICS = "encoders/image/batch_stats/"

# The size of SigLIP 2's vocabulary (arXiv 2502.14786, section 2); SigLIP's have 32,000 and 250,000.
GEMMA_SIZE = 256_000

# The model's part of a config. Keys of a training config: encoders, views, tokenizer. Other keys: head,
# options of objectives.contrastive.ContrastiveHead; image_size and resize, see data.preprocessing. Models of
# one encoder have head None, and those of images tokenizer None, those of texts views, image_size and resize
# None; if a head embeds what the encoder pools, they also have `embedding_head`, options of
# objectives.embedding.EmbeddingHead. Classifiers also have `classes`, their number. Models with
# self-distillation heads also have `projections`: {objective: options of models.projection_head}. Those with
# dense heads have `tasks`: {method of a Predictor, such as "depth": options of the objective behind it}.
ModelConfig = dict[str, Any]


class Format(NamedTuple):
    """A public checkpoint format.

    config: (arrays, {file name: JSON}, command line options) -> ModelConfig.
    rules: ModelConfig -> rules for weights.rules. ignored: regexes of non-weight keys.
    weights: file names of the weights, the first for export. files: names of its JSON files.
    options: command line options for settings that the files lack.
    prepare: (arrays, options) -> arrays; normalises layout-specific names.
    describe: ModelConfig -> {file name: JSON} to write beside the weights; None for a read-only format.
    encoders: encoders this format can export; empty for any.
    position_resize: a ViT's options -> how the model class resizes its position table, a name in
      models.position_embedding.RESIZES; None for a class without a table, and for our own.
    """

    config: Callable[[Mapping, Mapping[str, dict], Mapping], ModelConfig]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    ignored: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    prepare: Callable[[Mapping, Mapping], Mapping] = lambda tensors, options: tensors
    describe: Callable[[ModelConfig], dict[str, dict]] | None = None
    encoders: tuple[str, ...] = ("image", "text")
    position_resize: Callable[[Mapping], str] | None = None


def shape_of(tensors: Mapping, name: str, rank: int) -> tuple[int, ...]:
    """A required array's shape. Raises WeightsError if the array is missing or has another rank."""
    if name not in tensors:
        raise WeightsError(
            f"{name} is missing; is it another format? there is {next(iter(tensors), 'nothing')}"
        )
    if tensors[name].ndim != rank:
        raise WeightsError(f"{name} is {list(tensors[name].shape)}; it must have {rank} axes")
    return tensors[name].shape


def json_file(files: Mapping[str, dict], name: str) -> dict:
    """A JSON file that the format requires. Raises WeightsError if it is missing."""
    if name not in files:
        raise WeightsError(f"{name} is missing beside the weights")
    return files[name]


def count(tensors: Mapping, pattern: str) -> int:
    """The number of layers: one more than the largest index that the regex's group matches."""
    indices = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(indices, default=-1) + 1


def grid_side(positions: int, name: str) -> int:
    """The side of a square grid with this number of positions."""
    side = round(positions**0.5)
    if side**2 != positions:
        raise WeightsError(f"{name} has {positions} positions, which is no square number")
    return side


def one_side(value):
    """224 of 224 and of [224, 224]; the value itself if it is no side."""
    return value[0] if isinstance(value, list) and value and set(value) == {value[0]} else value


def per_channel(key: str, value) -> np.ndarray:
    """float64[C] of a list with a number for each channel; of one number, RGB's three."""
    try:
        numbers = np.asarray(value, float)
    except (ValueError, TypeError):
        numbers = np.zeros(0)
    if numbers.ndim > 1 or numbers.size == 0:
        raise WeightsError(f"{key} is {value}; it must be one number, or one for each channel")
    return np.broadcast_to(numbers, 3) if numbers.size == 1 else numbers


# Options of a ViT that has a position table alone, and biases in its attention.
PLAIN_VIT = dict(qkv_bias="qkv", rope_base=None)


def check_options(kind: str, part: str, options: Mapping, model: str, required: Mapping) -> None:
    """Checks that a model can be exported to a format whose model class fixes some options.

    Args:
      kind: the format's name, for the message.
      part: the ModelConfig's key, for the message.
      options: the ModelConfig's options of this part.
      model: the format's model class, for the message.
      required: {option: value} that the model class fixes.

    Raises:
      WeightsError: if an option differs.
    """
    for key, value in required.items():
        if options[key] != value:
            raise WeightsError(f"{kind}: {part}.{key} is {options[key]!r}; a {model} has {value!r}")


def compare(part: str, stated: Mapping, actual: Mapping) -> None:
    """Checks what a config file states about arrays.

    Args:
      part: what stands before the key in the message.
      stated: {key: value}.
      actual: {key: value} by the arrays; keys that are not stated are not compared.

    Raises:
      WeightsError: for a value that differs, as where layers are missing.
    """
    for key, value in actual.items():
        if key in stated and stated[key] != value:
            raise WeightsError(f"{part}{key} is {stated[key]!r}; the weights have {value!r}")


def image_config(image: dict, image_size: int, **changes) -> ModelConfig:
    """The ModelConfig of an image-only model, by default a ViT with DINO's preprocessing; changes: replaced
    keys."""
    return (
        dict(
            encoders=dict(image=dict(kind="vit") | image),
            head=None,
            views=dict(image=IMAGENET_PIXELS),
            image_size=image_size,
            resize="crop 256",
            tokenizer=None,
        )
        | changes
    )


def text_model_config(
    text: dict, tokenizer: dict, embed_dim: int | None = None, bias: bool = False
) -> ModelConfig:
    """The ModelConfig of a text encoder alone.

    Args:
      text: its options, with `kind`.
      tokenizer: see ModelConfig.
      embed_dim: the size of its projection, None without one.
      bias: whether the projection has a bias.
    """
    return dict(
        encoders=dict(text=text),
        head=None,
        embedding_head=dict(embed_dim=embed_dim, bias=bias),
        views=None,
        image_size=None,
        resize=None,
        tokenizer=tokenizer,
    )


def clip_config(image: dict, text: dict, embed_dim: int, image_size: int, **changes) -> ModelConfig:
    """CLIP's ModelConfig from the options of its two towers; changes: replaced keys."""
    return (
        dict(
            encoders=dict(image=image, text=dict(kind="text_transformer") | text),
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
            tokenizer=clip_tokenizer(text),
        )
        | changes
    )


def clip_tokenizer(text: dict) -> dict:
    """The ModelConfig's tokenizer of CLIP's text encoder with these options."""
    return dict(kind="clip_bpe", vocabulary="clip", size=text["vocab_size"], length=text["max_len"])


def siglip_tokenizer(text: dict) -> dict:
    """The ModelConfig's tokenizer of SigLIP's or SigLIP 2's text encoder with these options."""
    kind = "sentencepiece_gemma" if text["vocab_size"] == GEMMA_SIZE else "sentencepiece"
    return dict(kind=kind, vocabulary="", size=text["vocab_size"], length=text["max_len"])


def siglip_config(image: dict, text: dict, image_size: int, **changes) -> ModelConfig:
    """SigLIP's ModelConfig: the pooled image is the embedding, the text projection has a bias."""
    config = clip_config(image, text, image["width"], image_size)
    config["head"] |= dict(
        image_projection=False, text_projection_bias=True, temperature=0.1, logit_bias=-10.0
    )
    return (
        config
        | dict(tokenizer=siglip_tokenizer(text), views=dict(image=HALF_PIXELS), resize="stretch")
        | changes
    )


CLIP_PIXELS = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), flip=False
)
IMAGENET_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), flip=False)
HALF_PIXELS = dict(mean=(0.5,) * 3, std=(0.5,) * 3, flip=False)
