"""Trained models on NumPy arrays: `big_ssl.load`."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from big_ssl.data import preprocessing, tokenizers
from big_ssl.data.device_views import ImageView
from big_ssl.evals.embedder import padded_slice
from big_ssl.losses.contrastive import l2_normalize
from big_ssl.models.text_transformer import TextTransformer
from big_ssl.objectives.contrastive import IMAGE, TEXT
from big_ssl.training import trained
from big_ssl.weights import architecture, formats
from big_ssl.weights.format import Config

# Of a converted model: its tokenizer's file, where it came with the weights, by the tokenizer's kind.
_PIECES = ("spiece.model", "tokenizer.model")
VOCABULARIES = {
    "clip_bpe": ("merges.txt",),
    "sentencepiece": _PIECES,
    "sentencepiece_gemma": _PIECES,
}

# What a model is given.
_IMAGES, _TEXTS = "uint8[B, H, W, 3]", "a list of str or int32[B, L]"

# Examples that go through a tower at once.
_BATCH = 64


class Model:
    """Two towers and their projections. What it is given and gives are NumPy arrays.

    config: see weights.format.Config; variables: as training.state.evaluation_variables;
    dtype: of the computation.
    """

    def __init__(self, config: Config, variables: Mapping, dtype: str = "float32"):
        self.config = config
        self.variables = jax.tree.map(jnp.asarray, variables)
        self._image, self._text, self._head = architecture.modules(config, dtype)
        self._view = ImageView(**(config["views"]["image"] | dict(flip=False)))
        self._run_image, self._run_text = jax.jit(self._image_outputs), jax.jit(self._text_outputs)

    def encode_image(self, images: np.ndarray, normalize: bool = True, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3] -> float32[B, D]. resize: to the size that the model was trained at; without
        it the tower sees the images as they are. Raises ValueError for anything but such images."""
        return self._embedded("image", self._run_image, self._prepared(images, resize), normalize)

    def patch_features(self, images: np.ndarray, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3] -> float32[B, N, D] of a ViT, N row by row, after its final norm;
        [B, H', W', C] of a convolutional tower, its last map."""
        return _in_batches(
            lambda x: self._run_image(self.variables, x)["patches"], self._prepared(images, resize)
        )

    def encode_text(self, texts, mask: np.ndarray | None = None, normalize: bool = True) -> np.ndarray:
        """A list of str, or int32[B, L] token ids with mask: bool[B, L] -> float32[B, D].

        Raises ValueError for anything else, ids out of the vocabulary, and ids without the end of
        text at which the tower would be read.
        """
        inputs = (
            self.tokenizer(texts)
            if _are_strings(texts)
            else self._checked(_array(texts, "texts", _TEXTS), mask)
        )
        return self._embedded("text", self._run_text, inputs, normalize)

    def _image_outputs(self, variables, images):
        tower = architecture.tower_variables(variables, "image")
        outputs = self._image.apply(tower, self._view(images, None))
        return dict(image=self._projected(variables, {IMAGE: outputs})["image"], patches=outputs["patches"])

    def _text_outputs(self, variables, inputs):
        outputs = self._text.apply(architecture.tower_variables(variables, "text"), **inputs)
        return self._projected(variables, {TEXT: outputs})

    def _projected(self, variables, outputs):
        return self._head.apply({"params": variables["params"]["heads"]["contrastive"]}, outputs)

    def _embedded(self, name, run, inputs, normalize):
        found = _in_batches(lambda x: run(self.variables, x)[name], inputs)
        return np.asarray(l2_normalize(found)) if normalize else found

    def _prepared(self, images, resize):
        images = _array(images, "images", _IMAGES)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images are {images.dtype.name}{list(images.shape)}; they must be {_IMAGES}")
        if not resize:
            return images
        return preprocessing.resize(images, self.config["image_size"], self.config["resize"])

    @functools.cached_property
    def tokenizer(self):
        """What turns texts into token ids. Raises where its vocabulary is not at hand."""
        options = self.config["tokenizer"]
        if not options["vocabulary"]:
            files = " or ".join(VOCABULARIES.get(options["kind"], ("its file",)))
            raise ValueError(
                f"the weights came without the {options['kind']} vocabulary: put {files} beside "
                "them, or give token ids"
            )
        return tokenizers.build(options)

    def _checked(self, ids, mask):
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or 0 in ids.shape:
            raise ValueError(f"texts are {ids.dtype.name}{list(ids.shape)}; they must be {_TEXTS}")
        size = self._text.vocab_size
        if ids.min() < 0 or ids.max() >= size:
            wrong = ids[(ids < 0) | (ids >= size)][0]
            raise ValueError(f"token id {wrong} is not in the vocabulary of {size}")
        _check_pooled(self._text, ids)
        mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
        if mask.shape != ids.shape:
            raise ValueError(
                f"mask is {list(mask.shape)}; it must be {list(ids.shape)}, as the token ids are"
            )
        return dict(ids=ids.astype(np.int32), mask=mask)


def _check_pooled(tower, ids):
    """Raises ValueError where a text tower would be read at a place that means nothing."""
    if not isinstance(tower, TextTransformer):
        return
    if tower.pooling == "last" and ids.shape[1] != tower.max_len:
        raise ValueError(
            f"texts are {ids.shape[1]} tokens long; this tower reads the last of {tower.max_len}, "
            "padding or not: pad them to that"
        )
    eot_id = tower.vocab_size - 1 if tower.eot_id is None else tower.eot_id
    without = ~(ids == eot_id).any(1)
    if tower.pooling == "eot" and without.any():
        raise ValueError(f"text {without.argmax()} has no end of text, token id {eot_id}")


def load(path, dtype: str = "float32") -> Model:
    """The model in a folder that `python -m big_ssl.convert` wrote, or that a run trained in.

    dtype: of the computation. Raises FileNotFoundError, and ValueError for what is neither.
    """
    config, variables = read(path)
    return Model(config, variables, dtype)


def read(path) -> tuple[Config, dict]:
    """The Config and the variables of such a folder; see `load`."""
    folder = epath.Path(path)
    if (folder / "checkpoints").exists():
        return trained.read(folder)
    config, ours = formats.read_checkpoint("big_ssl", folder)
    if beside := vocabulary_beside(config, folder):
        config["tokenizer"]["vocabulary"] = str(beside)
    return config, unflatten_dict(ours, sep="/")


def vocabulary_beside(config: Config, folder):
    """The tokenizer's file in a folder of weights; None where there is none, or no tokenizer."""
    names = VOCABULARIES.get(config.get("tokenizer", {}).get("kind"), ())
    return next((path for name in names if (path := epath.Path(folder) / name).is_file()), None)


def _array(values, name, wanted):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are not all of one shape; they must be {wanted}") from error


def _are_strings(texts):
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        return False
    return all(isinstance(text, str) for text in texts)


def _in_batches(run, inputs):
    """What run gives for _BATCH examples at a time."""
    total = len(jax.tree.leaves(inputs)[0])
    size, found = min(total, _BATCH), []
    for start in range(0, total, size):
        part = jax.tree.map(functools.partial(padded_slice, start=start, size=size), inputs)
        found.append(np.asarray(run(part), np.float32)[: total - start])
    return np.concatenate(found)
