"""Text embeddings of class names: the average over prompts."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from big_ssl.evals.reading import no_progress

# Classes whose prompts are embedded together.
_CLASSES = 32


def canonical(text: str) -> str:
    """Lower case, without ASCII punctuation, single spaces: the texts that SigLIP was trained on
    (big_vision, evaluators/proj/image_text/prompt_engineering.py)."""
    bare = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(bare.lower().split())


def class_embeddings(
    encode: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Sequence[str],
    canonicalize: bool = False,
    progress: Callable[[Iterable, int, str], Iterable] = no_progress,
) -> np.ndarray:
    """Embeds class names: the mean of a name's normalised prompt embeddings (CLIP, arXiv 2103.00020, section
    3.1.4: an ensemble in embedding space).

    Args:
      encode: N texts -> float32[N, D].
      names: C class names.
      templates: T texts with {} for the name.
      canonicalize: whether prompts are in lower case without punctuation.
      progress: as in Predictor.

    Returns:
      float32[C, D], L2-normalised.
    """
    starts = range(0, len(names), _CLASSES)
    embeddings = []
    for start in progress(starts, len(starts), "class names"):
        batch = names[start : start + _CLASSES]
        prompts = [template.replace("{}", name) for name in batch for template in templates]
        if canonicalize:
            prompts = [canonical(prompt) for prompt in prompts]
        vectors = _unit(np.asarray(encode(prompts), np.float32)).reshape(len(batch), len(templates), -1)
        embeddings.append(_unit(vectors.mean(1)))
    return np.concatenate(embeddings)


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def class_probabilities(cosines, scalars: Mapping):
    """The probability of each class name for each image: float32[N, C].

    Softmax over the names of the scaled cosines (CLIP, arXiv 2103.00020, figure 1); with a logit bias a
    sigmoid for each name (SigLIP, arXiv 2303.15343, equation 1), so that rows need not sum to 1.

    Args:
      cosines: float32[N, C], of images and class_embeddings.
      scalars: the temperature, and the logit_bias of a model that has one.
    """
    logits = cosines / scalars["temperature"]
    if "logit_bias" in scalars:
        return jax.nn.sigmoid(logits + scalars["logit_bias"])
    return jax.nn.softmax(logits)
