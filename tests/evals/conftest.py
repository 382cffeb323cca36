"""A real Predictor of encoders that embed by colour, and folders of coloured squares."""

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_ssl.data.preprocessing import Pixels
from big_ssl.evals.predictor import Predictor
from big_ssl.losses.pairwise import Pairwise
from big_ssl.models import vit
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.classification import Classification, ClassifierHead
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.system import System, Term

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (120, 130, 125)}


# The classes of the fixture's classifier.
CLASS_COLOURS = np.array([*COLOURS.values(), (0, 0, 0), (250, 250, 250)])


def _colour(text):
    """A text's colour if it names one, else a direction of its own."""
    named = [colour for name, colour in COLOURS.items() if name in text]
    seed = int(hashlib.sha1(text.encode()).hexdigest(), 16) % 2**32
    return named[0] if named else np.random.default_rng(seed).normal(size=3)


def tokenize(texts):
    """A text's tokens are its colour, in hundredths."""
    ids = np.round(100 * np.array([_colour(text) for text in texts])).astype(np.int32)
    return dict(ids=ids, mask=np.ones_like(ids, bool))


class ColourViT(vit.ViT):
    """A ViT whose pooled output is the mean colour less 60."""

    def __call__(self, images, train=False, mask=None, intermediate=()):
        outputs = super().__call__(images, train, mask, intermediate)
        return outputs | dict(pooled=64 * (images.mean((1, 2)) + 2) - 60)


class ColourTexts(Encoder):
    input = "text"
    outputs = ("pooled",)

    @nn.compact
    def __call__(self, ids, mask, train=False):
        return dict(pooled=ids / 100.0 - 60)


def colour_system(depth=2):
    """(System, variables): the encoders above with a contrastive head and a classifier that keep colours."""
    module = ColourViT(**vit.DINO, patch=2, width=16, depth=depth, heads=2, image_size=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 4, 4, 3)))["params"]
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    system = System(
        encoders=dict(image=module, text=ColourTexts()),
        fields={},
        eval_pixels=Pixels((128 / 255,), (64 / 255,)),
        terms=dict(
            pairs=Term("pairs", Contrastive(ContrastiveHead(3), Pairwise("dense", None)), lambda step: 1.0),
            colours=Term("colours", Classification(ClassifierHead(6)), lambda step: 1.0),
        ),
    )
    # The nearest of the classes' colours has the largest logit.
    classes = CLASS_COLOURS.T.astype(np.float32) - 60
    heads = dict(
        pairs=dict(temperature=np.float32(1), text_projection=dict(kernel=np.eye(3), bias=np.zeros(3))),
        colours=dict(linear=dict(kernel=classes, bias=-(classes**2).sum(0) / 2)),
    )
    params = dict(encoders=dict(image=random, text={}), heads=heads)
    return system, jax.tree.map(jnp.asarray, dict(params=params, encoders=dict(image={}, text={})))


def make_predictor(system, variables, devices=1, batch_size=32):
    """A Predictor of images of 4 pixels a side."""
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    return Predictor(
        system, variables, mesh, dict(image_size=4, resize="crop 8"), lambda: tokenize, batch_size
    )


@pytest.fixture(scope="session")
def compiled():
    return make_predictor(*colour_system())


@pytest.fixture
def predictor(compiled):
    """Embeds images by their mean colour, texts by the colour that they name."""
    return compiled.for_evaluation()


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
