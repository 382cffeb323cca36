"""Weighted neighbours against scikit-learn's and the published sum of weights."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from big_ssl.evals import knn, split_candidates
from big_ssl.evals.predictor import Predictor
from big_ssl.models.encoder import Encoder
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.system import System

RNG = np.random.default_rng(0)
CLASSES, KS, TEMPERATURE = 7, (1, 5, 20), 0.07


def reference(train, labels, queries, k):
    """DINO's vote: of each class, the sum of exp(cosine / temperature) of those among the k nearest."""
    train, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, queries))
    distance, where = NearestNeighbors(n_neighbors=k, metric="cosine").fit(train).kneighbors(queries)
    votes = np.zeros((len(queries), CLASSES))
    for query in range(len(queries)):
        for d, i in zip(distance[query], where[query], strict=True):
            votes[query, labels[i]] += np.exp((1 - d) / TEMPERATURE)
    return votes.argmax(1)


@pytest.mark.parametrize("queries", [5, 300])
def test_votes_are_those_of_scikit_learns_neighbours(queries):
    """Of random features of any length, queries that fill a batch and some that do not."""
    train, labels = RNG.normal(size=(200, 16)), RNG.integers(0, CLASSES, 200)
    asked = RNG.normal(size=(queries, 16)) * RNG.uniform(0.1, 10, (queries, 1))
    found = knn.predictions(train, labels, asked, CLASSES, KS, TEMPERATURE)
    for i, k in enumerate(KS):
        np.testing.assert_array_equal(found[:, i], reference(train, labels, asked, k))


@pytest.mark.parametrize("count", [9, 203])
def test_each_device_holds_its_part_of_the_training_features(count, monkeypatch):
    """And no more, with the votes of one device that holds all, ties more neighbours than a part has."""
    rng, held = np.random.default_rng(1), []
    split = split_candidates.split

    def spy(*arguments):
        held.append(split(*arguments))
        return held[-1]

    monkeypatch.setattr(split_candidates, "split", spy)
    train = rng.integers(-1, 2, (count, 4)) + np.array(
        [0.0, 0, 0, 3]
    )  # few directions: many are equally near
    labels, asked = rng.integers(0, CLASSES, count), rng.normal(size=(30, 4))
    given = (train, labels, asked, CLASSES, (1, 5, 9), TEMPERATURE)
    found = knn.predictions(*given)
    for array in held:
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {-(-count // 8)}
    one = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    monkeypatch.setattr(mesh_lib, "make_mesh", lambda sizes: one)
    np.testing.assert_array_equal(found, knn.predictions(*given))


def test_near_neighbours_outvote_many_far_ones():
    train = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    assert knn.predictions(train, np.array([0, 1, 1, 1]), np.array([[1.0, 0.1]]), 2, (4,), 0.07) == [[0]]
    assert knn.predictions(train, np.array([0, 1, 1, 1]), np.array([[1.0, 0.1]]), 2, (4,), 10.0) == [[1]]


class _Pixels(Encoder):
    outputs = ("pooled",)

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        return dict(pooled=x - x.mean(1, keepdims=True))


def _of_pixels():
    """A Predictor whose features are the pixels themselves."""
    system = System(dict(image=_Pixels()), {}, {})
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    variables = dict(params=dict(encoders=dict(image={}), heads={}), encoders=dict(image={}))
    return Predictor(system, variables, mesh, dict(image_size=16, resize="crop"), None, 256).for_evaluation()


def emoji(**rest):
    return dict(kind="emoji", styles=("fxemoji",), **rest)


def test_the_evaluator_reports_each_k_the_majority_and_pixels():
    """Features that are the pixels are as good as the pixels; training images are their own neighbours."""
    evaluator = knn.Knn(
        emoji(concepts="unseen"),
        emoji(concepts="unseen"),
        "category",
        ks=(1, 500),
        temperature=10.0,
        pixels=True,
        name="x",
    )
    predictor = _of_pixels()
    found = evaluator.metrics(predictor)
    assert found["knn/x/k1_top1"] == found["knn/x/pixel_k1_top1"] > 0.99
    assert found["knn/x/majority"] <= found["knn/x/k500_top1"] < 1
    assert set(found) == {
        f"knn/x/{m}" for m in ("k1_top1", "k500_top1", "majority", "pixel_k1_top1", "pixel_k500_top1")
    }
    assert evaluator.metrics(predictor) == found


def test_some_of_each_class():
    labels = np.array([2, 0, 2, 2, 0, 5, 2])
    chosen = [knn.some_of_each(labels, 2, seed) for seed in range(20)]
    assert all(sorted(labels[indices]) == [0, 0, 2, 2, 5] for indices in chosen)
    assert all(len(set(indices)) == 5 for indices in chosen)
    assert {tuple(sorted(indices)) for indices in chosen} == {
        tuple(sorted((1, 4, 5, a, b))) for a in (0, 2, 3, 6) for b in (0, 2, 3, 6) if a < b
    }
    np.testing.assert_array_equal(chosen[3], knn.some_of_each(labels, 2, 3))


def test_few_shot_accuracy_is_a_mean_over_draws(folder, predictor):
    """The mean over draws of what scikit-learn's nearest neighbour gets with each."""
    shades = RNG.integers(0, 256, (4, 6, 3))
    read = lambda colours: [tuple(map(int, colour)) for colour in colours]  # noqa: E731
    train = folder(dict(a=read(shades[0]), b=read(shades[1])), "train")
    test = folder(dict(a=read(shades[2]), b=read(shades[3])), "test")
    sets = (dict(kind="image_folder", path=path) for path in (train, test))
    found = knn.Knn(*sets, ks=(1,), per_class=(2, 6), tries=3, name="x").metrics(predictor)
    known, asked, labels = *(shades.reshape(2, 12, 3) - 60.0), np.repeat([0, 1], 6)
    accuracies = []
    for seed in range(3):
        chosen = knn.some_of_each(labels, 2, seed)
        fit = KNeighborsClassifier(1, metric="cosine").fit(known[chosen], labels[chosen])
        accuracies.append(fit.score(asked, labels))
    assert len(set(accuracies)) > 1
    assert found["knn/x/2_per_class_k1_top1"] == pytest.approx(np.mean(accuracies))
    assert found["knn/x/6_per_class_k1_top1"] == found["knn/x/k1_top1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ks=()), r"knn: ks is \(\); it must hold numbers of at least 1"),
        (dict(ks=(0,)), r"knn: ks is \(0,\)"),
        (dict(per_class=(5, 0)), r"knn: per_class is \(5, 0\), tries 5; use numbers of at least 1"),
        (dict(features="all"), "features is 'all'; use pooled or images"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        knn.Knn(emoji(), emoji(), "category", name="x", **options)
