"""The methods of trained models on NumPy arrays, the same for runs in training and loaded models."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_ssl.data import preprocessing, prompt_templates
from big_ssl.evals import prompts, reading
from big_ssl.evals.batched import in_batches, sharded
from big_ssl.evals.capabilities import Trained, image_call, listed, methods, prediction
from big_ssl.evals.depth_method import DepthMethod
from big_ssl.evals.detect_method import DetectMethod
from big_ssl.evals.layer_features import LayerFeatures
from big_ssl.evals.model_inputs import Images, checked_tokens, image_batch, is_text_list
from big_ssl.evals.segment_method import SegmentMethod
from big_ssl.losses.contrastive import l2_normalize
from big_ssl.parallel import mesh as mesh_lib

# Images that go through a detector at once, on each device: their maps are large.
_DETECTED = 4

_WITHOUT_TEXTS = "text encoder: it embeds images alone"
_WITHOUT_LAYERS = "transformer layers: its image encoder is {}"
# {method: the missing part, as messages name it, with {} for the type of the image encoder}.
_LACKS = dict(
    classify="classifier: none was trained",
    depth="depth head: none was trained",
    detect="detection head: none was trained",
    encode_text=_WITHOUT_TEXTS,
    segment="segmentation head: none was trained",
    zero_shot=_WITHOUT_TEXTS,
    image_tokens=_WITHOUT_LAYERS,
    intermediate_layers=_WITHOUT_LAYERS,
    attention_maps="attention maps: its image encoder is {}",
    class_attention="class token that attends to patches: its image encoder is {}",
)


class Predictor(LayerFeatures, DepthMethod, DetectMethod, SegmentMethod):
    """A model with its weights. Its methods return NumPy arrays, float32 whatever the dtype of computation.

    They take as images uint8[B, H, W, 3], or a list of images of any sizes, each uint8[H, W, 3], a path or an
    image of Pillow, or one such image: model_inputs.Images. Images of several hosts are a batch that `split`
    has placed. By default images are preprocessed as the model was evaluated; with resize=False the encoder
    gets them unchanged, all of one size, which need be neither the model's nor square.

    system: encoders and heads. encoder: the image encoder's module, None without one. methods: those of
      METHODS that the model has. image_config: how images are preprocessed, in the keys of a
      weights.format.ModelConfig; preprocess: uint8[B, H, W, 3] -> uint8[B, S, S, 3], that function.
    split: how hosts share the decoding of a batch. cache: features of labelled sets, see
      LabelledSet.extract_features. progress: (steps, their number, a description) -> steps; shows the
      progress of a long loop.
    """

    def __init__(
        self,
        system: Trained,
        variables: Mapping | None,
        mesh,
        image_config: Mapping,
        make_tokenizer: Callable[[], Any],
        batch_size: int,
    ):
        """Compiles nothing yet.

        Args:
          system: see the class.
          variables: as training.state.evaluation_variables returns; None for `for_evaluation` to set.
          mesh: batches are split over it.
          image_config: how images are preprocessed: image_size and resize of a weights.format.ModelConfig.
          make_tokenizer: returns the tokenizer, or raises ValueError if it is missing.
          batch_size: examples that go through an encoder at once.
        """
        self.system, self.variables, self.image_config = system, variables, image_config
        self.preprocess = preprocessing.of(image_config)
        self.methods = methods(system)
        self._mesh, self._batch_size, self._make_tokenizer = mesh, batch_size, make_tokenizer
        self._whole_batches = False
        self._call = image_call(system)
        self.encoder = None if self._call is None else system.encoders[self._call.encoder]
        self.channels = 3 if self.encoder is None else self.encoder.channels
        self.split = reading.over_mesh(mesh, batch_size)
        self.progress: Callable[[Iterable, int, str], Iterable] = reading.no_progress
        self.cache: dict = {}
        self._image_features = sharded(self._compute_image_features, mesh)
        self._text_features = sharded(self._compute_text_features, mesh)
        self._scalars = sharded(self._compute_scalars, mesh)
        self._probe = functools.cache(self._compile_probe)
        self.detection_split = reading.over_mesh(mesh, _DETECTED * mesh_lib.batch_shards(mesh))
        self.compiled_detector = functools.cache(self._compile_detector)
        self.compiled_head = functools.cache(self._compile_head)

    def for_evaluation(self, variables: Mapping | None = None, progress: Callable | None = None):
        """A Predictor with the same compiled functions and an empty cache.

        Small inputs are padded to a whole batch, so evaluators compile nothing new. Outputs that are not
        finite raise ValueError. variables: other weights, None for the same.
        """
        other = copy.copy(self)
        other.cache, other._whole_batches = {}, True
        other.variables = self.variables if variables is None else variables
        other.progress = self.progress if progress is None else progress
        return other

    def with_resize(self, resize: str):
        """A Predictor with the same compiled functions and an empty cache, whose images are resized and
        cropped in another way: `resize` of a weights.format.ModelConfig."""
        other = copy.copy(self)
        other.cache, other.image_config = {}, dict(self.image_config, resize=resize)
        other.preprocess = preprocessing.of(other.image_config)
        return other

    @functools.cached_property
    def tokenizer(self):
        """The function from a list of N texts to token ids, dict(ids: int32[N, L], mask: bool[N, L]).

        Raises ValueError if its vocabulary is missing.
        """
        return self._make_tokenizer()

    @property
    def classes(self) -> int:
        """The number of classes of `classify`."""
        self._require("classify")
        return self.system.terms[self.system.provider("classify")].objective.head.classes

    def encode_image(self, images: Images, normalize: bool = True, resize: bool = True) -> np.ndarray:
        """Embeds images; without an embedding head the result is the encoder's pooled output.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          normalize: whether embeddings get length 1.
          resize: whether images are preprocessed to the model's image size; otherwise the encoder gets them
            unchanged.

        Returns:
          float32[B, D].

        Raises:
          FileNotFoundError: for a path to no file.
          ValueError: for anything else but such images, and for a model without an image encoder.
        """
        self._require("encode_image")
        return self._images("normalized" if normalize else "encode_image", images, resize)

    def pooled_features(self, images: Images, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3], or other Images -> float32[B, W]: the image encoder's pooled output, before any
        head. resize: as in encode_image."""
        self._require("encode_image")
        return self._images("pooled", images, resize)

    def classify(self, images: Images, resize: bool = True) -> np.ndarray:
        """uint8[B, H, W, 3], or other Images -> float32[B, C]: the logits of a trained classifier.

        resize: as in encode_image. Raises ValueError for a model without one.
        """
        self._require("classify")
        return self._images("classify", images, resize)

    def encode_text(self, texts, mask: np.ndarray | None = None, normalize: bool = True) -> np.ndarray:
        """Embeds texts.

        Args:
          texts: a list of str, or token ids int32[B, L].
          mask: bool[B, L], which token ids are not padding; None for all.
          normalize: whether embeddings get length 1.

        Returns:
          float32[B, D].

        Raises:
          ValueError: for anything else, ids outside the vocabulary, ids without the end of text at which the
            encoder is read, and a model without a text encoder.
        """
        tokens = self._tokens(texts, mask)
        feature = "normalized" if normalize else "encode_text"
        return self._in_batches(lambda batch: self._text_features(self.variables, batch)[feature], tokens)

    def zero_shot(
        self, images: Images, class_names: Sequence[str], templates: str | Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """The probability of each class name for each image.

        See prompts.class_probabilities; with a logit bias rows need not sum to 1.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          class_names: C names.
          templates: with {} for the name, "openai" for CLIP's 80 or "unicl" for UniCL's 81; the embeddings of
            several are averaged.

        Returns:
          float32[B, C].

        Raises:
          ValueError: for anything but images and names, for a template without {}, and for a model without a
            text encoder.
        """
        self._require("zero_shot")
        if not is_text_list(class_names):
            raise ValueError("class_names must be a list of str, at least one")
        templates, images = prompt_templates.templates(templates), self._preprocessed(images, resize=True)
        classes = prompts.class_embeddings(self.encode_text, class_names, templates)
        scalars = self._scalars(self.variables, {})
        cosines = self.encode_image(images, resize=False) @ classes.T
        return np.asarray(prompts.class_probabilities(cosines, scalars))

    def apply(self, function: Callable, images, *options, size: int | None = None) -> Any:
        """Applies a function to the image encoder, for example to read its layers.

        Args:
          function: (module, its variables, float32[B, H, W, 3], *options) -> [B, ...], an array or a tree of
            arrays; compiled once for each options.
          images: uint8[N, H, W, 3], preprocessed.
          *options: further arguments of the function, hashable.
          size: examples in a batch, None for the usual number.

        Returns:
          float32[N, ...], an array or such a tree.
        """
        probe = self._probe(function, *options)
        return self._in_batches(lambda batch: probe(self.variables, batch), images, size)

    def _read(self, method, function, images, resize, *options):
        self._require(method)
        return self.apply(function, self._preprocessed(images, resize), *options)

    def _images(self, feature, images, resize):
        images = self._preprocessed(images, resize)
        return self._in_batches(lambda batch: self._image_features(self.variables, batch)[feature], images)

    def _preprocessed(self, images, resize):
        if isinstance(images, jax.Array):  # a batch that `split` has placed
            return images
        return image_batch(images, self.preprocess if resize else None, self.channels)

    def _tokens(self, texts, mask):
        self._require("encode_text")
        if is_text_list(texts):
            return self.tokenizer(texts)
        how: Any = prediction(self.system, "encode_text")
        return checked_tokens(texts, mask, self.system.encoders[how.call.encoder])

    def _in_batches(self, function, inputs, size=None):
        size = size or self._batch_size
        if not (self._whole_batches or isinstance(inputs, jax.Array)):
            size = min(size, len(jax.tree.leaves(inputs)[0]))
        outputs = in_batches(function, self._mesh, inputs, size)
        if self._whole_batches:
            arrays = jax.tree.leaves(outputs)
            finite = np.all([np.isfinite(x.reshape(len(x), -1)).all(1) for x in arrays], axis=0)
            if bad := int((~finite).sum()):
                raise ValueError(f"features of {bad} of {len(finite)} examples are not finite")
        return outputs

    def _compute_image_features(self, variables, images):
        """{"pooled", "encode_image", "normalized" (the same with length 1), "classify"}, as there are."""
        heads = {method: prediction(self.system, method) for method in ("encode_image", "classify")}
        calls = dict.fromkeys([self._call.run, *(how.call.run for how in heads.values() if how)])
        outputs = {call: self.system.encode(variables, call, images) for call in calls}
        features = dict.fromkeys(("pooled", "encode_image"), outputs[self._call.run]["pooled"])
        for method, how in heads.items():
            if how is not None:
                features[method] = self._head_feature(variables, how, outputs[how.call.run])
        return features | dict(normalized=l2_normalize(features["encode_image"]))

    def _compute_text_features(self, variables, tokens):
        how: Any = prediction(self.system, "encode_text")
        embedding = self._head_result(variables, how, tokens)
        return dict(encode_text=embedding, normalized=l2_normalize(embedding))

    def _compute_scalars(self, variables, _):
        return self.system.head(variables, self.system.provider("zero_shot"), {})

    def _compile_probe(self, function, *options):
        def probe(variables, images):
            return function(*self.system.bound_encoder(variables, self._call, images), *options)

        return sharded(probe, self._mesh)

    def _compile_head(self, method):
        how: Any = prediction(self.system, method)
        return sharded(lambda variables, images: self._head_result(variables, how, images), self._mesh)

    def _require(self, method):
        if method not in self.methods:
            lacks = _LACKS.get(method, method).format(type(self.encoder).__name__)
            if self.encoder is None and method not in ("encode_text", "classify"):
                lacks = "image encoder: it embeds texts alone"
            raise ValueError(f"this model has no {lacks}; it has {listed(self.methods)}")
