"""Weighted nearest neighbours on frozen features, DINO's protocol (arXiv 2104.14294, appendix F.2)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from big_ssl.data import bands, chunks
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import report_texts, split_candidates
from big_ssl.evals.batched import in_batches
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import FEATURES, LabelledSet
from big_ssl.evals.report_images import NearestImages, encoder_sections, neighbour_section
from big_ssl.parallel import mesh as mesh_lib

# The number of queries whose similarities to all training images are in memory.
_QUERIES = 256
_PIXELS = 16
# The report shows so many test images, and so many neighbours of each.
_SHOWN, _NEIGHBOURS = 8, 8


class Knn(Evaluator):
    """Predicts the class with the largest sum of exp(cosine / temperature) among the k nearest images.

    DINOv2's code computes the softmax over more neighbours before it selects k, which differs by a constant
    factor. train, test: labelled sources with the same labels; label: as in LabelledSet; ks: the values of k;
    per_class: numbers of training images of each class for few-shot results, means over `tries` draws;
    features: "pooled", the image encoder's output, or "images", the embedding; pixels: whether to report
    the accuracy with 16 x 16 mean-free pixels as features, too.
    """

    requires = ("encode_image",)

    def __init__(
        self,
        train: SourceConfig,
        test: SourceConfig,
        label: str = "label",
        ks: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        features: str = "pooled",
        pixels: bool = False,
        per_class: Sequence[int] = (),
        tries: int = 5,
        *,
        name: str,
    ):
        if features not in FEATURES:
            raise ValueError(f"features is {features!r}; use {' or '.join(FEATURES)}")
        if not ks or min(ks) < 1:
            raise ValueError(f"knn: ks is {tuple(ks)}; it must hold numbers of at least 1")
        if tries < 1 or min(per_class, default=1) < 1:
            raise ValueError(
                f"knn: per_class is {tuple(per_class)}, tries {tries}; use numbers of at least 1"
            )
        self._train, self._test = (LabelledSet(data, label) for data in (train, test))
        if list(self._train.names) != list(self._test.names):
            raise ValueError("knn: test has other labels than train")
        self._ks, self._temperature, self._features = tuple(ks), temperature, features
        self._pixels, self._name = pixels, name
        self._per_class, self._tries = tuple(per_class), tries
        self._of_pixels: dict | None = None

    def metrics(self, predictor) -> dict[str, float]:
        """{"knn/<name>/<metric>": value}: k<k>_top1 for each k; majority, the accuracy of always predicting
        the most frequent training class; with pixels, pixel_k<k>_top1; and for each n of per_class,
        <n>_per_class_k<k>_top1."""
        data = self._splits(lambda split, description: split.features(predictor, self._features, description))
        metrics = self._accuracies("", *data)
        for count in self._per_class:
            metrics |= self._few_shot(count, *data)
        if self._pixels:
            metrics |= self._pixel_accuracies(predictor)
        return {f"knn/{self._name}/{metric}": value for metric, value in metrics.items()}

    def sections(self, predictor):
        """Attention maps and patches if the encoder has them; test images with their nearest neighbours."""
        sections = []
        if "class_attention" in predictor.methods:
            images = functools.partial(self.images, predictor.channels)
            sections += encoder_sections(predictor, images)
        return [*sections, neighbour_section(self.nearest(predictor, _SHOWN, _NEIGHBOURS))]

    def nearest(self, predictor, count: int, neighbours: int) -> NearestImages:
        """`count` test images, evenly spread through the set, with their nearest training images."""
        train, _, test, _ = self._splits(
            lambda split, description: split.features(predictor, self._features, description)
        )
        chosen = report_texts.spread(np.arange(len(test)), count)
        cosines = _unit(test[chosen]) @ _unit(train).T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
        preprocess = chunks.prepared(predictor.preprocess)

        def load(split, indices):
            loaded = [split.image(int(i), preprocess, predictor.channels) for i in indices]
            images, labels = zip(*loaded, strict=True)
            return [bands.visible(image) for image in images], [self._train.names[label] for label in labels]

        images, names = load(self._test, chosen)
        rows = [load(self._train, row) for row in nearest]
        cosines = np.take_along_axis(cosines, nearest, axis=1)
        return NearestImages(self._name, images, names, rows, cosines, len(train))

    def images(self, channels: int, count: int, preprocess) -> np.ndarray:
        """uint8[count, S, S, channels]: preprocessed test images, evenly spread through the set."""
        chosen = report_texts.spread(np.arange(len(self._test)), count)
        make = chunks.prepared(preprocess)
        return np.stack([self._test.image(int(i), make, channels)[0] for i in chosen])

    def _pixel_accuracies(self, predictor):
        """Computed once: the images of a run are always preprocessed in the same way."""
        if self._of_pixels is None:
            collect = predictor.split.collect
            data = self._splits(
                lambda split, description: split.extract_features(
                    collect, "pixels", predictor, description, transform=_downsample
                )
            )
            self._of_pixels = self._accuracies("pixel_", *data)
            del self._of_pixels["pixel_majority"]
        return self._of_pixels

    def _few_shot(self, count, train, labels, queries, query_labels):
        draws = []
        for seed in range(self._tries):
            chosen = some_of_each(labels, count, seed)
            prefix = f"{count}_per_class_"
            draws.append(self._accuracies(prefix, train[chosen], labels[chosen], queries, query_labels))
        return {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0] if "_top1" in key}

    def _splits(self, features):
        """(train features, train labels, test features, test labels)."""
        train = features(self._train, f"{self._name}: train")
        return (*train, *features(self._test, f"{self._name}: test"))

    def _accuracies(self, prefix, train, labels, queries, query_labels):
        ks = [min(k, len(train)) for k in self._ks]
        classes = len(self._train.names)
        predicted = predictions(train, labels, queries, classes, ks, self._temperature)
        accuracies = {f"k{k}_top1": (predicted[:, i] == query_labels).mean() for i, k in enumerate(self._ks)}
        accuracies["majority"] = (query_labels == np.bincount(labels).argmax()).mean()
        return {f"{prefix}{name}": float(value) for name, value in accuracies.items()}


def some_of_each(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of `count` random examples per class, all of a class that has fewer. labels: int[N]."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)])


def predictions(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, ks: Sequence[int], temperature
) -> np.ndarray:
    """Votes of the nearest training features, which are split over all devices: ImageNet's would fill one.

    Args:
      train: float[N, D], training features; only their direction matters.
      labels: int[N], below `classes`.
      queries: float[Q, D].
      classes: the number of classes.
      ks: numbers of neighbours.
      temperature: of the cosines.

    Returns:
      int[Q, len(ks)]: the class of each query for each k.
    """
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    candidates = split_candidates.split(mesh, lambda rows: _unit(train[rows]), len(train))
    classes_of = split_candidates.split(mesh, lambda rows: np.asarray(labels[rows], np.int32), len(train))
    run = functools.partial(
        _jitted(mesh, len(train), classes, tuple(ks), temperature), candidates, classes_of
    )
    return in_batches(run, mesh, _unit(queries), _QUERIES).astype(int)


@functools.cache
def _jitted(mesh, count, classes, ks, temperature):
    votes = functools.partial(_votes, count=count, classes=classes, ks=ks, temperature=temperature)
    return split_candidates.over_devices(votes, mesh)


def _votes(train, labels, queries, *, count, classes, ks, temperature):
    """int[Q, len(ks)], from this device's part of the training features and the other devices' nearest."""
    similarities = jnp.matmul(queries, train.T, precision="highest")
    similarities = jnp.where(split_candidates.are_there(train, count), similarities, -jnp.inf)
    nearest, where = jax.lax.top_k(similarities, min(max(ks), len(train)))
    # In the order of the devices, so that the first of equal candidates wins, as without the split.
    nearest, labels = split_candidates.joined((nearest, labels[where]))
    nearest, where = jax.lax.top_k(nearest, max(ks))
    labels = jnp.take_along_axis(labels, where, axis=1)
    # Only differences of cosines count: the largest weight is 1.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)

    def vote(k):
        tally = jax.vmap(lambda w, c: jnp.zeros(classes).at[c].add(w))
        return tally(weights[:, :k], labels[:, :k]).argmax(1)

    return jnp.stack([vote(k) for k in ks], axis=1)


def _unit(x):
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _downsample(image):
    small = bands.from_array(image).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
    flat = np.asarray(small).ravel().astype(np.float32) / 255
    return flat - flat.mean()
