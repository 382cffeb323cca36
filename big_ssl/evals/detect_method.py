"""The method of a Predictor that a trained detection head provides: boxes, classified by it or by text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.data import prompt_templates
from big_ssl.data.letterbox import Letterbox, Letterboxed
from big_ssl.evals import prompts, reading
from big_ssl.evals.batched import sharded
from big_ssl.evals.box_selection import Boxes, Rules, select
from big_ssl.evals.capabilities import prediction
from big_ssl.evals.model_inputs import Images, is_text_list, opened_images
from big_ssl.evals.predictor_part import PredictorPart
from big_ssl.losses.contrastive import l2_normalize
from big_ssl.models.roi_align import roi_align

# Samples per pixel of a side of a cut-out box, against aliasing.
_SAMPLES = 3

# What `detect` returns of an image.
Detections = dict[str, np.ndarray]


class DetectMethod(PredictorPart):
    """`detect` of a Predictor; see there for the attributes.

    compiled_detector: (score_threshold, max_detections) -> see _compile_detector. detection_split: how hosts
      share the decoding of a batch for detection, smaller than those of other methods.
    """

    encode_text: Callable
    compiled_detector: Callable
    detection_split: reading.HostSplit

    def detect(
        self,
        images: Images,
        class_names: Sequence[str] | None = None,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        templates: str | Sequence[str] = ("{}",),
    ) -> list[Detections]:
        """Finds the objects in images.

        Each image is resized to the size of evaluation, with its aspect, and padded to one of a few static
        sizes, see data.letterbox.

        With class_names the head's boxes are proposals, whatever their classes, and text classifies each, as
        Florence does (arXiv 2111.11432, sections 2.4 and 3.6: a frozen image encoder, class-agnostic
        proposals, zero-shot classification of each). The paper does not state how: here the image encoder
        encodes what is inside the box, cut out of the resized image and stretched to the size of evaluation,
        and the probabilities of the names are those of `zero_shot`. The score is the proposal's times the
        largest of them.

        Args:
          images: uint8[B, H, W, 3], or other Images, of any sizes.
          class_names: C names; None for the classes of training, which the head itself tells.
          score_threshold: boxes whose class, or with class_names any object, is less probable are left out.
          max_detections: of an image, those of the highest scores.
          templates: of the names, as in zero_shot.

        Returns:
          For each image dict(boxes: float32[n, 4], (left, top, right, bottom) in pixels of the given image;
          scores: float32[n], falling; labels: int32[n]).

        Raises:
          FileNotFoundError: for a path to no file.
          ValueError: for anything else but such images, names and templates, for a model without a detection
            head, and with class_names for one without a text encoder.
        """
        self._require("detect")
        texts = self.class_texts(class_names, templates)
        run = functools.partial(
            self.compiled_detector(score_threshold, max_detections), (self.variables, texts)
        )
        letterbox, size = self.letterbox, self.detection_split.size
        by_size, results = dict[tuple, list[tuple[int, Letterboxed]]](), dict[int, Detections]()
        for i, image in enumerate(opened_images(images, self.channels)):
            letterboxed = letterbox(image)
            group = by_size.setdefault(letterboxed.pixels.shape, [])
            group.append((i, letterboxed))
            if len(group) == size:  # not all at once: thousands of photographs would not fit in memory
                results |= self._detections(run, by_size.pop(letterboxed.pixels.shape))
        for group in by_size.values():
            results |= self._detections(run, group)
        return [results[i] for i in range(len(results))]

    def _detections(self, run, group):
        """{number of an image: its Detections} of [(number, Letterboxed of one static size)]."""
        numbers, examples = zip(*((i, x.example()) for i, x in group), strict=True)
        batch = jax.tree.map(lambda *x: np.stack(x), *examples)
        boxes = self._in_batches(run, batch, self.detection_split.size)
        return dict(zip(numbers, by_image(boxes), strict=True))

    @property
    def letterbox(self) -> Letterbox:
        """How `detect` resizes and pads images."""
        objective = self.system.terms[self.system.provider("detect")].objective
        mean = self.system.eval_pixels.mean
        return Letterbox.of(self.image_config, objective.max_side, objective.multiple, mean)

    def class_texts(
        self, class_names: Sequence[str] | None, templates: str | Sequence[str] = ("{}",)
    ) -> np.ndarray | None:
        """The embeddings of names, float32[C, D]; None of None. Arguments and errors as in `detect`."""
        if class_names is None:
            return None
        self._require("zero_shot")
        self._require("encode_image")
        if not is_text_list(class_names):
            raise ValueError("class_names must be a list of str, at least one")
        return prompts.class_embeddings(self.encode_text, class_names, prompt_templates.templates(templates))

    def _compile_detector(self, score_threshold: float, max_detections: int) -> Callable:
        """A compiled function of ((variables, texts: float32[C, D] or None), a batch of Letterboxed.example).

        It returns Boxes, in pixels of the images before they were resized.
        """
        compute = functools.partial(self._compute_boxes, score_threshold, max_detections)
        return sharded(compute, self._mesh)

    def _compute_boxes(self, threshold, limit, model, batch):
        variables, texts = model
        how: Any = prediction(self.system, "detect")
        objective = self.system.terms[how.objective].objective
        predictions = self._head_result(variables, how, batch["images"])
        if texts is not None:
            logits = tuple(x.max(-1, keepdims=True) for x in predictions["logits"])
            predictions = predictions | dict(logits=logits)
        rules = Rules(threshold, objective.candidates, objective.nms_threshold, limit)
        boxes = select(predictions, objective.anchors(predictions), batch["sides"], rules)
        scale = jnp.tile((batch["originals"] / batch["sides"])[:, None, ::-1], 2)
        original = boxes._replace(boxes=boxes.boxes * scale)
        if texts is None:
            return original
        scores, labels = self._classify_boxes(variables, texts, batch["images"], boxes.boxes)
        return original._replace(scores=boxes.scores * scores, labels=labels)

    def _classify_boxes(self, variables, texts, images, boxes):
        """The probability of each box's most probable name, and its index.

        Args:
          variables: the model's.
          texts: float32[C, D].
          images: uint8[B, H, W, C].
          boxes: float32[B, N, 4], in their pixels.

        Returns:
          (float32[B, N], int32[B, N]).
        """
        how: Any = prediction(self.system, "encode_image")
        size = self.image_config["image_size"]
        crops = jax.vmap(lambda image, inside: roi_align(image, inside, size, _SAMPLES))(images, boxes)
        embeddings = self._head_result(variables, how, crops.reshape(-1, *crops.shape[2:]))
        scalars = self.system.head(variables, self.system.provider("zero_shot"), {})
        probabilities = prompts.class_probabilities(l2_normalize(embeddings) @ texts.T, scalars)
        best, labels = probabilities.max(-1), probabilities.argmax(-1).astype(jnp.int32)
        return best.reshape(boxes.shape[:2]), labels.reshape(boxes.shape[:2])


def by_image(boxes: Boxes) -> list[Detections]:
    """What `detect` returns of each image of Boxes on the host: used rows, by falling score."""
    results = []
    for corners, scores, labels in zip(*boxes, strict=True):
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > 0]
        results.append(
            dict(boxes=corners[order], scores=scores[order], labels=labels[order].astype(np.int32))
        )
    return results
