"""Image-text retrieval in both directions, with any number of captions per image."""

from collections.abc import Sequence

import numpy as np

from big_ssl.data import records, sources
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import ranking, reading
from big_ssl.evals.evaluator import Evaluator

KS = (1, 5, 10)

# Captions that are embedded together.
_TEXTS = 2048


class Retrieval(Evaluator):
    """Recall at 1, 5 and 10 over a whole set: a hit if any right answer is among the first k.

    data: a source of captioned images; captions: the keys of the captions in its records;
    per_image: how many captions of an image count, 0 for all (COCO has five to seven, of which some
    papers use five); prefix: put before each caption with a space; CLIP's was "a photo of".
    """

    requires = ("encode_image", "encode_text")

    def __init__(
        self,
        data: SourceConfig,
        captions: Sequence[str] = ("text",),
        per_image: int = 0,
        prefix: str = "",
        *,
        name: str,
    ):
        self._source, self._name = sources.build(data), name
        if isinstance(self._source[0], list):
            raise ValueError(f"data: the source {data['kind']} groups its records; use single ones")
        self._captions = (captions,) if isinstance(captions, str) else tuple(captions)
        self._per_image, self._prefix = per_image or None, f"{prefix} " if prefix else ""
        self._texts(self._source[0])

    def metrics(self, predictor) -> dict[str, float]:
        """{"retrieval/<name>/<direction>_r<k>": fraction}."""
        embeddings, captions, owners, count = [], [], [], 0
        batches = reading.batches(self._source, self._texts, predictor, f"{self._name}: images")
        for images, texts in batches:
            rows = [row for row, row_texts in enumerate(texts) if row_texts is not None]
            embeddings.append(predictor.encode_image(images)[rows])
            for row in rows:
                owners += [count] * len(texts[row])
                captions += texts[row]
                count += 1
        starts = range(0, len(captions), _TEXTS)
        steps = predictor.progress(starts, len(starts), f"{self._name}: captions")
        text_embeddings = [predictor.encode_text(captions[start : start + _TEXTS]) for start in steps]
        metrics = recalls(np.concatenate(embeddings), np.concatenate(text_embeddings), np.array(owners))
        return {f"retrieval/{self._name}/{metric}": value for metric, value in metrics.items()}

    def _texts(self, record):
        missing = [kind for kind in self._captions if kind not in record]
        if missing:
            kinds = ", ".join(key for key in record if key != records.IMAGE)
            raise ValueError(f"captions: the records have no {missing[0]!r}; there are {kinds}")
        texts = [text for kind in self._captions for text in records.values(record, kind)][: self._per_image]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"captions: {texts!r} of a record are no captions")
        return [self._prefix + text for text in texts]


def recalls(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """{"image_to_text_r<k>" and "text_to_image_r<k>": fraction} for k = 1, 5, 10.

    Equal texts of two images are a tie, and count against both.

    Args:
      images: float32[N, D].
      texts: float32[M, D].
      owners: int[M], the index of each text's image; every image has at least one text.
    """
    numbers = np.arange(len(images))
    directions = {
        "image_to_text": ranking.group_ranks(images, texts, numbers, owners),
        "text_to_image": ranking.group_ranks(texts, images, owners, numbers),
    }
    return {f"{name}_r{k}": ranking.recall_at(rank, k) for name, rank in directions.items() for k in KS}
