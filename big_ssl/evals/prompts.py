"""Text embeddings of class names: prompt templates and their average."""

import functools
import importlib.resources
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from big_ssl import io
from big_ssl.evals.reading import no_progress

# Classes whose prompts are embedded together.
_CLASSES = 32


def labels_file(name: str) -> Path:
    """A data file of this package's evaluations."""
    return Path(str(importlib.resources.files("big_ssl.evals") / "labels" / name))


@functools.cache
def openai_templates() -> tuple[str, ...]:
    """The 80 templates that CLIP was evaluated with on ImageNet."""
    return tuple(labels_file("openai_templates.txt").read_text(encoding="utf-8").splitlines())


def templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of an option: "openai", one template, a text file with one per line, or a list.

    Raises ValueError for a template without {}, the place of the class name, and for an empty list.
    """
    if spec == "openai":
        return openai_templates()
    if isinstance(spec, str):
        spec = [spec] if "{}" in spec else read_lines(spec)
    for template in spec:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"templates: {template!r} has no {{}}, the place of the class name")
    if not spec:
        raise ValueError("templates: there are none; ('{}',) is the bare class name")
    return tuple(spec)


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    lines = io.as_path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


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
