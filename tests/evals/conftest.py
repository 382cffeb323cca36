"""A made-up embedder, and folders of coloured squares for it to look at."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from big_ssl.evals.embedder import Embedder

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (120, 130, 125)}


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _colour(text):
    """A text's colour where it names one, else a direction of its own."""
    known = [colour for name, colour in COLOURS.items() if name in text]
    seed = int(hashlib.sha1(text.encode()).hexdigest(), 16) % 2**32
    return known[0] if known else np.random.default_rng(seed).normal(size=3)


@pytest.fixture
def embedder():
    """Embeds pictures by their mean colour, texts by the colour that they name."""
    mean = lambda images: images.reshape(len(images), -1, 3).mean(1) - 60  # noqa: E731
    return Embedder(
        prepare=lambda images: images[:, :4, :4],
        images=lambda images: _unit(mean(images)),
        texts=lambda texts: _unit(np.array([np.array(_colour(text)) - 60 for text in texts])),
        pooled=mean,
    )


@pytest.fixture
def folder(tmp_path):
    """folder({class: [colour, ...]}) -> the path of a folder of 8 x 8 pictures in class subfolders."""

    def write(classes, where="set"):
        for name, colours in classes.items():
            (tmp_path / where / name).mkdir(parents=True)
            for i, colour in enumerate(colours):
                rgb = COLOURS.get(colour, colour)
                Image.new("RGB", (8, 8), rgb).save(tmp_path / where / name / f"{i}.png")
        return str(tmp_path / where)

    return write
