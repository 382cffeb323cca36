"""Boxes of objects in images, by a trained detection head; by names alone with a model of images and texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_ssl.data import prompt_templates
from big_ssl.data.letterbox import Letterbox, Letterboxed
from big_ssl.evals import prompts
from big_ssl.evals.model_inputs import Images, image_list, is_text_list

# Images of one static size that go through the model at once, on each device.
_IMAGES = 4


class DetectMethod:
    """The method `detect` of a Predictor."""

    system: Any
    variables: Any
    image_config: Mapping
    encode_text: Callable
    channels: int
    _mesh: Any
    _whole_batches: bool

    def _require(self, method: str) -> None:
        """Raises ValueError if the model lacks the method."""
        raise NotImplementedError

    def detect(
        self,
        images: Images,
        class_names: Sequence[str] | None = None,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        templates: str | Sequence[str] = ("{}",),
    ) -> list[dict[str, np.ndarray]]:
        """Finds objects in images of any sizes.

        Each image is resized to the config's evaluation size, with its aspect, and padded to one of a few
        static sizes, see data.letterbox.

        With class_names the head's boxes are proposals, whatever their class, and each is classified by
        text, as Florence does (arXiv 2111.11432, section 3.6): the image encoder encodes what is inside the
        box, cut out of the image and resized to the size of evaluation, as `zero_shot` would. The score is
        the proposal's times the probability of its most probable name.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          class_names: names of classes; None for those of training, by the head's own classifier.
          score_threshold: proposals below it are left out; the head's probability, before it is multiplied.
          max_detections: of an image, those of the highest scores.
          templates: of the names, as in zero_shot.

        Returns:
          For each image dict(boxes: float32[n, 4], (left, top, right, bottom) in pixels of the given image;
          scores: float32[n], falling; labels: int32[n], indices of classes).

        Raises:
          FileNotFoundError: for a path to no file.
          ValueError: for anything but images, and for a model without a detection head; with class_names for
            a model without a text encoder.
        """
        self._require("detect")
        texts = self.class_texts(class_names, templates)
        options, letterbox = (score_threshold, max_detections), self.letterbox
        by_size: dict[tuple, list[tuple[int, Letterboxed]]] = {}
        for i, image in enumerate(image_list(images, self.channels)):
            letterboxed = letterbox(image)
            by_size.setdefault(letterboxed.pixels.shape, []).append((i, letterboxed))
        results: dict[int, dict] = {}
        for group in by_size.values():
            indices, letterboxed = zip(*group, strict=True)
            pixels = np.stack([x.pixels for x in letterboxed])
            sides = np.array([x.sides for x in letterboxed], np.float32)
            found = self._detections_of(dict(images=pixels, sides=sides), texts, options)
            results |= {i: _in_pixels(found, k, x) for k, (i, x) in enumerate(group)}
        return [results[i] for i in range(len(results))]

    @property
    def letterbox(self) -> Letterbox:
        """How images are resized and padded."""
        objective = self.system.terms[self.system.provider("detect")].objective
        mean = self.system.eval_pixels.mean
        return Letterbox.of(self.image_config, objective.max_side, objective.multiple, mean)

    def class_texts(
        self, class_names: Sequence[str] | None, templates: str | Sequence[str] = ("{}",)
    ) -> dict[str, np.ndarray] | None:
        """The embeddings of names that `detect` compares boxes with, dict(texts: float32[C, D]); None for
        None. Raises ValueError for anything but names, and for a model without a text encoder."""
        if class_names is None:
            return None
        self._require("zero_shot")
        if not is_text_list(class_names):
            raise ValueError("class_names must be a list of str, at least one")
        parsed = prompt_templates.templates(templates)
        return dict(texts=prompts.class_embeddings(self.encode_text, class_names, parsed))
