"""Trained models on NumPy arrays: `big_ssl.load`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from big_ssl import io
from big_ssl.data import preprocessing, tokenizers
from big_ssl.data.device_views import ImageView
from big_ssl.evals import prompts, reading
from big_ssl.evals.embedder import Embedder, in_batches, looking, sharded
from big_ssl.losses.contrastive import l2_normalize
from big_ssl.models.text_transformer import TextTransformer
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated
from big_ssl.training import trained
from big_ssl.weights import architecture, formats
from big_ssl.weights.format import ModelConfig

# Of a converted model: its tokenizer's file, where it came with the weights, by the tokenizer's kind.
_PIECES = ("spiece.model", "tokenizer.model")
VOCABULARIES = {
    "wordpiece": ("vocab.txt",),
    "clip_bpe": ("merges.txt",),
    "sentencepiece": _PIECES,
    "sentencepiece_gemma": _PIECES,
}

# What a model is given.
_IMAGES, _TEXTS = "uint8[B, H, W, 3]", "a list of str or int32[B, L]"

# Examples that go through a tower at once, on each device.
_BATCH = 64


class Model:
    """Two towers and their projections, or an image tower alone, with a classifier where one was trained.
    It takes and gives NumPy arrays.

    config: see weights.format.ModelConfig; variables: as training.state.evaluation_variables;
    dtype: of the computation; devices: which compute, each a part of every batch; all of them if None.
    """

    def __init__(self, config: ModelConfig, variables: Mapping, dtype: str = "float32", devices=None):
        self.config, self._prepare = config, preprocessing.of(config)
        self._mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), devices)
        self._batch_size = _BATCH * mesh_lib.batch_shards(self._mesh)
        self.variables = jax.device_put(variables, replicated(self._mesh))
        self._image, self._text, self._head, self._classifier, _ = architecture.modules(config, dtype)
        self._view = ImageView(**(config["views"]["image"] | dict(flip=False)))
        self._run_image = sharded(self._image_outputs, self._mesh)
        self._run_text = sharded(self._text_outputs, self._mesh)
        self._looking = looking(self._image_tower, self._mesh)

    def encode_image(self, images: np.ndarray, normalize: bool = True, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3] -> float32[B, D]; of an image tower alone it is the pooled output.

        resize: to the size that the model was trained at; without it the tower sees the images as
        they are. Raises ValueError for anything but such images.
        """
        found = self._in_batches(self._run_image, "image", self._prepared(images, resize))
        return np.asarray(l2_normalize(found)) if normalize else found

    def patch_features(self, images: np.ndarray, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3] -> float32[B, N, D] of a ViT, N row by row, after its final norm;
        [B, H', W', C] of a convolutional tower, its last map."""
        return self._in_batches(self._run_image, "patches", self._prepared(images, resize))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """uint8[B, H, W, 3] -> float32[B, C]: the logits of a trained classifier.

        Raises ValueError of a model without one.
        """
        if self._classifier is None:
            raise ValueError("this model has no classifier: none was trained")
        return self._in_batches(self._run_image, "logits", self._prepared(images, resize=True))

    def encode_text(self, texts, mask: np.ndarray | None = None, normalize: bool = True) -> np.ndarray:
        """A list of str, or int32[B, L] token ids with mask: bool[B, L] -> float32[B, D].

        Raises ValueError for anything else, ids out of the vocabulary, and ids without the end of
        text at which the tower would be read; and of a model without a text tower.
        """
        found = self._in_batches(self._run_text, "text", self._tokens(texts, mask))
        return np.asarray(l2_normalize(found)) if normalize else found

    def zero_shot(
        self, images: np.ndarray, class_names: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """uint8[B, H, W, 3], C names -> float32[B, C]: how probable each name is of each image.

        Softmax over the names of the scaled cosines (CLIP, arXiv 2103.00020, figure 1); of a model
        with a logit bias each name's own sigmoid (SigLIP, arXiv 2303.15343, equation 1), so that rows
        need not sum to 1. templates: with {} for the name, or "openai" for CLIP's 80; of several the
        embeddings are averaged. Raises ValueError for what are no images or no names, and for a
        template without {}.
        """
        if not _are_strings(class_names):
            raise ValueError("class_names must be a list of str, at least one")
        forms, prepared = prompts.templates(templates), self._prepared(images, resize=True)
        classes = prompts.class_embeddings(self.encode_text, class_names, forms)
        seen = np.asarray(l2_normalize(self._in_batches(self._run_image, "image", prepared)))
        scalars = self._projected(self.variables, {})
        logits = seen @ classes.T / scalars["temperature"]
        if "logit_bias" in scalars:
            return np.asarray(jax.nn.sigmoid(logits + scalars["logit_bias"]))
        return np.asarray(jax.nn.softmax(logits))

    def embedder(self, track: Callable | None = None) -> Embedder:
        """This model as evaluators want it; track: as in Embedder."""

        def run(run, name, inputs):
            found = self._in_batches(run, name, inputs, whole=True)
            return found if name in ("pooled", "logits") else np.asarray(l2_normalize(found))

        def inside(look, images, *options, size=self._batch_size):
            seen = functools.partial(self._looking(look, *options), self.variables)
            return in_batches(seen, self._mesh, images, size)

        given: dict[str, Any] = {} if track is None else dict(track=track)
        return Embedder(
            prepare=self._prepare,
            images=functools.partial(run, self._run_image, "image"),
            texts=lambda texts: run(self._run_text, "text", self._tokens(texts)),
            pooled=functools.partial(run, self._run_image, "pooled"),
            logits=None if self._classifier is None else functools.partial(run, self._run_image, "logits"),
            inside=inside,
            split=reading.over_mesh(self._mesh, self._batch_size),
            **given,
        )

    def _image_tower(self, variables, images):
        return self._image, architecture.encoder_variables(variables, "image"), self._view(images, None)

    def _image_outputs(self, variables, images):
        module, tower, given = self._image_tower(variables, images)
        outputs = module.apply(tower, given)
        finer = {name: outputs[name] for name in ("pooled", "patches")}
        image = outputs["pooled"]
        if self._head is not None:
            image = self._projected(variables, dict(image=outputs))["image"]
        if self._classifier is not None:
            head = {"params": variables["params"]["heads"]["classification"]}
            finer |= self._classifier.apply(head, dict(image=outputs))
        return dict(image=image, **finer)

    def _text_outputs(self, variables, inputs):
        outputs = self._text.apply(architecture.encoder_variables(variables, "text"), **inputs)
        return self._projected(variables, dict(text=outputs))

    def _projected(self, variables, outputs):
        return self._head.apply({"params": variables["params"]["heads"]["contrastive"]}, outputs)

    def _in_batches(self, run, name, inputs, whole=False):
        """whole: whether few inputs too make a whole batch, so that they compile nothing new."""
        size = self._batch_size if whole else min(self._batch_size, len(jax.tree.leaves(inputs)[0]))
        return in_batches(lambda batch: run(self.variables, batch)[name], self._mesh, inputs, size)

    def _prepared(self, images, resize):
        images = _array(images, "images", _IMAGES)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images are {images.dtype.name}{list(images.shape)}; they must be {_IMAGES}")
        if not resize:
            return images
        return self._prepare(images)

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

    def _tokens(self, texts, mask=None):
        if self._text is None:
            raise ValueError("this model has no text tower: it embeds images alone")
        return self.tokenizer(texts) if _are_strings(texts) else self._checked(texts, mask)

    def _checked(self, ids, mask):
        ids = _array(ids, "texts", _TEXTS)
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


def read(path, source: str = "big_ssl", options: Mapping | None = None) -> tuple[ModelConfig, dict]:
    """The ModelConfig and the variables of such a folder, see `load`, or of public weights.

    source, options: as in weights.formats.read_checkpoint.
    """
    folder = io.as_path(path)
    if source == "big_ssl" and (folder / "checkpoints").exists():
        return trained.read(folder)
    config, ours = formats.read_checkpoint(source, folder, options)
    if beside := vocabulary_beside(config, folder):
        config["tokenizer"]["vocabulary"] = str(beside)
    return config, unflatten_dict(ours, sep="/")


def vocabulary_beside(config: ModelConfig, folder):
    """The tokenizer's file in a folder of weights; None where there is none, or no tokenizer."""
    tokenizer = config["tokenizer"] or dict(kind="")  # a model of images alone has none
    names = VOCABULARIES.get(tokenizer["kind"], ())
    return next((path for name in names if (path := io.as_path(folder) / name).is_file()), None)


def _array(values, name, wanted):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are not all of one shape; they must be {wanted}") from error


def _are_strings(texts):
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        return False
    return all(isinstance(text, str) for text in texts)
