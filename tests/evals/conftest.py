"""A made-up embedder, and folders of coloured squares for it to look at."""

import functools
import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from big_ssl.evals.embedder import Embedder, in_batches, looking
from big_ssl.models import vit
from big_ssl.parallel import mesh as mesh_lib

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (120, 130, 125)}


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _colour(text):
    """A text's colour where it names one, else a direction of its own."""
    known = [colour for name, colour in COLOURS.items() if name in text]
    seed = int(hashlib.sha1(text.encode()).hexdigest(), 16) % 2**32
    return known[0] if known else np.random.default_rng(seed).normal(size=3)


@pytest.fixture(scope="session")
def tower():
    """tower(depth) -> (a small ViT that nobody trained, its variables)."""

    def make(depth):
        module = vit.ViT(**vit.DINO, patch=2, width=16, depth=depth, heads=2, image_size=4)
        shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 4, 4, 3)))
        rng = np.random.default_rng(0)
        return module, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)

    return make


@pytest.fixture(scope="session")
def inside(tower):
    """Embedder.inside of one of two layers, on pictures of 4 pixels and more."""
    return seeing(*tower(2))


def seeing(module, variables):
    """Embedder.inside of a ViT."""
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:1])
    seen = looking(lambda variables, images: (module, variables, images / 64.0 - 2), mesh)

    def run(look, images, *options, size=32):
        return in_batches(functools.partial(seen(look, *options), variables), mesh, images, size)

    return run


@pytest.fixture
def embedder(inside):
    """Embeds pictures by their mean colour, texts by the colour that they name."""
    mean = lambda images: images.reshape(len(images), -1, 3).mean(1) - 60  # noqa: E731
    return Embedder(
        prepare=lambda images: images[:, :4, :4],
        images=lambda images: _unit(mean(images)),
        texts=lambda texts: _unit(np.array([np.array(_colour(text)) - 60 for text in texts])),
        pooled=mean,
        inside=inside,
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
